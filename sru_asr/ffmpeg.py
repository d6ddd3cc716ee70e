"""Audio of files that libsndfile does not read (video, M4A, AAC, ...), decoded by ffmpeg."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

BLOCK_BYTES = 1 << 20


class FfmpegError(RuntimeError):
    """ffmpeg could not decode a file, in its own words."""


def ffmpeg_path() -> str | None:
    """Where ``ffmpeg`` is on the ``PATH``, if it is."""
    return shutil.which("ffmpeg")


def decode(
    program: str, path: str | os.PathLike[str], sample_rate: int
) -> Iterator[npt.NDArray[np.float32]]:
    """Decode the first audio track of a file, mixed to one channel.

    Parameters
    ----------
    program : str
        What `ffmpeg_path` gives.
    path : str or path
        A file; never taken for an address, whatever it is called.
    sample_rate : int
        Of what comes out.

    Yields
    ------
    array of float32, shape (N,)

    Raises
    ------
    FfmpegError
        When ffmpeg ends with an error, also after it has given some of the audio.
    """
    # A file that names others (a playlist) may name files only: nothing is fetched.
    command = [
        *(program, "-nostdin", "-hide_banner", "-v", "error", "-xerror"),
        *("-protocol_whitelist", "file,pipe", "-i", f"file:{os.path.abspath(path)}"),
        *("-map", "0:a:0", "-ac", "1", "-ar", str(sample_rate), "-f", "f32le", "pipe:1"),
    ]
    # A file takes whatever it has to say; a pipe that nobody empties would stop it.
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said
        )
        assert process.stdout is not None
        try:
            while content := process.stdout.read(BLOCK_BYTES):
                yield np.frombuffer(content[: len(content) // 4 * 4], "<f4").astype(np.float32)
            code = process.wait()
        finally:
            process.kill()
            process.stdout.close()
            process.wait()
        if code != 0:
            said.seek(0)
            lines = said.read().decode("utf-8", "replace").split("\n")
            words = [line.strip() for line in lines if line.strip()]
            raise FfmpegError(words[-1] if words else f"exit code {code}")
