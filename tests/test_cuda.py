"""The CUDA kernels on a device: what neither the compiler nor the host can show."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sru_asr import native, ops, reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(native.why_missing("cuda") is not None, reason="needs the CUDA kernels"),
]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
# Of the largest value: 16 bits round at 2^-9 and 2^-12, and no less finely than they store.
WITHIN = {torch.float64: 1e-12, torch.float32: 5e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}
Case = dict[str, Any]


def make_case(
    steps: int,
    batch: int,
    hidden: int,
    *,
    dtype: torch.dtype = torch.float32,
    lanes: int = 3,
    bidirectional: bool = True,
    lengths: bool = True,
    activation: str = "identity",
    forget_bias: float = 0.0,
    device: str = "cuda",
) -> Case:
    """Arguments of the operator and gradients of its outputs; what stands in the padding is NaN."""
    width = 2 * hidden if bidirectional else hidden
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    bias = 0.5 * torch.randn(2, width, dtype=wide)
    bias[0] += forget_bias
    case: Case = {
        "u": torch.randn(steps, batch, lanes, width).to(dtype),
        "v": 0.7 * torch.randn(2, width, dtype=wide).clamp(-1.7, 1.7),
        "b": bias,
        "x": torch.randn(steps, batch, width).to(dtype) if lanes == 3 else None,
        "c0": torch.randn(batch, width, dtype=wide),
        "lengths": torch.randint(0, steps + 1, (batch,)) if lengths else None,
        "mask": (torch.rand(batch, width) > 0.25).to(wide) / 0.75,
        "bidirectional": bidirectional,
        "alpha": 1.25,
        "activation": activation,
        "dh": torch.randn(steps, batch, width).to(dtype),
        "dc_n": torch.randn(batch, width, dtype=wide),
    }
    if lengths:
        for b, length in enumerate(case["lengths"].tolist()):
            for name in ("u", "x", "dh"):
                if case[name] is not None:
                    case[name][length:, b] = torch.nan
    return {n: t.to(device) if isinstance(t, Tensor) else t for n, t in case.items()}


def run(case: Case, every: int) -> dict[str, Tensor]:
    """Outputs and gradients of the kernels, with a state kept every so many steps (0: none)."""
    tensors = [case[n] for n in ("u", "v", "b", "x", "c0", "lengths", "mask")]
    options = [case[n] for n in ("bidirectional", "alpha", "activation")]
    h, c_n, c = torch.ops.sru_asr.recurrence_forward(*tensors, *options, every)
    results = {"h": h, "c_n": c_n}
    if every:
        gradients = torch.ops.sru_asr.recurrence_backward(
            case["dh"], case["dc_n"], *tensors, c, *options, every
        )
        names = ("grad u", "grad v", "grad b", "grad x", "grad c0")
        results.update(zip(names, gradients, strict=True))
    return results


def expect(case: Case) -> dict[str, Tensor]:
    """The same by the definition, in float64 on the CPU."""
    case = {n: t.cpu() if isinstance(t, Tensor) else t for n, t in case.items()}
    names = [n for n in ("u", "v", "b", "x", "c0") if case[n] is not None]
    leaves = {n: case[n].double().requires_grad_() for n in names}
    others = {n: case[n] for n in ("lengths", "bidirectional", "alpha", "activation")}
    h, c_n = reference.sru_recurrence(**{"x": None, **leaves}, mask=case["mask"].double(), **others)
    dh = case["dh"].double().nan_to_num()  # NaN stands in the padding alone, where h is 0
    loss = (h * dh).sum() + (c_n * case["dc_n"].double()).sum()
    found = torch.autograd.grad(loss, list(leaves.values()))
    return {
        "h": h.detach(),
        "c_n": c_n.detach(),
        **{f"grad {n}": g for n, g in zip(names, found, strict=True)},
    }


def assert_near(got: dict[str, Tensor], expected: dict[str, Tensor], within: float) -> None:
    for name, actual in got.items():
        if name in expected:
            wanted = expected[name]
            error = (actual.cpu().double() - wanted).abs().max()
            limit = within * wanted.abs().max().clamp_min(1e-30)
            assert error <= limit, f"{name}: error {error:.2e}, at most {limit:.2e}"


def assert_same(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, wanted in expected.items():
        torch.testing.assert_close(got[name], wanted, rtol=0, atol=0, equal_nan=True)


# --- against the definition


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("every", [1, 7, 16, 32])
@pytest.mark.parametrize(("steps", "hidden"), [(1, 1), (31, 33), (32, 64), (257, 70), (100, 129)])
def test_every_dtype(steps: int, hidden: int, every: int, dtype: torch.dtype) -> None:
    for lanes in (3, 4):
        case = make_case(steps, 3, hidden, dtype=dtype, lanes=lanes)
        assert_near(run(case, every), expect(case), WITHIN[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("every", [1, 32])
def test_tanh(every: int, dtype: torch.dtype) -> None:
    case = make_case(65, 3, 34, dtype=dtype, activation="tanh")
    assert_near(run(case, every), expect(case), WITHIN[dtype])


@pytest.mark.parametrize("every", [1, 32])
@pytest.mark.parametrize("forget_bias", [4.0, 8.0, -8.0])
def test_saturated_gates(forget_bias: float, every: int) -> None:
    case = make_case(257, 2, 21, forget_bias=forget_bias)
    assert_near(run(case, every), expect(case), 2e-5)


# Few columns read ahead through shared memory, many in registers where they hold enough.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("every", [1, 32])
@pytest.mark.parametrize("batch", [1, 48])
def test_few_and_many_columns(batch: int, every: int, dtype: torch.dtype) -> None:
    case = make_case(67, batch, 512, dtype=dtype)
    assert_near(run(case, every), expect(case), 2 * WITHIN[dtype])


def test_few_columns_equal_many_bitwise() -> None:
    many = make_case(67, 48, 512)
    one = dict(many)
    for name, tensor in many.items():
        if name in ("u", "x", "dh"):
            one[name] = tensor[:, 5:6]
        elif name in ("c0", "dc_n", "mask", "lengths"):
            one[name] = tensor[5:6]
    together, alone = run(many, 1), run(one, 1)
    for name in ("h", "grad u", "grad x"):
        assert torch.equal(together[name][:, 5:6], alone[name]), name
    for name in ("c_n", "grad c0"):
        assert torch.equal(together[name][5:6], alone[name]), name


def test_gate_precision() -> None:
    # One step from c0 = 1 with u0 = 0 returns the forget gate, from 0 with 1 its complement.
    z = torch.linspace(-8, 8, 100001, device="cuda")
    u = torch.zeros(1, 2, 3, z.numel(), device="cuda")
    u[..., 1, :] = z
    u[0, 1, 0] = 1
    c0 = torch.zeros(2, z.numel(), device="cuda")
    c0[0] = 1
    _, c = ops.sru_recurrence(u, None, torch.zeros(2, z.numel(), device="cuda"), c0=c0)
    for gate, sign in zip(c, (1, -1), strict=True):
        expected = torch.sigmoid(sign * z.double())
        assert ((gate - expected) / expected).abs().max() < 2e-6


# --- what does not depend on the arithmetic


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("every", [1, 32])
def test_same_twice_bitwise(every: int, dtype: torch.dtype) -> None:
    case = make_case(100, 70, 66, dtype=dtype)
    expected = run(case, every)
    for _ in range(3):
        assert_same(run(case, every), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("every", [1, 32])
def test_padding_is_zero(every: int, dtype: torch.dtype) -> None:
    case = make_case(50, 9, 33, dtype=dtype)
    got = run(case, every)
    for b, length in enumerate(case["lengths"].tolist()):
        for name in ("h", "grad u", "grad x"):
            assert not got[name][length:, b].any(), name
    assert not any(tensor.isnan().any() for tensor in got.values())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("column", [0, 40, 69])
@pytest.mark.parametrize("every", [1, 32])
def test_nan_stays_in_its_column(every: int, column: int, dtype: torch.dtype) -> None:
    case = make_case(70, 3, 70, dtype=dtype, bidirectional=False, lengths=False)
    clean = run(case, every)
    case["u"][4, 1, 1, column] = torch.nan
    dirty = run(case, every)
    others = [d for d in range(70) if d != column]
    assert dirty["h"][4:, 1, column].isnan().all()
    for name, got in dirty.items():
        assert torch.equal(got[..., others], clean[name][..., others]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shift", [0, 1, 2])
def test_strided_inputs(shift: int, dtype: torch.dtype) -> None:
    case = make_case(40, 3, 34, dtype=dtype)
    strided = dict(case)
    for name in ("u", "x", "dh"):
        tensor = case[name].transpose(0, 1)
        room = tensor.new_full((*tensor.shape[:-1], tensor.shape[-1] + 6), torch.nan)
        view = room[..., shift : shift + tensor.shape[-1]]
        strided[name] = view.copy_(tensor).transpose(0, 1)
    assert_same(run(strided, 32), run(case, 32))


# --- streams, graphs, devices


def test_two_streams() -> None:
    cases = [make_case(200, 8, 256) for _ in range(2)]
    expected = [run(case, 32) for case in cases]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in cases]
    got = []
    for stream, case in zip(streams, cases, strict=True):
        with torch.cuda.stream(stream):
            got.append(run(case, 32))
    torch.cuda.synchronize()
    for actual, wanted in zip(got, expected, strict=True):
        assert_same(actual, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("every", [0, 1, 32])
def test_cuda_graph(every: int, dtype: torch.dtype) -> None:
    case = make_case(65, 4, 64, dtype=dtype)
    run(case, every)  # loads the kernels
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(case, every)
    for _ in range(2):  # the second time with other numbers and lengths
        graph.replay()
        torch.cuda.synchronize()
        assert_same(captured, run(case, every))
        other = make_case(65, 4, 64, dtype=dtype)
        for name, tensor in case.items():
            if isinstance(tensor, Tensor):
                tensor.copy_(other[name])


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two devices")
def test_another_device_than_the_current() -> None:
    case = make_case(40, 3, 34)
    expected = run(case, 32)
    moved = {n: t.to("cuda:1") if isinstance(t, Tensor) else t for n, t in case.items()}
    got = run(moved, 32)
    assert torch.cuda.current_device() == 0
    assert all(tensor.device.index == 1 for tensor in got.values())
    assert_same({n: t.to("cuda:0") for n, t in got.items()}, expected)


def test_batches_beyond_a_grid_dimension() -> None:
    batch = 70_000
    u = torch.randn(2, 1, 3, 4, device="cuda").expand(2, batch, 3, 4)
    b = torch.randn(2, 4, device="cuda")
    h, _ = ops.sru_recurrence(u, None, b)
    assert torch.equal(h, h[:, :1].expand_as(h)) and h.abs().max() > 0


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_more_than_2_to_the_31_elements(dtype: torch.dtype) -> None:
    steps, batch, width = 2800, 128, 2048  # u: 2.2e9 elements
    u = torch.zeros(steps, batch, 3, width, device="cuda", dtype=dtype)
    u[-1] = 1.0
    b = torch.zeros(2, width, device="cuda")
    for every in (0, 32):
        h, c_n, c = torch.ops.sru_asr.recurrence_forward(
            u, None, b, None, None, None, None, False, 1.0, "identity", every
        )
        assert not h[:-1].any()
        gate = torch.sigmoid(torch.tensor(1.0))
        wanted = (gate * (1 - gate)).to(dtype).expand(batch, width)
        torch.testing.assert_close(h[-1].cpu(), wanted)
    dh = torch.zeros_like(h)
    dh[-1] = 1.0
    du, *_ = torch.ops.sru_asr.recurrence_backward(
        dh, torch.zeros_like(c_n), u, None, b, None, None, None, None, c, False, 1.0, "identity", 32
    )
    # h = r c and c = (1 - f) u0 in the last step alone; before it both u0 and the state are zero.
    torch.testing.assert_close(du[-1, :, 0].cpu(), wanted)
    assert not du[:-1, :, 1:].any() and du[-2, :, 0].all()
