"""The kernels against their definition, and what they promise beyond it."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, library

from sru_asr import native, ops, reference

pytestmark = pytest.mark.skipif(
    native.why_missing("cpu") is not None, reason=str(native.why_missing("cpu"))
)
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])]
Case = dict[str, Any]


def make_case(
    steps: int,
    batch: int,
    hidden: int,
    *,
    lanes: int = 3,
    bidirectional: bool = False,
    activation: str = "identity",
    v: bool = True,
    x: bool = True,
    c0: bool = True,
    lengths: bool = True,
    mask: bool = True,
    forget_bias: float = 0.0,
    seed: int = 0,
) -> Case:
    """Random arguments in float32, with v as a layer draws it: a larger one makes chaos."""
    random = torch.Generator().manual_seed(seed)
    width = 2 * hidden if bidirectional else hidden

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    bias = 0.5 * normal(2, width)
    bias[0] += forget_bias
    keep = torch.rand(batch, width, generator=random) > 0.25
    return {
        "u": normal(steps, batch, lanes, width),
        "v": 0.7 * normal(2, width).clamp(-1.7, 1.7) if v else None,
        "b": bias,
        "x": normal(steps, batch, width) if x and lanes == 3 else None,
        "c0": normal(batch, width) if c0 else None,
        "lengths": torch.randint(0, steps + 1, (batch,), generator=random) if lengths else None,
        "bidirectional": bidirectional,
        "alpha": 1.25,
        "activation": activation,
        "mask": keep.float() / 0.75 if mask else None,
    }


def convert(case: Case, **to: Any) -> Case:
    """Move a case to a dtype or device; its leaves ask for gradients."""
    moved = {}
    for name, value in case.items():
        if isinstance(value, Tensor):
            if value.is_floating_point():
                value = value.detach().to(**to)
                value = value.clone().requires_grad_(name != "mask")
            elif "device" in to:
                value = value.to(device=to["device"])
        moved[name] = value
    return moved


def run(function: Any, case: Case, seed: int = 1) -> dict[str, Tensor]:
    """Outputs and all gradients of one call."""
    h, c_n = function(**case)
    random = torch.Generator().manual_seed(seed)
    grads = [torch.randn(t.shape, generator=random).to(t) for t in (h, c_n)]
    leaves = {n: t for n, t in case.items() if isinstance(t, Tensor) and t.requires_grad}
    found: Any = [None] * len(leaves)
    if h.requires_grad or c_n.requires_grad:  # the reference's do not when there are no steps
        outputs = [(t, g) for t, g in zip((h, c_n), grads, strict=True) if t.requires_grad]
        found = torch.autograd.grad(
            [t for t, _ in outputs],
            list(leaves.values()),
            [g for _, g in outputs],
            allow_unused=True,
        )
    results = {"h": h.detach(), "c_n": c_n.detach()}
    for (name, leaf), grad in zip(leaves.items(), found, strict=True):
        results[f"grad {name}"] = torch.zeros_like(leaf) if grad is None else grad
    return results


def assert_near(actual: dict[str, Tensor], expected: dict[str, Tensor], within: float) -> None:
    assert actual.keys() == expected.keys()
    for name, wanted in expected.items():
        got = actual[name].cpu().double()
        assert got.shape == wanted.shape, name
        if wanted.numel():
            error = (got - wanted).abs().max() / wanted.abs().max().clamp_min(1e-30)
            assert error <= within, f"{name}: relative error {error:.2e}"


def assert_same(actual: Tensor, expected: Tensor) -> None:
    assert torch.equal(actual, expected)


def compare(case: Case, device: str = "cpu", within: float = 1e-5) -> None:
    expected = run(reference.sru_recurrence, convert(case, dtype=torch.float64))
    single = run(ops.sru_recurrence, convert(case, dtype=torch.float32, device=device))
    assert_near(single, expected, within)
    double = run(ops.sru_recurrence, convert(case, dtype=torch.float64, device=device))
    assert_near(double, expected, 1e-12)


# --- against the definition


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("batch", [0, 1, 3])
@pytest.mark.parametrize("steps", [0, 1, 2, 31, 257])
def test_sizes(steps: int, batch: int, device: str) -> None:
    compare(make_case(steps, batch, 5), device)
    compare(make_case(steps, batch, 37, lanes=4, bidirectional=True), device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("hidden", [0, 1, 15, 16, 17, 63, 64, 81, 577])
def test_widths(hidden: int, device: str) -> None:
    compare(make_case(7, 2, hidden, bidirectional=True), device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("activation", ["identity", "tanh"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lanes": 4},
        {"x": False},
        {"v": False},
        {"c0": False},
        {"lengths": False},
        {"mask": False},
        {"v": False, "x": False, "c0": False, "lengths": False, "mask": False},
    ],
    ids=lambda options: "-".join(options) or "all",
)
def test_options(options: Case, bidirectional: bool, activation: str, device: str) -> None:
    compare(
        make_case(13, 3, 19, bidirectional=bidirectional, activation=activation, **options), device
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("forget_bias", [4.0, 8.0, -8.0])
def test_saturated_gates(forget_bias: float, device: str) -> None:
    # A state that hardly decays carries an error, or a lost gradient, over the whole sequence.
    compare(make_case(257, 2, 21, forget_bias=forget_bias, bidirectional=True), device)


@settings(max_examples=40, deadline=None)
@given(
    steps=st.integers(0, 40),
    batch=st.integers(0, 4),
    hidden=st.integers(0, 90),
    lanes=st.sampled_from([3, 4]),
    bidirectional=st.booleans(),
    activation=st.sampled_from(["identity", "tanh"]),
    present=st.fixed_dictionaries(
        {name: st.booleans() for name in ("v", "x", "c0", "lengths", "mask")}
    ),
    seed=st.integers(0, 999),
)
def test_anything(
    steps: int,
    batch: int,
    hidden: int,
    lanes: int,
    bidirectional: bool,
    activation: str,
    present: dict[str, bool],
    seed: int,
) -> None:
    case = make_case(
        steps,
        batch,
        hidden,
        lanes=lanes,
        bidirectional=bidirectional,
        activation=activation,
        seed=seed,
        **present,
    )
    compare(case)


@pytest.mark.parametrize("device", DEVICES)
def test_gate_precision(device: str) -> None:
    # One step from c0 = 1 with u0 = 0 returns the forget gate, from 0 with 1 its complement.
    z = torch.linspace(-78, 78, 4001, device=device)
    u = torch.zeros(1, 2, 3, z.numel(), device=device)
    u[..., 1, :] = z
    u[0, 1, 0] = 1
    c0 = torch.zeros(2, z.numel(), device=device)
    c0[0] = 1
    _, c = ops.sru_recurrence(u, None, torch.zeros(2, z.numel(), device=device), c0=c0)
    for gate, sign in zip(c, (1, -1), strict=True):
        expected = torch.sigmoid(sign * z.double())
        within = 4e-7 if device == "cpu" else 1e-5
        assert ((gate - expected) / expected).abs().max() < within


@pytest.mark.parametrize("device", DEVICES)
def test_extreme_inputs(device: str) -> None:
    z = torch.tensor([-torch.inf, -1e30, -1e3, -100, 100, 1e3, 1e30, torch.inf], device=device)
    u = torch.ones(3, 1, 3, z.numel(), device=device)
    u[:, 0, 1] = z
    u[:, 0, 2] = z
    b = torch.zeros(2, z.numel(), device=device)
    case = {"u": u, "v": None, "b": b, "x": 2 * u[:, :, 0]}
    h, c_n = ops.sru_recurrence(**case)
    expected_h, expected_c_n = reference.sru_recurrence(**case)
    torch.testing.assert_close(h, expected_h, rtol=1e-6, atol=1e-30)
    torch.testing.assert_close(c_n, expected_c_n, rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("path", ["portable", "avx2"])
def test_instruction_sets(path: str) -> None:
    code = (
        "from test_ops import *\n"
        f"assert native.build_info()['cpu']['path'] in ('portable', {path!r})\n"
        "for act in ('identity', 'tanh'):\n"
        "    for hidden in (5, 83):\n"
        "        compare(make_case(31, 3, hidden, bidirectional=True, activation=act))\n"
        "        compare(make_case(31, 3, hidden, lanes=4, activation=act))\n"
        "        compare(make_case(70, 3, hidden, activation=act) | {'recompute': True})\n"
        "test_gate_precision('cpu')\n"
        "for dtype in (torch.bfloat16, torch.float16):\n"
        "    test_16_bit_rounding(dtype, 'cpu')\n"
        "    test_16_bit_gradients(True, 3, dtype, 'cpu')\n"
    )
    subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        cwd=os.path.dirname(__file__),
        env={**os.environ, "SRU_ASR_CPU": path},
    )


def test_unknown_instruction_set_is_refused() -> None:
    code = (
        "import torch, sru_asr\n"
        "for _ in range(2):  # as clear the second time\n"
        "    try:\n"
        "        sru_asr.SRU(4, 4)(torch.randn(3, 2, 4))\n"
        "    except RuntimeError as error:\n"
        "        assert \"SRU_ASR_CPU must be avx2, portable or unset, got 'sse4'\" in str(error)\n"
        "    else:\n"
        "        raise AssertionError('ran')\n"
    )
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={**os.environ, "SRU_ASR_CPU": "sse4"}
    )


# --- gradients


@pytest.mark.parametrize("activation", ["identity", "tanh"])
@pytest.mark.parametrize("lanes", [3, 4])
def test_gradcheck(lanes: int, activation: str) -> None:
    case = make_case(4, 2, 2, lanes=lanes, bidirectional=True, activation=activation)
    case["lengths"] = torch.tensor([4, 2])
    case = convert(case, dtype=torch.float64)
    names = [n for n, t in case.items() if isinstance(t, Tensor) and t.requires_grad]

    def function(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return ops.sru_recurrence(**{**case, **dict(zip(names, tensors, strict=True))})

    assert torch.autograd.gradcheck(function, [case[name] for name in names])


@pytest.mark.parametrize("output", [0, 1])
def test_gradient_of_one_output(output: int) -> None:
    case = convert(make_case(6, 2, 5, bidirectional=True), dtype=torch.float64)
    leaves = [case["u"], case["c0"], case["b"]]
    for got, wanted in zip(
        torch.autograd.grad(ops.sru_recurrence(**case)[output].sum(), leaves),
        torch.autograd.grad(reference.sru_recurrence(**case)[output].sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("lengths", [True, False])
@pytest.mark.parametrize("steps", [0, 1, 31, 32, 33, 64, 97])
def test_recompute(steps: int, lengths: bool, device: str) -> None:
    case = make_case(steps, 3, 35, bidirectional=True, activation="tanh", lengths=lengths)
    compare({**case, "recompute": True}, device)


def test_recompute_keeps_a_thirty_second_of_the_states() -> None:
    case = convert(make_case(64, 2, 8), dtype=torch.float32)
    kept = {}
    for recompute in (True, False):
        h, _ = ops.sru_recurrence(**case, recompute=recompute)
        kept[recompute] = h.grad_fn.saved_tensors[-1].shape[0]
    assert kept == {True: 2, False: 64}


@pytest.mark.parametrize("keep_every", [2, 7, 32])
def test_kept_states(keep_every: int) -> None:
    """Any distance gives the gradients of keeping all, in every order of the steps."""
    case = convert(make_case(45, 4, 9, bidirectional=True), dtype=torch.float64)
    case["lengths"] = torch.tensor([45, 14, 1, 0])
    arguments = [case[n] for n in ("u", "v", "b", "x", "c0", "lengths", "mask")]
    arguments = [t.detach() for t in arguments] + [True, 1.25, "identity"]
    found = []
    for every in (1, keep_every):
        h, c_n, c = torch.ops.sru_asr.recurrence_forward(*arguments, every)
        assert c.shape == (-(-45 // every), 4, 18)
        assert_same(c[:1].new_zeros(c[:, 3].shape), c[:, 3])  # no steps, no states
        assert_same(c[-(-14 // every) :, 1], torch.zeros_like(c[-(-14 // every) :, 1]))
        found.append(
            torch.ops.sru_asr.recurrence_backward(
                torch.ones_like(h), torch.ones_like(c_n), *arguments[:7], c, *arguments[7:], every
            )
        )
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("keep_every", [-1, 33])
def test_kept_states_out_of_range(keep_every: int) -> None:
    u, b = torch.zeros(5, 1, 3, 4), torch.zeros(2, 4)
    with pytest.raises(RuntimeError, match="keep_every must lie in 0..32"):
        torch.ops.sru_asr.recurrence_forward(
            u, None, b, None, None, None, None, False, 1.0, "identity", keep_every
        )


def test_double_backward_is_refused() -> None:
    case = convert(make_case(3, 2, 4), dtype=torch.float32)
    (grad,) = torch.autograd.grad(ops.sru_recurrence(**case)[0].sum(), case["u"], create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once"):
        grad.sum().backward()


def test_states_are_saved_for_gradients_only(monkeypatch: pytest.MonkeyPatch) -> None:
    saved = []
    forward = torch.ops.sru_asr.recurrence_forward

    class Ops:
        def recurrence_forward(self, *args: Any) -> Any:
            saved.append(args[-1])
            return forward(*args)

    monkeypatch.setattr(torch.ops, "sru_asr", Ops())
    case = convert(make_case(3, 2, 4), dtype=torch.float32)
    ops.sru_recurrence(**case)
    with torch.no_grad():
        ops.sru_recurrence(**case)
    ops.sru_recurrence(**make_case(3, 2, 4))
    assert saved == [ops.KEEP_EVERY, 0, 0]


# --- independence


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("lanes", [3, 4])
def test_batch_equals_alone_bitwise(lanes: int, device: str) -> None:
    case = make_case(29, 4, 71, lanes=lanes, bidirectional=True)
    case["lengths"] = torch.tensor([29, 0, 1, 17])
    for b, length in enumerate(case["lengths"].tolist()):
        case["u"][length:, b] = torch.nan
        if case["x"] is not None:
            case["x"][length:, b] = torch.nan
    together = convert(case, dtype=torch.float32, device=device)
    leaves = [n for n in ("u", "v", "b", "x", "c0") if case[n] is not None]
    h, c_n = ops.sru_recurrence(**together)
    dh, dc_n = torch.randn_like(h), torch.randn_like(c_n)
    for b, length in enumerate(case["lengths"].tolist()):
        dh[length:, b] = torch.nan
    grads = torch.autograd.grad([h, c_n], [together[n] for n in leaves], [dh, dc_n])
    grads = dict(zip(leaves, grads, strict=True))
    sums: dict[str, Tensor] = {}
    for b, length in enumerate(case["lengths"].tolist()):
        alone = dict(together, lengths=None)
        for name in ("u", "x"):
            if alone[name] is not None:
                alone[name] = alone[name][:length, b : b + 1].detach().requires_grad_()
        for name in ("c0", "mask"):
            alone[name] = alone[name][b : b + 1].detach().requires_grad_(name == "c0")
        h1, c1 = ops.sru_recurrence(**alone)
        out = [dh[:length, b : b + 1], dc_n[b : b + 1]]
        found = torch.autograd.grad([h1, c1], [alone[n] for n in leaves], out)
        assert_same(h[:length, b], h1[:, 0])
        assert_same(c_n[b], c1[0])
        assert not h[length:, b].any()
        for name, grad in zip(leaves, found, strict=True):
            if name in ("v", "b"):
                sums[name] = sums[name] + grad if name in sums else grad
            elif name == "c0":
                assert_same(grads[name][b], grad[0])
            else:
                assert_same(grads[name][:length, b], grad[:, 0])
                assert not grads[name][length:, b].any()
    for name, total in sums.items():  # sequences are added up in their order
        assert_same(grads[name], total)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("column", [0, 40, 69])
def test_nan_stays_in_its_column(column: int, device: str) -> None:
    case = make_case(9, 3, 70, lengths=False)
    clean = run(ops.sru_recurrence, convert(case, dtype=torch.float32, device=device))
    case["u"][4, 1, 1, column] = torch.nan
    dirty = run(ops.sru_recurrence, convert(case, dtype=torch.float32, device=device))
    assert dirty["h"][4:, 1, column].isnan().all()
    for name, got in dirty.items():
        assert got[..., column].isnan().any(), name
        touched = torch.zeros_like(got, dtype=torch.bool)
        touched[..., column] = True
        if name not in ("grad v", "grad b"):  # those of one sequence only
            others = torch.tensor([0, 2], device=device)
            touched.index_fill_(0 if got.dim() == 2 else 1, others, False)
        assert_same(got[~touched], clean[name][~touched])


@pytest.mark.parametrize("shape", [(50, 3, 600), (400, 1, 70), (5, 40, 130)])
def test_threads_change_nothing(shape: tuple[int, int, int], threads: None) -> None:
    case = convert(make_case(*shape, bidirectional=True), dtype=torch.float32)
    results = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        results.append(run(ops.sru_recurrence, case))
    for other in results[1:]:
        for name, expected in results[0].items():
            assert_same(other[name], expected)


@pytest.fixture
def threads() -> Iterator[None]:
    count = torch.get_num_threads()
    yield
    torch.set_num_threads(count)


# --- layouts, dtypes


def batch_first(tensor: Tensor) -> Tensor:
    return tensor.transpose(0, 1).contiguous().transpose(0, 1)


def spread(tensor: Tensor) -> Tensor:
    return torch.stack([tensor, tensor.new_full(tensor.shape, torch.nan)], -1).flatten(-2)[..., ::2]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", [batch_first, spread])
def test_noncontiguous_inputs(layout: Any, device: str) -> None:
    case = make_case(11, 3, 20, bidirectional=True)
    plain = convert(case, dtype=torch.float32, device=device)
    strided = {
        n: layout(t.detach()).requires_grad_(t.requires_grad)
        if isinstance(t, Tensor) and t.is_floating_point()
        else t
        for n, t in plain.items()
    }
    assert not strided["u"].is_contiguous()
    expected = run(ops.sru_recurrence, plain)
    for name, got in run(ops.sru_recurrence, strided).items():
        assert_same(got, expected[name])


def test_expanded_gradient() -> None:
    case = convert(make_case(6, 2, 5), dtype=torch.float32)
    h, _ = ops.sru_recurrence(**case)
    (ones,) = torch.autograd.grad(h, case["u"], torch.ones_like(h), retain_graph=True)
    (expanded,) = torch.autograd.grad(h.sum(), case["u"])
    assert_same(expanded, ones)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_inputs_are_computed_in_32(dtype: torch.dtype) -> None:
    case = make_case(40, 2, 12, forget_bias=4.0)
    halves = {
        n: t.to(dtype) if isinstance(t, Tensor) and t.is_floating_point() else t
        for n, t in case.items()
    }
    wide = {
        n: t.float() if isinstance(t, Tensor) and t.is_floating_point() else t
        for n, t in halves.items()
    }
    for function in (ops.sru_recurrence, reference.sru_recurrence):
        for got, expected in zip(function(**halves), function(**wide), strict=True):
            assert got.dtype == dtype
            assert_same(got, expected.to(dtype))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_rounding(dtype: torch.dtype, device: str) -> None:
    """Widening and rounding are PyTorch's own, for every number that 16 bits hold."""
    values = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype).to(device)
    zeros = values.new_zeros(1, 1, 3, len(values))
    b = values.new_zeros(2, len(values), dtype=torch.float32)
    # With all of the transformed part dropped, h = alpha * x.
    for alpha in (1.0, 1 / 3, 1.0009765625, 3e-6, 1000.0, -1.0):
        h, _ = ops.sru_recurrence(
            zeros, None, b, values[None, None], alpha=alpha, mask=torch.zeros_like(b[:1])
        )
        expected = values.float() * alpha
        finite = expected.isfinite()
        assert_same(h[0, 0, finite], expected[finite].to(dtype))
        assert h[0, 0, ~finite].isnan().all()  # inf + (0 - inf) * 0
    # As the argument of the forget gate, infinities choose between c0 and u0.
    u, c0 = zeros.clone(), torch.full_like(b[:1], 2)
    u[:, :, 1] = values
    _, c_n = ops.sru_recurrence(u, None, b, c0=c0)
    assert_same(c_n[0].isnan(), values.isnan())
    assert (c_n[0, values == torch.inf] == 2).all()
    assert (c_n[0, values == -torch.inf].float().abs() < 1e-30).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("lanes", [3, 4])
