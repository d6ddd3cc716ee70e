"""Transcribing recordings with a model folder: what Python and `sru-asr transcribe` share."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sru_asr.audio import AudioError, audio_info, read_audio
from sru_asr.decode.searcher import Searcher
from sru_asr.export import INTERFACES
from sru_asr.padding import steps_of
from sru_asr.transcripts import enumerate_some

Audio = str | os.PathLike[str] | Tensor

# What a folder is searched for, in any case. A file given by name may be called anything.
AUDIO_SUFFIXES = (
    *(".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".sph", ".nist"),
    *(".aif", ".aiff", ".aifc", ".au", ".snd", ".caf", ".w64", ".rf64"),
)


class TranscriptionError(ValueError):
    """Transcription cannot start; the message says what was found and what was expected."""


@dataclass(frozen=True)
class Transcript:
    """What became of one recording.

    Attributes
    ----------
    path : str or None
        The file; None for a tensor.
    text : str
        What was recognised, empty after an error.
    duration : float
        Seconds of audio; 0 where not even the header could be read.
    error : str or None
        One sentence that names the file and says why there is no text.
    """

    path: str | None
    text: str
    duration: float
    error: str | None = None


class Transcriber:
    """A model folder, loaded and ready.

    The folder's ``hyperparams.yaml`` names one of SpeechBrain's interfaces, EncoderASR or
    EncoderDecoderASR, which loads it and decodes. Recordings are encoded in batches and searched
    one by one, each over exactly its own frames, so that a recording's text does not depend on
    what it is batched with: it is what SpeechBrain's ``transcribe_file`` gives.

    Nothing is downloaded, and nothing is written, neither into the model folder nor elsewhere.
    A YAML can run any code: load model folders from people you trust.

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
        If the folder is not a model folder, or there is no such device.

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
        self.device = _checked_device(device)
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


class _FromFrames:
    """Mixed into an interface: `transcribe_batch` takes encoded frames in place of waveforms."""

    def encode_batch(self, frames: Tensor, lengths: Tensor) -> Tensor:
        return frames


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


def find_audio(inputs: Iterable[str | os.PathLike[str]]) -> list[str]:
    """List the files that are meant by files and folders.

    Files are taken as they come; folders are searched recursively for names that end like audio
    files and do not begin with a dot, and give these sorted.

    Raises
    ------
    TranscriptionError
        If a folder holds no audio, or a file is meant twice.

    Examples
    --------
    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> for name in ("b.WAV", "a.flac", "notes.txt"):
    ...     Path(folder.name, name).touch()
    >>> [Path(path).name for path in find_audio([folder.name])]
    ['a.flac', 'b.WAV']
    >>> folder.cleanup()
    """
    found: list[str] = []
    for given in inputs:
        item = os.fspath(given)
        inside = _search(item) if os.path.isdir(item) else [item]
        if not inside:
            raise TranscriptionError(
                f"folder {item}: found no audio, expected files named "
                f"{', '.join('*' + suffix for suffix in AUDIO_SUFFIXES)}"
            )
        found += inside
    times = Counter(map(os.path.abspath, found))
    twice = [path for path, count in times.items() if count > 1]
    if twice:
        raise TranscriptionError(
            f"found {enumerate_some(twice, 3)} more than once, expected each recording once"
        )
    return found


def recording_ids(paths: Sequence[str]) -> list[str]:
    """Name recordings: by the file name's stem, and by more of the path where that is shared.

    Raises
    ------
    TranscriptionError
        If two would still have the same name.

    Examples
    --------
    >>> recording_ids(["x/one.wav", "x/two.wav", "y/two.wav", "y/two.flac"])
    ['one', 'x_two', 'y_two.wav', 'y_two.flac']
    """
    absolute = [os.path.abspath(path) for path in paths]
    root = os.path.commonpath([os.path.dirname(path) for path in absolute]) if paths else ""
    full = [os.path.relpath(path, root).replace(os.sep, "_") for path in absolute]
    ids = [Path(path).stem for path in paths]
    for longer in ([os.path.splitext(name)[0] for name in full], full):
        times = Counter(ids)
        ids = [new if times[old] > 1 else old for old, new in zip(ids, longer, strict=True)]
    times = Counter(ids)
    clash = [path for path, name in zip(paths, ids, strict=True) if times[name] > 1]
    if clash:
        raise TranscriptionError(
            f"found {enumerate_some(clash, 3)}, whose names differ only in / and _, "
            "expected names that can be told apart in one folder"
        )
    return ids


