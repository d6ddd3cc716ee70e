"""The CUDA kernels, compiled for the host and run thread by thread: their indexing and prefetching.

A device adds what no host shows: its own arithmetic instructions, many threads at once, speed.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sru_asr import reference

ROOT = Path(__file__).resolve().parent.parent
CXX = shlex.split(os.environ.get("CXX", "g++"))
pytestmark = pytest.mark.skipif(
    shutil.which(CXX[0]) is None or not (ROOT / "csrc").is_dir(),
    reason="needs a C++ compiler and a source tree",
)
H200 = 132  # multiprocessors: few columns, so what is read ahead goes through shared memory
Case = dict[str, Any]


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Any:
    library = tmp_path_factory.mktemp("cuda_on_host") / "library.so"
    torch_home = Path(torch.__file__).parent
    command = [
        *CXX,
        "-O1",
        "-std=c++17",
        "-shared",
        "-fPIC",
        "-fvisibility=hidden",
        "-ffp-contract=off",  # so that paths differ in nothing but their order of memory accesses
        "-DSRU_CUDA_MATH",
        "-DTORCH_TARGET_VERSION=0x020a000000000000",
        f"-I{ROOT / 'tests' / 'cuda_on_host'}",
        f"-I{ROOT / 'csrc'}",
        "-isystem",
        str(torch_home / "include"),
        str(ROOT / "tests" / "cuda_on_host" / "library.cpp"),
        "-o",
        str(library),
        f"-L{torch_home / 'lib'}",
        "-ltorch_cpu",
        "-ltorch",
    ]
    subprocess.run(command, check=True)
    torch.ops.load_library(library)
    return torch.ops.sru_cuda_on_host


@pytest.fixture(autouse=True)
def few_columns(kernels: Any) -> Iterator[None]:
    yield
    kernels.choose_for(H200)


def make_case(
    steps: int,
    batch: int,
    hidden: int,
    *,
    lanes: int = 3,
    bidirectional: bool = True,
    activation: str = "identity",
    dtype: torch.dtype = torch.float32,
    absent: tuple[str, ...] = (),
) -> Case:
    """Arguments of one call and gradients of its outputs; what stands in the padding is NaN."""
    width = 2 * hidden if bidirectional else hidden
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    case: Case = {
        "u": torch.randn(steps, batch, lanes, width).to(dtype),
        "v": torch.randn(2, width, dtype=wide).clamp(-1.5, 1.5),
        "b": torch.randn(2, width, dtype=wide),
        "x": torch.randn(steps, batch, width).to(dtype) if lanes == 3 else None,
        "c0": torch.randn(batch, width, dtype=wide),
        "lengths": torch.randint(0, steps + 1, (batch,)),
        "mask": (torch.rand(batch, width) > 0.25).to(wide) / 0.75,
        "bidirectional": bidirectional,
        "alpha": 1.25,
        "activation": activation,
        "dh": torch.randn(steps, batch, width).to(dtype),
        "dc_n": torch.randn(batch, width, dtype=wide),
    }
    case.update(dict.fromkeys(absent))
    if batch > 1 and case["lengths"] is not None:
        case["lengths"][0] = steps
    for b, length in enumerate(lengths_of(case)):
        for name in ("u", "x", "dh"):
            if case[name] is not None:
                case[name][length:, b] = torch.nan
    return case


def lengths_of(case: Case) -> list[int]:
    steps, batch = case["u"].shape[:2]
    return [steps] * batch if case["lengths"] is None else case["lengths"].tolist()


def run(kernels: Any, case: Case, every: int) -> dict[str, Tensor]:
    """Outputs, kept states and gradients of the kernels."""
    tensors = [case[n] for n in ("u", "v", "b", "x", "c0", "lengths", "mask")]
    options = [case[n] for n in ("bidirectional", "alpha", "activation")]
    h, c_n, c = kernels.recurrence_forward(*tensors, *options, every)
    results = {"h": h, "c_n": c_n, "c": c}
    if every:
        gradients = kernels.recurrence_backward(
            case["dh"], case["dc_n"], *tensors, c, *options, every
        )
        names = ("grad u", "grad v", "grad b", "grad x", "grad c0")
        results.update(zip(names, gradients, strict=True))
    return results


def expect(case: Case) -> dict[str, Tensor]:
    """The same by the definition, in float64; the states after every step instead of some."""
    names = ("u", "v", "b", "x", "c0")
    leaves = {n: None if case[n] is None else case[n].double().requires_grad_() for n in names}
    others = {n: case[n] for n in ("lengths", "bidirectional", "alpha", "activation")}
    others["mask"] = None if case["mask"] is None else case["mask"].double()
    h, c_n = reference.sru_recurrence(**leaves, **others)
    results = {"h": h.detach(), "c_n": c_n.detach()}
    padded = torch.zeros(h.shape[:2], dtype=torch.bool)
    for b, length in enumerate(lengths_of(case)):
        padded[length:, b] = True
    dh = case["dh"].double().masked_fill(padded[..., None], 0)
    loss = (h * dh).sum() + (c_n * case["dc_n"].double()).sum()
    wanted = [n for n in names if leaves[n] is not None]
    if loss.requires_grad:
        found = torch.autograd.grad(loss, [leaves[n] for n in wanted], allow_unused=True)
        for name, gradient in zip(wanted, found, strict=True):
            results[f"grad {name}"] = (
                torch.zeros_like(leaves[name]) if gradient is None else gradient
            )
    # With an open reset gate and no highway the output is the state.
    open_gate = case["b"].double().clone()
    open_gate[1] = 60
    u, v = case["u"].double().clone(), case["v"]
    u[:, :, 2] = 0
    if v is not None:
        v = v.double().clone()
        v[1] = 0
    c0 = None if case["c0"] is None else case["c0"].double()
    both = case["bidirectional"]
    results["states"], _ = reference.sru_recurrence(
        u[:, :, :3], v, open_gate, None, c0, case["lengths"], bidirectional=both
    )
    return results


def kept_states(case: Case, states: Tensor, every: int) -> Tensor:
    """Of the states after every step, those a call keeps, in the order of the steps."""
    steps, batch, width = states.shape
    kept = states.new_zeros(-(-steps // every), batch, width)
    for b, length in enumerate(lengths_of(case)):
        rows = list(range(every - 1, length, every))
        rows += [length - 1] if length % every else []
        half = width // 2 if case["bidirectional"] else width
        kept[: len(rows), b, :half] = states[:length, b, :half][rows]
        kept[: len(rows), b, half:] = states[:length, b, half:].flip(0)[rows]
    return kept


def check(kernels: Any, case: Case, every: int) -> dict[str, Tensor]:
    within = 1e-12 if case["u"].dtype == torch.float64 else 1e-5
    expected = expect(case)
    states = expected.pop("states")
    expected["c"] = kept_states(case, states, every) if every else states[:0]
    got = run(kernels, case, every)
    for name, wanted in expected.items():
        if name in got and (name != "grad v" or case["v"] is not None):
            assert got[name].shape == wanted.shape, name
            error = (got[name].double() - wanted).abs()
            if error.numel():
                assert error.max() <= within * wanted.abs().max().clamp_min(1), name
    for b, length in enumerate(lengths_of(case)):
        for name in ("h", "grad u", "grad x"):
            assert not got.get(name, got["h"])[length:, b].any(), name
        if every:
            assert not got["c"][-(-length // every) :, b].any()
    return got


def assert_same(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, wanted in expected.items():
        assert torch.equal(got[name].to(wanted.dtype), wanted), name


STEPS = [0, 1, 2, 3, 4, 5, 31, 32, 33, 36, 63, 64, 67, 101]


@pytest.mark.parametrize("every", [0, 1, 2, 7, 31, 32])
@pytest.mark.parametrize("steps", STEPS)
def test_steps(kernels: Any, steps: int, every: int) -> None:
    check(kernels, make_case(steps, 3, 5), every)
    check(kernels, make_case(steps, 2, 3, lanes=4, bidirectional=False, absent=("lengths",)), every)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("hidden", [0, 1, 2, 31, 32, 33, 64, 66, 129, 130])
def test_widths(kernels: Any, hidden: int, dtype: torch.dtype) -> None:
    case = make_case(9, 2, hidden, dtype=dtype)
    if dtype in (torch.float32, torch.float64):
        check(kernels, case, 7)
    else:
        run(kernels, case, 7)


@pytest.mark.parametrize("every", [1, 32])
@pytest.mark.parametrize("activation", ["identity", "tanh"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(
    "absent",
    [(), ("v",), ("x",), ("c0",), ("lengths",), ("mask",), ("v", "x", "c0", "lengths", "mask")],
    ids=lambda absent: "-".join(absent) or "none",
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_options(
    kernels: Any,
    dtype: torch.dtype,
    absent: tuple[str, ...],
    bidirectional: bool,
    activation: str,
    every: int,
) -> None:
    for lanes in (3, 4):
        options = {"bidirectional": bidirectional, "activation": activation, "absent": absent}
        check(kernels, make_case(45, 2, 3, lanes=lanes, dtype=dtype, **options), every)


@pytest.mark.parametrize("every", [0, 1, 7, 32])
@pytest.mark.parametrize("steps", STEPS)
def test_registers_equal_ring(kernels: Any, steps: int, every: int) -> None:
    case = make_case(steps, 3, 6)
    through_ring = run(kernels, case, every)
    kernels.choose_for(0)
    assert_same(run(kernels, case, every), through_ring)


@pytest.mark.parametrize("steps", STEPS)
def test_recomputed_equal_kept_states(kernels: Any, steps: int) -> None:
    case = make_case(steps, 3, 6)
    kept = run(kernels, case, 1)
    del kept["c"]
    for every in (2, 7, 32):
        assert_same(run(kernels, case, every), kept)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("hidden", [6, 7])  # in pairs and one by one
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("every", [0, 1, 7, 32])
def test_16_bits_are_computed_in_32(
    kernels: Any, every: int, steps: int, hidden: int, dtype: torch.dtype
) -> None:
    for lanes in (3, 4):
        case = make_case(steps, 2, hidden, lanes=lanes, dtype=dtype)
        wide = {
            n: t.float() if n in ("u", "x", "dh") and t is not None else t for n, t in case.items()
        }
        expected = run(kernels, wide, every)
        for name, got in run(kernels, case, every).items():
            assert torch.equal(got, expected[name].to(got.dtype)), name


def spread(tensor: Tensor, shift: int = 0) -> Tensor:
    """The same numbers between NaN: rows longer than they need be, and begun at an odd place."""
    room = tensor.new_full((*tensor.shape[:-1], tensor.shape[-1] + 6), torch.nan)
    view = room[..., shift : shift + tensor.shape[-1]]
    return view.copy_(tensor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shift", [0, 1, 2])
@pytest.mark.parametrize("every", [1, 32])
def test_strided_inputs(kernels: Any, every: int, shift: int, dtype: torch.dtype) -> None:
    for lanes in (3, 4):
        case = make_case(37, 3, 34, lanes=lanes, dtype=dtype)
        strided = dict(case)
        for name in ("u", "x", "dh"):
            if case[name] is not None:
                batch_first = case[name].transpose(0, 1).contiguous()
                strided[name] = spread(batch_first, shift).transpose(0, 1)
        assert_same_with_nan(run(kernels, strided, every), run(kernels, case, every))


def assert_same_with_nan(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, wanted in expected.items():
        torch.testing.assert_close(got[name], wanted, rtol=0, atol=0, equal_nan=True)


def reversed_in_time(case: Case, tensor: Tensor) -> Tensor:
    """Each sequence from its last real step to its first; padding stays where it is."""
    result = tensor.clone()
    for b, length in enumerate(lengths_of(case)):
        result[:length, b] = tensor[:length, b].flip(0)
    return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("direction", ["forward", "backward", "both"])
@pytest.mark.parametrize("shift", [0, 1])
def test_inference(kernels: Any, shift: int, direction: str, dtype: torch.dtype) -> None:
    case = make_case(41, 3, 34, bidirectional=direction == "both", dtype=dtype, absent=("mask",))
    inputs = [case[n] for n in ("u", "v", "b", "x", "lengths")]
    c = case["c0"].clone()
    room = torch.full((45, 3, c.shape[1] + 6), 7.0, dtype=dtype)
    h = room[2:43, :, 2 + shift : 2 + shift + c.shape[1]]
    kernels.recurrence_inference(*inputs, c, h, direction, case["alpha"], "identity")
    got = {"h": h.clone(), "c_n": c}
    h.fill_(7)
    assert (room == 7).all()  # nothing was written beside it
    if direction == "backward":  # is forward over the same steps in their other order
        case.update({n: reversed_in_time(case, case[n]) for n in ("u", "x")})
        got["h"] = reversed_in_time(case, got["h"])
    assert_same(got, {n: run(kernels, case, 0)[n] for n in got})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("every", [1, 32])
def test_nan_stays_in_its_column(kernels: Any, every: int, dtype: torch.dtype) -> None:
    case = make_case(40, 2, 34, bidirectional=False, dtype=dtype, absent=("lengths",))
    clean = run(kernels, case, every)
    case["u"][5, 1, 1, 17] = torch.nan
    dirty = run(kernels, case, every)
    assert dirty["h"][5:, 1, 17].isnan().all()
    for name, got in dirty.items():
        others = [d for d in range(34) if d != 17]
        assert torch.equal(got[..., others], clean[name][..., others]), name


def test_lengths_are_clamped(kernels: Any) -> None:
    case = make_case(9, 3, 4)
    case = {n: t.nan_to_num() if isinstance(t, Tensor) else t for n, t in case.items()}
    case["lengths"] = torch.tensor([9, 0, 9])
    expected = run(kernels, case, 1)
    case["lengths"] = torch.tensor([99, -1, 1 << 40])
    assert_same(run(kernels, case, 1), expected)


@pytest.mark.parametrize("batch", [1, 31, 32, 33, 70])
def test_sequences_are_added_in_their_order(kernels: Any, batch: int) -> None:
    case = make_case(3, batch, 3, absent=("lengths", "mask"))
    got = run(kernels, case, 1)
    total = torch.zeros_like(got["grad v"])
    for b in range(batch):
        alone = dict(case)
        for name in ("u", "x", "dh"):
            alone[name] = case[name][:, b : b + 1]
        for name in ("c0", "dc_n"):
            alone[name] = case[name][b : b + 1]
        total += run(kernels, alone, 1)["grad v"]
    assert torch.equal(got["grad v"], total)
