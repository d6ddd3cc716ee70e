"""Blocks along time give what the whole gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import sru_asr
from sru_asr import blocks, native
from sru_asr.recurrence import Recurrence

pytestmark = pytest.mark.skipif(
    native.why_missing("cpu") is not None, reason=str(native.why_missing("cpu"))
)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a few steps, however short the sequence."""
    monkeypatch.setattr(blocks, "WHOLE_BYTES", -1)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 0)
    monkeypatch.setattr(blocks, "BLOCK_ROWS", 12)  # three steps of four sequences


def layer(lanes: int, bidirectional: bool, **options: Any) -> tuple[Recurrence, torch.Tensor]:
    torch.manual_seed(0)
    recurrence = Recurrence(10, lanes, bidirectional=bidirectional, **options)
    torch.nn.init.normal_(recurrence.b)
    return recurrence, torch.randn(lanes * recurrence.width, 14)


def whole(
    recurrence: Recurrence, z: torch.Tensor, weight: torch.Tensor, *others: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    u = torch.nn.functional.linear(z, weight).unflatten(-1, (recurrence.num_lanes, -1))
    return recurrence(u, *others)


def compare(
    recurrence: Recurrence,
    weight: torch.Tensor,
    steps: int,
    lengths: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float64,
    within: float = 1e-12,
) -> None:
    recurrence.to(dtype)
    z, x = torch.randn(steps, 4, 14), torch.randn(steps, 4, recurrence.width)
    arguments = [t.to(dtype) for t in (z, weight, x, torch.randn(4, recurrence.width))]
    before = [t.clone() for t in arguments]
    with torch.no_grad():
        found = recurrence.project(*arguments, lengths)
        expected = whole(recurrence, *arguments, lengths)
    for got, wanted in zip(found, expected, strict=True):
        assert got.dtype == dtype
        torch.testing.assert_close(got, wanted, rtol=within, atol=within)
    for argument, given in zip(arguments, before, strict=True):
        assert torch.equal(argument, given)


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 4, 13])
@pytest.mark.parametrize("with_lengths", [True, False])
@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("lanes", [3, 4])
def test_blocks_equal_the_whole(
    lanes: int, bidirectional: bool, with_lengths: bool, steps: int, small_blocks: None
) -> None:
    lengths = torch.tensor([steps, 0, steps // 2, max(0, steps - 1)]) if with_lengths else None
    compare(*layer(lanes, bidirectional), steps, lengths)


@pytest.mark.parametrize(
    "options",
    [
        {"highway": False},
        {"activation": "tanh"},
        {"recurrent_gates": False},
        {"bias": False},
    ],
)
def test_options(options: dict[str, Any], small_blocks: None) -> None:
    compare(*layer(3, True, **options), 8, torch.tensor([8, 3, 1, 7]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype: torch.dtype, small_blocks: None) -> None:
    recurrence, weight = layer(3, True)
    compare(recurrence, 0.3 * weight, 13, None, dtype, 40 * torch.finfo(dtype).eps)


def test_dropout_keeps_to_the_whole(small_blocks: None) -> None:
    recurrence, weight = layer(3, True, dropout=0.4)
    z, x = torch.randn(8, 4, 14), torch.randn(8, 4, 20)
    with torch.no_grad():
        outputs = []
        for function in (whole, Recurrence.project):
            torch.manual_seed(1)
            outputs.append(function(recurrence, z, weight, x)[0])
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [-1, 1 << 30])
def test_padding_has_no_effect(
    size: int, small_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "WHOLE_BYTES", size)
    recurrence, weight = layer(3, True)
    z, x = torch.randn(13, 4, 14), torch.randn(13, 4, 20)
    lengths = torch.tensor([13, 5, 0, 9])
    outputs = []
    for value in (0.0, torch.nan):
        for b, length in enumerate(lengths):
            z[length:, b] = x[length:, b] = value
        with torch.no_grad():
            outputs.append(recurrence.project(z, weight, x, None, lengths))
    for clean, dirty in zip(*outputs, strict=True):
        assert torch.equal(clean, dirty)


@pytest.mark.parametrize("size", [-1, 1 << 30])
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"lengths": torch.tensor([13, 14, 0, 9])}, ValueError, "between 0 and T = 13, got 14"),
        ({"lengths": torch.tensor([1.0, 0.5, 0, 1])}, TypeError, "lengths must be an integer"),
        ({"c0": torch.randn(1, 10)}, ValueError, "c0 must have shape"),
        ({"x": torch.randn(14, 4, 10)}, ValueError, "x must have shape"),
        ({"z": torch.randn(13, 4, 14).double()}, RuntimeError, "dtype"),
        ({"z": torch.ones(13, 4, 14).int()}, RuntimeError, "dtype|Int"),
    ],
)
@pytest.mark.parametrize("gradients", [True, False])
def test_wrong_arguments(
    gradients: bool,
    change: dict[str, torch.Tensor],
    error: type[Exception],
    message: str,
    size: int,
    small_blocks: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same errors without gradients as with them."""
    monkeypatch.setattr(blocks, "WHOLE_BYTES", size)
    recurrence, weight = layer(3, False)
    given = {"z": torch.randn(13, 4, 14), "x": torch.randn(13, 4, 10), "c0": None, "lengths": None}
    given |= change
    with torch.set_grad_enabled(gradients), pytest.raises(error, match=message):
        recurrence.project(given["z"], weight, given["x"], given["c0"], given["lengths"])


@pytest.mark.parametrize("wide", ["all", "z and weight", "c0"])
def test_float64_is_never_narrowed(wide: str, small_blocks: None) -> None:
    # Four lanes have no x, whose dtype would tell already.
    recurrence, weight = layer(4 if wide == "z and weight" else 3, True)
    z, x, c0 = torch.randn(7, 4, 14), torch.randn(7, 4, 20), torch.randn(4, 20)
    if wide == "c0":
        c0 = c0.double()
        expected = whole(recurrence, z, weight, x, c0)
        with torch.no_grad():
            found = recurrence.project(z, weight, x, c0)
    else:
        if wide == "all":
            recurrence.double()
        z, weight, x = z.double(), weight.double(), x.double()
        expected = whole(recurrence, z, weight, x, None)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            found = recurrence.project(z, weight, x)
    for got, wanted in zip(found, expected, strict=True):
        assert got.dtype == wanted.dtype
        torch.testing.assert_close(got, wanted.detach())


def test_batch_first_input(small_blocks: None) -> None:
    recurrence, weight = layer(3, True)
    z, x = torch.randn(4, 13, 14).transpose(0, 1), torch.randn(4, 13, 20).transpose(0, 1)
    with torch.no_grad():
        found, expected = recurrence.project(z, weight, x), whole(recurrence, z, weight, x)
    for got, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, small_blocks: None) -> None:
    torch.manual_seed(0)
    sru = sru_asr.SRU(14, 10, 3, bidirectional=True)
    x, hx = torch.randn(13, 4, 14), torch.randn(6, 4, 10)
    results = []
    for size in (1 << 30, -1):
        monkeypatch.setattr(blocks, "WHOLE_BYTES", size)
        for gradients in (True, False):
            with torch.autocast("cpu", dtype), torch.set_grad_enabled(gradients):
                outputs = sru(x, hx)
            results.append(list(outputs))
    for other in results[1:]:
        for got, expected in zip(other, results[0], strict=True):
            assert got.dtype == expected.dtype
            scale = expected.abs().max().item()
            torch.testing.assert_close(got, expected, rtol=2e-2, atol=2e-2 * max(scale, 1))


def test_projected_input_is_never_whole() -> None:
    """An hour of frames needs memory for what goes in and comes out, not for what is between."""
    recurrence, weight = layer(3, True)
    z, x = torch.randn(200_000, 1, 14), torch.randn(200_000, 1, 20)
    whole = 200_000 * 60 * 4
    assert whole > blocks.WHOLE_BYTES
    with torch.no_grad(), torch.profiler.profile(profile_memory=True) as seen:
        recurrence.project(z, weight, x)
    largest = max(event.self_cpu_memory_usage for event in seen.events())
    assert largest <= x.nbytes + blocks.BLOCK_BYTES * 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("lanes", [3, 4])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_output_may_take_the_inputs_memory(
    bidirectional: bool, lanes: int, dtype: torch.dtype, small_blocks: None
) -> None:
    recurrence, weight = layer(lanes, bidirectional)
    recurrence.to(torch.promote_types(dtype, torch.float32))
    z, weight, x = (t.to(dtype) for t in (torch.randn(13, 4, 14), weight, torch.randn(13, 4, 20)))
    x = x[..., : recurrence.width].contiguous()
    lengths = torch.tensor([13, 3, 0, 12])
    with torch.no_grad():
        expected = recurrence.project(z, weight, x.clone(), None, lengths)
        found = recurrence.project(z, weight, x, None, lengths, overwrite=True)
    for got, wanted in zip(found, expected, strict=True):
        assert torch.equal(got, wanted)
    assert (found[0].data_ptr() == x.data_ptr()) == (lanes == 3)
