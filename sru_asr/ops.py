"""The recurrence, as fast as this machine can: the Python face of the compiled kernels.

Fake kernels and the gradient are registered here, so that the operators work under autograd,
``torch.compile`` and ``torch.export``. Nothing else in the package touches ``torch.ops``.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from . import native, reference

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
) -> tuple[Tensor, Tensor]:
    reference.check_arguments(u, v, b, x, c0, lengths, bidirectional, activation, mask)
    missing = native.why_missing(u.device.type)
    if missing is not None:
        _warn_once(u.device.type, missing)
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
        )
    dtype = reference.compute_dtype(u, v, b, x, c0, mask)
    tensors = [t if t is None else t.to(dtype) for t in (u, v, b, x, c0)]
    save_states = torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in tensors
    )
    h, c_n, _ = torch.ops.sru_asr.recurrence_forward(
        *tensors,
        None if lengths is None else lengths.to(torch.int64),
        None if mask is None else mask.detach().to(dtype),
        bidirectional,
        float(alpha),
        activation,
        save_states,
    )
    return h.to(u.dtype), c_n.to(u.dtype)


sru_recurrence.__doc__ = reference.sru_recurrence.__doc__


def _warn_once(device_type: str, missing: str) -> None:
    if device_type not in _warned:
        _warned.add(device_type)
        warnings.warn(
            f"sru_asr runs its slow reference recurrence on {device_type}: {missing}",
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
    save_states: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    steps, batch, _, width = u.shape
    return (
        u.new_empty(steps, batch, width),
        u.new_empty(batch, width),
        u.new_empty(steps if save_states else 0, batch, width),
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    steps, batch, _, width = u.shape
    return (
        u.new_empty(u.shape),
        u.new_empty(2, width),
        u.new_empty(2, width),
        u.new_empty(0 if x is None else steps, batch, width),
        u.new_empty(batch, width),
    )


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, bidirectional, alpha, activation, save_states = inputs
    states = output[2]
    ctx.save_for_backward(*tensors, states if save_states else None)
    ctx.options = bidirectional, alpha, activation
    ctx.mark_non_differentiable(states)
    ctx.set_materialize_grads(False)  # zeros for the states would be as large as the output


def _backward(
    ctx: Any, grad_h: Tensor | None, grad_c_n: Tensor | None, _: None
) -> tuple[Tensor | None, ...]:
    *inputs, states = ctx.saved_tensors
    u, v, _, x, c0, _, _ = inputs
    steps, batch, _, width = u.shape
    if grad_h is None:
        grad_h = u.new_zeros(()).expand(steps, batch, width)
    if grad_c_n is None:
        grad_c_n = u.new_zeros(batch, width)
    if states is None:  # the operator was called by hand, without them: make them now
        _, _, states = torch.ops.sru_asr.recurrence_forward(*inputs, *ctx.options, True)
    du, dv, db, dx, dc0 = torch.ops.sru_asr.recurrence_backward(
        grad_h, grad_c_n, *inputs, states, *ctx.options
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
    torch.library.register_fake("sru_asr::recurrence_forward", _fake_forward)
    torch.library.register_fake("sru_asr::recurrence_backward", _fake_backward)
    torch.library.register_autograd(
        "sru_asr::recurrence_forward", _backward, setup_context=_save_for_backward
    )
    torch.library.register_autograd("sru_asr::recurrence_backward", _refuse_double_backward)
