"""The recurrence as its definition reads: plain PyTorch, any dtype, one step after another.

This is the oracle that every kernel is tested against, and what runs where no kernel does. It is
written to be checked by eye against the equations, not to be fast.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .transforms import transformed

ACTIVATIONS = {"identity": lambda c: c, "tanh": torch.tanh}


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
    """Run the elementwise recurrence of the Simple Recurrent Unit over a whole batch.

    For every step ``t``, sequence ``b`` and hidden dimension ``d``::

        f = sigmoid(uf + vf * c_prev + bf)        forget gate
        r = sigmoid(ur + vr * c_prev + br)        reset (highway) gate
        c = f * c_prev + (1 - f) * u0             state
        h = x' + (g(c) - x') * mask * r           output

    where ``x'`` is ``u3`` when ``u`` has four lanes, ``alpha * x`` when it has three and ``x`` is
    given, and 0 otherwise (no highway). Equations 3 to 7 of Lei et al., "Simple Recurrent Units
    for Highly Parallelizable Recurrence" (EMNLP 2018), with the dropout mask of their code.

    Parameters
    ----------
    u : Tensor, shape (T, B, k, D)
        The projected input in lanes ``u0, uf, ur`` and, for ``k = 4``, ``u3``. ``D`` is
        ``hidden_size``, or twice that when bidirectional, forward direction first.
    v : Tensor, shape (2, D), or None
        Recurrent weights of the forget and the reset gate; None makes the recurrence linear.
    b : Tensor, shape (2, D)
        Biases of the forget and the reset gate.
    x : Tensor, shape (T, B, D), optional
        Input of the highway, with ``k = 3`` only.
    c0 : Tensor, shape (B, D), optional
        State before the first step; zeros by default.
    lengths : integer Tensor, shape (B,), optional
        Number of real steps of each sequence, in any order, 0 to T. Later steps carry the state,
        output 0 and receive no gradient, and nothing that stands in them (NaN included) has any
        effect. The backward direction starts at each sequence's own last real step.
    bidirectional : bool
        Run the second half of ``D`` from the end to the beginning.
    alpha : float
        Scale of ``x`` in the highway.
    activation : {"identity", "tanh"}
        ``g``.
    mask : Tensor, shape (B, D), optional
        Dropout mask shared over time, already scaled by ``1 / (1 - p)``. No gradient flows into it.
    recompute : {"auto", True, False}
        Whether the backward pass recomputes most states instead of keeping all of them, which saves
        the kernels a tensor of ``h``'s shape for each call and changes gradients by rounding alone.
        "auto" does wherever it costs no time. The reference ignores it.

    Returns
    -------
    h : Tensor, shape (T, B, D)
        Outputs; exactly 0 at padded steps.
    c_n : Tensor, shape (B, D)
        State after each sequence's last step (for the backward direction, its first).

    Both have ``u``'s dtype. The arithmetic is that of the widest dtype among the arguments, and at
    least float32: 16-bit inputs are widened first, and results rounded once at the end.

    Raises
    ------
    TypeError, ValueError
        When an argument's type, dtype, device or shape does not fit; the message names it.

    Examples
    --------
    >>> import torch
    >>> from sru_asr import reference
    >>> u, b = torch.zeros(5, 2, 3, 4), torch.zeros(2, 4)
    >>> h, c_n = reference.sru_recurrence(u, None, b, c0=torch.ones(2, 4))
    >>> h.shape, c_n[0, 0].item()  # five halvings
    (torch.Size([5, 2, 4]), 0.03125)
    """
    check_arguments(u, v, b, x, c0, lengths, bidirectional, activation, mask, recompute)
    returned, dtype = u.dtype, compute_dtype(u, v, b, x, c0, mask)
    u, b = u.to(dtype), b.to(dtype)
    v, x, c0, mask = (t if t is None else t.to(dtype) for t in (v, x, c0, mask))
    steps, batch, lanes, width = u.shape
    if lengths is not None:
        # Cleared before any arithmetic: 0 * NaN would carry padding into gradients.
        padded = torch.arange(steps, device=u.device)[:, None] >= lengths
        u = u.masked_fill(padded[:, :, None, None], 0)
        x = x.masked_fill(padded[:, :, None], 0) if x is not None else None
    else:
        padded = None
    c0 = u.new_zeros(batch, width) if c0 is None else c0
    vf, vr = (0.0, 0.0) if v is None else v.unbind(0)
    bf, br = b.unbind(0)
    half = width // 2 if bidirectional else width
    outputs, finals = [], []
    directions = [(slice(0, half), range(steps))]
    if bidirectional:
        directions.append((slice(half, width), range(steps - 1, -1, -1)))
    for part, order in directions:
        c = c0[:, part]
        # Unbound once: a slice per step would make backward quadratic in T.
        lane = [u[:, :, i, part].unbind(0) for i in range(lanes)]
        carried = x[:, :, part].unbind(0) if x is not None else None
        h: list[Tensor] = [u.new_empty(0)] * steps
        for t in order:
            f = torch.sigmoid(lane[1][t] + _part(vf, part) * c + bf[part])
            r = torch.sigmoid(lane[2][t] + _part(vr, part) * c + br[part])
            new = f * c + (1 - f) * lane[0][t]
            g = ACTIVATIONS[activation](new)
            if lanes == 4:
                highway = lane[3][t]
            else:
                highway = alpha * carried[t] if carried is not None else torch.zeros_like(g)
            keep = r if mask is None else mask.detach()[:, part] * r
            out = highway + (g - highway) * keep
            if padded is None:
                c, h[t] = new, out
            else:
                pad = padded[t][:, None]
                c, h[t] = torch.where(pad, c, new), out.masked_fill(pad, 0)
        outputs.append(torch.stack(h) if steps else u.new_zeros(0, batch, c.shape[1]) + 0 * c)
        finals.append(c)
    return torch.cat(outputs, dim=-1).to(returned), torch.cat(finals, dim=-1).to(returned)


def _part(v: Tensor | float, part: slice) -> Tensor | float:
    return v[part] if isinstance(v, Tensor) else v


def compute_dtype(*tensors: Tensor | None) -> torch.dtype:
    """Return the dtype of the arithmetic: the widest among the tensors, at least float32."""
    dtype = torch.float32
    for tensor in tensors:
        if tensor is not None:
            dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def check_arguments(
    u: Tensor,
    v: Tensor | None,
    b: Tensor,
    x: Tensor | None,
    c0: Tensor | None,
    lengths: Tensor | None,
    bidirectional: bool,
    activation: str,
    mask: Tensor | None,
    recompute: bool | str = "auto",
) -> None:
    """Raise a TypeError or ValueError that names the first argument which does not fit."""
    if not isinstance(u, Tensor):
        raise TypeError(f"u must be a Tensor, got {type(u).__name__}")
    if not u.is_floating_point():
        raise TypeError(f"u must be a floating-point tensor, got {u.dtype}")
    if u.dim() != 4 or u.shape[2] not in (3, 4):
        raise ValueError(f"u must have shape (T, B, 3 or 4, D), got {tuple(u.shape)}")
    steps, batch, lanes, width = u.shape
    if bidirectional and width % 2:
        raise ValueError(f"u must have an even last dimension when bidirectional, got {width}")
    expected = {
        "v": (v, (2, width)),
        "b": (b, (2, width)),
        "x": (x, (steps, batch, width)),
        "c0": (c0, (batch, width)),
        "mask": (mask, (batch, width)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is None and name != "b":
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a Tensor, got {type(tensor).__name__}")
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")
        if tensor.device != u.device:
            raise ValueError(f"{name} must be on u's device {u.device}, got {tensor.device}")
        if not tensor.is_floating_point():
            raise TypeError(f"{name} must be a floating-point tensor, got {tensor.dtype}")
    if x is not None and lanes == 4:
        raise ValueError("x must be None when u has four lanes: lane u3 is the highway's input")
    if recompute not in ("auto", True, False):
        raise ValueError(f"recompute must be 'auto', True or False, got {recompute!r}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {sorted(ACTIVATIONS)}, got {activation!r}")
    if lengths is not None:
        if not isinstance(lengths, Tensor):
            raise TypeError(f"lengths must be a Tensor, got {type(lengths).__name__}")
        if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
            raise TypeError(f"lengths must be an integer tensor of steps, got {lengths.dtype}")
        if tuple(lengths.shape) != (batch,):
            raise ValueError(f"lengths must have shape {(batch,)}, got {tuple(lengths.shape)}")
        if lengths.device != u.device:
            raise ValueError(f"lengths must be on u's device {u.device}, got {lengths.device}")
        # Elsewhere than on the CPU a look at the values would make the host wait for the device;
        # while compiling, in a fake tensor (a subclass) and under torch.func there are no values.
        real = type(lengths) is Tensor and not torch.compiler.is_compiling()
        real = real and not transformed(lengths)
        if real and lengths.device.type == "cpu":
            _check_range(lengths, steps)


def _check_range(lengths: Tensor, steps: int) -> None:
    wrong = (lengths < 0) | (lengths > steps)
    if wrong.any():
        position = int(wrong.nonzero()[0])
        raise ValueError(
            f"lengths must lie between 0 and T = {steps}, "
            f"got {int(lengths[position])} at position {position}"
        )
