"""Reading recordings: any format, sample rate and channel count in, one mono signal out.

libsndfile (through soundfile) decodes WAV, FLAC, MP3, OGG, NIST SPHERE and more; what it does not
know, video for example, is left to ffmpeg where that is installed. What libsndfile leaves to its
caller is done here: a file cut short is an error rather than a shorter recording, and every error
is an `AudioError` that names the file, what was found and what was expected.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import soundfile

from sru_asr import ffmpeg
from sru_asr.resampling import resample_blocks

if TYPE_CHECKING:
    import torch

__all__ = ["AudioError", "AudioInfo", "audio_info", "read_audio", "stream_audio"]

StrPath = str | os.PathLike[str]
Signal = npt.NDArray[np.float32]

# Frames decoded at a time: the channels of a long recording never lie in memory together.
BLOCK_FRAMES = 1 << 18
# The length of an MP3 is itself derived from its frames of up to 1152 samples; encoders that
# round differently are not truncated files.
MP3_TOLERANCE = 2 * 1152
# No speech is recorded outside of these rates, in Hz; a damaged header would make hours of seconds,
# or seconds that take gigabytes to resample.
LOWEST_RATE, HIGHEST_RATE = 1000, 768_000
# ffmpeg takes any bytes for audio of some format that has no header, and gives up after a few
# frames; with fewer seconds than these, a file was none.
LEAST_BY_FFMPEG = 0.1
# Programs that write WAV into a pipe put a size at or near the maximum: it means "unknown".
WAV_UNKNOWN_SIZE = 0x7FF00000


# What libsndfile reads is usually called so, in any case.
AUDIO_SUFFIXES = (
    *(".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".sph", ".nist"),
    *(".aif", ".aiff", ".aifc", ".au", ".snd", ".caf", ".w64", ".rf64"),
)
AUDIO = "an audio file (WAV, FLAC, MP3, OGG, SPHERE, ...)"


class AudioError(ValueError):
    """A file that cannot be used as a recording; the message says which, and why."""


@dataclass(frozen=True)
class AudioInfo:
    """What the header of an audio file says.

    Attributes
    ----------
    duration : float
        Seconds.
    sample_rate : int
        Samples per second in one channel.
    channels : int
        Number of channels.
    """

    duration: float
    sample_rate: int
    channels: int


def audio_info(path: StrPath, decode: bool = False) -> AudioInfo:
    """Read the header of an audio file, of a format that libsndfile knows.

    Parameters
    ----------
    path : str or path
        The file.
    decode : bool
        Decode the audio too, to be sure that `read_audio` will succeed.

    Returns
    -------
    AudioInfo
        Duration, sample rate and channels.

    Raises
    ------
    AudioError
        If the file is missing, a folder, empty, not audio, without samples, or (WAV and SPHERE)
        shorter than its header says. Damaged audio behind an intact header shows with `decode`.

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np, soundfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = os.path.join(folder.name, "stereo.wav")
    >>> soundfile.write(path, np.zeros((4000, 2)), 8000)
    >>> audio_info(path)
    AudioInfo(duration=0.5, sample_rate=8000, channels=2)
    >>> folder.cleanup()
    """
    if decode:
        for _ in _decoded(path):
            pass
    with _open(path) as file:
        return AudioInfo(file.frames / file.samplerate, file.samplerate, file.channels)


def read_audio(path: StrPath, sample_rate: int = 16000) -> torch.Tensor:
    """Read a recording as one mono signal.

    Parameters
    ----------
    path : str or path
        The file, any sample rate, any number of channels.
    sample_rate : int
        The sample rate of the result; another one in the file is resampled.

    Returns
    -------
    torch.Tensor
        float32, one dimension, the mean over channels, integer formats scaled to [-1, 1).

    Raises
    ------
    AudioError
        If the file is missing, a folder, empty, not audio, cut short or damaged, without
        samples, or contains NaN or infinite samples.

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np, soundfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = os.path.join(folder.name, "stereo.wav")
    >>> soundfile.write(path, np.full((4000, 2), [0.5, 0.25]), 8000)
    >>> signal = read_audio(path)
    >>> signal.shape, signal.dtype
    (torch.Size([8000]), torch.float32)
    >>> round(signal[4000].item(), 3)
    0.375
    >>> folder.cleanup()
    """
    # Here and not above: reading headers, which is all a preparation does, needs no torch.
    import torch

    return torch.from_numpy(np.concatenate(list(stream_audio(path, sample_rate))))


def stream_audio(path: StrPath, sample_rate: int = 16000) -> Iterator[Signal]:
    """Read a recording as `read_audio` does, a piece at a time.

    However long the recording is, a few seconds of it are in memory.

    Parameters
    ----------
    path, sample_rate
        As in `read_audio`.

    Yields
    ------
    array of float32, shape (N,)
        Pieces of the signal that `read_audio` gives, in order.

    Raises
    ------
    AudioError
        As in `read_audio`. Damage is found on the way, after pieces have been given.

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np, soundfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = os.path.join(folder.name, "long.wav")
    >>> soundfile.write(path, np.zeros(600_000), 16000)
    >>> [len(block) for block in stream_audio(path)]
    [262144, 262144, 75712]
    >>> folder.cleanup()
    """
    try:
        rate = audio_info(path).sample_rate
    except AudioError as error:
        unknown = isinstance(error.__cause__, soundfile.LibsndfileError)
        # ffmpeg takes anything for audio of some kind, even a text. A damaged WAV is an error.
        if not unknown or os.path.splitext(path)[1].lower() in AUDIO_SUFFIXES:
            raise
        yield from _checked(path, _decoded_by_ffmpeg(path, sample_rate, error), sample_rate)
        return
    yield from resample_blocks(_decoded(path), rate, sample_rate)


def _decoded(path: StrPath) -> Iterator[Signal]:
    """Mono float32 samples at the file's own rate."""
    with _open(path) as file:
        yield from _checked(path, _blocks(path, file), file.samplerate)


