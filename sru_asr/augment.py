"""Augmentation that fits utterances of any length: warped, masked, reverberant, noisy, joined.

Waveform augmentations map a signal (N,) to a signal; they run in the data loader, each utterance
drawing its own. Feature augmentations map features (B, T, F) and relative lengths to the same; they
run on the training device. Nothing needs a corpus of noise or of rooms: both are generated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from sentencepiece import SentencePieceProcessor
from speechbrain.dataio.batch import PaddedBatch
from torch import Tensor
from torchaudio.functional import fftconvolve

from sru_asr.model import FeatureAugment
from sru_asr.padding import padding_mask, steps_of
from sru_asr.tokenizer import BLANK, BOS, EOS


def uniform(low: float, high: float, *size: int) -> Tensor:
    """Draw from [low, high), from PyTorch's generator on the CPU."""
    return low + (high - low) * torch.rand(size)


def check_range(name: str, value: Sequence[float], least: float) -> tuple[float, float]:
    """Check a range of two numbers, the smaller first.

    Raises
    ------
    ValueError
        When it is none, or begins below ``least``.
    """
    if len(value) != 2 or not least <= value[0] <= value[1]:
        raise ValueError(f"{name} must be two numbers from {least} on, got {value}")
    return float(value[0]), float(value[1])


def check_probability(name: str, value: float) -> float:
    """Check a probability.

    Raises
    ------
    ValueError
        When it is not between 0 and 1.
    """
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be between 0 and 1, got {value}")
    return value


class Noise:
    """Add stationary noise of a random colour.

    Parameters
    ----------
    probability : float
        Share of the utterances that get noise.
    snr : (float, float)
        Range of signal-to-noise ratios in dB.
    slope : (float, float)
        Range of the exponent e of the noise's power spectrum 1/f^e: 0 is white, 1 pink, 2 brown.

    Examples
    --------
    >>> import torch
    >>> from sru_asr.augment import Noise
    >>> Noise(probability=1.0)(torch.randn(16000)).shape
    torch.Size([16000])
    """

    def __init__(
        self,
        probability: float = 0.5,
        snr: Sequence[float] = (5.0, 30.0),
        slope: Sequence[float] = (0.0, 2.0),
    ) -> None:
        self.probability = check_probability("probability", probability)
        self.snr = check_range("snr", snr, -20.0)
        self.slope = check_range("slope", slope, 0.0)

    def __call__(self, signal: Tensor) -> Tensor:
        """Add noise to a signal, shape (N,)."""
        power = signal.square().mean()
        if len(signal) < 2 or not power > 0 or torch.rand(()) >= self.probability:
            return signal
        spectrum = torch.fft.rfft(torch.randn(len(signal)))
        frequency = torch.arange(len(spectrum)).clamp(min=1)
        noise = torch.fft.irfft(spectrum * frequency ** (-uniform(*self.slope) / 2), n=len(signal))
        gain = power / noise.square().mean() * 10 ** (-uniform(*self.snr) / 10)
        return signal + gain.sqrt() * noise


class Reverberation:
    """Put the speaker into a random room: direct sound, then noise that decays exponentially.

    The tail is Gaussian noise with the decay of a reverberation time (Polack's model of late
    reverberation); the signal keeps its length, its place in time and its power.

    Parameters
    ----------
    probability : float
        Share of the utterances that are reverberated.
    seconds : (float, float)
        Range of reverberation times: until the energy has fallen by 60 dB.
    direct_to_reverberant : (float, float)
        Range of the ratio of direct to reverberant energy, in dB.
    sample_rate : int
        In Hz.

    Examples
    --------
    >>> import torch
    >>> from sru_asr.augment import Reverberation
    >>> Reverberation(probability=1.0)(torch.randn(16000)).shape
    torch.Size([16000])
    """

    def __init__(
        self,
        probability: float = 0.3,
        seconds: Sequence[float] = (0.1, 0.5),
        direct_to_reverberant: Sequence[float] = (3.0, 15.0),
        sample_rate: int = 16000,
    ) -> None:
        self.probability = check_probability("probability", probability)
        self.seconds = check_range("seconds", seconds, 0.01)
        self.direct_to_reverberant = check_range(
            "direct_to_reverberant", direct_to_reverberant, -20.0
        )
        self.sample_rate = sample_rate

    def __call__(self, signal: Tensor) -> Tensor:
        """Reverberate a signal, shape (N,)."""
        power = signal.square().mean()
        if not power > 0 or torch.rand(()) >= self.probability:
            return signal
        seconds = float(uniform(*self.seconds))
        time = torch.arange(1, max(2, round(seconds * self.sample_rate))) / self.sample_rate
        # 60 dB are a factor of 1000 in amplitude.
        tail = torch.randn(len(time)) * torch.exp(-math.log(1000) * time / seconds)
        ratio = 10 ** (-uniform(*self.direct_to_reverberant) / 10)
        tail = tail * (ratio / tail.square().sum()).sqrt()
        room = torch.cat([torch.ones(1), tail])
        wet = fftconvolve(signal, room)[: len(signal)]
        return wet * (power / wet.square().mean()).sqrt()


