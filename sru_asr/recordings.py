"""Which recordings are meant by files and folders, and what to call them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from sru_asr.transcripts import enumerate_some

# What a folder is searched for, in any case. A file given by name may be called anything.
AUDIO_SUFFIXES = (
    *(".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".sph", ".nist"),
    *(".aif", ".aiff", ".aifc", ".au", ".snd", ".caf", ".w64", ".rf64"),
)


class RecordingsError(ValueError):
    """What was given does not say which recordings are meant; the message tells why."""


def find_audio(inputs: Iterable[str | os.PathLike[str]]) -> list[str]:
    """List the files that are meant by files and folders.

    Files are taken as they come; folders are searched recursively for names that end like audio
    files and do not begin with a dot, and give these sorted.

    Raises
    ------
    RecordingsError
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
            raise RecordingsError(
                f"folder {item}: found no audio, expected files named "
                f"{', '.join('*' + suffix for suffix in AUDIO_SUFFIXES)}"
            )
        found += inside
    times = Counter(map(os.path.abspath, found))
    twice = [path for path, count in times.items() if count > 1]
    if twice:
        raise RecordingsError(
            f"found {enumerate_some(twice, 3)} more than once, expected each recording once"
        )
    return found


def recording_ids(paths: Sequence[str]) -> list[str]:
    """Name recordings: by the file name's stem, and by more of the path where that is shared.

    Raises
    ------
    RecordingsError
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
        raise RecordingsError(
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
