r"""Transcripts as files: text, subtitles, tables, and what scoring tools read.

========  ============================================  =======================================
``txt``   the text, a line for each segment
``srt``   SubRip subtitles                              times of words cut segments into cues
``vtt``   WebVTT subtitles                              the same
``tsv``   start, end (milliseconds) and text            a line for each segment, as Whisper's
``json``  everything there is; see ``docs/formats.md``
``ctm``   recording, channel, start, duration, word     needs times of words; for sclite
          and confidence
``trn``   the words and, in parentheses, the recording  for sclite
========  ============================================  =======================================

Nothing here imports torch.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from sru_asr.segments import Segment, Transcript, Word

LONGEST_CUE = 7.0  # seconds; what subtitles' guidelines allow to stand
PAUSE = 0.6  # seconds of silence that end a cue


class FormatError(ValueError):
    """A transcript cannot be written so; the message says what was found and what was expected."""


def render(
    kind: str,
    name: str,
    transcript: Transcript,
    max_line_width: int | None = None,
    max_line_count: int | None = None,
) -> str:
    r"""Write a transcript as the content of one file.

    Parameters
    ----------
    kind : str
        One of `FORMATS`.
    name : str
        The recording's. In CTM and TRN, what cannot stand in an id there (white space,
        parentheses) becomes "_".
    transcript : Transcript
        What was recognised. Where it has no segments it is one.
    max_line_width : int, optional
        Characters in a line of a subtitle; only a longer word makes a longer line.
    max_line_count : int, optional
        Lines of a cue; needs `max_line_width`.

    Returns
    -------
    str
        The whole content, which ends with a newline unless it is empty.

    Raises
    ------
    FormatError
        When there is no such format, the transcript is an error, times of words are needed and
        missing, or a word means something else to sclite.

    Examples
    --------
    >>> words = (Word("GO", 0.2, 0.41, 0.98), Word("NORTH", 0.5, 1.0, 0.876))
    >>> segment = Segment("GO NORTH", 0.1, 1.2, words)
    >>> transcript = Transcript("a/one.wav", "GO NORTH", 1.3, segments=(segment,))
    >>> print(render("srt", "one", transcript), end="")
    1
    00:00:00,200 --> 00:00:01,000
    GO NORTH
    <BLANKLINE>
    >>> print(render("ctm", "one", transcript), end="")
    one 1 0.200 0.210 GO 0.9800
    one 1 0.500 0.500 NORTH 0.8760
    """
    if kind not in _WRITERS:
        raise FormatError(f"format: found {kind!r}, expected one of {', '.join(FORMATS)}")
    for option, value in (("max_line_width", max_line_width), ("max_line_count", max_line_count)):
        if value is not None and value < 1:
            raise FormatError(f"{option}: found {value}, expected at least 1")
    if max_line_count is not None and max_line_width is None:
        raise FormatError("max_line_count: found no max_line_width, which breaks lines, beside it")
    if transcript.error is not None:
        raise FormatError(f"{kind}: found no transcript of {name} ({transcript.error})")
    segments = transcript.segments
    if not segments and transcript.text:
        segments = (Segment(transcript.text, 0.0, transcript.duration),)
    content = _WRITERS[kind](_Task(name, transcript, segments, max_line_width, max_line_count))
    # File names that are not UTF-8 come as surrogates, which no file can hold.
    return content.encode("utf-8", "replace").decode("utf-8")


class _Task(NamedTuple):
    """What a writer gets."""

    name: str
    transcript: Transcript
    segments: tuple[Segment, ...]
    width: int | None
    count: int | None

    @property
    def id(self) -> str:
        """The recording's name as sclite takes it."""
        return re.sub(r"[\s()]+", "_", self.name)

    def lines(self, words: Sequence[str]) -> list[str]:
        """Fill a cue's lines, one word at least in each."""
        lines: list[str] = []
        for word in words:
            if lines and (self.width is None or len(lines[-1]) + 1 + len(word) <= self.width):
                lines[-1] += f" {word}"
            else:
                lines.append(word)
        return lines

    def fit(self, words: Sequence[str]) -> bool:
        """Whether one cue can hold the words."""
        return self.count is None or len(self.lines(words)) <= self.count

    def ambiguous(self, word: str) -> FormatError:
        return FormatError(
            f"found {word!r} in {self.name}, which sclite takes for a mark of its own, expected "
            "words; choose another format"
        )


class _Cue(NamedTuple):
    start: int
    end: int
    lines: list[str]


def _cues(task: _Task) -> Iterator[_Cue]:
    """Cut segments into what stands on the screen at a time; times in milliseconds."""
    for segment in task.segments:
        if segment.words:
            for words in _pieces(segment.words, task):
                lines = task.lines([word.text for word in words])
                yield _cue(words[0].start, words[-1].end, lines)
        elif texts := segment.text.split():
            if not task.fit(texts):
                raise FormatError(
                    f"max_line_count: found no times of words of {task.name}, by which a long cue "
                    "could be cut, expected them (--word-timestamps)"
                )
            yield _cue(segment.start, segment.end, task.lines(texts))