@pytest.mark.parametrize("recompute", [False, True])
def test_16_bit_gradients(recompute: bool, lanes: int, dtype: torch.dtype, device: str) -> None:
    """Those of u and x are the ones of float32, rounded once; those of the rest are float32's."""
    case = make_case(37, 3, 21, lanes=lanes, bidirectional=True, activation="tanh")
    case["recompute"] = recompute
    narrow = convert(case, dtype=torch.float32, device=device)
    for name in ("u", "x"):
        if narrow[name] is not None:
            narrow[name] = narrow[name].detach().to(dtype).requires_grad_()
    wide = {
        n: t.detach().float().requires_grad_(t.requires_grad)
        if isinstance(t, Tensor) and t.is_floating_point()
        else t
        for n, t in narrow.items()
    }
    # The same gradient of h in both: one that 16 bits hold.
    random = torch.Generator().manual_seed(3)
    grad_h = torch.randn(37, 3, 42, generator=random).to(device=device, dtype=dtype)
    names = [n for n, t in wide.items() if isinstance(t, Tensor) and t.requires_grad]
    found = torch.autograd.grad(ops.sru_recurrence(**narrow)[0], [narrow[n] for n in names], grad_h)
    expected = torch.autograd.grad(
        ops.sru_recurrence(**wide)[0], [wide[n] for n in names], grad_h.float()
    )
    for name, got, wanted in zip(names, found, expected, strict=True):
        assert got.dtype == narrow[name].dtype
        # Compilers may fuse the two versions' multiplications and additions differently.
        last_place = torch.finfo(got.dtype).eps if got.dtype == dtype else 1e-5
        torch.testing.assert_close(got, wanted.to(got.dtype), rtol=last_place, atol=1e-5)


