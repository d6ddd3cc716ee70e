"""What is recognised, and when it was said. Times are seconds from the recording's beginning."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Word:
    """A word in time.

    Attributes
    ----------
    text : str
        As it stands in the transcript.
    start, end : float
        Seconds.
    confidence : float
        From 0 to 1: the model's own belief in it; see `sru_asr.alignment.WordAligner`.
    """

    text: str
    start: float
    end: float
    confidence: float


@dataclass(frozen=True)
class Segment:
    """A piece of a recording: what stands between two quiet places.

    Attributes
    ----------
    text : str
        What was recognised.
    start, end : float
        Seconds.
    words : tuple of Word
        The text's words; empty where times of words were not asked for.
    confidence : float or None
        From 0 to 1; None where it was not asked for.
    alternatives : tuple of (str, float)
        The best texts with their log scores, the first being `text`; empty where N best were not
        asked for.
    """

    text: str
    start: float
    end: float
    words: tuple[Word, ...] = ()
    confidence: float | None = None
    alternatives: tuple[tuple[str, float], ...] = ()


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
    segments : tuple of Segment
        The text in pieces with their times, in order; empty after an error.
    """

    path: str | None
    text: str
    duration: float
    error: str | None = None
    segments: tuple[Segment, ...] = ()
