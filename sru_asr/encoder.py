"""The SRU++ encoder for speech: a bidirectional stack with attention in every k-th layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sru_asr.attention import PART_ROWS
from sru_asr.blocks import recorded
from sru_asr.padding import padding_mask, steps_of
from sru_asr.residual import ResidualBlock
from sru_asr.sru import check_dropout, check_lengths
from sru_asr.srupp import SRUppLayer, is_hooked


class SRUEncoder(nn.Module):
    """A stack of SRU++ layers over padded batches of speech features.

    Every layer projects its input through ``projection_size`` dimensions and runs the elementwise
    recurrence; layer ``i`` (from 0) has self-attention inside the projection where
    ``(i + 1) % attention_every == 0``. A sequence gives the same output alone and in any batch.

    With ``d_ffn`` a layer is a residual block, `sru_asr.residual.ResidualBlock`: attention,
    recurrence and a feed-forward module, one after the other. Such layers made fewer errors on AN4
    (recipes/AN4/README.md); the features between them are the input's.

    Parameters
    ----------
    input_size : int
        Features of the input, F.
    hidden_size : int
        Hidden dimensions of one direction.
    num_layers : int
        Layers of the stack.
    projection_size : int
        Width d' of the projection's bottleneck, about 1/2 to 1/4 of the output's.
    num_heads : int
        Attention heads; must divide ``projection_size``, with ``d_ffn`` ``input_size``.
    attention_every : int
        Attention in every so-manieth layer; 0 for none.
    bidirectional : bool
        Run both directions. The output has ``hidden_size`` features for each, but with ``d_ffn``.
    dropout : float
        Dropout probability of each layer's output but the last's: one mask for a whole sequence,
        inside the highway. With ``d_ffn`` of the last's, too, and of what each module adds.
    attention_dropout : float
        Dropout probability of the attention weights.
    highway_bias : float
        Initial bias of the reset gate.
    recompute : {"auto", True, False}
        Recompute states in the backward pass instead of keeping them all (`sru_asr.ops`).
    output_hidden_states : bool
        Return a pair: the output, and the list that `encode_steps` gives.
    attention_window : int, optional
        Steps to each side that attention sees; the whole sequence by default. With a window, time
        grows with T, not its square, in training too, and inference on the CPU goes along time
        block by block: beyond input and output it needs little more than a layer's output.
    conv_kernel : int
        Steps that a gated convolution inside the projection sees, odd; 0 for none.
    conv_dropout : float
        Dropout probability of what the convolution adds.
    d_ffn : int
        Features inside each layer's feed-forward module; 0 for a stack without them. Goes
        without convolutions.

    Attributes
    ----------
    output_size : int
        Features of the output: ``input_size`` with ``d_ffn``.

    Raises
    ------
    ValueError
        When a size is not positive, ``num_heads`` does not divide what it should, or ``d_ffn`` and
        ``conv_kernel`` are both given.

    Examples
    --------
    >>> import torch, sru_asr
    >>> encoder = sru_asr.SRUEncoder(80, 128, num_layers=4, projection_size=64, attention_every=2)
    >>> encoder(torch.randn(2, 50, 80), lengths=torch.tensor([1.0, 0.6])).shape
    torch.Size([2, 50, 256])
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        projection_size: int,
        num_heads: int = 1,
        attention_every: int = 2,
        bidirectional: bool = True,
        dropout: float = 0.0,
        *,
        attention_dropout: float = 0.0,
        highway_bias: float = -2.0,
        recompute: bool | str = "auto",
        output_hidden_states: bool = False,
        attention_window: int | None = None,
        conv_kernel: int = 0,
        conv_dropout: float = 0.0,
        d_ffn: int = 0,
    ) -> None:
        super().__init__()
        sizes = {
            "input_size": input_size,
            "hidden_size": hidden_size,
            "num_layers": num_layers,
            "projection_size": projection_size,
            "num_heads": num_heads,
        }
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        if attention_every < 0:
            raise ValueError(f"attention_every must be 0 (none) or more, got {attention_every}")
        check_dropout(dropout)
        check_dropout(attention_dropout, "attention_dropout")
        check_dropout(conv_dropout, "conv_dropout")
        if d_ffn < 0:
            raise ValueError(f"d_ffn must be 0 (no feed-forward modules) or more, got {d_ffn}")
        if d_ffn and conv_kernel:
            raise ValueError(
                f"d_ffn={d_ffn} goes with conv_kernel=0, got conv_kernel={conv_kernel}: only "
                "layers without feed-forward modules have convolutions"
            )
        self.input_size = input_size
        width = hidden_size * (2 if bidirectional else 1)
        self.output_size = input_size if d_ffn else width
        self.output_hidden_states = output_hidden_states

        def layer(i: int) -> SRUppLayer | ResidualBlock:
            heads = num_heads if attention_every and (i + 1) % attention_every == 0 else 0
            recurrent = SRUppLayer(
                input_size if d_ffn or i == 0 else width,
                hidden_size,
                projection_size,
                0 if d_ffn else heads,
                bidirectional=bidirectional,
                dropout=dropout if d_ffn or i < num_layers - 1 else 0.0,
                attention_dropout=attention_dropout,
                highway_bias=highway_bias,
                recompute=recompute,
                window=attention_window,
                conv_kernel=conv_kernel,
                conv_dropout=conv_dropout,
            )
            if not d_ffn:
                return recurrent
            return ResidualBlock(
                recurrent, input_size, d_ffn, heads, dropout, attention_dropout, attention_window
            )

        self.layers = nn.ModuleList(layer(i) for i in range(num_layers))
        self.norm = nn.LayerNorm(self.output_size)

    def forward(
        self, x: Tensor, lengths: Tensor | None = None
    ) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Encode a padded batch.

        Parameters
        ----------
        x : Tensor, shape (B, T, F)
            Features; what stands in the padding has no effect.
        lengths : Tensor, shape (B,), optional
            Relative lengths, 0 to 1; ``round(lengths * T)`` steps are real.

        Returns
        -------
        Tensor, shape (B, T, output_size)
            Encoded features; padded steps exactly 0.

        Raises
        ------
        ValueError, TypeError
            When the input has the wrong shape, or lengths are not relative.
        """
        steps = steps_of(lengths, x.shape[0], x.shape[1])
        if self.output_hidden_states:
            outputs = self.encode_steps(x, steps)
            return outputs[-1], outputs
        return self.encode_last(x, steps)

    def encode_steps(self, x: Tensor, steps: Tensor | None = None) -> list[Tensor]:
        """Encode a padded batch and return what every layer gave.

        Parameters
        ----------
        x : Tensor, shape (B, T, F)
            Features.
        steps : integer Tensor, shape (B,), optional
            Real steps of each sequence.

        Returns
        -------
        list of Tensor, shape (B, T, output_size)
            Each layer's output in order; the last is normalised: the encoder's output.
        """
        outputs: list[Tensor] = []
        last = self._encode(x, steps, outputs)
        return [*outputs[:-1], last]

    def encode_last(self, x: Tensor, steps: Tensor | None = None) -> Tensor:
        """The last of what `encode_steps` gives, without keeping the others."""
        return self._encode(x, steps, None)

    def _encode(self, x: Tensor, steps: Tensor | None, outputs: list[Tensor] | None) -> Tensor:
        if x.dim() != 3 or x.shape[2] != self.input_size:
            raise ValueError(f"x must have shape (B, T, {self.input_size}), got {tuple(x.shape)}")
        padded = attend = None
        if steps is not None:
            check_lengths(steps, x.shape[0])
            padded = padding_mask(steps, x.shape[1])
            x = x.masked_fill(padded[:, :, None], 0)
            # A sequence without steps looks at its (zeroed) padding: a softmax over nothing is NaN.
            attend = ~(padded & (steps > 0)[:, None])[:, None, None, :]
        h = x.transpose(0, 1)
        del x  # a copy that was cleared: it goes with h, when the first layer is done
        own = False  # whether nobody else has seen h
        for layer in self.layers:
            h, _ = layer(h, None, steps, attend, own)
            own = outputs is None and not is_hooked(layer)
            if outputs is not None:
                outputs.append(h.transpose(0, 1))
        return self._finish(h.transpose(0, 1), padded, own)

    def _finish(self, h: Tensor, padded: Tensor | None, own: bool) -> Tensor:
        """Normalise, and clear the padding: a single recording's in place, step by step."""
        in_place = own and not (recorded() or torch.is_grad_enabled() or is_hooked(self.norm))
        if not in_place or not h.is_contiguous() or h.dtype != self.norm.weight.dtype:
            h = self.norm(h)
            return h if padded is None else h.masked_fill(padded[:, :, None], 0)
        for part in h.split(PART_ROWS, dim=1):
            part.copy_(self.norm(part))
        return h if padded is None else h.masked_fill_(padded[:, :, None], 0)
