"""What PyTorch makes of the layers: torch.func, forward mode, compilation, checkpointing."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
import torch.autograd.forward_ad as fwAD
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import sru_asr
from sru_asr import native, ops, reference
from sru_asr.transforms import transformed

pytestmark = pytest.mark.skipif(
    native.why_missing("cpu") is not None, reason=str(native.why_missing("cpu"))
)
slowly = pytest.mark.filterwarnings("ignore:sru_asr runs its slow reference")


@pytest.fixture
def sru() -> sru_asr.SRU:
    torch.manual_seed(0)
    return sru_asr.SRU(6, 4, 2, bidirectional=True)


@pytest.fixture
def x(sru: sru_asr.SRU) -> Tensor:
    return torch.randn(5, 3, 6)


def loss_of(sru: sru_asr.SRU) -> Callable[..., Tensor]:
    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(sru, parameters, (x,))[0].square().sum()

    return loss


# --- torch.func and forward mode


def test_transformed(x: Tensor) -> None:
    assert not transformed(x, None)
    seen = []
    for transform in (torch.func.vmap, torch.func.grad):
        transform(lambda x: seen.append(transformed(x)) or x.sum())(x[0, 0])
    with fwAD.dual_level():
        seen += [transformed(None, fwAD.make_dual(x, x)), not transformed(x)]
    assert seen == [True] * 4


@slowly
def test_func_grad(sru: sru_asr.SRU, x: Tensor) -> None:
    loss, parameters = loss_of(sru), dict(sru.named_parameters())
    expected = torch.autograd.grad(loss(parameters, x), list(parameters.values()))
    found = torch.func.grad(loss)(parameters, x)
    for got, wanted in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


@slowly
def test_gradients_of_each_example(sru: sru_asr.SRU, x: Tensor) -> None:
    loss, parameters = loss_of(sru), dict(sru.named_parameters())
    both = torch.stack([x, x.flip(0)])
    found = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, both)
    for i, example in enumerate(both):
        expected = torch.autograd.grad(loss(parameters, example), list(parameters.values()))
        for got, wanted in zip(found.values(), expected, strict=True):
            torch.testing.assert_close(got[i], wanted, rtol=1e-4, atol=1e-5)


@slowly
@pytest.mark.parametrize("gradients", [True, False])
def test_vmap(gradients: bool, sru: sru_asr.SRU, x: Tensor) -> None:
    both = torch.stack([x, x.flip(0)])
    lengths = torch.tensor([[5, 2, 0], [1, 1, 4]])
    with torch.set_grad_enabled(gradients):
        got = torch.func.vmap(lambda x, n: sru(x, lengths=n)[0])(both, lengths)
        expected = torch.stack([sru(x, lengths=n)[0] for x, n in zip(both, lengths, strict=True)])
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@slowly
@pytest.mark.parametrize("gradients", [True, False])
def test_forward_mode(gradients: bool) -> None:
    """A tangent that an operator does not know of would silently become zero."""
    torch.manual_seed(0)
    u, b, tangent = torch.randn(5, 2, 3, 4), torch.zeros(2, 4), torch.randn(5, 2, 3, 4)
    found = []
    for function in (ops.sru_recurrence, reference.sru_recurrence):
        with torch.set_grad_enabled(gradients), fwAD.dual_level():
            h, _ = function(fwAD.make_dual(u, tangent), None, b)
            found.append(fwAD.unpack_dual(h).tangent)
        found.append(torch.func.jvp(lambda u: function(u, None, b)[0], (u,), (tangent,))[1])  # noqa: B023
    for tangent in found[:3]:
        torch.testing.assert_close(tangent, found[3])


@slowly
def test_forward_mode_through_a_layer_without_gradients(sru: sru_asr.SRU, x: Tensor) -> None:
    with torch.no_grad():
        _, tangent = torch.func.jvp(lambda x: sru(x)[0], (x,), (torch.ones_like(x),))
        step = 1e-2
        expected = (sru(x + step)[0] - sru(x - step)[0]) / (2 * step)
    torch.testing.assert_close(tangent, expected, rtol=1e-2, atol=1e-3)


def test_the_slow_way_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "_warned", set())
    u, b = torch.randn(2, 5, 2, 3, 4), torch.zeros(2, 4)
    mapped = torch.func.vmap(lambda u: ops.sru_recurrence(u, None, b)[0])
    with pytest.warns(RuntimeWarning, match="under torch.func and forward-mode differentiation"):
        mapped(u)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mapped(u)


@slowly
@pytest.mark.parametrize("fullgraph", [True, False])
def test_forward_mode_while_compiling(fullgraph: bool) -> None:
    """Refused, or done outside of the graph: a tangent of zero would be wrong."""
    torch.compiler.reset()
    u, b = torch.randn(5, 2, 3, 4), torch.zeros(2, 4)

    def tangent(u: Tensor) -> Tensor:
        return torch.func.jvp(lambda u: ops.sru_recurrence(u, None, b)[0], (u,), (u,))[1]

    compiled = torch.compile(tangent, backend="aot_eager", fullgraph=fullgraph)
    if fullgraph:
        with pytest.raises(torch._dynamo.exc.Unsupported):
            compiled(u)
    else:
        torch.testing.assert_close(compiled(u), tangent(u))


# --- compilation


@pytest.mark.parametrize("gradients", [True, False])
def test_compile_layer(gradients: bool, sru: sru_asr.SRU) -> None:
    torch.compiler.reset()
    compiled = torch.compile(sru, fullgraph=True, backend="aot_eager")
    for steps in (5, 9, 12):
        x, lengths = torch.randn(steps, 3, 6), torch.tensor([5, 2, 0])
        with torch.set_grad_enabled(gradients):
            got, expected = compiled(x, lengths=lengths)[0], sru(x, lengths=lengths)[0]
        torch.testing.assert_close(got, expected)
        if gradients:
            leaves = list(sru.parameters())
            for pair in zip(
                torch.autograd.grad(got.sum(), leaves),
                torch.autograd.grad(expected.sum(), leaves),
                strict=True,
            ):
                torch.testing.assert_close(*pair, rtol=1e-5, atol=1e-5)


def test_compile_encoder() -> None:
    torch.compiler.reset()
    encoder = sru_asr.SRUEncoder(6, 4, 2, 4, num_heads=2, attention_every=2).eval()
    compiled = torch.compile(encoder, fullgraph=True, backend="aot_eager")
    x, lengths = torch.randn(3, 5, 6), torch.tensor([1.0, 0.4, 0.2])
    with torch.no_grad():
        torch.testing.assert_close(compiled(x, lengths), encoder(x, lengths))


def test_export(sru: sru_asr.SRU, x: Tensor) -> None:
    with torch.no_grad():
        exported = torch.export.export(sru, (x,)).module()
        torch.testing.assert_close(exported(x)[0], sru(x)[0])


# --- checkpointing


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpoint(use_reentrant: bool, sru: sru_asr.SRU, x: Tensor) -> None:
    leaves = [x.requires_grad_(), *sru.parameters()]
    lengths = torch.tensor([5, 2, 0])

    def run(x: Tensor) -> Tensor:
        return sru(x, lengths=lengths)[0]

    def gradients(output: Tensor) -> list[Tensor]:
        output.square().sum().backward()
        found = [leaf.grad for leaf in leaves]
        for leaf in leaves:
            leaf.grad = None
        return found

    expected = gradients(run(x))
    found = gradients(checkpoint(run, x, use_reentrant=use_reentrant))
    for got, wanted in zip(found, expected, strict=True):
        assert torch.equal(got, wanted)