def _cue(start: float, end: float, lines: list[str]) -> _Cue:
    # A cue has to end after it begins, however short.
    return _Cue(_milliseconds(start), max(_milliseconds(end), _milliseconds(start) + 1), lines)


def _pieces(words: Sequence[Word], task: _Task) -> Iterator[list[Word]]:
    """Words of one cue each: as many as fit, up to a pause."""
    piece: list[Word] = []
    for word in words:
        if piece and (
            word.start - piece[-1].end >= PAUSE
            or word.end - piece[0].start > LONGEST_CUE
            or not task.fit([other.text for other in [*piece, word]])
        ):
            yield piece
            piece = []
        piece.append(word)
    yield piece


def _txt(task: _Task) -> str:
    return "".join(f"{text}\n" for segment in task.segments if (text := _one_line(segment.text)))


def _srt(task: _Task) -> str:
    # SubRip has no escapes; "-->" in a text would be taken for times.
    return "".join(
        f"{number}\n{_clock(cue.start, ',')} --> {_clock(cue.end, ',')}\n"
        + "".join(f"{line}\n" for line in cue.lines).replace("-->", "->")
        + "\n"
        for number, cue in enumerate(_cues(task), 1)
    )


def _vtt(task: _Task) -> str:
    escapes = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})
    return "WEBVTT\n" + "".join(
        f"\n{_clock(cue.start, '.')} --> {_clock(cue.end, '.')}\n"
        + "".join(f"{line.translate(escapes)}\n" for line in cue.lines)
        for cue in _cues(task)
    )


def _tsv(task: _Task) -> str:
    rows = [
        f"{_milliseconds(segment.start)}\t{_milliseconds(segment.end)}\t{_one_line(segment.text)}\n"
        for segment in task.segments
    ]
    return "".join(["start\tend\ttext\n", *rows])


def _json(task: _Task) -> str:
    transcript = task.transcript
    record = {
        "id": task.name,
        "path": transcript.path,
        "text": transcript.text,
        "duration": _rounded(transcript.duration, 3),
        "segments": [
            {
                "start": _rounded(segment.start, 3),
                "end": _rounded(segment.end, 3),
                "text": segment.text,
                "confidence": _rounded(segment.confidence, 4),
                "words": [
                    {
                        "word": word.text,
                        "start": _rounded(word.start, 3),
                        "end": _rounded(word.end, 3),
                        "confidence": _rounded(word.confidence, 4),
                    }
                    for word in segment.words
                ],
                "alternatives": [
                    {"text": text, "score": _rounded(score, 4)}
                    for text, score in segment.alternatives
                ],
            }
            for segment in task.segments
        ],
    }
    return json.dumps(record, ensure_ascii=False, allow_nan=False, indent=2) + "\n"


def _ctm(task: _Task) -> str:
    if task.id.startswith(";;"):  # a comment
        raise task.ambiguous(task.id)
    rows = []
    for segment in task.segments:
        if segment.text.split() and not segment.words:
            raise FormatError(
                f"ctm: found no times of words of {task.name}, expected them (--word-timestamps)"
            )
        for word in segment.words:
            if word.text in ("<ALT_BEGIN>", "<ALT>", "<ALT_END>"):  # alternatives of a reference
                raise task.ambiguous(word.text)
            start = _milliseconds(word.start)
            lasts = max(1, _milliseconds(word.end) - start)
            rows.append((start, f"{lasts / 1000:.3f} {word.text} {word.confidence:.4f}\n"))
    rows.sort(key=lambda row: row[0])
    return "".join(f"{task.id} 1 {start / 1000:.3f} {row}" for start, row in rows)


def _trn(task: _Task) -> str:
    words = [word for segment in task.segments for word in segment.text.split()]
    for position, word in enumerate(words):
        # A null word, alternatives, a comment.
        if word == "@" or re.search("[{}]", word) or (position == 0 and word.startswith(";;")):
            raise task.ambiguous(word)
    return " ".join([*words, f"({task.id})"]) + "\n"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _milliseconds(seconds: float) -> int:
    return max(0, round(1000 * seconds))


def _clock(milliseconds: int, point: str) -> str:
    seconds, thousandths = divmod(milliseconds, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02}{point}{thousandths:03}"


def _rounded(value: float | None, digits: int) -> float | None:
    """JSON has no numbers that are not finite."""
    return None if value is None or not math.isfinite(value) else round(value, digits)


_WRITERS: dict[str, Callable[[_Task], str]] = {
    "txt": _txt,
    "srt": _srt,
    "vtt": _vtt,
    "tsv": _tsv,
    "json": _json,
    "ctm": _ctm,
    "trn": _trn,
}
FORMATS = tuple(_WRITERS)