def test_mixed_dtypes() -> None:
    case = convert(make_case(8, 2, 6), dtype=torch.float32)
    case["u"] = case["u"].detach().bfloat16().requires_grad_()
    h, c_n = ops.sru_recurrence(**case)
    assert h.dtype == c_n.dtype == torch.bfloat16
    (h.float().sum() + c_n.float().sum()).backward()
    assert case["u"].grad.dtype == torch.bfloat16
    assert case["v"].grad.dtype == torch.float32


def test_autocast() -> None:
    torch.manual_seed(0)
    weight = torch.randn(3 * 8, 5, requires_grad=True)
    v, b = torch.randn(2, 8, requires_grad=True), torch.randn(2, 8, requires_grad=True)
    inputs = torch.randn(7, 2, 5)
    with torch.autocast("cpu", torch.bfloat16):
        u = torch.nn.functional.linear(inputs, weight).view(7, 2, 3, 8)
        assert u.dtype == torch.bfloat16
        h, _ = ops.sru_recurrence(u, v, b)
        expected, _ = reference.sru_recurrence(u, v, b)
    assert h.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(h, expected, rtol=1e-2, atol=1e-2)
    h.float().sum().backward()
    assert weight.grad is not None and v.grad is not None and b.grad is not None


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.int64])
def test_integer_lengths(dtype: torch.dtype) -> None:
    case = make_case(6, 3, 4)
    expected, _ = ops.sru_recurrence(**case)
    case["lengths"] = case["lengths"].to(dtype)
    assert_same(ops.sru_recurrence(**case)[0], expected)