def _search(folder: str) -> list[str]:
    def refuse(error: OSError) -> None:
        raise error

    return sorted(
        os.path.join(parent, name)
        for parent, _, names in os.walk(folder, onerror=refuse)
        for name in names
        if os.path.splitext(name)[1].lower() in AUDIO_SUFFIXES and not name.startswith(".")
    )


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
            f"{name}: found {found} that cannot be transcribed ({_short(error)}), "
            "expected what the model and the memory can take"
        )
    return Transcript(path, "", duration, reason)


def _short(error: Exception) -> str:
    """The kind of an error and what it says, on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}{'...' if len(text) > 300 else ''}"


def _checked_device(name: str) -> str:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise TranscriptionError(f"device: found {name!r}, expected cpu or cuda") from None
    if device.type != "cuda":
        return name
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = device.index or 0
    if index >= count:
        raise TranscriptionError(
            f"device {name}: found {count} CUDA devices (PyTorch {torch.__version__}), expected "
            f"{'one' if device.index is None else f'at least {index + 1}'}; --device cpu works "
            "everywhere"
        )
    return f"cuda:{index}"  # SpeechBrain warns about "cuda" alone


def load_model(folder: Path, device: str) -> Any:
    """Load a model folder with the interface that its YAML names.

    Parameters
    ----------
    folder : Path
        As training leaves it: ``results/.../model``.
    device : str
        "cpu", "cuda" or "cuda:N".

    Returns
    -------
    EncoderASR or EncoderDecoderASR
        SpeechBrain's, whose ``transcribe_batch`` takes encoded frames in place of waveforms.

    Raises
    ------
    TranscriptionError
        When the folder is incomplete or cannot be loaded.
    """
    interface = _checked_folder(folder)
    # Here and not above, so that what is wrong with the folder shows without the wait.
    from speechbrain.inference import ASR
    from speechbrain.utils.fetching import FetchConfig

    cls: Any = type(interface, (_FromFrames, getattr(ASR, interface)), {})
    try:
        # Without savedir, files are read where they are and no links are made.
        model = cls.from_hparams(
            source=str(folder),
            savedir=None,
            fetch_config=FetchConfig(allow_network=False),
            run_opts={"device": device},
        )
    except Exception as error:  # a YAML makes any objects, which raise anything
        raise TranscriptionError(
            f"model folder {folder}: found files that cannot be loaded ({_short(error)}), "
            "expected those of one training run"
        ) from error
    for found, name in (
        (hasattr(model.hparams, "sample_rate"), "sample_rate"),
        (hasattr(model.mods.encoder, "encode"), "modules.encoder with a method encode"),
    ):
        if not found:
            raise TranscriptionError(
                f"model folder {folder}: found a hyperparams.yaml without {name}, expected one "
                "as sru_asr.export writes it"
            )
    return model


def _checked_folder(folder: Path) -> str:
    """Check that a model folder is complete, and give its interface."""
    yaml_file = folder / "hyperparams.yaml"
    expected = "expected a model folder as training leaves it (results/.../model)"
    if not folder.is_dir():
        found = "a file" if folder.exists() else "no such folder"
        raise TranscriptionError(f"model folder {folder}: found {found}, {expected}")
    if not yaml_file.is_file():
        raise TranscriptionError(
            f"model folder {folder}: found no hyperparams.yaml in it, {expected}"
        )
    try:
        # Read without making objects of its tags.
        with open(yaml_file, encoding="utf-8") as file:
            content = YAML().load(file)
        interface = content["interface"]
        loadables = content["pretrainer"]["loadables"]
        elsewhere = content["pretrainer"].get("paths", {})
    except (YAMLError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise TranscriptionError(
            f"{yaml_file}: found no interface and pretrainer.loadables ({_short(error)}), "
            f"{expected}"
        ) from None
    if interface not in INTERFACES:
        raise TranscriptionError(
            f"{yaml_file}: found interface {interface!r}, expected {' or '.join(INTERFACES)}"
        )
    needed = [f"{name}.ckpt" for name in loadables if name not in elsewhere]
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing:
        raise TranscriptionError(
            f"model folder {folder}: found no {' and no '.join(missing)}, "
            f"expected hyperparams.yaml, {', '.join(needed)}"
        )
    return str(interface)
