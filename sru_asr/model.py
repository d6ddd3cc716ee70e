"""Waveform-to-posteriors models around any encoder, with lengths kept exact all the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sru_asr.padding import padding_mask, steps_of
from sru_asr.subsampling import ConvSubsampling

FeatureAugment = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class SpeechEncoder(nn.Module):
    """Features, normalisation, subsampling and encoder in one module.

    SpeechBrain carries one relative length through the whole pipeline, which drifts by a frame
    wherever the frame rate changes, so that a recording's end depends on what it is batched with.
    Here the steps are counted exactly at each stage: a recording gives the same output alone and
    in any batch.

    Parameters
    ----------
    features : Module
        SpeechBrain's Fbank: waveforms (B, N) to features (B, T, F).
    normalize : Module
        `sru_asr.FeatureNormalization`, or SpeechBrain's InputNormalization by sentence, whose
        running statistics would not be in what checkpoints and model folders keep.
    subsampling : ConvSubsampling
        Frame-rate reduction.
    encoder : Module
        `SRUEncoder`, any of SpeechBrain's TransformerASR kind (its ``encode`` is used), or a
        recurrent layer such as `sru_asr.nnet.SRU`.

    Raises
    ------
    ValueError
        When ``normalize`` keeps running statistics, or frames do not follow each other.
    """

    def __init__(
        self,
        features: nn.Module,
        normalize: nn.Module,
        subsampling: ConvSubsampling,
        encoder: nn.Module,
    ) -> None:
        super().__init__()
        norm_type = getattr(normalize, "norm_type", "sentence")
        if norm_type != "sentence":
            raise ValueError(
                f"normalize must have norm_type 'sentence', got {norm_type!r}: other statistics "
                "depend on the batch, or are lost when the model is saved; for those of the "
                "training data there is sru_asr.FeatureNormalization"
            )
        self.features = features
        stft: Any = features.compute_STFT
        self.hop_length: int = stft.hop_length  # samples between frames
        self.n_fft: int = stft.n_fft  # samples that a frame sees, at most
        if self.hop_length < 1:
            raise ValueError(f"hop_length must be a sample or more, got {self.hop_length} samples")
        self.normalize = normalize
        self.subsampling = subsampling
        self.encoder = encoder

    def forward(self, wavs: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Encode waveforms; the contract of ``encoder`` in SpeechBrain's inference classes.

        Parameters
        ----------
        wavs : Tensor, shape (B, N)
            Waveforms.
        lengths : Tensor, shape (B,), optional
            Relative lengths, 0 to 1.

        Returns
        -------
        Tensor, shape (B, T, D)
        """
        if lengths is None:
            lengths = torch.ones(len(wavs), device=wavs.device)
        return self.encode(wavs, lengths)[0]

    def encode(self, wavs: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encode waveforms and give the relative lengths of the result.

        Parameters
        ----------
        wavs : Tensor, shape (B, N)
            Waveforms.
        lengths : Tensor, shape (B,)
            Relative lengths, 0 to 1.

        Returns
        -------
        encoded : Tensor, shape (B, T, D)
        lengths : Tensor, shape (B,)
            Such that ``round(lengths * T)`` are exactly the real steps.
        """
        src, lengths = self.subsampled_features(wavs, lengths)
        return encode(self.encoder, src, lengths)[0], lengths

    def subsampled_features(
        self,
        wavs: Tensor,
        lengths: Tensor,
        augment: FeatureAugment | None = None,
        epoch: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Compute what the encoder reads.

        Parameters
        ----------
        wavs : Tensor, shape (B, N)
            Waveforms.
        lengths : Tensor, shape (B,)
            Relative lengths, 0 to 1.
        augment : callable, optional
            Maps normalised features and relative lengths to augmented ones (SpecAugment).
        epoch : int, optional
            Current epoch, for running normalisation statistics.

        Returns
        -------
        src : Tensor, shape (B, T, F)
        lengths : Tensor, shape (B,)
        """
        samples = steps_of(lengths, len(wavs), wavs.shape[1])
        assert samples is not None
        # The front end stays in fp32 under autocast: log energies do not survive 8 bits.
        with torch.autocast(wavs.device.type, enabled=False):
            wavs = wavs.float().masked_fill(padding_mask(samples, wavs.shape[1]), 0)
            # Log energies are clipped below a sequence's loudest frame, so the frames that overlap
            # its end are made for the longest sequence too, and cut off for all.
            feats = self.features(F.pad(wavs, (0, self.n_fft)))
            feats = feats[:, : wavs.shape[1] // self.hop_length + 1]
            frames = torch.where(samples > 0, samples // self.hop_length + 1, 0)
        return self._subsampled(feats, frames, augment, epoch)

    def encode_features(self, feats: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encode what ``features`` gives: `encode` without its first stage.

        Parameters
        ----------
        feats : Tensor, shape (B, T, F)
            Features; what stands in the padding has no effect.
        lengths : Tensor, shape (B,)
            Relative lengths, 0 to 1.

        Returns
        -------
        encoded : Tensor, shape (B, T', D)
        lengths : Tensor, shape (B,)
        """
        frames = steps_of(lengths, *feats.shape[:2])
        assert frames is not None
        feats = feats.masked_fill(padding_mask(frames, feats.shape[1])[:, :, None], 0)
        src, lengths = self._subsampled(feats, frames)
        return encode(self.encoder, src, lengths)[0], lengths

    def _subsampled(
        self,
        feats: Tensor,
        frames: Tensor,
        augment: FeatureAugment | None = None,
        epoch: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        # In fp64: SpeechBrain's mask may take one frame of padding in when it rounds in fp32.
        relative = frames.double() / feats.shape[1]
        with torch.autocast(feats.device.type, enabled=False):
            feats = self.normalize(feats, relative, epoch=epoch)
        relative = relative.float()
        if augment is not None:
            feats, relative = augment(feats, relative)
        src = self.subsampling(feats, relative)
        steps = steps_of(relative, *feats.shape[:2])
        assert steps is not None
        return src, self.subsampling.steps_after(steps) / src.shape[1]


def encode(encoder: Any, src: Tensor, lengths: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Encode features with any encoder, of SpeechBrain's TransformerASR kind or not.

    Parameters
    ----------
    encoder : Module
        Its ``encode`` is used where it has one (TransformerASR); others take ``lengths`` by name
        and may return a pair (`sru_asr.nnet.SRU`, SpeechBrain's recurrent layers).
    src : Tensor, shape (B, T, F)
        Features.
    lengths : Tensor, shape (B,)
        Relative lengths.

    Returns
    -------
    encoded : Tensor, shape (B, T, D)
    hidden_states : list of Tensor
        What an encoder with ``output_hidden_states`` gives; empty for others.
    """
    if hasattr(encoder, "encode"):
        output = encoder.encode(src, lengths)
    else:
        output = encoder(src, lengths=lengths)
    if isinstance(output, tuple):
        encoded, states = output
        return encoded, states if isinstance(states, list) else []
    return output, []


class CTCPosteriors(nn.Module):
    """Waveforms to CTC log posteriors: ``encoder`` of SpeechBrain's EncoderASR.

    Parameters
    ----------
    encoder : SpeechEncoder
        From waveforms to encoded frames.
    ctc_output : Module
        Linear layer from encoded frames to the vocabulary.
    """

    def __init__(self, encoder: SpeechEncoder, ctc_output: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.ctc_output = ctc_output

    def forward(self, wavs: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Compute log posteriors, shape (B, T, V); arguments as in `SpeechEncoder`."""
        return _log_posteriors(self.ctc_output, self.encoder(wavs, lengths))

    def encode(self, wavs: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Compute log posteriors and their exact relative lengths; see `SpeechEncoder.encode`."""
        encoded, lengths = self.encoder.encode(wavs, lengths)
        return _log_posteriors(self.ctc_output, encoded), lengths


class FeaturePosteriors(nn.Module):
    """Features to CTC log posteriors: `CTCPosteriors` without the computation of features.

    What `sru_asr.onnx.export_ctc_onnx` exports: waveforms and their features are the business of
    the program around it.

    Parameters
    ----------
    encoder : SpeechEncoder
        Its normalisation, subsampling and encoder.
    ctc_output : Module
        Linear layer from encoded frames to the vocabulary.
    """

    def __init__(self, encoder: SpeechEncoder, ctc_output: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.ctc_output = ctc_output

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Compute log posteriors and their relative lengths.

        Parameters
        ----------
        features : Tensor, shape (B, T, F)
            What the encoder's ``features`` gives; what stands in the padding has no effect.
        lengths : Tensor, shape (B,)
            Relative lengths, 0 to 1.

        Returns
        -------
        log_posteriors : Tensor, shape (B, T', V)
        lengths : Tensor, shape (B,)
            Such that ``round(lengths * T')`` are exactly the real frames.
        """
        encoded, lengths = self.encoder.encode_features(features, lengths)
        return _log_posteriors(self.ctc_output, encoded), lengths


def _log_posteriors(output: nn.Module, encoded: Tensor) -> Tensor:
    logits: Tensor = output(encoded)
    return logits.float().log_softmax(-1)


class Posteriors(NamedTuple):
    """What a `SpeechRecognizer` returns.

    Attributes
    ----------
    ctc : Tensor, shape (B, T, V)
        Log posteriors of the CTC output.
    attention : Tensor, shape (B, U, V), or None
        Log posteriors of the attention decoder, for each target position.
    encoded : Tensor, shape (B, T, D)
        Encoder output.
    lengths : Tensor, shape (B,)
        Relative lengths of ``ctc`` and ``encoded``.
    intermediate : Tensor, shape (B, T, V), or None
        Log posteriors of the intermediate CTC output.
    phones : Tensor, shape (B, T, P), or None
        Log posteriors of the phones.
    """

    ctc: Tensor
    attention: Tensor | None
    encoded: Tensor
    lengths: Tensor
    intermediate: Tensor | None = None
    phones: Tensor | None = None


class SpeechRecognizer(nn.Module):
    """A trainable recogniser: encoder, CTC output and, optionally, an attention decoder.

    One module, so that distributed training wraps and synchronises one forward pass.

    Parameters
    ----------
    encoder : SpeechEncoder
        From waveforms to encoded frames. With an attention decoder, its ``encoder`` must be a
        TransformerASR (`SRUTransformerASR`, or SpeechBrain's own).
    ctc_output : Module
        Linear layer from encoded frames to the vocabulary.
    attention_output : Module, optional
        Linear layer from decoder states to the vocabulary; None for CTC alone.
    intermediate_output : Module, optional
        Linear layer from a hidden state of the encoder, which must have ``output_hidden_states``,
        to the vocabulary: for intermediate CTC (Lee and Watanabe, 2021), in training only.
    intermediate_state : int
        Which of the hidden states, as a negative index: -1 is the last layer's.
    phone_output : Module, optional
        Linear layer from encoded frames to phones: a second CTC output beside ``ctc_output``, for
        training, and for `sru_asr.decode.PhoneRescorer`.
    """

    def __init__(
        self,
        encoder: SpeechEncoder,
        ctc_output: nn.Module,
        attention_output: nn.Module | None = None,
        intermediate_output: nn.Module | None = None,
        intermediate_state: int = -2,
        phone_output: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if attention_output is not None and not hasattr(encoder.encoder, "decode"):
            raise ValueError(
                "attention_output needs an encoder with a decoder, such as SRUTransformerASR; "
                f"got {type(encoder.encoder).__name__}"
            )
        self.encoder = encoder
        self.ctc_output = ctc_output
        self.attention_output = attention_output
        core: Any = encoder.encoder
        if intermediate_output is not None and not getattr(core, "output_hidden_states", False):
            raise ValueError(
                "intermediate_output needs an encoder with output_hidden_states: True; "
                f"got {type(core).__name__} without"
            )
        if intermediate_state >= 0:
            raise ValueError(f"intermediate_state must be negative, got {intermediate_state}")
        self.intermediate_output = intermediate_output
        self.intermediate_state = intermediate_state
        self.phone_output = phone_output

    def forward(
        self,
        wavs: Tensor,
        lengths: Tensor,
        tokens_bos: Tensor | None = None,
        augment: FeatureAugment | None = None,
        epoch: int | None = None,
    ) -> Posteriors:
        """Compute log posteriors.

        Parameters
        ----------
        wavs : Tensor, shape (B, N)
            Waveforms.
        lengths : Tensor, shape (B,)
            Relative lengths, 0 to 1.
        tokens_bos : integer Tensor, shape (B, U), optional
            Targets with the beginning-of-sentence token in front, padded with 0; needed for the
            attention decoder's posteriors.
        augment, epoch
            See `SpeechEncoder.subsampled_features`. An augmentation that gives several views of the
            batch (`sru_asr.augment.Views`) makes the posteriors' batch as many times as long.

        Returns
        -------
        Posteriors
        """
        src, lengths = self.encoder.subsampled_features(wavs, lengths, augment, epoch)
        core: Any = self.encoder.encoder
        attention = None
        if self.attention_output is not None and tokens_bos is not None:
            tokens_bos = tokens_bos.repeat(len(src) // max(len(wavs), 1), 1)  # for each view
            encoded, *states, decoded = core(src, tokens_bos, lengths, pad_idx=0)
            hidden = states[0] if states else []
            attention = _log_posteriors(self.attention_output, decoded)
        else:
            encoded, hidden = encode(core, src, lengths)
        ctc = _log_posteriors(self.ctc_output, encoded)
        intermediate = phones = None
        if self.intermediate_output is not None and self.training:
            if len(hidden) < -self.intermediate_state:
                raise ValueError(
                    f"intermediate_state is {self.intermediate_state}, but the encoder has "
                    f"{len(hidden)} hidden states"
                )
            state = hidden[self.intermediate_state]
            intermediate = _log_posteriors(self.intermediate_output, state)
        if self.phone_output is not None and self.training:
            phones = _log_posteriors(self.phone_output, encoded)
        return Posteriors(ctc, attention, encoded, lengths, intermediate, phones)
