"""The recurrence, as fast as this machine can: the Python face of the compiled kernels.

Fake kernels and the gradient are registered here, so that the operators work under autograd,
``torch.compile`` and ``torch.export``. Nothing else in the package touches ``torch.ops``.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, library

from . import native, reference
from .transforms import transformed

KEEP_EVERY = 32  # steps from one kept state to the next where the backward pass recomputes

# With so many columns a GPU's limit is its memory, and recomputing moves less of it; with fewer, it
# is the chain of steps, which recomputing makes longer. On a CPU, what recomputing costs backward,
# it saves forward.
RECOMPUTED_COLUMNS = 16384

_warned: set[str] = set()


def sru_recurrence(
    u: Tensor,
    v: Tensor | None,
    b: Tensor,
    x: Tensor | None = None,
    c0: Tensor | None = None,
    lengths: Tensor | None = None,
    *,
    bidirectional: bool = False,
    alpha: float = 1.0,
    activation: str = "identity",
    mask: Tensor | None = None,
    recompute: bool | str = "auto",
) -> tuple[Tensor, Tensor]:
    reference.check_arguments(u, v, b, x, c0, lengths, bidirectional, activation, mask, recompute)
    missing = native.why_missing(u.device.type)
    if missing is not None:
        _warn_once(f"on {u.device.type}", missing)
    elif transformed(u, v, b, x, c0, lengths, mask):
        missing = "the kernels know torch.autograd.grad, backward and torch.compile"
        _warn_once("under torch.func and forward-mode differentiation", missing)
    if missing is not None:
        return reference.sru_recurrence(
            u,
            v,
            b,
            x,
            c0,
            lengths,
            bidirectional=bidirectional,
            alpha=alpha,
            activation=activation,
            mask=mask,
            recompute=recompute,
        )
    dtype = reference.compute_dtype(u, v, b, x, c0, mask)
    # Sequences stay in 16 bits where all of them are; the kernels widen what they read.
    narrow = dtype == torch.float32 and (x is None or x.dtype == u.dtype)
    stored = u.dtype if narrow else dtype
    h, c_n, _ = torch.ops.sru_asr.recurrence_forward(
        u.to(stored),
        _to(v, dtype),
        b.to(dtype),
        _to(x, stored),
        _to(c0, dtype),
        _to(lengths, torch.int64),
        None if mask is None else mask.detach().to(dtype),
        bidirectional,
        float(alpha),
        activation,
        _keep_every(recompute, u, v, b, x, c0),
    )
    return h.to(u.dtype), c_n.to(u.dtype)


sru_recurrence.__doc__ = reference.sru_recurrence.__doc__


def scripted_recurrence(
    u: Tensor,
    v: Tensor,
    b: Tensor,
    x: Tensor | None,
    c0: Tensor | None,
    mask: Tensor | None,
    bidirectional: bool,
    activation: str,
) -> tuple[Tensor, Tensor]:
    """Run `sru_recurrence` from TorchScript, which knows the operator but not what is around it.

    Everything has ``u``'s dtype, which is float32 or float64; nothing is checked or converted here.
    """
    keep_every = 1 if torch.is_grad_enabled() else 0
    h, c_n, _ = torch.ops.sru_asr.recurrence_forward(
        u, v, b, x, c0, None, mask, bidirectional, 1.0, activation, keep_every
    )
    return h, c_n


def recurrence_inference(
    u: Tensor,
    v: Tensor | None,
    b: Tensor,
    x: Tensor | None,
    lengths: Tensor | None,
    c: Tensor,
    h: Tensor,
    direction: str,
    alpha: float,
    activation: str,
) -> None:
    """Run the recurrence without gradients, into memory that the caller has.

    Parameters
    ----------
    u, v, b, x, lengths, alpha, activation
        As in `sru_recurrence`, with ``u`` and ``x`` of one dtype; ``v`` and ``b`` have at least
        float32, and ``lengths`` is int64. Nothing is converted here.
    c : Tensor, shape (B, D)
        State before the first step, which becomes the one after the last. Contiguous; dtype of
        ``b``.
    h : Tensor, shape (T, B, D)
        Receives the output. Any view with unit stride in the last dimension that overlaps neither
        itself nor an input; dtype of ``u``.
    direction : {"forward", "backward", "both"}
        Whether all of ``D``, or its second half, goes from the end to the beginning.
    """
    torch.ops.sru_asr.recurrence_inference(u, v, b, x, lengths, c, h, direction, alpha, activation)


def prepare(memory: Tensor) -> None:
    """Make the first touch of a large, freshly allocated tensor on the CPU cheaper."""
    torch.ops.sru_asr.prepare(memory)


def _to(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if tensor is None else tensor.to(dtype)


def _keep_every(recompute: bool | str, u: Tensor, *others: Tensor | None) -> int:
    """Return the steps from one kept state to the next; 0 when no gradient will be asked for."""
    if not torch.is_grad_enabled() or torch.jit.is_tracing():
        # A trace is checked against a second one without gradients, and both must be one graph.
        # Where it is differentiated nonetheless, the backward pass makes the states.
        return 0
    if not any(t is not None and t.requires_grad for t in (u, *others)):
        return 0
    if recompute == "auto":
        recompute = not u.is_cuda or u.shape[1] * u.shape[3] >= RECOMPUTED_COLUMNS
    return KEEP_EVERY if recompute else 1


def _warn_once(where: str, missing: str) -> None:
    if where not in _warned:
        _warned.add(where)
        warnings.warn(
            f"sru_asr runs its slow reference recurrence {where}: {missing}",
            RuntimeWarning,
            stacklevel=3,
        )


def _fake_forward(
    u: Tensor,
    v: Tensor | None,
    b: Tensor,
    x: Tensor | None,
    c0: Tensor | None,
    lengths: Tensor | None,
    mask: Tensor | None,
    bidirectional: bool,
    alpha: float,
    activation: str,
    keep_every: int,
) -> tuple[Tensor, Tensor, Tensor]:
    steps, batch, _, width = u.shape
    rows = -(-steps // keep_every) if keep_every else 0
    return (
        u.new_empty(steps, batch, width),
        b.new_empty(batch, width),
        b.new_empty(rows, batch, width),
    )


def _fake_backward(
    grad_h: Tensor,
    grad_c_n: Tensor,
    u: Tensor,
    v: Tensor | None,
    b: Tensor,
    x: Tensor | None,
    c0: Tensor | None,
    lengths: Tensor | None,
    mask: Tensor | None,
    c: Tensor,
    bidirectional: bool,
    alpha: float,
    activation: str,
    keep_every: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    steps, batch, _, width = u.shape
    return (
        u.new_empty(u.shape),
        b.new_empty(2, width),
        b.new_empty(2, width),
        u.new_empty(0 if x is None else steps, batch, width),
        b.new_empty(batch, width),
    )


def _fake_inference(*arguments: Any) -> None:
    return None


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, bidirectional, alpha, activation, keep_every = inputs
    states = output[2]
    ctx.save_for_backward(*tensors, states if keep_every else None)
    ctx.options = bidirectional, alpha, activation, keep_every
    ctx.mark_non_differentiable(states)
    ctx.set_materialize_grads(False)  # zeros for the states would be as large as the output


def _backward(
    ctx: Any, grad_h: Tensor | None, grad_c_n: Tensor | None, _: None
) -> tuple[Tensor | None, ...]:
    *inputs, states = ctx.saved_tensors
    *options, keep_every = ctx.options
    u, v, b, x, c0, _, _ = inputs
    steps, batch, _, width = u.shape
    if grad_h is None:
        grad_h = u.new_zeros(()).expand(steps, batch, width)
    if grad_c_n is None:
        grad_c_n = b.new_zeros(batch, width)
    if states is None:  # the operator was called by hand, without them: make them now
        keep_every = 1
        _, _, states = torch.ops.sru_asr.recurrence_forward(*inputs, *options, keep_every)
    du, dv, db, dx, dc0 = torch.ops.sru_asr.recurrence_backward(
        grad_h, grad_c_n, *inputs, states, *options, keep_every
    )
    return (
        du,
        None if v is None else dv,
        db,
        None if x is None else dx,
        None if c0 is None else dc0,
        *[None] * 6,
    )


def _refuse_double_backward(ctx: Any, *grads: Tensor) -> None:
    raise RuntimeError(
        "sru_recurrence can be differentiated once: its gradient has no gradient of its own. "
        "For second derivatives use sru_asr.reference.sru_recurrence."
    )


if native.why_missing("cpu") is None:
    library.register_fake("sru_asr::recurrence_forward", _fake_forward)
    library.register_fake("sru_asr::recurrence_backward", _fake_backward)
    library.register_fake("sru_asr::recurrence_inference", _fake_inference)
    library.register_autograd(
        "sru_asr::recurrence_forward", _backward, setup_context=_save_for_backward
    )
    library.register_autograd("sru_asr::recurrence_backward", _refuse_double_backward)
