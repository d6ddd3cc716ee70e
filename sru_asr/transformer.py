"""The class that stands in for SpeechBrain's TransformerASR: SRU++ encoder, Transformer decoder."""

from __future__ import annotations

import math
from typing import Any

import torch
from speechbrain.lobes.models.transformer.TransformerASR import TransformerASR
from torch import Tensor, nn

from sru_asr.encoder import SRUEncoder
from sru_asr.padding import padding_mask, steps_of

# Options of TransformerASR that shape its own encoders and have no meaning here.
ENCODER_OPTIONS = {
    "encoder_module",
    "attention_type",
    "positional_encoding",
    "kernel_size",
    "bias",
    "conformer_activation",
    "branchformer_activation",
    "csgu_linear_units",
    "gate_activation",
    "use_linear_after_conv",
    "layerdrop_prob",
}


class SRUTransformerASR(TransformerASR):
    """SpeechBrain's TransformerASR with an SRU++ encoder.

    In a recipe's YAML, change the class, drop ``encoder_module`` and ``attention_type``, and
    everything around it (training, joint beam search, checkpoints) stays as it is. The encoder has
    no positional encoding and takes input of any length; the decoder is SpeechBrain's own.

    Parameters
    ----------
    tgt_vocab : int
        Size of the vocabulary.
    input_size : int
        Features of the input.
    d_model : int
        Width of encoder output and decoder; even, since half of it is one direction's.
    nhead, num_decoder_layers, d_ffn, dropout, activation, normalize_before, max_length
        As in TransformerASR, for the decoder; ``dropout`` for the encoder too.
    num_encoder_layers : int
        SRU++ layers.
    causal : bool
        Must be False: the encoder runs in both directions.
    output_hidden_states : bool
        Also return each encoder layer's output.
    encoder_size : int, optional
        Width of the SRU++ stack, both directions together; a linear layer brings its output to
        ``d_model`` where they differ. ``d_model`` by default.
    projection_size : int, optional
        Bottleneck d' of the SRU++ projection; a quarter of the stack's width by default.
    num_heads : int
        Attention heads inside the projection.
    attention_every : int
        Attention in every so-manieth encoder layer; 0 for none.
    attention_dropout : float
        Dropout probability of the encoder's attention weights.
    encoder_dropout : float, optional
        Dropout probability of the encoder's layers; ``dropout`` by default.
    highway_bias : float
        Initial bias of the encoder's reset gates.
    recompute : {"auto", True, False}
        Recompute states in the encoder's backward pass instead of keeping them all.
    attention_window : int, optional
        Steps to each side that the encoder's attention sees, as in `SRUEncoder`.
    conv_kernel, conv_dropout
        Convolution inside the encoder's projections, as in `SRUEncoder`.
    encoder_d_ffn : int
        Features inside each encoder layer's feed-forward module, `SRUEncoder`'s ``d_ffn``:
        the stack then has ``d_model`` features between layers, and ``encoder_size`` inside the
        recurrence. 0 for a stack without them.

    Raises
    ------
    ValueError
        When an option of TransformerASR's own encoders is given, the model would be causal, or
        sizes do not fit each other.

    Examples
    --------
    >>> import torch, sru_asr
    >>> net = sru_asr.SRUTransformerASR(30, 80, d_model=64, nhead=4, num_encoder_layers=2,
    ...                                 num_decoder_layers=1, d_ffn=128)
    >>> encoded, decoded = net(torch.randn(2, 50, 80), torch.randint(1, 30, (2, 7)))
    >>> encoded.shape, decoded.shape
    (torch.Size([2, 50, 64]), torch.Size([2, 7, 64]))
    """

    def __init__(
        self,
        tgt_vocab: int,
        input_size: int,
        d_model: int = 512,
        nhead: int = 8,
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 6,
        d_ffn: int = 2048,
        dropout: float = 0.1,
        activation: type[nn.Module] = nn.ReLU,
        normalize_before: bool = True,
        max_length: int = 2500,
        causal: bool = False,
        output_hidden_states: bool = False,
        *,
        encoder_size: int | None = None,
        projection_size: int | None = None,
        num_heads: int = 1,
        attention_every: int = 2,
        attention_dropout: float = 0.0,
        encoder_dropout: float | None = None,
        highway_bias: float = -2.0,
        recompute: bool | str = "auto",
        attention_window: int | None = None,
        conv_kernel: int = 0,
        conv_dropout: float = 0.0,
        encoder_d_ffn: int = 0,
        **refused: Any,
    ) -> None:
        unknown = [name for name in refused if name not in ENCODER_OPTIONS]
        if unknown:
            raise TypeError(f"SRUTransformerASR has no option {', '.join(map(repr, unknown))}")
        if refused:
            raise ValueError(
                f"SRUTransformerASR has no option {', '.join(map(repr, refused))}: it belongs to "
                "the encoders of TransformerASR, and this encoder is SRU++; remove it from the YAML"
            )
        if causal:
            raise ValueError("causal must be False: the SRU++ encoder runs in both directions")
        size = d_model if encoder_size is None else encoder_size
        if size % 2:
            name = "d_model" if encoder_size is None else "encoder_size"
            raise ValueError(f"{name} must be even (half for each direction), got {size}")
        if num_decoder_layers and d_model % nhead:
            raise ValueError(
                f"d_model must be a multiple of nhead, the decoder's attention heads; got d_model "
                f"{d_model} and nhead {nhead}"
            )
        super().__init__(
            tgt_vocab,
            input_size,
            d_model=d_model,
            # Its own encoder is replaced below, but it insists on some layer, whose heads must fit.
            nhead=nhead if num_decoder_layers else 1,
            num_encoder_layers=0 if num_decoder_layers else 1,
            num_decoder_layers=num_decoder_layers,
            d_ffn=d_ffn,
            dropout=dropout,
            activation=activation,
            # The pair under which TransformerASR adds positions in the decoder only.
            positional_encoding=None,
            attention_type="RoPEMHA",
            normalize_before=normalize_before,
            max_length=max_length,
            causal=False,
            output_hidden_states=output_hidden_states,
        )
        # Set after super().__init__, whose Xavier initialisation is not the encoder's.
        stack = SRUEncoder(
            d_model,
            size // 2,
            num_encoder_layers,
            size // 4 if projection_size is None else projection_size,
            num_heads,
            attention_every,
            dropout=dropout if encoder_dropout is None else encoder_dropout,
            attention_dropout=attention_dropout,
            highway_bias=highway_bias,
            recompute=recompute,
            attention_window=attention_window,
            conv_kernel=conv_kernel,
            conv_dropout=conv_dropout,
            d_ffn=encoder_d_ffn,
        )
        self.encoder = MaskedEncoder(stack, d_model, output_hidden_states)
        self.input_size = input_size

    def forward(
        self, src: Tensor, tgt: Tensor | None, wav_len: Tensor | None = None, pad_idx: int = 0
    ) -> Any:
        """Encode and decode; see TransformerASR. What stands in the padding has no effect."""
        return super().forward(self._checked(src, wav_len), tgt, wav_len, pad_idx)

    def encode(
        self,
        src: Tensor,
        wav_len: Tensor | None = None,
        pad_idx: int = 0,
        dynchunktrain_config: Any = None,
    ) -> Any:
        """Encode; see TransformerASR. What stands in the padding has no effect."""
        # Not super()'s: the width of its padding mask would be the longest sequence's, a value that
        # no compiler knows.
        src = self._checked(src, wav_len)
        steps = steps_of(wav_len, src.shape[0], src.shape[1], "wav_len")
        encoded, _, *states = self.encoder(
            self.custom_src_module(src if src.dim() == 3 else src.flatten(2)),
            src_key_padding_mask=None if steps is None else padding_mask(steps, src.shape[1]),
            dynchunktrain_config=dynchunktrain_config,
        )
        return (encoded, *states) if states else encoded

    def _checked(self, src: Tensor, wav_len: Tensor | None) -> Tensor:
        features = tuple(src.shape[2:])
        if math.prod(features) != self.input_size or not features:
            raise ValueError(
                f"src must have shape (B, T, features) with input_size={self.input_size} features, "
                f"got {tuple(src.shape)}; set input_size to what the module before gives: for a "
                "convolutional front end, its channels times its frequencies"
            )
        # Cleared before the first linear layer: 0 * NaN would reach its weights' gradient.
        steps = steps_of(wav_len, src.shape[0], src.shape[1], "wav_len")
        if steps is None:
            return src
        padded = padding_mask(steps, src.shape[1])
        return src.masked_fill(padded.view(padded.shape + (1,) * len(features)), 0)