class SpectrogramWarp:
    """Stretch time and shift frequency, each sequence by factors of its own.

    Time changes the speaking rate without the pitch. Frequency moves the formants as another vocal
    tract length would (VTLP: Jaitly and Hinton, 2013); the factor applies to Hz, whatever the mel
    scale makes of it.

    Parameters
    ----------
    time : float
        Largest factor of stretching; its inverse is the smallest. 1 leaves time alone.
    frequency : float
        Likewise for frequencies.
    sample_rate : int
        In Hz; the mel bands are taken to reach from 0 to half of it, as SpeechBrain's Fbank's do.

    Examples
    --------
    >>> import torch
    >>> from sru_asr.augment import SpectrogramWarp
    >>> feats, lengths = SpectrogramWarp(1.2, 1.1)(torch.randn(2, 50, 80), torch.tensor([1.0, 0.5]))
    >>> feats.shape[::2], lengths.max()
    (torch.Size([2, 80]), tensor(1.))
    """

    def __init__(self, time: float = 1.2, frequency: float = 1.1, sample_rate: int = 16000) -> None:
        for name, factor in (("time", time), ("frequency", frequency)):
            if not 1 <= factor < 4:
                raise ValueError(f"{name} must be a factor from 1 to less than 4, got {factor}")
        self.time = time
        self.frequency = frequency
        self.top = 2595 * math.log10(1 + sample_rate / 2 / 700)  # mel

    def __call__(self, feats: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Warp features (B, T, F) with relative lengths (B,)."""
        batch, frames, bands = feats.shape
        steps = steps_of(lengths, batch, frames)
        assert steps is not None
        if frames == 0:
            return feats, lengths
        # Between two frames both are read, the second even where its weight is only rounding.
        feats = feats.masked_fill(padding_mask(steps, frames)[:, :, None], 0)
        stretch = self._factors(self.time, batch).to(feats.device)
        warped = (steps * stretch).round().long().clamp(min=1).where(steps > 0, 0)
        longest = int(warped.max().clamp(min=1))
        # The first and the last real frame stay the first and the last.
        pace = (steps - 1).clamp(min=0) / (warped - 1).clamp(min=1)
        source = torch.arange(longest, device=feats.device) * pace[:, None]
        source = source.minimum((steps - 1).clamp(min=0)[:, None])
        y = source * (2 / max(frames - 1, 1)) - 1
        x = self._bands(bands, self._factors(self.frequency, batch)).to(feats.device)
        grid = torch.stack(
            [x[:, None, :].expand(-1, longest, -1), y[:, :, None].expand(-1, -1, bands)], dim=-1
        )
        feats = F.grid_sample(
            feats[:, None], grid.to(feats.dtype), padding_mode="border", align_corners=True
        )[:, 0]
        return feats, warped / longest

    @staticmethod
    def _factors(largest: float, batch: int) -> Tensor:
        return torch.exp(uniform(-math.log(largest), math.log(largest), batch))

    def _bands(self, bands: int, factor: Tensor) -> Tensor:
        """Where each band is read from, as grid_sample counts: -1 the first, 1 the last."""
        mel = torch.arange(1, bands + 1) * (self.top / (bands + 1))  # the bands' centres
        hertz = 700 * (10 ** (mel / 2595) - 1) * factor[:, None]
        band = 2595 * torch.log10(1 + hertz / 700) * ((bands + 1) / self.top) - 1
        return band * (2 / max(bands - 1, 1)) - 1


class SpecAugment:
    """Mask spans of time, in proportion to a sequence's length, and bands of frequency.

    SpecAugment (Park et al., 2019), as adaptive as its large-scale version (Park et al., 2020):
    a fixed number of long masks would erase short utterances and hardly touch long ones. Masked
    features become 0, the mean of normalised ones.

    Parameters
    ----------
    time_share : float
        Share of the frames that is masked, about; overlaps count twice.
    time_longest : int
        Longest span, in frames; lengths are drawn from 1 to this.
    frequency_masks : int
        Number of masks over frequency.
    frequency_longest : int
        Widest mask, in bands; widths are drawn from 0 to this.

    Examples
    --------
    >>> import torch
    >>> from sru_asr.augment import SpecAugment
    >>> feats, lengths = SpecAugment(0.2, 10)(torch.ones(2, 400, 80), torch.ones(2))
    >>> 0.5 < feats.mean() < 1
    tensor(True)
    """

    def __init__(
        self,
        time_share: float = 0.1,
        time_longest: int = 15,
        frequency_masks: int = 2,
        frequency_longest: int = 15,
    ) -> None:
        self.time_share = check_probability("time_share", time_share)
        if time_longest < 1 or frequency_masks < 0 or frequency_longest < 0:
            raise ValueError(
                "time_longest must be at least 1, frequency_masks and frequency_longest at least "
                f"0, got {time_longest}, {frequency_masks}, {frequency_longest}"
            )
        self.time_longest = time_longest
        self.frequency_masks = frequency_masks
        self.frequency_longest = frequency_longest

    def __call__(self, feats: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Mask features (B, T, F) with relative lengths (B,)."""
        batch, frames, bands = feats.shape
        steps = steps_of(lengths, batch, frames)
        assert steps is not None
        steps = steps.cpu()
        # As many as make the share on average; the fraction of a mask is drawn.
        count = (steps * self.time_share * 2 / (self.time_longest + 1) + torch.rand(batch)).long()
        most = int(count.max()) if batch else 0
        length = torch.randint(1, self.time_longest + 1, (batch, most))
        length = length.where(torch.arange(most) < count[:, None], 0)
        start = (torch.rand(batch, most) * (steps[:, None] - length + 1).clamp(min=1)).long()
        time = self._spans(start, length, frames)
        width = torch.randint(0, self.frequency_longest + 1, (batch, self.frequency_masks))
        width = width.clamp(max=bands)
        start = (torch.rand(width.shape) * (bands - width + 1)).long()
        masked = time[:, :, None] | self._spans(start, width, bands)[:, None, :]
        return feats.masked_fill(masked.to(feats.device), 0), lengths

    @staticmethod
    def _spans(start: Tensor, length: Tensor, size: int) -> Tensor:
        """Union of spans: (B, n) starts and lengths to (B, size)."""
        index = torch.arange(size)
        inside = (index >= start[..., None]) & (index < (start + length)[..., None])
        return inside.any(dim=1)


class Chain:
    """Feature augmentations one after the other.

    Examples
    --------
    >>> import torch
    >>> from sru_asr.augment import Chain, SpecAugment, SpectrogramWarp
    >>> augment = Chain(SpectrogramWarp(), SpecAugment())
    >>> augment(torch.randn(2, 50, 80), torch.ones(2))[0].shape[0]
    2
    """

    def __init__(self, *augmentations: FeatureAugment) -> None:
        self.augmentations = augmentations

    def __call__(self, feats: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Augment features (B, T, F) with relative lengths (B,)."""
        for augment in self.augmentations:
            feats, lengths = augment(feats, lengths)
        return feats, lengths


class Views:
    """Repeat a batch, so that what follows augments each utterance in several ways.

    For `sru_asr.consistency.consistency_loss`: what moves frames in time (`SpectrogramWarp`) comes
    before, what masks them (`SpecAugment`) after.

    Parameters
    ----------
    count : int
        How often each utterance is in the batch then.

    Examples
    --------
    >>> import torch
    >>> from sru_asr.augment import Views
    >>> feats, lengths = Views(2)(torch.randn(3, 50, 80), torch.tensor([1.0, 0.5, 0.2]))
    >>> feats.shape, lengths.tolist()[3:]
    (torch.Size([6, 50, 80]), [1.0, 0.5, 0.20000000298023224])
    """

    def __init__(self, count: int = 2) -> None:
        if not isinstance(count, int) or count < 1:
            raise ValueError(f"count must be a whole number from 1 on, got {count}")
        self.count = count

    def __call__(self, feats: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Repeat features (B, T, F) and relative lengths (B,): first all of them, then again."""
        return feats.repeat(self.count, 1, 1), lengths.repeat(self.count)


class Concatenation:
    """Make a batch of some utterances joined to longer ones: a collate function.

    A recogniser that has only heard utterances of three seconds fails on those of thirty. Joining
    utterances of one batch keeps the seconds of the batch, so it costs nothing.

    Parameters
    ----------
    tokenizer : sentencepiece.SentencePieceProcessor
        Spells the joined transcripts.
    probability : float
        Share of the batches that are joined.
    most : int
        Most utterances joined to one; the number is drawn for a batch, from 2 to this.
    """

    def __init__(
        self, tokenizer: SentencePieceProcessor, probability: float = 0.5, most: int = 4
    ) -> None:
        if most < 2:
            raise ValueError(f"most must be at least 2, got {most}")
        self.tokenizer = tokenizer
        self.probability = check_probability("probability", probability)
        self.most = most

    def __call__(self, examples: list[dict[str, Any]]) -> PaddedBatch:
        """Collate the examples of a `sru_asr.data.make_dataset`, some of them joined."""
        if len(examples) > 1 and torch.rand(()) < self.probability:
            number = int(torch.randint(2, self.most + 1, ()))
            order = torch.randperm(len(examples)).tolist()
            groups = [order[i : i + number] for i in range(0, len(order), number)]
            examples = [self._join([examples[i] for i in group]) for group in groups]
        return PaddedBatch(examples)

    def _join(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        text = " ".join(example["wrd"] for example in examples)
        tokens = self.tokenizer.encode(text)
        if BLANK in tokens:
            raise ValueError(
                f"the tokenizer cannot spell {text!r}: joined utterances need a piece for the "
                "space between words; leave concatenation out"
            )
        return {
            "id": "+".join(example["id"] for example in examples),
            "sig": torch.cat([example["sig"] for example in examples]),
            "wrd": text,
            "tokens_bos": torch.LongTensor([BOS, *tokens]),
            "tokens_eos": torch.LongTensor([*tokens, EOS]),
            "tokens": torch.LongTensor(tokens),
        }