def _blocks(path: StrPath, file: soundfile.SoundFile) -> Iterator[Signal]:
    count = 0
    try:
        # Not file.blocks(): after a short read it yields a full block, its end left unfilled.
        while len(block := file.read(BLOCK_FRAMES, dtype="float32", always_2d=True)):
            count += len(block)
            yield block.mean(axis=1)
    except soundfile.LibsndfileError as error:
        raise _error(
            path,
            f"{file.format} audio that cannot be decoded ({_reason(error)})",
            f"{file.frames} intact samples (is the file truncated or damaged?)",
        ) from error
    tolerance = MP3_TOLERANCE if file.format == "MP3" else 0
    if count < file.frames - tolerance:
        raise _truncated(path, f"{count} samples", f"{file.frames} samples")


def _decoded_by_ffmpeg(path: StrPath, sample_rate: int, unknown: AudioError) -> Iterator[Signal]:
    program = ffmpeg.ffmpeg_path()
    if program is None:
        raise AudioError(
            f"{unknown}; video and other formats need ffmpeg on the PATH, where there is none"
        ) from None
    count = 0
    try:
        for block in ffmpeg.decode(program, path, sample_rate):
            count += len(block)
            yield block
    except ffmpeg.FfmpegError as error:
        if count < sample_rate * LEAST_BY_FFMPEG:
            found = f"a file that is not audio (ffmpeg: {error})"
            raise _error(path, found, f"{AUDIO}, or what ffmpeg reads") from error
        raise _error(
            path,
            f"audio that ffmpeg cannot decode beyond {count / sample_rate:.1f} s ({error})",
            "intact audio (is the file truncated or damaged?)",
        ) from error
    if not count:
        raise _error(path, "0 samples", "at least one sample")


def _checked(path: StrPath, blocks: Iterator[Signal], rate: int) -> Iterator[Signal]:
    """Let finite samples through."""
    count = 0
    for block in blocks:
        finite = np.isfinite(block)
        if not finite.all():
            first = (count + int(np.argmin(finite))) / rate
            found = f"NaN or infinite samples, the first at {first:.3f} s"
            raise _error(path, found, "finite samples")
        count += len(block)
        yield block


def _open(path: StrPath) -> soundfile.SoundFile:
    """Open for reading, once everything that the header can tell has been checked."""
    if not os.path.exists(path):
        raise _error(path, "no such file", AUDIO)
    if os.path.isdir(path):
        raise _error(path, "a folder", AUDIO)
    if os.path.getsize(path) == 0:
        raise _error(path, "an empty file (0 bytes)", AUDIO)
    if os.path.splitext(path)[1].lower() == ".raw":
        raise _error(path, "a .raw file, which has no header", AUDIO)
    try:
        file = soundfile.SoundFile(path)
    except soundfile.LibsndfileError as error:
        raise _error(path, f"a file that is not audio ({_reason(error)})", AUDIO) from error
    except OSError as error:
        raise _error(path, f"a file that cannot be read ({_reason(error)})", AUDIO) from error
    try:
        if file.frames == 0:
            raise _error(path, "0 samples", "at least one sample")
        if not LOWEST_RATE <= file.samplerate <= HIGHEST_RATE:
            found = f"a sample rate of {file.samplerate} Hz"
            raise _error(path, found, f"{LOWEST_RATE} to {HIGHEST_RATE} Hz")
        if not file.seekable() or file.frames >= 1 << 62:
            raise _error(path, f"a {file.format} header without a length", "a known length")
        _check_size(path, file.format)
    except AudioError:
        file.close()
        raise
    return file


def _check_size(path: StrPath, file_format: str) -> None:
    """Compare the size that a WAV or SPHERE header promises with the file's own.

    libsndfile corrects these headers silently, so that half a file reads as half a recording.
    (A truncated FLAC or MP3 shows while decoding.)
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        if file_format in ("WAV", "WAVEX") and file.read(4) == b"RIFF":
            file.seek(12)
            while len(header := file.read(8)) == 8:
                chunk_size = int.from_bytes(header[4:], "little")
                if header[:4] == b"data":
                    found = size - file.tell()
                    if found < chunk_size < WAV_UNKNOWN_SIZE:
                        raise _truncated(path, f"{found} bytes", f"{chunk_size} bytes")
                    return
                file.seek(chunk_size + chunk_size % 2, os.SEEK_CUR)
        elif file_format == "NIST":
            header = file.read(1024)
            fields = dict(re.findall(rb"(\w+) -i (\d+)", header))
            frames, channels, width = (
                int(fields.get(name, 0))
                for name in (b"sample_count", b"channel_count", b"sample_n_bytes")
            )
            # The header's length is its second line, nearly always 1024.
            length = re.match(rb"NIST_1A\s+(\d+)\s", header)
            if length is None:
                raise _error(path, "a SPHERE header without its length", "NIST_1A and a number")
            found = size - int(length[1])
            if found < frames * channels * width:
                raise _truncated(path, f"{found} bytes", f"{frames * channels * width} bytes")


def _truncated(path: StrPath, found: str, expected: str) -> AudioError:
    return _error(path, f"{found} of audio (a truncated file)", f"{expected}, as its header says")


def _error(path: StrPath, found: str, expected: str) -> AudioError:
    return AudioError(f"audio file {os.fspath(path)}: found {found}, expected {expected}")


def _reason(error: Exception) -> str:
    """libsndfile's own words, without its prefix and final full stop."""
    words = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
    return words.removeprefix("Error : ").rstrip(".")
