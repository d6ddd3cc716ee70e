"""Inference block by block along time: what is projected is used while it is still in the cache.

The projected input of a whole sequence is three or four times as large as the layer's output. Fresh
memory for it costs a page fault for every 4 KiB, and then it is written and read back. In blocks
memory is used again, and stays bounded however long the recording is. The two directions go through
time the opposite way, so each has its own products and blocks.

Training needs the projected input for its gradients and does without blocks: their smaller products
lost more than their memory gained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor

from sru_asr import native, ops, reference
from sru_asr.product import linear
from sru_asr.transforms import transformed

WHOLE_BYTES = 32 << 20  # of projected input that is not worth dividing
BLOCK_BYTES = 4 << 20  # of one direction's block, but at least so many rows:
BLOCK_ROWS = 2048  # with fewer, the product spends its time on reading the weights


@dataclass(frozen=True)
class Options:
    """Those of `sru_asr.ops.sru_recurrence`, and the lanes of the projected input."""

    num_lanes: int
    bidirectional: bool
    alpha: float
    activation: str


def suits_blocks(z: Tensor, weight: Tensor, *others: Tensor | None) -> bool:
    """Say whether `run_blocks` can take the place of product and operator.

    It can on the CPU, without gradients, while PyTorch does not record or transform what is
    computed, and where dtypes fit as they should. ``others`` are all other tensors that take part.
    """
    dtype = _dtype(z, weight)
    return (
        z.device.type == "cpu"
        and not torch.is_grad_enabled()
        and not recorded()
        and type(z) is Tensor
        and native.why_missing("cpu") is None
        and not transformed(z, weight, *others)
        and dtype is not None
        and torch.promote_types(dtype, torch.float32)
        == reference.compute_dtype(*(t for t in others if t is not None and t.is_floating_point()))
    )


def recorded() -> bool:
    """Say whether PyTorch makes a graph of what is computed, for other lengths too."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def _dtype(z: Tensor, weight: Tensor) -> torch.dtype | None:
    """Return the product's dtype; None where PyTorch would refuse to multiply."""
    dtypes = {z.dtype, weight.dtype}
    if torch.is_autocast_enabled("cpu") and torch.float64 not in dtypes:
        return torch.get_autocast_dtype("cpu")
    return z.dtype if len(dtypes) == 1 and z.is_floating_point() else None


def run_blocks(
    z: Tensor,
    weight: Tensor,
    v: Tensor | None,
    b: Tensor,
    x: Tensor | None,
    c0: Tensor | None,
    lengths: Tensor | None,
    options: Options,
    overwrite: bool = False,
) -> tuple[Tensor, Tensor]:
    """Project and recur: what `sru_asr.ops.sru_recurrence` makes of ``u = z @ weight.T``.

    Parameters
    ----------
    z : Tensor, shape (T, B, features)
        What the product takes.
    weight : Tensor, shape (num_lanes * D, features)
        Its matrix, lane by lane.
    v, b, x, c0, lengths
        As in `sru_asr.ops.sru_recurrence`.
    options : Options
    overwrite : bool
        Whether ``h`` may take the memory of ``x``, of a long sequence: a layer's input is then
        gone, and its output needs no memory of its own. Neither may overlap ``z``.

    Returns
    -------
    h : Tensor, shape (T, B, D)
    c_n : Tensor, shape (B, D)

    Raises
    ------
    TypeError, ValueError
        As `sru_asr.ops.sru_recurrence`.

    Examples
    --------
    >>> import torch
    >>> from sru_asr.blocks import Options, run_blocks
    >>> z, weight, b = torch.randn(5, 2, 8), torch.randn(12, 8), torch.zeros(2, 4)
    >>> options = Options(3, bidirectional=False, alpha=1.0, activation="identity")
    >>> h, c_n = run_blocks(z, weight, None, b, None, None, None, options)
    >>> h.shape, c_n.shape
    (torch.Size([5, 2, 4]), torch.Size([2, 4]))
    """
    steps, batch, _ = z.shape
    lanes, width = options.num_lanes, weight.shape[0] // options.num_lanes
    # A tensor of the projected input's shape, but of one number.
    like_u = z.new_empty(()).expand(steps, batch, lanes, width)
    reference.check_arguments(
        like_u, v, b, x, c0, lengths, options.bidirectional, options.activation, None
    )
    dtype = _dtype(z, weight) or z.dtype
    compute = torch.promote_types(dtype, torch.float32)
    z, weight, x = _to(z, dtype), _to(weight, dtype), _to(x, dtype)
    v, b, lengths = _to(v, compute), _to(b, compute), _to(lengths, torch.int64)
    c = z.new_zeros(batch, width, dtype=compute)
    if c0 is not None:
        c.copy_(c0)

    row = weight.shape[0] * z.element_size()
    if steps * batch * row <= WHOLE_BYTES:
        u = linear(z, weight).unflatten(-1, (lanes, width))
        h = z.new_empty(steps, batch, width)
        direction = "both" if options.bidirectional else "forward"
        ops.recurrence_inference(
            u, v, b, x, lengths, c, h, direction, options.alpha, options.activation
        )
        return h, c.to(dtype)

    h = x if overwrite and x is not None else z.new_empty(steps, batch, width)
    in_place = h is x
    if not in_place:
        ops.prepare(h)
    directions = ["forward", "backward"] if options.bidirectional else ["forward"]
    hidden = width // len(directions)
    rows = max(BLOCK_ROWS, BLOCK_BYTES // (row // len(directions)))
    block = max(1, rows // batch)
    starts = range(0, steps, block)
    for side, direction in enumerate(directions):
        mine = slice(side * hidden, (side + 1) * hidden)
        matrix = weight.unflatten(0, (lanes, width))[:, mine].flatten(0, 1)
        state = c[:, mine].contiguous()
        for start in starts if direction == "forward" else reversed(starts):
            now = slice(start, start + block)
            u = linear(z[now].contiguous(), matrix).unflatten(-1, (lanes, hidden))
            out = h[now, :, mine]
            if in_place:  # the operator's output may not be its input
                out = torch.empty_like(out, memory_format=torch.contiguous_format)
            ops.recurrence_inference(
                u,
                None if v is None else v[:, mine],
                b[:, mine],
                None if x is None else x[now, :, mine],
                None if lengths is None else (lengths - start).clamp(0, len(u)),
                state,
                out,
                direction,
                options.alpha,
                options.activation,
            )
            if in_place:
                h[now, :, mine] = out
        c[:, mine] = state
    return h, c.to(dtype)


@overload
def _to(tensor: Tensor, dtype: torch.dtype) -> Tensor: ...
@overload
def _to(tensor: None, dtype: torch.dtype) -> None: ...
@overload
def _to(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None: ...
def _to(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return tensor if tensor is None or tensor.dtype == dtype else tensor.to(dtype)
