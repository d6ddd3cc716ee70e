"""Transcribing recordings with a model folder: what Python and `sru-asr transcribe` share."""

from __future__ import annotations

import ctypes
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sru_asr.alignment import AlignmentError, WordAligner
from sru_asr.audio import AudioError, stream_audio
from sru_asr.decode.choice import DecoderError, choose_decoder, nbest_texts
from sru_asr.decode.searcher import Searcher
from sru_asr.device import DeviceError, find_device
from sru_asr.model_folder import load_model, one_line
from sru_asr.padding import steps_of
from sru_asr.segments import Segment, Transcript, Word
from sru_asr.windows import OVERLAP, Window, cut, join

Audio = str | os.PathLike[str] | Tensor | npt.NDArray[np.floating]

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Seconds of audio in a batch. A CPU is no faster with more, which leaves its caches.
CPU_BATCH, GPU_BATCH = 40.0, 120.0
# Audio that is read before any of it is recognised, in batches: the more, the less padding.
LOOKAHEAD = 8
# Tensors and arrays are cut as files are read.
BLOCK_SAMPLES = 1 << 18


class TranscriptionError(ValueError):
    """Transcription cannot start; the message says what was found and what was expected."""


class Transcriber:
    """A model folder, loaded and ready.

    The folder's ``hyperparams.yaml`` names one of SpeechBrain's interfaces, EncoderASR or
    EncoderDecoderASR, which loads it and decodes. Recordings are read as a stream and, where they
    are long, cut into windows (`sru_asr.windows`). Windows are encoded in batches and searched one
    by one, each over exactly its own frames, so that a recording's text does not depend on what it
    is batched with: of one that is no longer than ``window_seconds`` it is what SpeechBrain's
    ``transcribe_file`` gives. Memory does not grow with the length of recordings.

    Nothing is downloaded, and nothing is written, neither into the model folder nor elsewhere.
    The YAML may make only what the recipes' models consist of (`sru_asr.model_yaml`).

    Parameters
    ----------
    model_dir : str or path
        The model folder. Its ``modules.encoder`` has a method ``encode(wavs, lengths)`` that
        returns frames and their relative lengths, as `sru_asr.model.SpeechEncoder` and
        `sru_asr.model.CTCPosteriors` have.
    device : str
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
    batch_seconds : float, optional
        Audio in a batch, padding included; by default 40 on a CPU and 120 on a GPU. A longer window
        is a batch of its own.
    window_seconds : float
        Longer recordings are cut; ``math.inf`` leaves all whole, and then memory grows with them.
    precision : str
        ``"fp32"``, or ``"bf16"`` or ``"fp16"`` for matrix products in 16 bits.
    decoder, beam_size, lm
        Instead of the folder's own search; see `sru_asr.decode.choice.choose_decoder`.
    trust : bool
        Let the folder's YAML make any objects, that is, run any code.

    Attributes
    ----------
    sample_rate : int
        Samples per second that the model expects.

    Raises
    ------
    TranscriptionError
        If an option is out of its range, or there is no such device.
    ModelFolderError
        If the folder is not a model folder.

    Examples
    --------
    >>> from sru_asr.transcribe import Transcriber
    >>> transcriber = Transcriber("results/demo/model")  # doctest: +SKIP
    >>> transcriber.transcribe(["a.wav", "b.flac"])[0].text  # doctest: +SKIP
    'GO NORTH'
    >>> found = transcriber.transcribe("a.wav", word_timestamps=True)  # doctest: +SKIP
    >>> [word.start for word in found.segments[0].words]  # doctest: +SKIP
    [0.21, 0.55]
    """

    def __init__(
        self,
        model_dir: str | os.PathLike[str],
        device: str = "cpu",
        batch_seconds: float | None = None,
        *,
        window_seconds: float = 30.0,
        precision: str = "fp32",
        decoder: str | None = None,
        beam_size: int | None = None,
        lm: str | os.PathLike[str] | None = None,
        trust: bool = False,
    ) -> None:
        for name, seconds, least in (
            ("batch_seconds", batch_seconds, 0),
            ("window_seconds", window_seconds, 2 * OVERLAP),
        ):
            if seconds is not None and not seconds > least:  # so that NaN is refused, too
                expected = f"more than {least:g}" if least else "a positive number of"
                raise TranscriptionError(f"{name}: found {seconds:g}, expected {expected} seconds")
        if precision not in PRECISIONS:
            raise TranscriptionError(
                f"precision: found {precision!r}, expected {', '.join(PRECISIONS)}"
            )
        self.window_seconds = window_seconds
        self.dtype = PRECISIONS[precision]
        try:
            self.device = find_device(device)
        except DeviceError as error:
            raise TranscriptionError(str(error)) from None
        on_cpu = torch.device(self.device).type == "cpu"
        self.batch_seconds = batch_seconds or (CPU_BATCH if on_cpu else GPU_BATCH)
        if precision == "fp16" and on_cpu:
            raise TranscriptionError(
                "precision fp16: found device cpu, expected a CUDA device; bf16 works on both"
            )
        self.model = load_model(Path(model_dir), self.device, trust)
        try:
            choose_decoder(self.model, decoder, beam_size, lm, trust=trust)
        except DecoderError as error:
            raise TranscriptionError(str(error)) from None
        self.sample_rate = int(self.model.hparams.sample_rate)
        try:
            self._aligner: WordAligner | None = WordAligner(self.model)
        except AlignmentError as error:
            # Texts need no times, unless windows have to overlap.
            self._aligner, self._no_aligner = None, error

    # A path is an iterable of strings, too; the first that fits counts.
    @overload
    def transcribe(  # type: ignore[overload-overlap]
        self,
        audio: Audio,
        *,
        word_timestamps: bool = ...,
        confidence: bool = ...,
        nbest: int = ...,
    ) -> Transcript: ...

    @overload
    def transcribe(
        self,
        audio: Iterable[Audio],
        *,
        word_timestamps: bool = ...,
        confidence: bool = ...,
        nbest: int = ...,
    ) -> list[Transcript]: ...

    def transcribe(
        self,
        audio: Audio | Iterable[Audio],
        *,
        word_timestamps: bool = False,
        confidence: bool = False,
        nbest: int = 0,
    ) -> Transcript | list[Transcript]:
        """Transcribe one recording, or several in their order; a broken one stops no others.

        Parameters
        ----------
        audio : path, Tensor or array, or iterable of them
            Files of any format, sample rate and channel count, or floating-point tensors and NumPy
            arrays of one dimension at the model's sample rate.
        word_timestamps : bool
            Give each segment its words with their times.
        confidence : bool
            Give each segment its confidence, the mean of its words'.
        nbest : int
            Give each segment so many alternatives at most; they need a search that has them.

        Returns
        -------
        Transcript, or list of Transcript for an iterable
            Of what could not be transcribed, with ``error`` and without text.

        Raises
        ------
        TranscriptionError
            When the model cannot give times, confidence or alternatives.
        """
        options = Options(word_timestamps, confidence, nbest)
        if isinstance(audio, str | os.PathLike | Tensor | np.ndarray):
            return next(iter(self.stream([audio], options)))
        return list(self.stream(audio, options))

    def stream(
        self,
        audio: Iterable[Audio],
        options: Options | None = None,
        progress: Callable[[float], object] = lambda seconds: None,
    ) -> Iterator[Transcript]:
        """Transcribe recordings, giving each as soon as it and all before it are done.

        Parameters
        ----------
        audio : iterable of paths, Tensors or arrays
            See `transcribe`. What it gives is read when it is needed.
        options : Options, optional
            What to find besides the text.
        progress : callable
            Called with the seconds of audio that are done, of each batch.

        Yields
        ------
        Transcript
            In the order of ``audio``.
        """
        options = options or Options()
        self._check(options)
        recordings: deque[_Recording] = deque()
        waiting: list[_Piece] = []
        samples, done = 0, False
        for item in audio:
            recording = _Recording(item)
            recordings.append(recording)
            for piece in self._pieces(recording):
                waiting.append(piece)
                samples += len(piece.window.samples)
                if samples >= LOOKAHEAD * self.batch_seconds * self.sample_rate:
                    self._recognize_all(waiting, options, progress, tidy=True)
                    waiting, samples, done = [], 0, True
                    while recordings[0].read:
                        yield self._transcript(recordings.popleft(), options)
        self._recognize_all(waiting, options, progress, tidy=done)
        for recording in recordings:
            yield self._transcript(recording, options)

    def _check(self, options: Options) -> None:
        """Find out before the work what the model cannot do."""
        if (options.word_timestamps or options.confidence) and self._aligner is None:
            raise TranscriptionError(f"word times and confidence: {self._no_aligner}")
        if options.nbest < 0:
            raise TranscriptionError(f"nbest: found {options.nbest}, expected 0 or more")
        if options.nbest and self._searcher is None:
            raise TranscriptionError(
                f"nbest: found {options.nbest}, but the model folder's decoder gives one text; "
                "expected decoder joint or ctc-beam"
            )

    @property
    def _searcher(self) -> Searcher | None:
        """The model's search, if it is one of ours."""
        decoder = getattr(self.model.mods, "decoder", None)
        return decoder if isinstance(decoder, Searcher) else None

    def _pieces(self, recording: _Recording) -> Iterator[_Piece]:
        """Read a recording and cut it; what goes wrong is noted there."""
        overlap = OVERLAP if self._aligner is not None else 0.0

        def counted() -> Iterator[npt.NDArray[np.float32]]:
            for block in self._blocks(recording.item):
                recording.samples += len(block)
                yield block

        try:
            for window in cut(counted(), self.sample_rate, self.window_seconds, overlap):
                piece = _Piece(window, recording)
                recording.pieces.append(piece)
                yield piece
        except Exception as error:  # whatever is wrong with one must not stop the others
            recording.error = error.with_traceback(None)
        recording.read = True

    def _blocks(self, item: Audio) -> Iterator[npt.NDArray[np.float32]]:
        if isinstance(item, str | os.PathLike):
            return stream_audio(item, self.sample_rate)
        signal = self._checked_signal(item)
        return (signal[i : i + BLOCK_SAMPLES] for i in range(0, len(signal), BLOCK_SAMPLES))

    def _checked_signal(self, item: Tensor | npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        signal = item.detach().cpu() if isinstance(item, Tensor) else torch.as_tensor(item)
        expected = f"one dimension of finite floating-point samples at {self.sample_rate} Hz"
        if signal.dim() != 1 or not signal.is_floating_point() or not signal.numel():
            raise AudioError(
                f"audio {_kind(item)}: found shape {tuple(item.shape)} of {item.dtype}, "
                f"expected {expected}"
            )
        if not signal.isfinite().all():
            raise AudioError(
                f"audio {_kind(item)}: found NaN or infinite samples, expected {expected}"
            )
        return np.asarray(signal.float().numpy())

    def _recognize_all(
        self,
        pieces: list[_Piece],
        options: Options,
        progress: Callable[[float], object],
        tidy: bool = False,
    ) -> None:
        """Recognise windows, those of like length together, and let go of their samples.

        With ``tidy`` freed memory goes back after each batch, which hours of audio need.
        """
        wanted = [piece for piece in pieces if piece.recording.error is None]
        lengths = {i: len(each.window.samples) / self.sample_rate for i, each in enumerate(wanted)}
        for batch in batches(lengths, self.batch_seconds):
            chosen = [wanted[i] for i in batch]
            self._recognize(chosen, options)
            progress(sum(lengths[i] for i in batch))
            if tidy:
                _give_back()
        for piece in pieces:
            piece.window = replace(piece.window, samples=np.empty(0, np.float32))

    def _recognize(self, pieces: list[_Piece], options: Options) -> None:
        """Recognise a batch; if that fails (memory), its halves, down to the one at fault."""
        try:
            found = self._segments(pieces, options)
        except Exception as error:
            if len(pieces) == 1:
                # The traceback would keep tensors alive.
                pieces[0].recording.error = error.with_traceback(None)
                return
        else:
            for piece, segment in zip(pieces, found, strict=True):
                piece.segment = segment
            return
        half = len(pieces) // 2
        self._recognize(pieces[:half], options)
        self._recognize(pieces[half:], options)

    @torch.inference_mode()
    def _segments(self, pieces: list[_Piece], options: Options) -> list[Segment]:
        signals = [torch.from_numpy(piece.window.samples) for piece in pieces]
        wavs = pad_sequence(signals, batch_first=True).to(self.device)
        # In fp64: an hour has more samples than fp32 has integers.
        samples = torch.tensor([len(signal) for signal in signals], dtype=torch.float64)
        starts = [piece.window.start / self.sample_rate for piece in pieces]
        ends = [
            (piece.window.start + len(piece.window.samples)) / self.sample_rate for piece in pieces
        ]
        with torch.autocast(
            torch.device(self.device).type, self.dtype, enabled=self.dtype != torch.float32
        ):
            frames, lengths = self.model.mods.encoder.encode(
                wavs, (samples / wavs.shape[1]).to(self.device)
            )
            alternatives = self._alternatives(frames, lengths, options.nbest)
            texts = [best[0][0] for best in alternatives]
            words: Sequence[tuple[Word, ...]] = [()] * len(pieces)
            joined = any(piece.window.before or piece.window.after for piece in pieces)
            if self._aligner is not None and (options.aligned or joined):
                words = self._aligner.align(frames, lengths, texts, starts, ends)
        return [
            Segment(text, start, end, said, None, best if options.nbest else ())
            for text, start, end, said, best in zip(
                texts, starts, ends, words, alternatives, strict=True
            )
        ]

    def _alternatives(
        self, frames: Tensor, lengths: Tensor, nbest: int
    ) -> list[tuple[tuple[str, float], ...]]:
        """The best texts of each window with their scores; without ``nbest`` the best alone."""
        if nbest:
            return [tuple(best) for best in nbest_texts(self.model, frames, lengths, nbest)]
        if self._searcher is not None:
            texts = self.model.transcribe_batch(frames, lengths)[0]
        else:
            steps = steps_of(lengths, *frames.shape[:2])
            assert steps is not None
            # One by one: SpeechBrain's searchers derive their limits from the padded length.
            whole = torch.ones(1)
            texts = [
                self.model.transcribe_batch(frames[i : i + 1, :count], whole)[0][0]
                for i, count in enumerate(steps.tolist())
            ]
        return [((str(text), 0.0),) for text in texts]

    def _transcript(self, recording: _Recording, options: Options) -> Transcript:
        """Put a recording's windows together."""
        duration = recording.samples / self.sample_rate
        if recording.error is not None:
            return _failed(recording.item, duration, recording.error)
        segments: list[Segment] = []
        for piece in recording.pieces:
            segment = piece.segment
            assert segment is not None
            if piece.window.before:
                segments[-1], segment = _joined(segments[-1], segment)
            segments.append(segment)
        finished = tuple(options.finish(segment) for segment in segments)
        text = " ".join(segment.text for segment in finished if segment.text)
        return Transcript(_path(recording.item), text, duration, None, finished)


@dataclass(frozen=True)
class Options:
    """What to find besides the text; see `Transcriber.transcribe`."""

    word_timestamps: bool = False
    confidence: bool = False
    nbest: int = 0

    @property
    def aligned(self) -> bool:
        """Whether words have to be placed in time."""
        return self.word_timestamps or self.confidence

    def finish(self, segment: Segment) -> Segment:
        """Leave in a segment what was asked for."""
        sure = None
        if self.confidence:
            # Of silence that was taken for silence there is nothing to doubt.
            sure = fmean(word.confidence for word in segment.words) if segment.words else 1.0
        return replace(
            segment, words=segment.words if self.word_timestamps else (), confidence=sure
        )


@dataclass
class _Recording:
    """What is known of a recording so far."""

    item: Audio
    samples: int = 0  # at the model's rate
    pieces: list[_Piece] = field(default_factory=list)
    error: Exception | None = None
    read: bool = False  # to its end


@dataclass
class _Piece:
    """A window of a recording, and what was recognised in it."""

    window: Window
    recording: _Recording
    segment: Segment | None = None


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


def _give_back() -> None:
    """Let the system have freed memory, which batches of all sizes leave in ever more holes."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of the GNU C library
    if trim is not None:
        trim(0)


def _joined(left: Segment, right: Segment) -> tuple[Segment, Segment]:
    """Give what is in both of two windows that overlap to one of them."""
    stop, first = join(left.words, right.words, right.start, left.end)
    words = left.words[:stop], right.words[first:]
    ends = [each[at].end for each, at in ((words[0], -1), (right.words[:first], -1)) if each]
    border = max([right.start, *(end for end in ends if end <= left.end)])
    return (
        _with_words(replace(left, end=border), words[0]),
        _with_words(replace(right, start=border), words[1]),
    )


def _with_words(segment: Segment, words: tuple[Word, ...]) -> Segment:
    if words == segment.words:
        return segment
    text = " ".join(word.text for word in words)
    # Other texts of the whole window have no place in a part of it.
    best = tuple((text, score) for _, score in segment.alternatives[:1])
    return replace(segment, text=text, words=words, alternatives=best)


def _path(item: Audio) -> str | None:
    return os.fspath(item) if isinstance(item, str | os.PathLike) else None


def _kind(item: Audio) -> str:
    return "tensor" if isinstance(item, Tensor) else "array"


def _failed(item: Audio, duration: float, error: Exception) -> Transcript:
    path = _path(item)
    if isinstance(error, AudioError):
        reason = str(error)
    else:
        name = f"audio {_kind(item)}" if path is None else f"audio file {path}"
        found = f"{duration:.1f} s of audio" if duration else "a file"
        reason = (
            f"{name}: found {found} that cannot be transcribed ({one_line(error)}), "
            "expected what the model and the memory can take"
        )
    return Transcript(path, "", duration, reason)