# --- wrong arguments


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"u": [1.0]}, TypeError, "u must be a Tensor"),
        ({"u": torch.zeros(5, 2, 3, 4, dtype=torch.int64)}, TypeError, "u must be a floating"),
        ({"u": torch.zeros(5, 2, 2, 4)}, ValueError, r"u must have shape .* got \(5, 2, 2, 4\)"),
        ({"v": torch.zeros(2, 5)}, ValueError, r"v must have shape \(2, 4\), got \(2, 5\)"),
        ({"b": None}, TypeError, "b must be a Tensor"),
        ({"x": torch.zeros(5, 2, 3)}, ValueError, "x must have shape"),
        ({"c0": torch.zeros(1, 4)}, ValueError, "c0 must have shape"),
        ({"c0": torch.zeros(2, 4, device="meta")}, ValueError, "c0 must be on u's device"),
        ({"mask": torch.zeros(2, 5)}, ValueError, "mask must have shape"),
        ({"mask": torch.zeros(2, 4, dtype=torch.bool)}, TypeError, "mask must be a floating"),
        ({"u": torch.zeros(5, 2, 4, 4)}, ValueError, "x must be None"),
        ({"activation": "relu"}, ValueError, "activation must be one of"),
        ({"lengths": torch.zeros(2)}, TypeError, "lengths must be an integer"),
        ({"lengths": torch.zeros(3, dtype=torch.int64)}, ValueError, "lengths must have shape"),
        ({"lengths": torch.tensor([5, 6])}, ValueError, "lengths .* T = 5, got 6 at position 1"),
        ({"lengths": torch.tensor([-1, 2])}, ValueError, "lengths .* T = 5, got -1 at position 0"),
    ],
)
def test_wrong_arguments_are_named(change: Case, error: type[Exception], message: str) -> None:
    case = {**make_case(5, 2, 4), **change}
    with pytest.raises(error, match=message):
        ops.sru_recurrence(**case)


