"""The residual block of speech encoders, around a recurrence."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sru_asr.attention import attention, by_parts, check_window
from sru_asr.blocks import recorded
from sru_asr.padding import padding_mask
from sru_asr.srupp import SRUppLayer
from sru_asr.transforms import transformed


class ResidualBlock(nn.Module):
    """Residual modules: attention, recurrence and feed-forward module.

    ::

        x = x + W a,   a = multi-head attention of LayerNorm(x)       with num_heads only
        x = x + W h,   h = SRU of LayerNorm(x)
        x = x + FFN(x)

    No positions are encoded: the recurrence carries order. What each module adds is dropped out
    with one mask for a whole sequence, as in the recurrence. It is the block of Vaswani et al.,
    "Attention Is All You Need", NIPS 2017, with normalisation inside the modules and the
    recurrence, which knows both sides of a step, where Gulati et al., "Conformer:
    Convolution-augmented Transformer for Speech Recognition", Interspeech 2020, have a convolution.

    Parameters
    ----------
    recurrent : SRUppLayer
        The recurrence, of ``size`` features, and without attention.
    size : int
        Features of input and output.
    d_ffn : int
        Features inside the feed-forward module.
    num_heads : int
        Attention heads; must divide ``size``. 0 for a block without attention.
    dropout : float
        Dropout probability of what each module adds, and inside the feed-forward module.
    attention_dropout : float
        Dropout probability of the attention weights.
    window : int, optional
        Steps to each side that attention sees; all by default.

    Examples
    --------
    >>> import torch
    >>> from sru_asr.residual import ResidualBlock
    >>> from sru_asr.srupp import SRUppLayer
    >>> block = ResidualBlock(SRUppLayer(16, 8, 4, num_heads=0), 16, d_ffn=32, num_heads=2)
    >>> y, c_n = block(torch.randn(5, 3, 16))
    >>> y.shape, c_n.shape
    (torch.Size([5, 3, 16]), torch.Size([3, 16]))
    """

    def __init__(
        self,
        recurrent: SRUppLayer,
        size: int,
        d_ffn: int,
        num_heads: int = 1,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        window: int | None = None,
    ) -> None:
        super().__init__()
        self.attention = (
            SelfAttention(size, num_heads, attention_dropout, window) if num_heads else None
        )
        self.norm = nn.LayerNorm(size)
        self.recurrent = recurrent
        self.output = nn.Linear(recurrent.width, size)
        self.feed_forward = FeedForward(size, d_ffn, dropout)
        self.drop = SequenceDropout(dropout)

    def forward(
        self,
        x: Tensor,
        c0: Tensor | None = None,
        lengths: Tensor | None = None,
        attend: Tensor | None = None,
        overwrite: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Run the block; see `sru_asr.srupp.SRUppLayer.forward`. Nothing is overwritten.

        Parameters
        ----------
        x : Tensor, shape (T, B, size)
            Input; padded steps must be finite.

        Returns
        -------
        y : Tensor, shape (T, B, size)
            Padded steps exactly 0.
        c_n : Tensor, shape (B, D)
        """
        if self.attention is not None:
            x = x + self.drop(self.attention(x, attend))
        h, c_n = self.recurrent(self.norm(x), c0, lengths)
        x = x + self.drop(self.output(h))
        x = x + self.feed_forward(x)
        if lengths is not None:
            x = x.masked_fill(padding_mask(lengths, x.shape[0]).T[:, :, None], 0)
        return x, c_n


