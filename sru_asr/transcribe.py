"""Transcribing recordings with a model folder: what Python and `sru-asr transcribe` share."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sru_asr.audio import AudioError, audio_info, read_audio
from sru_asr.decode.searcher import Searcher
from sru_asr.device import DeviceError, find_device
from sru_asr.model_folder import load_model, one_line
from sru_asr.padding import steps_of
from sru_asr.segments import Transcript

Audio = str | os.PathLike[str] | Tensor


class TranscriptionError(ValueError):
    """Transcription cannot start; the message says what was found and what was expected."""


class Transcriber:
    """A model folder, loaded and ready.

    The folder's ``hyperparams.yaml`` names one of SpeechBrain's interfaces, EncoderASR or
    EncoderDecoderASR, which loads it and decodes. Recordings are encoded in batches and searched
    one by one, each over exactly its own frames, so that a recording's text does not depend on
    what it is batched with: it is what SpeechBrain's ``transcribe_file`` gives.

    Nothing is downloaded, and nothing is written, neither into the model folder nor elsewhere.
    The YAML may make only what the recipes' models consist of (`sru_asr.model_yaml`).

    Parameters
    ----------
    model_dir : str or path
        The model folder. Its ``modules.encoder`` has a method ``encode(wavs, lengths)`` that
        returns frames and their relative lengths, as `sru_asr.model.SpeechEncoder` and
        `sru_asr.model.CTCPosteriors` have.
    device : str
        ``"cpu"``, ``"cuda"`` or another of PyTorch's device names.
    batch_seconds : float
        Audio in a batch, padding included. A longer recording is a batch of its own.

    Attributes
    ----------
    sample_rate : int
        Samples per second that the model expects.

    Raises
    ------
    TranscriptionError
        If there is no such device.
    ModelFolderError
        If the folder is not a model folder.

    Examples
    --------
    >>> from sru_asr.transcribe import Transcriber
    >>> transcriber = Transcriber("results/demo/model")  # doctest: +SKIP
    >>> transcriber.transcribe(["a.wav", "b.flac"])[0].text  # doctest: +SKIP
    'GO NORTH'
    """

    def __init__(
        self,
        model_dir: str | os.PathLike[str],
        device: str = "cpu",
        batch_seconds: float = 120.0,
    ) -> None:
        if not batch_seconds > 0:  # so that NaN is refused, too
            raise TranscriptionError(
                f"batch_seconds: found {batch_seconds:g}, expected a positive number of seconds"
            )
        self.batch_seconds = batch_seconds
        try:
            self.device = find_device(device)
        except DeviceError as error:
            raise TranscriptionError(str(error)) from None
        self.model = load_model(Path(model_dir), self.device)
        self.sample_rate = int(self.model.hparams.sample_rate)

    def transcribe(self, audio: Iterable[Audio]) -> list[Transcript]:
        """Transcribe recordings, in their order; a broken one does not stop the others.

        Parameters
        ----------
        audio : iterable of paths or Tensors
            Files of any sample rate and channel count, or floating-point tensors of one dimension
            at the model's sample rate.

        Returns
        -------
        list of Transcript
        """
        found = dict(self.stream(list(audio)))
        return [found[index] for index in sorted(found)]

    def stream(self, audio: Sequence[Audio]) -> Iterator[tuple[int, Transcript]]:
        """Transcribe recordings, giving each as soon as it is done.

        Only the headers of all files are read in advance. Audio is decoded a batch at a time.

        Parameters
        ----------
        audio : sequence of paths or Tensors
            See `transcribe`.

        Yields
        ------
        index : int
            Position in ``audio``.
        transcript : Transcript
        """
        durations = {}
        for index, item in enumerate(audio):
            try:
                durations[index] = self._duration(item)
            except Exception as error:  # whatever is wrong with one must not stop the others
                yield index, _failed(item, 0.0, error)
        for batch in batches(durations, self.batch_seconds):
            signals = {}
            for index in batch:
                try:
                    signals[index] = self._read(audio[index])
                except Exception as error:
                    yield index, _failed(audio[index], durations[index], error)
            results = self._recognize(list(signals.values())) if signals else []
            for index, result in zip(signals, results, strict=True):
                item, duration = audio[index], durations[index]
                if isinstance(result, str):
                    yield index, Transcript(_path(item), result, duration)
                else:
                    yield index, _failed(item, duration, result)

    def _duration(self, item: Audio) -> float:
        if not isinstance(item, Tensor):
            return audio_info(item).duration
        expected = f"one dimension of finite floating-point samples at {self.sample_rate} Hz"
        if item.dim() != 1 or not item.is_floating_point() or not item.numel():
            raise AudioError(
                f"audio tensor: found shape {tuple(item.shape)} of {item.dtype}, "
                f"expected {expected}"
            )
        if not item.isfinite().all():
            raise AudioError(f"audio tensor: found NaN or infinite samples, expected {expected}")
        return len(item) / self.sample_rate

    def _read(self, item: Audio) -> Tensor:
        return item.float() if isinstance(item, Tensor) else read_audio(item, self.sample_rate)

    def _recognize(self, signals: list[Tensor]) -> list[str | Exception]:
        """Recognise a batch; if that fails (memory), its halves, down to the one at fault."""
        try:
            return list(self._texts(signals))
        except Exception as error:
            if len(signals) == 1:
                return [error.with_traceback(None)]  # the traceback would keep tensors alive
        half = len(signals) // 2
        return self._recognize(signals[:half]) + self._recognize(signals[half:])

    @torch.inference_mode()
    def _texts(self, signals: list[Tensor]) -> list[str]:
        wavs = pad_sequence([signal.to(self.device) for signal in signals], batch_first=True)
        # In fp64: an hour has more samples than fp32 has integers.
        samples = torch.tensor([len(signal) for signal in signals], dtype=torch.float64)
        frames, lengths = self.model.mods.encoder.encode(
            wavs, (samples / wavs.shape[1]).to(self.device)
        )
        if isinstance(getattr(self.model.mods, "decoder", None), Searcher):
            return [str(text) for text in self.model.transcribe_batch(frames, lengths)[0]]
        steps = steps_of(lengths, *frames.shape[:2])
        assert steps is not None
        # One by one: SpeechBrain's searchers derive their limits from the padded length.
        whole = torch.ones(1)
        return [
            str(self.model.transcribe_batch(frames[i : i + 1, :count], whole)[0][0])
            for i, count in enumerate(steps.tolist())
        ]


def batches(durations: dict[int, float], seconds: float) -> Iterator[list[int]]:
    """Group recordings of like length, the longest first.

    Parameters
    ----------
    durations : dict of int to float
        Seconds of each recording.
    seconds : float
        Limit of a batch, padding included; a longer recording is alone.

    Examples
    --------
    >>> list(batches({0: 1.0, 1: 5.0, 2: 2.0, 3: 1.5, 4: 9.0}, seconds=6))
    [[4], [1], [2, 3, 0]]
    """
    batch: list[int] = []
    for index in sorted(durations, key=lambda index: -durations[index]):
        if batch and durations[batch[0]] * (len(batch) + 1) > seconds:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _path(item: Audio) -> str | None:
    return None if isinstance(item, Tensor) else os.fspath(item)


def _failed(item: Audio, duration: float, error: Exception) -> Transcript:
    path = _path(item)
    if isinstance(error, AudioError):
        reason = str(error)
    else:
        name = "audio tensor" if path is None else f"audio file {path}"
        found = f"{duration:.1f} s of audio" if duration else "a file"
        reason = (
            f"{name}: found {found} that cannot be transcribed ({one_line(error)}), "
            "expected what the model and the memory can take"
        )
    return Transcript(path, "", duration, reason)
