"""The audio files of utterances, for the players of the page."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from sru_asr.transcripts import TranscriptError, enumerate_some

# What browsers play; where an utterance has several, the first.
SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".webm")


def find_recordings(
    ids: Iterable[str], root: Path | None, named: Mapping[str, str] | None = None
) -> dict[str, Path]:
    """Find the audio file of each utterance.

    Parameters
    ----------
    ids : iterable of str
        The utterances.
    root : Path, optional
        A folder in which, at any depth, ``<id>.wav`` (or another of `SUFFIXES`) is looked for.
    named : mapping of str to str, optional
        The ``wav`` of a manifest by id, which goes before; files that are not there have no player.

    Returns
    -------
    dict of str to Path
        Of those that were found, which may be a part.

    Raises
    ------
    TranscriptError
        When the folder cannot be read, holds none of the recordings or one of them twice.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> (folder / "utt-1.wav").touch()
    >>> [file.name for file in find_recordings(["utt-1", "utt-2"], folder).values()]
    ['utt-1.wav']
    """
    ids = list(ids)
    files = {name: Path(named[name]) for name in ids if named and named.get(name)}
    found = {
        name: file
        for name, file in files.items()
        if file.suffix.lower() in SUFFIXES and file.is_file()
    }
    if root is None:
        return found
    below = _files_by_stem(root)
    for name in ids:
        candidates = [] if name in found else below.get(name, [])
        best = [file for file in candidates if _rank(file) == _rank(candidates[0])]
        if len(best) > 1:
            raise TranscriptError(
                f"--audio-root {root}: found {name} twice: {enumerate_some(map(str, best))}"
            )
        if best:
            found[name] = best[0]
    if not found:
        raise TranscriptError(
            f"--audio-root {root}: found none of the recordings, expected {ids[0]}.wav or so "
            "in it (an id and a suffix that browsers play)"
        )
    return found


def _files_by_stem(root: Path) -> dict[str, list[Path]]:
    """Files that browsers play, the preferred first."""

    def refuse(error: OSError) -> None:
        raise TranscriptError(f"--audio-root {root}: {error.filename}: {error.strerror}")

    by_stem: dict[str, list[Path]] = {}
    for folder, _, files in os.walk(root, onerror=refuse):
        for file in files:
            path = Path(folder, file)
            if path.suffix.lower() in SUFFIXES:
                by_stem.setdefault(path.stem, []).append(path)
    return {stem: sorted(paths, key=_rank) for stem, paths in by_stem.items()}


def _rank(file: Path) -> int:
    return SUFFIXES.index(file.suffix.lower())
