"""Manifests: the tables that say which recording holds which words.

A manifest is a SpeechBrain CSV with the columns ``ID,duration,wav,spk_id,wrd``, or a SpeechBrain
JSON object ``{ID: {"duration": ..., "wav": ..., "wrd": ...}}``; ``spk_id`` may be absent. ``wav``
may begin with ``{data_root}`` (or ``$data_root``), so that a manifest outlives a moved corpus.

Whatever is wrong with a manifest is reported all at once, before training starts, by one
`ManifestError`. Nothing here imports torch.
"""

from __future__ import annotations

import csv
import json
import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from typing import Any, TextIO

from sru_asr.audio import AudioError, audio_info

__all__ = [
    "ManifestError",
    "Utterance",
    "check_manifest",
    "list_problems",
    "read_manifest",
    "write_manifest",
]

StrPath = str | os.PathLike[str]

COLUMNS = ("ID", "duration", "wav", "spk_id", "wrd")
OPTIONAL_COLUMNS = ("spk_id",)
MAX_LISTED = 20

_DATA_ROOT = re.compile(r"\{data_root\}|\$data_root\b")


@dataclass(frozen=True)
class Utterance:
    """One row of a manifest: a recording and what was said in it.

    Attributes
    ----------
    ID : str
        Unique name within the manifest.
    duration : float
        Seconds of audio.
    wav : str
        Path of the audio file, any format that soundfile reads.
    spk_id : str
        Speaker, or "" when unknown.
    wrd : str
        The words, separated by single spaces.
    """

    ID: str
    duration: float
    wav: str
    spk_id: str
    wrd: str


class ManifestError(ValueError):
    """Everything that is wrong with a manifest.

    The message names the manifest and lists up to 20 problems, then how many more there are.

    Attributes
    ----------
    path : str
        The manifest.
    problems : list of str
        Every problem, one sentence each, without the limit of the message.
    """

    def __init__(self, path: StrPath, problems: list[str]):
        self.path = os.fspath(path)
        self.problems = problems
        super().__init__(list_problems(f"manifest {self.path}", problems))

    def __reduce__(self) -> tuple[type[ManifestError], tuple[str, list[str]]]:
        # The default would rebuild from the message alone, which breaks in a data loader's worker.
        return type(self), (self.path, self.problems)


def list_problems(title: str, problems: Sequence[str], at_most: int = MAX_LISTED) -> str:
    """One message for many problems: a line each, then how many more there are.

    Parameters
    ----------
    title : str
        What the problems are about.
    problems : sequence of str
        One sentence each.
    at_most : int
        How many to list.

    Returns
    -------
    str
        A single line when there is a single problem.

    Examples
    --------
    >>> list_problems("manifest a.csv", ["does not exist"])
    'manifest a.csv: does not exist'
    >>> print(list_problems("manifest a.csv", ["one", "two", "three"], at_most=2))
    manifest a.csv: 3 problems
      one
      two
      ... and 1 more
    """
    if len(problems) == 1:
        return f"{title}: {problems[0]}"
    lines = [f"{title}: {len(problems)} problems", *problems[:at_most]]
    if len(problems) > at_most:
        lines.append(f"... and {len(problems) - at_most} more")
    return "\n  ".join(lines)


def write_manifest(path: StrPath, utterances: Iterable[Utterance]) -> None:
    """Write a SpeechBrain CSV, in the order given.

    The file appears complete or not at all: it is written under a temporary name beside `path`
    and then renamed. The folder is made when it is missing.

    Parameters
    ----------
    path : str or path
        The CSV to write; an existing one is replaced.
    utterances : iterable of Utterance
        The rows.

    Examples
    --------
    >>> import os, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = os.path.join(folder.name, "train.csv")
    >>> write_manifest(path, [Utterance("u1", 1.5, "{data_root}/u1.wav", "anna", "YES")])
    >>> print(open(path).read(), end="")
    ID,duration,wav,spk_id,wrd
    u1,1.5,{data_root}/u1.wav,anna,YES
    >>> folder.cleanup()
    """
    path = os.fspath(path)
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            writer.writerows(astuple(utterance) for utterance in utterances)
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


