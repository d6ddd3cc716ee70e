"""SpeechBrain datasets from manifests: audio, speed perturbation and token pipelines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import speechbrain as sb
import torch
from sentencepiece import SentencePieceProcessor
from speechbrain.dataio.dataset import DynamicItemDataset
from torch import Tensor

from sru_asr.audio import read_audio
from sru_asr.manifest import Utterance
from sru_asr.tokenizer import BOS, EOS


def make_dataset(
    utterances: Sequence[Utterance],
    tokenizer: SentencePieceProcessor,
    sample_rate: int = 16000,
    speed_perturb: Callable[[Tensor], Tensor] | None = None,
    wav_augment: Sequence[Callable[[Tensor], Tensor]] = (),
) -> DynamicItemDataset:
    """Make a dataset of waveforms and tokens from the rows of a manifest.

    Parameters
    ----------
    utterances : sequence of Utterance
        From `sru_asr.manifest.check_manifest`.
    tokenizer : sentencepiece.SentencePieceProcessor
        Turns transcripts into tokens.
    sample_rate : int
        Waveforms are resampled to this rate, in Hz.
    speed_perturb : callable, optional
        Applied to each waveform, shape (1, N); for training.
    wav_augment : sequence of callable
        Applied to each waveform after it, in this order, shape (N,); see `sru_asr.augment`.

    Returns
    -------
    DynamicItemDataset
        With items ``id, sig, wrd, tokens_bos, tokens_eos, tokens``.
    """

    @sb.utils.data_pipeline.takes("wav")
    @sb.utils.data_pipeline.provides("sig")
    def audio_pipeline(wav: str) -> Tensor:
        signal = read_audio(wav, sample_rate)
        if speed_perturb is not None:
            signal = speed_perturb(signal[None])[0]
        for augment in wav_augment:
            signal = augment(signal)
        return signal

    @sb.utils.data_pipeline.takes("wrd")
    @sb.utils.data_pipeline.provides("tokens_bos", "tokens_eos", "tokens")
    def text_pipeline(wrd: str) -> Any:
        tokens = tokenizer.encode(wrd)
        yield torch.LongTensor([BOS, *tokens])
        yield torch.LongTensor([*tokens, EOS])
        yield torch.LongTensor(tokens)

    rows = {utterance.ID: asdict(utterance) for utterance in utterances}
    dataset = DynamicItemDataset(rows)
    dataset.add_dynamic_item(audio_pipeline)
    dataset.add_dynamic_item(text_pipeline)
    dataset.set_output_keys(["id", "sig", "wrd", "tokens_bos", "tokens_eos", "tokens"])
    return dataset
