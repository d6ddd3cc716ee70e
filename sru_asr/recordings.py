"""Which recordings are meant by files, folders, patterns, lists and manifests; and their names."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from sru_asr.audio import AUDIO_SUFFIXES
from sru_asr.manifest import ManifestError, read_recordings
from sru_asr.transcripts import enumerate_some

# Searched for in folders, too; they need ffmpeg. A file given by name may be called anything.
MEDIA_SUFFIXES = (
    *(".m4a", ".aac", ".wma", ".amr", ".ac3"),
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".wmv", ".3gp"),
)
MANIFEST_SUFFIXES = (".csv", ".json")
LIST_SUFFIX = ".txt"


class RecordingsError(ValueError):
    """What was given does not say which recordings are meant; the message tells why."""


class Recording(NamedTuple):
    """A file, and what to call it.

    Attributes
    ----------
    path : str
        The file.
    id : str
        Its manifest's ID, or a name made of the file's; no other recording has it.
    """

    path: str
    id: str

    @property
    def stem(self) -> str:
        """The id as the name of a file in one folder."""
        return self.id.replace("/", "_").replace(os.sep, "_")


def find_recordings(
    inputs: Iterable[str | os.PathLike[str]],
    recursive: bool = True,
    data_root: str | os.PathLike[str] | None = None,
) -> list[Recording]:
    """List the recordings that are meant.

    ==================  =========================================================================
    a folder            the files in it that are named like audio or video and do not begin with a
                        dot, sorted
    ``*.csv *.json``    a manifest: the files in ``wav``, by their IDs
    ``*.txt``           a list: a file on each line, from the list's own folder on; empty lines and
                        such that begin with "#" are left out
    ``* ? [...] **``    a pattern, unless there is such a file: the files that match, sorted
    any other file      itself, whatever it is called; it may be missing
    ==================  =========================================================================

    Parameters
    ----------
    inputs : iterable of path
        Of these, in any order and number.
    recursive : bool
        Search the folders in folders, too.
    data_root : path, optional
        What ``{data_root}`` stands for in manifests.

    Returns
    -------
    list of Recording
        In the order given.

    Raises
    ------
    RecordingsError
        If a folder, pattern or list holds no audio, a list or manifest cannot be read, a file is
        meant twice, or two would have the same name.

    Examples
    --------
    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> for name in ("b.WAV", "a.flac", "notes.doc"):
    ...     Path(folder.name, name).touch()
    >>> _ = Path(folder.name, "list.txt").write_text("b.WAV")
    >>> [recording.id for recording in find_recordings([folder.name])]
    ['a', 'b']
    >>> [recording.id for recording in find_recordings([f"{folder.name}/list.txt"])]
    ['b']
    >>> folder.cleanup()
    """
    paths: list[str] = []
    given: dict[int, str] = {}  # ids of manifests
    for each in inputs:
        item = os.fspath(each)
        suffix = os.path.splitext(item)[1].lower()
        if os.path.isdir(item):
            paths += _search(item, recursive)
        elif suffix in MANIFEST_SUFFIXES:
            for ID, path in _of_manifest(item, data_root).items():
                given[len(paths)] = ID
                paths.append(path)
        elif suffix == LIST_SUFFIX:
            paths += _listed(item)
        elif os.path.lexists(item) or not glob.has_magic(item):
            paths.append(item)
        else:
            paths += _matching(item)
    times = Counter(map(os.path.abspath, paths))
    twice = [path for path, count in times.items() if count > 1]
    if twice:
        raise RecordingsError(
            f"found {enumerate_some(twice, 3)} more than once, expected each recording once"
        )
    others = [i for i in range(len(paths)) if i not in given]
    names = dict(zip(others, recording_ids([paths[i] for i in others]), strict=True))
    recordings = [Recording(path, (given | names)[i]) for i, path in enumerate(paths)]
    stems = Counter(recording.stem for recording in recordings)
    clash = [recording.path for recording in recordings if stems[recording.stem] > 1]
    if clash:
        raise RecordingsError(
            f"found {enumerate_some(clash, 3)}, which would have the same name, expected names "
            "that can be told apart in one folder"
        )
    return recordings


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


def _search(folder: str, recursive: bool) -> list[str]:
    def refuse(error: OSError) -> None:
        raise error

    suffixes = (*AUDIO_SUFFIXES, *MEDIA_SUFFIXES)
    found = sorted(
        os.path.join(parent, name)
        for parent, _, names in os.walk(folder, onerror=refuse)
        if recursive or parent == folder
        for name in names
        if os.path.splitext(name)[1].lower() in suffixes and not name.startswith(".")
    )
    if not found:
        raise RecordingsError(
            f"folder {folder}: found no audio, expected files named "
            f"{', '.join('*' + suffix for suffix in suffixes)}"
        )
    return found


def _of_manifest(path: str, data_root: str | os.PathLike[str] | None) -> dict[str, str]:
    try:
        return read_recordings(path, data_root)
    except ManifestError as error:
        raise RecordingsError(str(error)) from None


def _listed(path: str) -> list[str]:
    try:
        content = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        found = f"found {error.strerror}"
        raise RecordingsError(f"list {path}: {found}, expected a text file") from None
    except UnicodeDecodeError:
        raise RecordingsError(f"list {path}: found bytes that are not UTF-8 text") from None
    lines = [line.strip() for line in content.splitlines()]
    files = [line for line in lines if line and not line.startswith("#")]
    if not files:
        raise RecordingsError(f"list {path}: found no lines, expected an audio file on each")
    if "\0" in content:
        raise RecordingsError(f"list {path}: found zero bytes, expected an audio file on each line")
    return [os.path.join(os.path.dirname(path), line) for line in files]


def _matching(pattern: str) -> list[str]:
    found = [path for path in sorted(glob.glob(pattern, recursive=True)) if os.path.isfile(path)]
    if not found:
        raise RecordingsError(f"pattern {pattern}: found no file that matches")
    return found