def read_manifest(path: StrPath, data_root: StrPath | None = None) -> list[Utterance]:
    """Read a manifest, CSV or JSON by its suffix.

    Parameters
    ----------
    path : str or path
        A SpeechBrain CSV (``.csv``) or JSON (``.json``) manifest.
    data_root : str or path, optional
        What ``{data_root}`` stands for; relative ``wav`` paths start here too. Without it,
        ``wav`` is returned as it is written.

    Returns
    -------
    list of Utterance
        The rows in the manifest's order.

    Raises
    ------
    ManifestError
        For everything that the table itself shows to be wrong: missing columns, empty cells,
        a duplicate ID, a duration that is not a positive number, no rows. Audio files are not
        looked at: `check_manifest` does that.

    Examples
    --------
    >>> import os, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = os.path.join(folder.name, "train.csv")
    >>> write_manifest(path, [Utterance("u1", 1.5, "{data_root}/u1.wav", "anna", "YES")])
    >>> read_manifest(path, data_root="/corpus")
    [Utterance(ID='u1', duration=1.5, wav='/corpus/u1.wav', spk_id='anna', wrd='YES')]
    >>> folder.cleanup()
    """
    rows, problems = _read(path, data_root)
    if problems:
        raise ManifestError(path, problems)
    return [utterance for _, utterance in rows]


def check_manifest(path: StrPath, data_root: StrPath | None = None) -> list[Utterance]:
    """Read a manifest as `read_manifest` does, and make sure that its audio files are there.

    Parameters
    ----------
    path, data_root
        As in `read_manifest`.

    Returns
    -------
    list of Utterance
        The rows in the manifest's order.

    Raises
    ------
    ManifestError
        With all problems of all rows at once, those of `read_manifest` and missing or empty
        audio files. Files are only looked up, not opened.

    Examples
    --------
    >>> import os, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = os.path.join(folder.name, "train.csv")
    >>> write_manifest(path, [Utterance("u1", 1.5, "/nowhere/u1.wav", "anna", "YES")])
    >>> try:
    ...     check_manifest(path)
    ... except ManifestError as error:
    ...     print(error.problems[0])
    line 2 (ID 'u1'): audio file /nowhere/u1.wav does not exist
    >>> folder.cleanup()
    """
    rows, problems = _read(path, data_root)
    for place, utterance in rows:
        problem = _audio_problem(utterance.wav)
        if problem:
            problems.append(f"{place}: {problem}")
    if problems:
        raise ManifestError(path, problems)
    return [utterance for _, utterance in rows]


def _read(
    path: StrPath, data_root: StrPath | None
) -> tuple[list[tuple[str, Utterance]], list[str]]:
    """The rows that are whole, each with its place in the file, and what is wrong with others."""
    columns, raw_rows = _raw_rows(path)
    if not raw_rows:
        expected = f"columns {', '.join(COLUMNS)} and at least one row"
        return [], [f"is empty: found no utterances, expected {expected}"]
    missing = [name for name in COLUMNS if name not in columns and name not in OPTIONAL_COLUMNS]
    if missing:
        # Every row would repeat this one: say it once, and nothing else.
        plural = "s" if len(missing) > 1 else ""
        found, expected = ", ".join(columns), ", ".join(COLUMNS)
        problem = f"missing column{plural} {', '.join(missing)}"
        return [], [f"{problem} (found {found}; expected {expected})"]

    problems: list[str] = []
    rows: list[tuple[str, Utterance]] = []
    first_place: dict[str, str] = {}
    for place, raw in raw_rows:
        cells = {name: _text(raw.get(name)) for name in COLUMNS}
        ID = cells["ID"]
        named_place = f"{place} (ID {ID!r})" if ID else place
        faults: list[str] = []
        if None in raw:
            faults.append(f"more cells than columns ({', '.join(columns)}): an unquoted comma?")
        if ID in first_place:
            faults.append(f"duplicate ID, first at {first_place[ID]}")
        if ID:
            first_place.setdefault(ID, place)
        faults += [f"empty {name}" for name in ("ID", "wav", "wrd") if not cells[name]]
        duration = _seconds(cells["duration"])
        if duration is None:
            faults.append(f"duration {cells['duration']!r}, expected a positive number of seconds")
        if faults or duration is None:
            problems += [f"{named_place}: {fault}" for fault in faults]
            continue
        wav = _resolve(cells["wav"], data_root)
        rows.append((named_place, Utterance(ID, duration, wav, cells["spk_id"], cells["wrd"])))
    return rows, problems