class MaskedEncoder(nn.Module):
    """SRUEncoder behind the calling convention of SpeechBrain's Transformer encoders."""

    def __init__(
        self, stack: SRUEncoder, output_size: int, output_hidden_states: bool = False
    ) -> None:
        super().__init__()
        self.stack = stack
        same = output_size == stack.output_size
        self.output = nn.Identity() if same else nn.Linear(stack.output_size, output_size)
        self.output_hidden_states = output_hidden_states

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        pos_embs: Tensor | None = None,
        dynchunktrain_config: Any = None,
    ) -> tuple[Tensor, list[Tensor]] | tuple[Tensor, list[Tensor], list[Tensor]]:
        """Encode; see SpeechBrain's TransformerEncoder.

        Parameters
        ----------
        src : Tensor, shape (B, T, F)
            Input features.
        src_key_padding_mask : Tensor of bool, shape (B, T), optional
            True at padded steps, which must follow the real ones.
        src_mask, pos_embs, dynchunktrain_config
            Must be None: the encoder sees the whole sequence and needs no positions.

        Returns
        -------
        output : Tensor, shape (B, T, D)
        attention : list
            Empty: fused attention does not keep its weights.
        hidden_states : list of Tensor
            Each layer's output, with ``output_hidden_states`` only.
        """
        for name, value, remedy in (
            ("dynchunktrain_config", dynchunktrain_config, "; set streaming: False in the YAML"),
            ("src_mask", src_mask, ""),
            ("pos_embs", pos_embs, ""),
        ):
            if value is not None:
                raise ValueError(
                    f"{name} must be None: the SRU++ encoder runs in both directions over the "
                    f"whole sequence, so it cannot stream or look at a part of it{remedy}"
                )
        steps = None
        if src_key_padding_mask is not None:
            steps = torch.count_nonzero(~src_key_padding_mask, dim=1)
        if self.output_hidden_states:
            outputs = self.stack.encode_steps(src, steps)
            last = outputs[-1]
        else:
            last = self.stack.encode_last(src, steps)
        encoded = self.output(last)
        if src_key_padding_mask is not None:
            encoded = encoded.masked_fill(src_key_padding_mask[:, :, None], 0)
        if self.output_hidden_states:
            return encoded, [], outputs
        return encoded, []
