"""Manifests: the tables that say which recording holds which words.

A manifest is a SpeechBrain CSV with the columns ``ID,duration,wav,spk_id,wrd``, or a SpeechBrain
JSON object ``{ID: {"duration": ..., "wav": ..., "wrd": ...}}``; ``spk_id`` may be absent. ``wav``
may begin with ``{data_root}`` (or ``$data_root``), so that a manifest outlives a moved corpus. A
relative ``wav`` starts at the data root where one is given, else in the manifest's own folder.

Whatever is wrong with a manifest is reported all at once, before training starts, by one
`ManifestError`. Nothing here imports torch.
"""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import math
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from itertools import combinations
from typing import Any, TextIO

import soundfile
from tqdm import tqdm

from sru_asr.audio import AudioError, audio_info
from sru_asr.files import atomically
from sru_asr.transcripts import enumerate_some, shorten

__all__ = [
    "ManifestError",
    "Utterance",
    "check_manifest",
    "compare_splits",
    "hold_out",
    "list_problems",
    "read_manifest",
    "read_recordings",
    "read_table",
    "write_manifest",
]

logger = logging.getLogger(__name__)

StrPath = str | os.PathLike[str]

COLUMNS = ("ID", "duration", "wav", "spk_id", "wrd")
OPTIONAL_COLUMNS = ("spk_id",)
MAX_LISTED, MAX_CHARACTERS = 20, 8000  # problems in a message, and characters of all of them
# How far a duration may be off, whichever is more: programs count and round differently.
DURATION_TOLERANCE = 0.1  # seconds
DURATION_TOLERANCE_RELATIVE = 0.05
# Outside of this, in seconds, there is rarely a single utterance.
USUAL_DURATIONS = (0.2, 60.0)

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

    The message names the manifest and lists up to 20 problems, the beginnings of long ones, then
    how many more there are.

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
        limit = MAX_CHARACTERS // max(1, min(len(problems), MAX_LISTED))
        listed = [shorten(problem, limit) for problem in problems]
        super().__init__(list_problems(f"manifest {self.path}", listed))

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
    with (
        atomically(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(astuple(utterance) for utterance in utterances)


def read_manifest(
    path: StrPath,
    data_root: StrPath | None = None,
    normalize: Callable[[str], str] | None = None,
) -> list[Utterance]:
    """Read a manifest, CSV or JSON by its suffix.

    Parameters
    ----------
    path : str or path
        A SpeechBrain CSV (``.csv``) or JSON (``.json``) manifest.
    data_root : str or path, optional
        What ``{data_root}`` stands for; relative ``wav`` paths start here too. Without it, they
        start in the manifest's folder, and ``{data_root}`` stays as it is written.
    normalize : callable, optional
        Applied to every transcript, for instance a `sru_asr.text.Normalization`.

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
    rows, problems = _read(path, data_root, normalize)
    if problems:
        raise ManifestError(path, problems)
    return [utterance for _, utterance in rows]


def read_recordings(path: StrPath, data_root: StrPath | None = None) -> dict[str, str]:
    """Read of a manifest what transcribing needs: the files, and what they are called.

    Parameters
    ----------
    path, data_root
        As in `read_manifest`. Columns other than ID and wav may be absent.

    Returns
    -------
    dict of str to str
        The audio file of each ID, in the manifest's order.

    Raises
    ------
    ManifestError
        With all problems at once: a missing column, empty or duplicate IDs, empty file names, and
        ``{data_root}`` where none was given.

    Examples
    --------
    >>> import os, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = os.path.join(folder.name, "new.csv")
    >>> with open(path, "w") as file:
    ...     _ = file.write("ID,wav\\nu1,{data_root}/u1.wav\\n")
    >>> read_recordings(path, data_root="/corpus")
    {'u1': '/corpus/u1.wav'}
    >>> folder.cleanup()
    """
    _, rows, problems = _rows_by_id(path, ("ID", "wav"))
    recordings = {ID: _resolve(cells["wav"], path, data_root) for ID, (_, cells) in rows.items()}
    for ID, wav in recordings.items():
        if placeholder := _DATA_ROOT.search(wav):
            place, cells = rows[ID]
            problems.append(
                f"{place} (ID {ID!r}): wav {cells['wav']} needs a value for {placeholder[0]}, but "
                "data_root was not given"
            )
    if problems:
        raise ManifestError(path, problems)
    return recordings


def read_table(
    path: StrPath, data_root: StrPath | None = None
) -> tuple[list[str], dict[str, dict[str, str]]]:
    """Read a manifest with whatever columns it has beside ``ID``.

    Parameters
    ----------
    path : str or path
        CSV or JSON, by its suffix.
    data_root : str or path, optional
        Where the column ``wav``, if there is one, starts; see `read_manifest`.

    Returns
    -------
    columns : list of str
        Their names without ``ID``.
    rows : dict of str to dict of str to str
        For each ID its cells; "" where a row has none.

    Raises
    ------
    ManifestError
        For a file that cannot be read, no column ``ID``, an empty or a duplicate ID, no rows.

    Examples
    --------
    >>> import os, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = os.path.join(folder.name, "test.csv")
    >>> _ = open(path, "w").write("ID,room,snr\\nu1,hall,12.5\\nu2,car,\\n")
    >>> read_table(path)
    (['room', 'snr'], {'u1': {'room': 'hall', 'snr': '12.5'}, 'u2': {'room': 'car', 'snr': ''}})
    >>> folder.cleanup()
    """
    columns, found, problems = _rows_by_id(path, ("ID",))
    if problems:
        raise ManifestError(path, problems)
    others = [name for name in columns if name != "ID"]
    rows = {ID: {name: cells[name] for name in others} for ID, (_, cells) in found.items()}
    for row in rows.values():
        if row.get("wav"):
            row["wav"] = _resolve(row["wav"], path, data_root)
    return others, rows


def _rows_by_id(
    path: StrPath, needed: Sequence[str]
) -> tuple[list[str], dict[str, tuple[str, dict[str, str]]], list[str]]:
    """Columns, place and cells ("" where a row has none) of each ID, and what is wrong."""
    columns, raw_rows = _raw_rows(path)
    if not raw_rows:
        raise ManifestError(path, ["is empty: found no utterances, expected at least one row"])
    if missing := [name for name in needed if name not in columns]:
        found = f"found {', '.join(columns)}; expected {', '.join(needed)}"
        raise ManifestError(path, [f"missing column {' and '.join(missing)} ({found})"])
    problems: list[str] = []
    rows: dict[str, tuple[str, dict[str, str]]] = {}
    for place, raw in raw_rows:
        cells = {name: _text(raw.get(name)) for name in columns}
        problems += [f"{place}: empty {name}" for name in needed if not cells[name]]
        if cells["ID"] in rows:
            problems.append(f"{place}: duplicate ID {cells['ID']!r}")
        rows[cells["ID"]] = place, cells
    return columns, rows, problems


def check_manifest(
    path: StrPath,
    data_root: StrPath | None = None,
    normalize: Callable[[str], str] | None = None,
    check: Callable[[list[Utterance]], list[str]] | None = None,
) -> list[Utterance]:
    """Read a manifest as `read_manifest` does, and make sure that its audio files are as it says.

    Parameters
    ----------
    path, data_root, normalize
        As in `read_manifest`.
    check : callable, optional
        Given the utterances whose rows are whole, returns further problems, one sentence each.

    Returns
    -------
    list of Utterance
        The rows in the manifest's order.

    Raises
    ------
    ManifestError
        With all problems of all rows at once: those of `read_manifest`, audio files that are
        missing, not audio or cut short, durations that are off by more than 0.1 s and 5 %, and what
        ``check`` finds. Of a recording the header and (FLAC) the end are read, not everything.

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
    rows, problems = _read(path, data_root, normalize)
    utterances = [utterance for _, utterance in rows]
    # Threads, because on a network file system nearly all of the time is waiting.
    with ThreadPoolExecutor() as pool:
        found = tqdm(
            pool.map(_audio_problem, utterances),
            desc=os.path.basename(path),
            total=len(rows),
            unit=" recordings",
            delay=3,
        )
        problems += [
            f"{place}: {problem}"
            for (place, _), problem in zip(rows, found, strict=True)
            if problem is not None
        ]
    if check is not None:
        problems += check(utterances)
    if problems:
        raise ManifestError(path, problems)
    return utterances


def hold_out(
    utterances: Sequence[Utterance], share: float = 0.1, at_most: float = 1800.0
) -> tuple[list[Utterance], list[Utterance]]:
    """Divide a manifest into a part to train on and one to validate with.

    By whole speakers where every utterance has one, so that validation measures unknown voices;
    else by utterance. A hash of the names decides, so it is the same on every machine and hardly
    changes when the manifest grows. The log says which it was.

    Parameters
    ----------
    utterances : sequence of Utterance
        The manifest; two or more.
    share : float
        Share of the audio to hold out, about; never more than twice that of it by speakers.
    at_most : float
        Seconds of audio to hold out, about.

    Returns
    -------
    train, valid : list of Utterance
        In the manifest's order.

    Raises
    ------
    ValueError
        When there are less than two utterances.

    Examples
    --------
    >>> rows = [Utterance(f"u{i}", 2.0, "", f"speaker{i % 20}", "YES") for i in range(100)]
    >>> train, valid = hold_out(rows)
    >>> len(train), len(valid), {u.spk_id for u in train} & {u.spk_id for u in valid}
    (90, 10, set())
    """
    if len(utterances) < 2:
        raise ValueError(f"found {len(utterances)} utterances, expected 2 or more to divide")
    total = sum(utterance.duration for utterance in utterances)
    wanted = min(share * total, at_most)
    speakers = {utterance.spk_id for utterance in utterances}
    held_out: set[str] = set()
    if "" not in speakers:
        held_out = _draw(utterances, lambda u: u.spk_id, wanted, 2 * share * total)
        valid = [u for u in utterances if u.spk_id in held_out]
        how = f"the speakers {enumerate_some(sorted(held_out), 20)}"
    if not held_out:
        IDs = _draw(utterances, lambda u: u.ID, wanted, math.inf)
        valid = [u for u in utterances if u.ID in IDs]
        why = "spk_id is not given for all" if "" in speakers else f"too few ({len(speakers)})"
        how = f"single utterances of no matter which speakers: {why}"
    names = {u.ID for u in valid}
    seconds = sum(u.duration for u in valid)
    logger.info(
        "Held out for validation: %d of %d utterances, %.1f of %.1f minutes, %s",
        *(len(valid), len(utterances), seconds / 60, total / 60, how),
    )
    return [u for u in utterances if u.ID not in names], valid


def _draw(
    utterances: Sequence[Utterance], key: Callable[[Utterance], str], wanted: float, most: float
) -> set[str]:
    """Names of groups, in the order of their hashes, until they have so many seconds."""
    seconds: dict[str, float] = defaultdict(float)
    for utterance in utterances:
        seconds[key(utterance)] += utterance.duration
    drawn: set[str] = set()
    so_far = 0.0
    for name in sorted(seconds, key=lambda name: hashlib.sha256(name.encode()).digest()):
        if so_far >= wanted:
            break
        if so_far + seconds[name] <= most and len(drawn) + 1 < len(seconds):
            drawn.add(name)
            so_far += seconds[name]
    return drawn


def compare_splits(splits: Mapping[str, Sequence[Utterance]]) -> list[str]:
    """Look for what is odd about manifests, but need not be wrong.

    Parameters
    ----------
    splits : mapping of str to sequence of Utterance
        The manifests by name, the one for training as "train".

    Returns
    -------
    list of str
        One sentence each: IDs, recordings and speakers that two splits share, and durations that
        are rarely those of one utterance.

    Examples
    --------
    >>> row = Utterance("u1", 90.0, "u1.wav", "anna", "YES")
    >>> for sentence in compare_splits({"train": [row], "test": [row]}):
    ...     print(sentence)
    train: 1 recordings longer than 60 s, which take much memory: u1
    test: 1 recordings longer than 60 s, which take much memory: u1
    train and test share 1 recordings: u1.wav
    train and test share 1 IDs: u1
    train and test share 1 speakers: anna
    """
    shortest, longest = USUAL_DURATIONS
    found = []
    for name, rows in splits.items():
        short = [u.ID for u in rows if u.duration < shortest]
        long = [u.ID for u in rows if u.duration > longest]
        if short:
            listed = enumerate_some(short, 5)
            found.append(f"{name}: {len(short)} recordings shorter than {shortest:g} s: {listed}")
        if long:
            found.append(
                f"{name}: {len(long)} recordings longer than {longest:g} s, which take much "
                f"memory: {enumerate_some(long, 5)}"
            )
    for one, other in combinations(splits, 2):
        for what, field in (("recordings", "wav"), ("IDs", "ID"), ("speakers", "spk_id")):
            values = [{getattr(u, field) for u in splits[name]} - {""} for name in (one, other)]
            shared = sorted(values[0] & values[1])
            if shared:
                listed = enumerate_some(shared, 5)
                found.append(f"{one} and {other} share {len(shared)} {what}: {listed}")
    return found


def _read(
    path: StrPath, data_root: StrPath | None, normalize: Callable[[str], str] | None
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
        written = cells["wrd"]
        if normalize is not None:
            cells["wrd"] = normalize(written)
        ID = cells["ID"]
        named_place = f"{place} (ID {ID!r})" if ID else place
        faults: list[str] = []
        if None in raw:
            faults.append(f"more cells than columns ({', '.join(columns)}): an unquoted comma?")
        if ID in first_place:
            faults.append(f"duplicate ID, first at {first_place[ID]}")
        if ID:
            first_place.setdefault(ID, place)
        faults += [f"empty {name}" for name in ("ID", "wav") if not cells[name]]
        if not cells["wrd"]:
            faults.append(f"nothing is left of wrd {written!r}" if written else "empty wrd")
        duration = _seconds(cells["duration"])
        if duration is None:
            faults.append(f"duration {cells['duration']!r}, expected a positive number of seconds")
        if faults or duration is None:
            problems += [f"{named_place}: {fault}" for fault in faults]
            continue
        wav = _resolve(cells["wav"], path, data_root)
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
    except csv.Error as error:
        problem = f"found text that is not valid CSV: {error}"
    raise ManifestError(path, [problem])


def _csv_rows(file: TextIO) -> tuple[list[str], list[tuple[str, dict[Any, Any]]]]:
    reader = csv.DictReader(file, skipinitialspace=True)
    columns = [name.strip() for name in reader.fieldnames or ()]
    reader.fieldnames = columns
    return columns, [(f"line {reader.line_num}", row) for row in reader]


def _json_rows(file: TextIO) -> tuple[list[str], list[tuple[str, dict[Any, Any]]]]:
    # Pairs rather than a dictionary: a dictionary would silently drop a duplicate ID.
    text = file.read()
    try:
        table = json.loads(text, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError) as error:  # no JSON; numbers too long; too deep
        problem = f"found text that is not valid JSON: {error}"
        raise ManifestError(file.name, [problem]) from None
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


def _resolve(wav: str, manifest: StrPath, data_root: StrPath | None) -> str:
    if data_root is None:
        if _DATA_ROOT.search(wav):
            return wav
        return os.path.join(os.path.dirname(os.path.abspath(manifest)), wav)
    root = os.fspath(data_root)
    # A function as replacement: backslashes of a path are not escapes.
    named, found = _DATA_ROOT.subn(lambda _: root, wav)
    return named if found else os.path.join(root, wav)


def _audio_problem(utterance: Utterance) -> str | None:
    wav = utterance.wav
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
        info = audio_info(wav)
    except AudioError as error:
        return str(error)
    if not _reaches_its_end(wav):
        return f"audio file {wav} is cut short: its end cannot be decoded"
    tolerance = max(DURATION_TOLERANCE, DURATION_TOLERANCE_RELATIVE * info.duration)
    if abs(utterance.duration - info.duration) > tolerance:
        units = {1000: "milliseconds", info.sample_rate: "samples"}
        hint = [
            f" (is it in {unit}?)"
            for factor, unit in units.items()
            if math.isclose(utterance.duration / factor, info.duration, rel_tol=0.05)
        ]
        return (
            f"duration {utterance.duration:g} s{''.join(hint[:1])}, but {wav} has "
            f"{info.duration:.3f} s"
        )
    return None


def _reaches_its_end(wav: str) -> bool:
    """Whether the last sample of a FLAC is there; WAV and SPHERE headers tell by themselves."""
    with soundfile.SoundFile(wav) as file:
        if file.format != "FLAC":
            return True
        try:
            file.seek(-1, soundfile.SEEK_END)
            return len(file.read(1)) == 1
        except soundfile.LibsndfileError:
            return False
