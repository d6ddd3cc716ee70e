"""Local self-attention: each step sees the steps within a window around it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sru_asr.blocks import recorded

LEAST = 64  # queries of a block: with fewer, products are too small to be worth their call


def local_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    window: int,
    visible: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Attend to the steps that are at most ``window`` steps away, on either side.

    ``scaled_dot_product_attention`` under a band-shaped mask, in blocks of queries that see their
    own block and its two neighbours: time and memory grow with T * window instead of T * T. Sliding
    windows as in Beltagy et al., "Longformer: The Long-Document Transformer", 2020, section 3.1.

    Parameters
    ----------
    query, key, value : Tensor, shape (B, heads, T, d)
        What stands at invisible steps must be finite.
    window : int
        Steps to each side.
    visible : Tensor of bool, broadcastable to (B, 1, 1, T), optional
        True at steps that may be seen; all by default. A step sees itself in any case.
    dropout : float
        Dropout probability of the attention weights.

    Returns
    -------
    Tensor, shape (B, heads, T, d)

    Examples
    --------
    >>> import torch
    >>> from sru_asr.attention import local_attention
    >>> q, k, v = torch.randn(3, 2, 1, 500, 8)
    >>> local_attention(q, k, v, window=20).shape
    torch.Size([2, 1, 500, 8])
    """
    batch, _, steps, _ = query.shape
    size = max(window, LEAST)
    # One more in a graph for any length: no number of steps may leave it with a single block.
    blocks = (steps + size - 1) // size + (1 if recorded() else 0)

    def split(t: Tensor, around: bool) -> Tensor:
        """(B, heads, T, d) to (B * blocks, heads, size, d); with both neighbours, 3 * size."""
        side = size if around else 0
        t = F.pad(t, (0, 0, side, blocks * size - steps + side)).unflatten(2, (-1, size))
        if around:
            t = torch.cat([t[:, :, :-2], t[:, :, 1:-1], t[:, :, 2:]], dim=3)
        return t.transpose(1, 2).flatten(0, 1)

    offset = torch.arange(-size, 2 * size, device=query.device)
    offset = offset - torch.arange(size, device=query.device)[:, None]  # key's step - query's
    if visible is None:
        visible = torch.ones(1, 1, 1, steps, dtype=torch.bool, device=query.device)
    near = split(visible.expand(batch, 1, 1, steps).transpose(2, 3), around=True).transpose(2, 3)
    # Without itself, a step of the last block's padding would see nothing: a softmax of NaN.
    attend = (near & (offset.abs() <= window)) | (offset == 0)
    mixed = F.scaled_dot_product_attention(
        split(query, around=False),
        split(key, around=True),
        split(value, around=True),
        attn_mask=attend,
        dropout_p=dropout,
    )
    mixed = mixed.unflatten(0, (batch, blocks)).transpose(1, 2).flatten(2, 3)
    return mixed[:, :, :steps]
