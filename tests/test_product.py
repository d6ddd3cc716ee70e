"""The matrix product: the same numbers by either routine, and the routine that was meant."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

from sru_asr import product


@pytest.fixture
def convolution(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Choose the convolution, for products of any size."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("needs a PyTorch with oneDNN")
    monkeypatch.setenv(product.VARIABLE, "convolution")
    monkeypatch.setattr(product, "LARGE", 1)
    product.routine.cache_clear()
    yield
    product.routine.cache_clear()


def operators(x: torch.Tensor, weight: torch.Tensor) -> set[str]:
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        product.linear(x, weight)
    return {event.key for event in seen.key_averages()}


@pytest.mark.parametrize(
    "shape", [(71, 15, 20), (1, 1025, 20), (1025, 20), (7, 3, 20), (0, 3, 20), (7, 0, 20), (20,)]
)
def test_convolution_is_linear(shape: tuple[int, ...], convolution: None) -> None:
    torch.manual_seed(0)
    leaves = [torch.randn(shape).requires_grad_(), torch.randn(36, 20).requires_grad_()]
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    output, expected = product.linear(*leaves), F.linear(*wide)
    grad = torch.randn_like(output)
    found = [output, *torch.autograd.grad(output, leaves, grad)]
    wanted = [expected, *torch.autograd.grad(expected, wide, grad.double())]
    for got, exact in zip(found, wanted, strict=True):
        assert got.shape == exact.shape
        if got.numel():
            assert (got - exact).abs().max() <= 1e-5 * exact.abs().max()


def test_batch_first_is_not_copied(convolution: None) -> None:
    x = torch.randn(15, 71, 20).transpose(0, 1)
    weight = torch.randn(36, 20)
    y = product.linear(x, weight)
    assert y.shape == (71, 15, 36) and y.transpose(0, 1).is_contiguous()
    torch.testing.assert_close(y, F.linear(x, weight), rtol=1e-5, atol=1e-5)
    assert "aten::clone" not in operators(x, weight)


@pytest.mark.parametrize("threads", [1, 2])
def test_convolution_reaches_onednn(threads: int, convolution: None) -> None:
    """Should a PyTorch send it elsewhere, the choice made here has lost its reason."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        used = operators(torch.randn(64, 4, 128), torch.randn(256, 128))
    finally:
        torch.set_num_threads(before)
    assert "aten::mkldnn_convolution" in used
    assert "aten::clone" not in used and "aten::contiguous" not in used


def test_what_keeps_linear(convolution: None) -> None:
    x, weight = torch.randn(64, 4, 128), torch.randn(256, 128)
    assert "aten::conv2d" not in operators(x.double(), weight.double())
    assert "aten::conv2d" not in operators(x.bfloat16(), weight.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert product.linear(x, weight).dtype == torch.bfloat16
        assert "aten::conv2d" not in operators(x, weight)
    with torch.backends.mkldnn.flags(enabled=False):
        assert "aten::conv2d" not in operators(x, weight)


def test_small_products_keep_linear(convolution: None, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(256, 128)
    assert "aten::conv2d" not in operators(torch.randn(160, 128), weight)
    assert "aten::mkldnn_convolution" in operators(torch.randn(161, 128), weight)
    monkeypatch.setattr(product, "LARGE", 200 * 128 * 256 + 1)
    assert "aten::conv2d" not in operators(torch.randn(200, 128), weight)
    assert "aten::mkldnn_convolution" in operators(torch.randn(201, 128), weight)


@pytest.mark.parametrize(
    ("amd", "capability", "expected"),
    [
        (True, "AVX512", "convolution"),
        (True, "AVX2", "linear"),
        (True, "DEFAULT", "linear"),
        (False, "AVX512", "linear"),
    ],
)
def test_routine(
    amd: bool, capability: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()):
        pytest.skip("needs a PyTorch with oneDNN and MKL")
    monkeypatch.delenv(product.VARIABLE, raising=False)
    monkeypatch.setattr(product, "_is_amd", lambda: amd)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    product.routine.cache_clear()
    try:
        chosen, reason = product.routine()
    finally:
        product.routine.cache_clear()
    assert chosen == expected and "AMD" in reason


def test_unknown_routine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(product.VARIABLE, "gemm")
    product.routine.cache_clear()
    with pytest.raises(ValueError, match="SRU_ASR_PRODUCT must be one of linear, conv.*'gemm'"):
        product.routine()
    product.routine.cache_clear()
