"""SRU++: the recurrence with self-attention inside its projection."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sru_asr.attention import attention, by_parts, check_window
from sru_asr.blocks import recorded
from sru_asr.convolution import GatedConvolution
from sru_asr.recurrence import Recurrence


class AttentiveProjection(nn.Module):
    """Project the input to the recurrence's lanes through a narrow, attentive bottleneck.

    ::

        z = W1 x
        z = z + conv(z)            with conv_kernel only
        k, v = W2 z ;  a = softmax(z k^T / sqrt(d_head)) v
        u = W3 LayerNorm(z + alpha * a)

    ``alpha`` is one learned scalar, initially 0, so training starts from the recurrence alone.
    There is no positional encoding: the recurrence carries order. Without attention ``a = 0``.
    Lei, "When Attention Meets Fast Recurrence: Training Language Models with Reduced Compute",
    EMNLP 2021, section 3. The convolution, `sru_asr.convolution.GatedConvolution`, is not the
    paper's.

    Parameters
    ----------
    input_size : int
        Features of x.
    projection_size : int
        Bottleneck d', a multiple of ``num_heads``.
    output_size : int
        Rows of W3: lanes times the recurrence's width.
    num_heads : int
        Attention heads; 0 for a projection without attention.
    dropout : float
        Dropout probability of the attention weights.
    window : int, optional
        Steps to each side that attention sees; all by default. Inference then goes along time block
        by block, and needs no memory for more than a block beyond input and output.
    conv_kernel : int
        Steps that the convolution sees, odd; 0 for none.
    conv_dropout : float
        Dropout probability of what the convolution adds.

    Examples
    --------
    >>> import torch
    >>> from sru_asr.srupp import AttentiveProjection
    >>> AttentiveProjection(16, 8, 48, num_heads=2)(torch.randn(5, 3, 16)).shape
    torch.Size([5, 3, 48])
    """

    def __init__(
        self,
        input_size: int,
        projection_size: int,
        output_size: int,
        num_heads: int = 1,
        dropout: float = 0.0,
        window: int | None = None,
        conv_kernel: int = 0,
        conv_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_window(window)
        if num_heads and projection_size % num_heads:
            raise ValueError(
                f"projection_size must be a multiple of num_heads, got {projection_size} "
                f"and {num_heads}"
            )
        self.num_heads = num_heads
        self.dropout = dropout
        self.window = window
        self.down = nn.Linear(input_size, projection_size, bias=False)
        self.conv = (
            GatedConvolution(projection_size, conv_kernel, conv_dropout) if conv_kernel else None
        )
        self.norm = nn.LayerNorm(projection_size)
        self.up = nn.Linear(projection_size, output_size, bias=False)
        if num_heads:
            self.key_value = nn.Linear(projection_size, 2 * projection_size, bias=False)
            self.alpha = nn.Parameter(torch.empty(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw Xavier-uniform matrices and start without attention."""
        for module in self.children():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
        self.norm.reset_parameters()
        if self.conv is not None:
            self.conv.reset_parameters()
        if self.num_heads:
            nn.init.zeros_(self.alpha)

    def forward(self, x: Tensor, attend: Tensor | None = None) -> Tensor:
        """Project a whole sequence.

        Parameters
        ----------
        x : Tensor, shape (T, B, input_size)
            Input; padded steps must be finite, and 0 where there is a convolution.
        attend : Tensor of bool, broadcastable to (B, heads, T, T), optional
            True where a step may look; everywhere by default. With a window, (B, 1, 1, T).

        Returns
        -------
        Tensor, shape (T, B, output_size)
        """
        return self.up(self.attend(x, attend))

    def attend(self, x: Tensor, attend: Tensor | None = None) -> Tensor:
        """The same without the last product, by W3: shape (T, B, projection_size)."""
        if self.window is None or torch.is_grad_enabled() or recorded():
            return self._attend(x, attend)
        reach = self.window if self.num_heads else 0
        reach += self.conv.reach if self.conv is not None else 0
        return by_parts(self._attend, x, attend, reach)

    def _attend(self, x: Tensor, attend: Tensor | None) -> Tensor:
        z = self.down(x)
        if self.conv is not None:
            z = z + self.conv(z)
        return self.norm(self._mix(z, self.key_value(z), attend) if self.num_heads else z)

    def extend(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """Project one more step of sequences whose earlier steps were projected before.

        The step sees those and itself, as in `forward` with a causal ``attend``.

        Parameters
        ----------
        x : Tensor, shape (1, B, input_size)
            The step.
        past : Tensor, shape (P, B, 2 * projection_size)
            Keys and values of the earlier steps; at first P = 0.

        Returns
        -------
        u : Tensor, shape (1, B, output_size)
        past : Tensor, shape (P + 1, B, 2 * projection_size)
            With the step; as it was, without attention.
        """
        if self.window is not None:
            raise ValueError("a layer with an attention window cannot go on step by step")
        if self.conv is not None:
            raise ValueError("a layer with a convolution cannot go on step by step: it looks ahead")
        z = self.down(x)
        if self.num_heads:
            past = torch.cat([past, self.key_value(z)])
            z = self._mix(z, past)
        return self.up(self.norm(z)), past

    def _mix(self, z: Tensor, key_value: Tensor, attend: Tensor | None = None) -> Tensor:
        """Add what the steps z (T, B, d') see of keys and values (S, B, 2 d')."""
        q, k, v = (self._split(t) for t in (z, *key_value.chunk(2, dim=-1)))
        dropout = self.dropout if self.training else 0.0
        a = attention(q, k, v, self.window, attend, dropout)
        return z + self.alpha * a.permute(2, 0, 1, 3).flatten(2)

    def _split(self, z: Tensor) -> Tensor:
        """(T, B, d') to (B, heads, T, d_head)."""
        return z.unflatten(-1, (self.num_heads, -1)).permute(1, 2, 0, 3)


class SRUppLayer(nn.Module):
    """One SRU++ layer: attentive projection, then the recurrence with its highway.

    Parameters are those of `sru_asr.SRUEncoder`, with ``num_heads = 0`` for a layer without
    attention and ``window`` for ``attention_window``.

    Examples
    --------
    >>> import torch
    >>> from sru_asr.srupp import SRUppLayer
    >>> h, c_n = SRUppLayer(16, 8, 4)(torch.randn(5, 3, 16))
    >>> h.shape, c_n.shape
    (torch.Size([5, 3, 16]), torch.Size([3, 16]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        projection_size: int,
        num_heads: int = 1,
        *,
        bidirectional: bool = True,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        highway_bias: float = -2.0,
        recompute: bool | str = "auto",
        window: int | None = None,
        conv_kernel: int = 0,
        conv_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        width = hidden_size * (2 if bidirectional else 1)
        self.width = width  # features of the output
        lanes = 3 if input_size == width else 4
        self.project = AttentiveProjection(
            input_size,
            projection_size,
            lanes * width,
            num_heads,
            attention_dropout,
            window,
            conv_kernel,
            conv_dropout,
        )
        self.recurrence = Recurrence(
            hidden_size,
            lanes,
            bidirectional=bidirectional,
            dropout=dropout,
            highway_bias=highway_bias,
            recompute=recompute,
        )
        self.recurrence.reset_parameters(v_range=1.0)
        if lanes == 4:
            with torch.no_grad():
                self.project.up.weight[3 * width :] *= self.recurrence.alpha

    def forward(
        self,
        x: Tensor,
        c0: Tensor | None = None,
        lengths: Tensor | None = None,
        attend: Tensor | None = None,
        overwrite: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Run the layer.

        Parameters
        ----------
        x : Tensor, shape (T, B, input_size)
            Input; padded steps must be finite, and 0 where there is a convolution.
        c0 : Tensor, shape (B, D), optional
            State before the first step.
        lengths : integer Tensor, shape (B,), optional
            Real steps of each sequence.
        attend : Tensor of bool, broadcastable to (B, heads, T, T), optional
            Where attention may look; with a window, (B, 1, 1, T).
        overwrite : bool
            Whether ``h`` may take the memory of ``x``, which nobody else needs.

        Returns
        -------
        h : Tensor, shape (T, B, D)
        c_n : Tensor, shape (B, D)
        """
        up = self.project.up
        plain = type(up) is nn.Linear and up.bias is None
        if plain and not (is_hooked(up) or is_hooked(self.project)):
            z = self.project.attend(x, attend)
            return self.recurrence.project(z, up.weight, x, c0, lengths, overwrite)
        # Quantised, adapted, watched: whatever stands there now does the product itself.
        return self._recur(self.project(x, attend), x, c0, lengths)

    def extend(self, x: Tensor, c0: Tensor, past: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Run one more step of sequences whose earlier steps were run before, in one direction.

        Parameters
        ----------
        x : Tensor, shape (1, B, input_size)
            The step.
        c0 : Tensor, shape (B, D)
            State after the step before; 0 at first.
        past : Tensor, shape (P, B, 2 * projection_size)
            As in `AttentiveProjection.extend`.

        Returns
        -------
        h : Tensor, shape (1, B, D)
        c_n : Tensor, shape (B, D)
        past : Tensor, shape (P + 1, B, 2 * projection_size)
        """
        if self.recurrence.bidirectional:
            raise ValueError("a bidirectional layer cannot go on step by step: it needs the end")
        u, past = self.project.extend(x, past)
        return *self._recur(u, x, c0), past

    def _recur(
        self, u: Tensor, x: Tensor, c0: Tensor | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        u = u.unflatten(-1, (self.recurrence.num_lanes, -1))
        h, c_n = self.recurrence(u, x.to(u.dtype), c0, lengths)
        return h, c_n


def is_hooked(module: nn.Module) -> bool:
    """Whether calling the module does more than its class says."""
    return "forward" in vars(module) or any(
        vars(module)[name]
        for name in (
            "_forward_hooks",
            "_forward_pre_hooks",
            "_backward_hooks",
            "_backward_pre_hooks",
        )
    )