def test_odd_width_bidirectional() -> None:
    with pytest.raises(ValueError, match="even last dimension"):
        ops.sru_recurrence(**{**make_case(5, 2, 3), "bidirectional": True})


def test_kernel_checks_lengths_itself() -> None:
    u, b = torch.zeros(5, 1, 3, 4), torch.zeros(2, 4)
    with pytest.raises(RuntimeError, match="lengths must lie in"):
        torch.ops.sru_asr.recurrence_forward(
            u, None, b, None, None, torch.tensor([6]), None, False, 1.0, "identity", 0
        )


# --- inference, into given memory


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("steps", [0, 1, 9])
def test_inference(steps: int, dtype: torch.dtype, device: str) -> None:
    case = convert(make_case(steps, 3, 21, bidirectional=True, mask=False), device=device)
    compute = torch.promote_types(dtype, torch.float32)
    u, x = case["u"].detach().to(dtype), case["x"].detach().to(dtype)
    v, b, c0 = (case[n].detach().to(compute) for n in ("v", "b", "c0"))
    expected, c_n = ops.sru_recurrence(
        u, v, b, x, c0, case["lengths"], bidirectional=True, alpha=1.25
    )
    c = c0.clone()
    room = x.new_full((steps, 3, 64), 5)
    h = room[..., 10:52]
    ops.recurrence_inference(u, v, b, x, case["lengths"], c, h, "both", 1.25, "identity")
    assert_same(h, expected)
    assert_same(c.to(dtype), c_n)
    assert (room[..., :10] == 5).all() and (room[..., 52:] == 5).all()


