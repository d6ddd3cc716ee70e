"""Read and write transcripts, and match a hypothesis with its reference.

=========  ==================================================================  =================
format     what it holds                                                       chosen for
=========  ==================================================================  =================
``kaldi``  ``id word word`` on each line                                       ``text``, ``*.text``,
                                                                               ``*.kaldi``
``trn``    ``word word (id)`` on each line                                     ``*.trn``
``csv``    a header with one id column (ID) and one text column (wrd, text,    ``*.csv``
           transcript or hypothesis, in any case), among others
``json``   JSON lines or an array of objects with the same names, or a         ``*.json``,
           SpeechBrain manifest ``{id: {"wrd": ...}}``                         ``*.jsonl``
``ctm``    ``recording channel start duration word [confidence]`` on each      ``*.ctm``
           line: words in time, joined for each recording
``stm``    ``recording channel speaker start end [<label>] word word`` on      ``*.stm``
           each line: segments in time, joined for each recording
``plain``  one utterance on each line, matched by line number                  the rest
=========  ==================================================================  =================

For any other file name, ``*.txt`` included, the content decides: JSON objects, a CSV header with
the columns above, or lines that all end in ``(id)`` are taken for what they are; the rest is plain
text. Kaldi and plain text look alike on their own, so `read_pair` compares the two files: a file
is Kaldi text if its lines begin with ids of the other file, or if every line of both files begins
with something that has a digit, hyphen or underscore in it and the files share most of these.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sru_asr.files import write_atomically

TEXT_COLUMNS = ("wrd", "text", "transcript", "hypothesis")
_SUFFIXES = {
    ".text": "kaldi",
    ".kaldi": "kaldi",
    ".trn": "trn",
    ".csv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".ctm": "ctm",
    ".stm": "stm",
}
_TRN = re.compile(r"(.*)\(([^()\s]+)\)\s*")
_ID_LIKE = re.compile(r"[\d_-]")

# Where an utterance stands in its file (for messages), its id and its words.
_Record = tuple[str, str, str]


class TranscriptError(ValueError):
    """A transcript that cannot be read or scored; the message says where and why."""


@dataclass(frozen=True)
class Transcripts:
    """The utterances of one file, in the order of the file.

    Attributes
    ----------
    path : Path
        Where they were read.
    format : str
        How they were read, one of `FORMATS`.
    texts : dict of str to str
        The transcript of every id; for plain text, of every line number.
    """

    path: Path
    format: str
    texts: dict[str, str]

    @property
    def ids(self) -> list[str] | None:
        """The ids, or None for plain text, which has none."""
        return None if self.format == "plain" else list(self.texts)


def read_transcripts(path: str | os.PathLike[str], format: str | None = None) -> Transcripts:
    r"""Read the transcripts of one file.

    Parameters
    ----------
    path : path
        A UTF-8 file; a byte order mark and any line ends are accepted.
    format : str, optional
        One of `FORMATS`. By default the name and the content of the file decide.

    Raises
    ------
    TranscriptError
        If the file cannot be read, is malformed, or has an id twice.

    Examples
    --------
    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "hyp.trn"
    >>> _ = file.write_text("go north (utt-2)\n(utt-1)\n")
    >>> read_transcripts(file).texts
    {'utt-2': 'go north', 'utt-1': ''}
    """
    path = Path(path)
    content = _read_text(path)
    format = format or _detect(path, content)
    if format not in _PARSERS:
        raise TranscriptError(f"unknown format {format!r}, expected one of {', '.join(FORMATS)}")
    try:
        records = list(_PARSERS[format](content))
        return Transcripts(path, format, _unique(records))
    except TranscriptError as error:
        raise TranscriptError(f"{path} (read as {format}): {shorten(str(error), 1000)}") from None
    except (RecursionError, ValueError) as error:  # JSON too deep, or a number too long
        raise TranscriptError(
            f"{path} (read as {format}): found values that cannot be read ({error})"
        ) from None


def read_pair(
    reference: str | os.PathLike[str],
    hypothesis: str | os.PathLike[str],
    reference_format: str | None = None,
    hypothesis_format: str | None = None,
) -> tuple[Transcripts, Transcripts]:
    r"""Read two files that belong together, telling Kaldi from plain text by comparing them.

    Parameters are those of `read_transcripts`, for each of the two.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "ref.txt").write_text("utt1 go north\nutt2 stop\n")
    >>> _ = (folder / "hyp.txt").write_text("utt2 stop\nutt1 go forth\n")
    >>> reference, hypothesis = read_pair(folder / "ref.txt", folder / "hyp.txt")
    >>> hypothesis.ids
    ['utt2', 'utt1']
    """
    ref = read_transcripts(reference, reference_format)
    hyp = read_transcripts(hypothesis, hypothesis_format)
    ref_open = reference_format is None and ref.ids is None
    hyp_open = hypothesis_format is None and hyp.ids is None
    if ref_open and hyp_open:
        ref_first, hyp_first = _first_words(ref), _first_words(hyp)
        shared = len(ref_first & hyp_first)
        if 2 * shared > min(len(ref_first), len(hyp_first)) and all(
            _ID_LIKE.search(word) for word in ref_first | hyp_first
        ):
            return _as_kaldi(ref), _as_kaldi(hyp)
        for like, other in ((ref, hyp), (hyp, ref)):
            if _all_id_like(like) and not _all_id_like(other):
                # Matched by line, its ids would count as wrong words.
                raise TranscriptError(
                    f"{like.path}: every line begins with an id, but those of {other.path} do "
                    "not; state --ref-format and --hyp-format (kaldi, or plain to match by line)"
                )
    elif ref_open and hyp.ids and _first_words(ref).intersection(hyp.ids):
        ref = _as_kaldi(ref)
    elif hyp_open and ref.ids and _first_words(hyp).intersection(ref.ids):
        hyp = _as_kaldi(hyp)
    return ref, hyp


def pair(reference: Transcripts, hypothesis: Transcripts) -> list[tuple[str, str, str]]:
    """Match two transcripts by id, or by line number if neither has ids.

    Returns
    -------
    list of (id, reference text, hypothesis text)
        In the order of the reference; the id is the line number for plain text.

    Raises
    ------
    TranscriptError
        If an id is missing from the hypothesis or unknown to the reference, if the numbers of
        lines differ, or if only one of the two has ids. A hypothesis in CTM may lack ids, which
        have no words then, but not all of them.

    Examples
    --------
    >>> reference = Transcripts(Path("text"), "kaldi", {"a": "go north", "b": "stop"})
    >>> hypothesis = Transcripts(Path("hyp.csv"), "csv", {"b": "stop", "a": "go forth"})
    >>> pair(reference, hypothesis)
    [('a', 'go north', 'go forth'), ('b', 'stop', 'stop')]
    """
    ref, hyp = reference.texts, hypothesis.texts
    if (reference.ids is None) != (hypothesis.ids is None):
        plain, other = sorted((reference, hypothesis), key=lambda one: one.ids is not None)
        raise TranscriptError(
            f"{plain.path} was read as plain text without ids but {other.path} as {other.format} "
            f"with ids: give both with ids or both without, or state the format"
        )
    if reference.ids is None and len(ref) != len(hyp):
        raise TranscriptError(
            f"plain text is matched line by line, but {reference.path} has {len(ref)} lines and "
            f"{hypothesis.path} has {len(hyp)}"
        )
    missing = [name for name in ref if name not in hyp]
    if hypothesis.format == "ctm" and len(missing) < len(ref):
        missing = []  # a CTM file has a line for each word, and none where there is no word
    extra = [name for name in hyp if name not in ref]
    problems = []
    if missing:
        problems.append(f"{len(missing)} of {len(ref)} ids missing ({enumerate_some(missing)})")
    if extra:
        problems.append(f"{len(extra)} extra ids ({enumerate_some(extra)})")
    if problems:
        raise TranscriptError(
            f"{hypothesis.path} does not match {reference.path}: {' and '.join(problems)}"
        )
    return [(name, text, hyp.get(name, "")) for name, text in ref.items()]


def write_transcripts(path: str | os.PathLike[str], texts: Mapping[str, str], format: str) -> None:
    """Write transcripts in one of `WRITTEN_FORMATS`, all or nothing.

    The columns of ``csv`` are ID and wrd, the names in the JSON lines of ``json`` are id and text;
    ``plain`` drops the ids. Runs of white space in a text become single spaces.

    Examples
    --------
    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "hyp.trn"
    >>> write_transcripts(file, {"utt-1": "go north", "utt-2": ""}, "trn")
    >>> print(file.read_text(), end="")
    go north (utt-1)
    (utt-2)
    """
    rows = [(name, " ".join(text.split())) for name, text in texts.items()]
    forbidden = {"kaldi": r"\s", "trn": r"[\s()]"}.get(format)
    for name, _ in rows:
        if not name.strip() or (forbidden and re.search(forbidden, name)):
            raise TranscriptError(f"{path}: the id {name!r} cannot be written as {format}")
    if format == "csv":
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows([("ID", "wrd"), *rows])
        content = buffer.getvalue()
    else:
        lines: dict[str, Callable[[str, str], str]] = {
            "kaldi": lambda name, text: f"{name} {text}".rstrip(),
            "trn": lambda name, text: f"{text} ({name})".lstrip(),
            "json": lambda name, text: json.dumps({"id": name, "text": text}, ensure_ascii=False),
            "plain": lambda name, text: text,
        }
        if format not in lines:
            raise TranscriptError(
                f"unknown format {format!r}, expected one of {', '.join(WRITTEN_FORMATS)}"
            )
        content = "".join(f"{lines[format](name, text)}\n" for name, text in rows)
    write_atomically(path, content)


def enumerate_some(names: Iterable[str], limit: int = 10) -> str:
    """Name the first few of many.

    Examples
    --------
    >>> enumerate_some(["a", "b", "c"], limit=2)
    'a, b and 1 more'
    """
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def shorten(text: str, limit: int) -> str:
    """Cut what is too long for a message.

    Examples
    --------
    >>> shorten("north", 5), shorten("northern", 5)
    ('north', 'north...')
    """
    return text if len(text) <= limit else f"{text[:limit]}..."


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TranscriptError(f"{path}: {error.strerror or error}") from None
    try:
        content = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise TranscriptError(
            f"{path}: line {line}: found byte 0x{data[error.start]:02x}, expected UTF-8 text"
        ) from None
    if not content:
        raise TranscriptError(f"{path}: the file is empty")
    return content.replace("\r\n", "\n").replace("\r", "\n")


def _detect(path: Path, content: str) -> str:
    by_name = "kaldi" if path.name == "text" else _SUFFIXES.get(path.suffix.lower())
    if by_name:
        return by_name
    lines = [line for _, line in _filled_lines(content)]
    if re.match(r'\s*(\[\s*)?\{\s*["}]', content):
        return "json"
    if lines:
        with contextlib.suppress(TranscriptError):
            _columns([name.strip() for name in lines[0].split(",")])
            return "csv"
    ends = [_TRN.fullmatch(line) for line in lines]
    if ends and all(end and _ID_LIKE.search(end[2]) for end in ends):
        return "trn"
    return "plain"


def _unique(records: Sequence[_Record]) -> dict[str, str]:
    if not records:
        raise TranscriptError("found no utterances")
    places = defaultdict(list)
    for place, name, _ in records:
        places[name].append(place)
    duplicates = [f"{name} ({', '.join(at)})" for name, at in places.items() if len(at) > 1]
    if duplicates:
        raise TranscriptError(f"{len(duplicates)} duplicate ids: {enumerate_some(duplicates)}")
    return {name: text for _, name, text in records}


def _first_words(plain: Transcripts) -> set[str]:
    return {text.split(maxsplit=1)[0] for text in plain.texts.values() if text}


def _all_id_like(plain: Transcripts) -> bool:
    """Whether every line begins with another word that looks like an id and not like a number."""
    first = _first_words(plain)
    return len(first) == len(plain.texts) > 0 and all(
        _ID_LIKE.search(word) and not word.isdecimal() for word in first
    )


def _as_kaldi(plain: Transcripts) -> Transcripts:
    try:
        records = list(_parse_kaldi("\n".join(plain.texts.values())))
        return Transcripts(plain.path, "kaldi", _unique(records))
    except TranscriptError as error:
        raise TranscriptError(f"{plain.path} (read as kaldi): {error}") from None


def _lines(content: str) -> list[str]:
    # not str.splitlines: it breaks at form feeds and other characters of a text as well
    return content.removesuffix("\n").split("\n")


def _filled_lines(content: str) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(_lines(content), 1):
        if line.strip():
            yield f"line {number}", line.strip()


def _parse_plain(content: str) -> Iterator[_Record]:
    for number, line in enumerate(_lines(content), 1):
        yield f"line {number}", str(number), line.strip()


def _parse_kaldi(content: str) -> Iterator[_Record]:
    for place, line in _filled_lines(content):
        name, *text = line.split(maxsplit=1)
        yield place, name, "".join(text)


def _parse_trn(content: str) -> Iterator[_Record]:
    for place, line in _filled_lines(content):
        found = _TRN.fullmatch(line)
        if not found:
            raise TranscriptError(f"{place}: found {_short(line)}, expected words and then (id)")
        yield place, found[2], found[1].strip()


def _parse_csv(content: str) -> Iterator[_Record]:
    reader = csv.reader(io.StringIO(content), skipinitialspace=True, strict=True)
    header: list[str] = []
    try:
        for row in reader:
            place = f"line {reader.line_num}"
            if not any(field.strip() for field in row):
                continue
            if not header:
                header = [name.strip() for name in row]
                columns = [header.index(name) for name in _columns(header)]
                continue
            if len(row) != len(header):
                raise TranscriptError(
                    f"{place}: found {len(row)} columns, expected {len(header)} as in the header"
                )
            name, text = (row[column].strip() for column in columns)
            yield place, _checked_id(name, place), text
    except csv.Error as error:
        raise TranscriptError(f"line {reader.line_num}: {error}, expected CSV") from None


def _parse_json(content: str) -> Iterator[_Record]:
    try:
        whole = json.loads(content, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        if error.msg != "Extra data":
            raise _not_json(error, error.lineno) from None
        yield from _parse_json_lines(content)  # one object after another
        return
    if isinstance(whole, list):
        for number, value in enumerate(whole, 1):
            yield _from_object(value, f"record {number}")
    elif isinstance(whole, dict) and whole and all(isinstance(v, dict) for v in whole.values()):
        for number, (name, value) in enumerate(whole.items(), 1):
            value = {key: value[key] for key in value if key.lower() != "id"}
            yield _from_object({"id": name} | value, f"record {number}")
    else:
        yield _from_object(whole, "record 1")


def _parse_json_lines(content: str) -> Iterator[_Record]:
    for number, line in enumerate(_lines(content), 1):
        if line.strip():
            try:
                value = json.loads(line, object_pairs_hook=_object)
            except json.JSONDecodeError as error:
                raise _not_json(error, number) from None
            yield _from_object(value, f"line {number}")


def _not_json(error: json.JSONDecodeError, line: int) -> TranscriptError:
    return TranscriptError(f"line {line}, column {error.colno}: expected JSON ({error.msg})")


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    twice = [name for name, times in Counter(name for name, _ in pairs).items() if times > 1]
    if twice:
        raise TranscriptError(f"{len(twice)} duplicate ids or names: {enumerate_some(twice)}")
    return dict(pairs)


def _from_object(value: object, place: str) -> _Record:
    if not isinstance(value, dict):
        raise TranscriptError(f"{place}: found {_short(json.dumps(value))}, expected an object")
    try:
        id_name, text_name = _columns(list(value))
    except TranscriptError as error:
        raise TranscriptError(f"{place}: {error}") from None
    name, text = value[id_name], value[text_name]
    if isinstance(name, int) and not isinstance(name, bool):
        name = str(name)
    if not isinstance(name, str) or not isinstance(text, str):
        found = _short(json.dumps({id_name: name, text_name: text}))
        raise TranscriptError(f"{place}: found {found}, expected strings")
    return place, _checked_id(name.strip(), place), text.strip()


def _parse_ctm(content: str) -> Iterator[_Record]:
    pieces = []
    for place, fields in _timed_lines(content):
        if len(fields) not in (5, 6):
            raise TranscriptError(
                f"{place}: found {len(fields)} fields, expected recording, channel, start, "
                "duration, word and perhaps a confidence"
            )
        if fields[4].startswith("<ALT"):
            raise TranscriptError(f"{place}: found {fields[4]}, expected one word at a time")
        times = [_checked_number(fields[at], place, what) for at, what in _CTM_NUMBERS.items()]
        if len(fields) == 6:
            _checked_number(fields[5], place, "a confidence")
        pieces.append((fields[0], fields[1], times[0], fields[4], place))
    return _joined(pieces)


def _parse_stm(content: str) -> Iterator[_Record]:
    pieces = []
    for place, fields in _timed_lines(content):
        if len(fields) < 5:
            raise TranscriptError(
                f"{place}: found {len(fields)} fields, expected recording, channel, speaker, "
                "start, end and words"
            )
        words = fields[5:]
        if words and re.fullmatch("<[^<>]*>", words[0]):
            words = words[1:]  # the label
        refused = [w for w in words if w in "{}/" or w.upper() == "IGNORE_TIME_SEGMENT_IN_SCORING"]
        if refused:
            raise TranscriptError(f"{place}: found {refused[0]}, expected words alone")
        start = _checked_number(fields[3], place, "a start in seconds")
        _checked_number(fields[4], place, "an end in seconds")
        pieces.append((fields[0], fields[1], start, " ".join(words), place))
    return _joined(pieces)


_CTM_NUMBERS = {2: "a start in seconds", 3: "a duration in seconds"}


def _timed_lines(content: str) -> Iterator[tuple[str, list[str]]]:
    for place, line in _filled_lines(content):
        if not line.startswith(";;"):
            yield place, line.split()


def _joined(pieces: Sequence[tuple[str, str, float, str, str]]) -> Iterator[_Record]:
    """One utterance for each recording and channel, its pieces in the order of their starts."""
    channels = defaultdict(set)
    texts = defaultdict(list)
    for recording, channel, start, text, place in pieces:
        channels[recording].add(channel)
        texts[recording, channel].append((start, text, place))
    for (recording, channel), parts in texts.items():
        name = recording if len(channels[recording]) == 1 else f"{recording}:{channel}"
        in_time = sorted(parts, key=lambda part: part[0])
        yield parts[0][2], name, " ".join(text for _, text, _ in in_time if text)


def _checked_number(text: str, place: str, what: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise TranscriptError(f"{place}: found {_short(text)}, expected {what}")
    return number


def _columns(names: Sequence[str]) -> tuple[str, str]:
    ids = [name for name in names if name.lower() == "id"]
    texts = [name for name in names if name.lower() in TEXT_COLUMNS]
    if len(ids) != 1 or len(texts) != 1:
        raise TranscriptError(
            f"found the columns {enumerate_some(names, 20)}, expected exactly one ID and exactly "
            f"one of {', '.join(TEXT_COLUMNS)}"
        )
    return ids[0], texts[0]


def _checked_id(name: str, place: str) -> str:
    if not name:
        raise TranscriptError(f"{place}: found an empty id, expected a name")
    return name


def _short(text: str, limit: int = 60) -> str:
    return repr(shorten(text, limit))


_PARSERS: dict[str, Callable[[str], Iterator[_Record]]] = {
    "kaldi": _parse_kaldi,
    "trn": _parse_trn,
    "csv": _parse_csv,
    "json": _parse_json,
    "ctm": _parse_ctm,
    "stm": _parse_stm,
    "plain": _parse_plain,
}
FORMATS = tuple(_PARSERS)
WRITTEN_FORMATS = ("kaldi", "trn", "csv", "json", "plain")