def _raw_rows(path: StrPath) -> tuple[list[str], list[tuple[str, dict[Any, Any]]]]:
    """The column names, and every row as a dictionary with its place in the file."""
    suffix = os.path.splitext(path)[1].lower()
    readers = {".csv": _csv_rows, ".json": _json_rows}
    if suffix not in readers:
        raise ManifestError(path, [f"found suffix {suffix!r}, expected .csv or .json"])
    try:
        # A byte-order mark, which spreadsheets write, must not become part of the first column.
        with open(path, newline="", encoding="utf-8-sig") as file:
            return readers[suffix](file)
    except FileNotFoundError:
        problem = "does not exist"
    except IsADirectoryError:
        problem = f"found a folder, expected a {suffix} file"
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
    except UnicodeDecodeError as error:
        problem = f"found a byte that is not UTF-8 text at position {error.start}, expected UTF-8"
    except (csv.Error, json.JSONDecodeError) as error:
        problem = f"found text that is not valid {suffix[1:].upper()}: {error}"
    raise ManifestError(path, [problem])


def _csv_rows(file: TextIO) -> tuple[list[str], list[tuple[str, dict[Any, Any]]]]:
    reader = csv.DictReader(file, skipinitialspace=True)
    columns = [name.strip() for name in reader.fieldnames or ()]
    reader.fieldnames = columns
    return columns, [(f"line {reader.line_num}", row) for row in reader]


def _json_rows(file: TextIO) -> tuple[list[str], list[tuple[str, dict[Any, Any]]]]:
    # Pairs rather than a dictionary: a dictionary would silently drop a duplicate ID.
    table = json.load(file, object_pairs_hook=_Pairs)
    if not isinstance(table, _Pairs):
        kind = type(table).__name__
        raise ManifestError(file.name, [f"found a {kind} at the top, expected an object of IDs"])
    columns, rows = ["ID"], []
    for number, (ID, fields) in enumerate(table, start=1):
        if not isinstance(fields, _Pairs):
            problem = f"ID {ID!r}: found {fields!r}, expected an object with duration, wav, wrd"
            raise ManifestError(file.name, [problem])
        row = dict(fields)
        columns += [name for name in row if name not in columns]
        rows.append((f"entry {number}", {**row, "ID": ID}))
    return columns, rows


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as its pairs, so that it is not mistaken for a JSON array."""


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _seconds(text: str) -> float | None:
    try:
        duration = float(text)
    except ValueError:
        return None
    return duration if math.isfinite(duration) and duration > 0 else None


def _resolve(wav: str, data_root: StrPath | None) -> str:
    if data_root is None:
        return wav
    root = os.fspath(data_root)
    # A function as replacement: backslashes of a path are not escapes.
    named, found = _DATA_ROOT.subn(lambda _: root, wav)
    return named if found else os.path.join(root, wav)


def _audio_problem(wav: str) -> str | None:
    placeholder = _DATA_ROOT.search(wav)
    if placeholder:
        return f"wav {wav} needs a value for {placeholder[0]}, but data_root was not given"
    if os.path.isdir(wav):
        return f"audio file {wav} is a folder"
    if not os.path.exists(wav):
        return f"audio file {wav} does not exist"
    if os.path.getsize(wav) == 0:
        return f"audio file {wav} is empty (0 bytes)"
    try:
        audio_info(wav)
    except AudioError as error:
        return str(error)
    return None