@pytest.mark.parametrize("device", DEVICES)
def test_inference_backward(device: str) -> None:
    """The second half of a bidirectional layer, alone."""
    case = convert(make_case(9, 3, 20, bidirectional=True, mask=False), device=device)
    u, v, b, x, c0 = (case[n].detach() for n in ("u", "v", "b", "x", "c0"))
    expected, c_n = ops.sru_recurrence(u, v, b, x, c0, case["lengths"], bidirectional=True)
    c, h = c0[:, 20:].contiguous(), torch.empty_like(x)[..., 20:]
    half = [u[..., 20:], v[:, 20:], b[:, 20:], x[..., 20:], case["lengths"]]
    ops.recurrence_inference(*half, c, h, "backward", 1.0, "identity")
    assert_same(h, expected[..., 20:])
    assert_same(c, c_n[:, 20:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"h": torch.zeros(5, 2, 8)[..., ::2]}, "h must have unit stride"),
        ({"h": torch.zeros(5, 2, 3)}, "h does not fit the shape of u"),
        ({"h": torch.zeros(5, 2, 4).double()}, "h must be Float, got Double"),
        ({"c": torch.zeros(4, 2).T}, "c must be contiguous"),
        ({"c": torch.zeros(2, 4).bfloat16()}, "c0 must be Float, got BFloat16"),
        ({"direction": "sideways"}, "direction must be forward, backward or both, got sideways"),
        ({"u": torch.zeros(5, 2, 3, 4).int()}, "u must be float64, float32, bfloat16 or float16"),
        ({"lengths": torch.tensor([5, 6])}, "lengths must lie in 0..5, got 6 at position 1"),
    ],
)
def test_inference_refuses(change: Case, message: str) -> None:
    arguments = {
        "u": torch.zeros(5, 2, 3, 4),
        "v": None,
        "b": torch.zeros(2, 4),
        "x": None,
        "lengths": None,
        "c": torch.zeros(2, 4),
        "h": torch.zeros(5, 2, 4),
        "direction": "forward",
        "alpha": 1.0,
        "activation": "identity",
    }
    with pytest.raises(RuntimeError, match=message):
        ops.recurrence_inference(**{**arguments, **change})