class FeedForward(nn.Module):
    """``dropout(W2 dropout(swish(W1 LayerNorm(x))))`` of each step by itself.

    Swish and the dropout inside are computed again in the backward pass: what ``W2`` multiplies,
    the largest of a block's tensors beside what swish takes, is not kept.

    Parameters
    ----------
    size : int
        Features of input and output.
    d_ffn : int
        Features in between.
    dropout : float
        Dropout probability of both.

    Examples
    --------
    >>> import torch
    >>> from sru_asr.residual import FeedForward
    >>> FeedForward(16, 64)(torch.randn(5, 3, 16)).shape
    torch.Size([5, 3, 16])
    """

    def __init__(self, size: int, d_ffn: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(size)
        self.expand = nn.Linear(size, d_ffn)
        self.contract = nn.Linear(d_ffn, size)
        self.drop = SequenceDropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map a tensor of shape (T, B, size) to another."""
        if self.training or torch.is_grad_enabled() or recorded():
            return self._map(x)  # at once: each part would have a mask of its own
        return by_parts(lambda part, _: self._map(part), x)

    def _map(self, x: Tensor) -> Tensor:
        hidden = self.expand(self.norm(x))
        # A compiler has means of its own, and transformations refuse hooks.
        if not hidden.requires_grad or recorded() or transformed(hidden):
            return self.drop(self._contract(hidden))
        # Goes as far again as to what the product takes, without the product. The dropout outside
        # would be one step more.
        y: Tensor = checkpoint(
            self._contract,
            hidden,
            use_reentrant=False,
            preserve_rng_state=self.training and self.drop.p > 0,
        )
        return self.drop(y)

    def _contract(self, hidden: Tensor) -> Tensor:
        return self.contract(self.drop(F.silu(hidden)))


class SelfAttention(nn.Module):
    """Multi-head attention of ``LayerNorm(x)`` to itself.

    Parameters
    ----------
    size : int
        Features of input and output.
    num_heads : int
        Attention heads; must divide ``size``.
    dropout : float
        Dropout probability of the attention weights.
    window : int, optional
        Steps to each side that a step sees; all by default.

    Examples
    --------
    >>> import torch
    >>> from sru_asr.residual import SelfAttention
    >>> SelfAttention(16, num_heads=4)(torch.randn(5, 3, 16)).shape
    torch.Size([5, 3, 16])
    """

    def __init__(
        self, size: int, num_heads: int, dropout: float = 0.0, window: int | None = None
    ) -> None:
        super().__init__()
        check_window(window)
        if size % num_heads:
            raise ValueError(
                f"the size of a block must be a multiple of num_heads, got {size} and {num_heads}"
            )
        self.num_heads = num_heads
        self.dropout = dropout
        self.window = window
        self.norm = nn.LayerNorm(size)
        self.query_key_value = nn.Linear(size, 3 * size)
        self.output = nn.Linear(size, size)

    def forward(self, x: Tensor, attend: Tensor | None = None) -> Tensor:
        """Attend.

        Parameters
        ----------
        x : Tensor, shape (T, B, size)
            Input; padded steps must be finite.
        attend : Tensor of bool, broadcastable to (B, heads, T, T), optional
            True where a step may look; everywhere by default. With a window, (B, 1, 1, T).

        Returns
        -------
        Tensor, shape (T, B, size)
        """
        if self.window is None or torch.is_grad_enabled() or recorded():
            return self._attend(x, attend)
        return by_parts(self._attend, x, attend, self.window)

    def _attend(self, x: Tensor, attend: Tensor | None) -> Tensor:
        query, key, value = (
            t.unflatten(-1, (self.num_heads, -1)).permute(1, 2, 0, 3)
            for t in self.query_key_value(self.norm(x)).chunk(3, dim=-1)
        )
        dropout = self.dropout if self.training else 0.0
        seen = attention(query, key, value, self.window, attend, dropout)
        return self.output(seen.permute(2, 0, 1, 3).flatten(2))


class SequenceDropout(nn.Module):
    """Dropout with one mask for all steps of a sequence, as in the recurrence.

    Gal and Ghahramani, "A Theoretically Grounded Application of Dropout in Recurrent Neural
    Networks", NIPS 2016. Where a mask for each step takes a random number for each feature of each
    step, which a CPU feels, this takes one for each feature.

    Parameters
    ----------
    p : float
        Probability that a feature is dropped.

    Examples
    --------
    >>> import torch
    >>> from sru_asr.residual import SequenceDropout
    >>> kept = SequenceDropout(0.5)(torch.ones(5, 3, 16))
    >>> bool((kept == kept[0]).all())
    True
    """

    def __init__(self, p: float = 0.0) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Drop features of a tensor of shape (T, B, features)."""
        if not self.training or self.p == 0:
            return x
        keep = 1 - self.p
        # Not in bfloat16, where 1 / 0.9 is 1.109.
        mask = x.new_empty(x.shape[1:], dtype=torch.promote_types(x.dtype, torch.float32))
        return (x * mask.bernoulli_(keep).div_(keep or 1)).to(x.dtype)

    def extra_repr(self) -> str:
        return f"p={self.p}"
