"""Attention to a whole sequence or to a window around each step, and inference part by part."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from sru_asr.blocks import recorded

LEAST = 64  # queries of a block: with fewer, products are too small to be worth their call
PART_ROWS = 4096  # steps times sequences of a part of inference


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    window: int | None = None,
    visible: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Attend to the whole sequence, or given a window to what it holds.

    Parameters
    ----------
    query, key, value, window, dropout
        As in `local_attention`; ``window=None`` for none.
    visible : Tensor of bool, broadcastable to (B, heads, T, T), optional
        True where a query may look; with a window, (B, 1, 1, T).

    Returns
    -------
    Tensor, shape (B, heads, T, d)

    Examples
    --------
    >>> import torch
    >>> from sru_asr.attention import attention
    >>> q, k, v = torch.randn(3, 2, 1, 50, 8)
    >>> torch.equal(attention(q, k, v), attention(q, k, v, window=49))
    True
    """
    # A window that holds the whole sequence is none; a recorded graph is for any length.
    if window is not None and (recorded() or query.shape[2] > window + 1):
        return local_attention(query, key, value, window, visible, dropout)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=visible, dropout_p=dropout)


def by_parts(
    function: Callable[[Tensor, Tensor | None], Tensor],
    x: Tensor,
    attend: Tensor | None = None,
    reach: int = 0,
) -> Tensor:
    """Apply a function that sees a limited part of a sequence to one part after the other.

    So inference needs no more memory than a part's beside input and output.

    Parameters
    ----------
    function : callable
        Of steps (T, B, features) and what may be seen of them, (B, 1, 1, T) or None.
    x : Tensor, shape (T, B, features)
        Its input.
    attend : Tensor of bool, shape (B, 1, 1, T), optional
        Its second argument.
    reach : int
        Steps to each side that it sees.

    Returns
    -------
    Tensor, shape (T, B, features of the result)

    Examples
    --------
    >>> import torch
    >>> from sru_asr.attention import by_parts
    >>> by_parts(lambda part, _: part * 2, torch.ones(10000, 1, 3)).shape
    torch.Size([10000, 1, 3])
    """
    steps, batch, _ = x.shape
    size = max(PART_ROWS // max(1, batch), 4 * reach)
    if steps <= size:
        return function(x, attend)
    whole = None
    for start in range(0, steps, size):
        stop = min(start + size, steps)
        seen = slice(max(0, start - reach), min(steps, stop + reach))
        part = function(x[seen], None if attend is None else attend[..., seen])
        if whole is None:  # the dtype is autocast's choice
            whole = part.new_empty(steps, batch, part.shape[2])
        whole[start:stop] = part[start - seen.start : stop - seen.start]
    assert whole is not None
    return whole


def check_window(window: int | None) -> None:
    """Raise a ValueError unless ``window`` holds a step to each side, or there is none."""
    if window is not None and window < 1:
        raise ValueError(f"attention_window must be 1 step or more, or None, got {window}")


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