# --- PyTorch's machinery


def operator_arguments(lanes: int, device: str) -> list[Any]:
    case = convert(make_case(5, 2, 4, lanes=lanes, bidirectional=True), device=device)
    tensors = [case[n] for n in ("u", "v", "b", "x", "c0", "lengths", "mask")]
    return [*tensors, True, 1.25, "tanh"]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("lanes", [3, 4])
@pytest.mark.parametrize("keep_every", [0, 1, 3])
def test_opcheck_forward(keep_every: int, lanes: int, device: str) -> None:
    arguments = (*operator_arguments(lanes, device), keep_every)
    library.opcheck(torch.ops.sru_asr.recurrence_forward.default, arguments)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("lanes", [3, 4])
@pytest.mark.parametrize("keep_every", [1, 3])
def test_opcheck_backward(keep_every: int, lanes: int, device: str) -> None:
    arguments = [
        t.detach() if isinstance(t, Tensor) else t for t in operator_arguments(lanes, device)
    ]
    h, c_n, c = torch.ops.sru_asr.recurrence_forward(*arguments, keep_every)
    tensors, options = arguments[:7], arguments[7:]
    library.opcheck(
        torch.ops.sru_asr.recurrence_backward.default,
        (torch.randn_like(h), torch.randn_like(c_n), *tensors, c, *options, keep_every),
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_opcheck_16_bit(dtype: torch.dtype, device: str) -> None:
    arguments = operator_arguments(3, device)
    compute = torch.promote_types(dtype, torch.float32)
    tensors = [
        t.detach().to(dtype if name in "ux" else compute).requires_grad_(t.requires_grad)
        if t.is_floating_point()
        else t
        for name, t in zip(["u", "v", "b", "x", "c0", "lengths", "mask"], arguments, strict=False)
    ]
    arguments = [*tensors, *arguments[7:], 1]
    library.opcheck(torch.ops.sru_asr.recurrence_forward.default, arguments)


@pytest.mark.parametrize("device", DEVICES)
def test_opcheck_inference(device: str) -> None:
    case = convert(make_case(5, 2, 4, bidirectional=True), device=device)
    u, v, b, x, c, lengths = (case[n].detach() for n in ("u", "v", "b", "x", "c0", "lengths"))
    library.opcheck(
        torch.ops.sru_asr.recurrence_inference.default,
        (u, v, b, x, lengths, c, torch.zeros_like(x), "both", 1.25, "tanh"),
    )


def test_compile() -> None:
    def loss(u: Tensor, v: Tensor, b: Tensor, lengths: Tensor) -> Tensor:
        h, c_n = ops.sru_recurrence(2 * u, v, b, lengths=lengths, bidirectional=True)
        return h.square().sum() + c_n.sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for steps in (5, 7):
        case = convert(make_case(steps, 2, 4, bidirectional=True), dtype=torch.float32)
        leaves = [case["u"], case["v"], case["b"]]
        expected = torch.autograd.grad(loss(*leaves, case["lengths"]), leaves)
        found = torch.autograd.grad(compiled(*leaves, case["lengths"]), leaves)
        for got, wanted in zip(found, expected, strict=True):
            torch.testing.assert_close(got, wanted)


@pytest.mark.slow
def test_compile_with_inductor() -> None:
    case = make_case(5, 2, 4)
    compiled = torch.compile(ops.sru_recurrence, fullgraph=True)
    for got, expected in zip(compiled(**case), ops.sru_recurrence(**case), strict=True):
        torch.testing.assert_close(got, expected)


def test_meta_tensors() -> None:
    case = convert(make_case(5, 2, 4), device="meta")
    h, c_n = ops.sru_recurrence(**case)
    assert h.shape == (5, 2, 4) and c_n.shape == (2, 4) and h.is_meta


def test_signature_and_docstring_are_the_references() -> None:
    assert inspect.signature(ops.sru_recurrence) == inspect.signature(reference.sru_recurrence)
    assert ops.sru_recurrence.__doc__ == reference.sru_recurrence.__doc__


# --- fallback


def test_fallback_warns_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(native._missing, "cpu", "no C++ compiler was found")
    monkeypatch.setattr(ops, "_warned", set())
    case = convert(make_case(5, 2, 4), dtype=torch.float64)
    with pytest.warns(RuntimeWarning, match=r"no C\+\+ compiler.*pip install --no-build-isol"):
        got = run(ops.sru_recurrence, case)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ops.sru_recurrence(**case)
    expected = run(reference.sru_recurrence, case)
    for name in expected:
        assert_same(got[name], expected[name])


# --- on a GPU only


@NO_GPU
@pytest.mark.gpu
def test_lengths_out_of_range_are_clamped_on_cuda() -> None:
    case = make_case(5, 2, 4, lengths=False)
    whole, _ = ops.sru_recurrence(**convert(case, device="cuda"))
    case["lengths"] = torch.tensor([99, 5])
    assert_same(ops.sru_recurrence(**convert(case, device="cuda"))[0], whole)


@NO_GPU
@pytest.mark.gpu
def test_streams() -> None:
    case = convert(make_case(64, 8, 256), device="cuda")
    expected, _ = ops.sru_recurrence(**case)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        got, _ = ops.sru_recurrence(**case)
    side.synchronize()
    assert_same(got, expected)


@pytest.mark.slow
@pytest.mark.skipif(
    os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") < 20e9, reason="needs 16 GB of memory"
)
def test_more_than_2_to_the_31_elements_on_the_cpu() -> None:
    steps, width = 1_400_000, 512  # u: 2.15e9 elements
    u = torch.zeros(steps, 1, 3, width, dtype=torch.bfloat16)
    u[-4:] = torch.randn(4, 1, 3, width)
    b = torch.zeros(2, width)
    short = u[-4:].clone().requires_grad_()
    u.requires_grad_()
    h, c_n = ops.sru_recurrence(u, None, b)
    expected, expected_c_n = ops.sru_recurrence(short, None, b)
    assert_same(h[-4:], expected)
    assert_same(c_n, expected_c_n)
    assert not h[:-4].any()
    (du,) = torch.autograd.grad(h, u, h.new_ones(()).expand(h.shape))
    (expected_du,) = torch.autograd.grad(expected, short, torch.ones_like(expected))
    assert_same(du[-4:], expected_du)


@NO_GPU
@pytest.mark.gpu
@pytest.mark.slow
def test_more_than_2_to_the_31_elements() -> None:
    steps, batch, width = 2800, 128, 2048  # u: 2.2e9 elements
    u = torch.zeros(steps, batch, 3, width, device="cuda")
    u[-1] = 1.0
    b = torch.zeros(2, width, device="cuda")
    h, _ = ops.sru_recurrence(u, None, b)
    assert not h[:-1].any()
    expected = torch.sigmoid(torch.tensor(1.0)) * (1 - torch.sigmoid(torch.tensor(1.0)))
    torch.testing.assert_close(h[-1].cpu(), expected.expand(batch, width))
