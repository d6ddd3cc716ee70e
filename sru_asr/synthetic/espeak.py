"""Speech by espeak-ng, called through ctypes from the library inside ``espeakng-loader``.

espeak-ng keeps phases, echo buffers and random numbers between two utterances, and neither a
new voice nor ``espeak_Terminate`` clears them all. So `speak` loads the library afresh each time
(well below a millisecond): equal arguments then give equal samples, whatever was spoken before.
"""

from __future__ import annotations

import _ctypes
import bisect
import ctypes
import itertools
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

SAMPLE_RATE = 22050
"""Samples per second of what espeak-ng speaks."""

ACCENTS = (
    "en-us",
    "en-us-nyc",
    "en",
    "en-gb-x-rp",
    "en-gb-scotland",
    "en-gb-x-gbclan",
    "en-gb-x-gbcwmd",
    "en-029",
)
"""The English accents of espeak-ng; "en" is British."""

# A variant is the timbre, and so the speaker. Whispers, robots and other effects are left out, and
# so is Reed, whose breath is C's rand(): its state is out of espeak-ng's hands.
# Several variants are near copies of each other, so those for valid and test were chosen by their
# long-term spectrum: it is at least 2 dB (RMS over 24 bands, en-us) away from that of every
# variant for train.
VARIANTS: dict[str, tuple[str, ...]] = {
    split: tuple(names.split())
    for split, names in {
        "train": """default m1 m2 m3 m4 m5 m6 f1 f2 f4 klatt3 klatt4 klatt6 croak max Alex Alicia
            Andrea Andy Denis Diogo Gene Gene2 Jacky Lee Mario Mike adam anika aunty belinda
            benjamin boris david ed edward edward2 grandma gustave iven2 iven3 iven4 john linda
            marcelo michel miguel mike2 pedro quincy rob robert sandro shelby victor""",
        "valid": "antonio pablo steph",
        "test": "f3 f5 m7 m8 Annie Nguyen paul",
    }.items()
}
"""The speakers of each split; no speaker is in two."""

_INSTALL = "synthetic speech needs espeak-ng: pip install 'sru-asr[demo]'"

# Constants of espeak-ng's speak_lib.h.
_OUTPUT_SYNCHRONOUS = 2
_PHONEME_EVENTS = 1
_DO_NOT_EXIT = 0x8000
_UTF8 = 1
_RATE, _PITCH, _RANGE, _WORD_GAP = 1, 3, 4, 7
_EVENT_END_OF_LIST, _EVENT_WORD, _EVENT_PHONEME = 0, 1, 7


@dataclass(frozen=True)
class Style:
    """Who speaks, and how.

    Attributes
    ----------
    voice : str
        An accent and a variant, such as ``"en-us+f2"``; the variant ``default`` is the plain voice.
    rate : int
        Words per minute.
    pitch, pitch_range : int
        From 0 to 100, where 50 is the voice's own.
    word_gap : int
        Pause between words in units of 10 ms.
    seed : int
        For the noise inside some voices.
    """

    voice: str
    rate: int = 175
    pitch: int = 50
    pitch_range: int = 50
    word_gap: int = 0
    seed: int = 1


@dataclass(frozen=True)
class Speech:
    """What espeak-ng spoke.

    Attributes
    ----------
    samples : numpy.ndarray
        16-bit samples at `SAMPLE_RATE`.
    spans : list of (int, float, float)
        The index of a word, and its start and end in seconds. espeak-ng speaks some pairs such as
        "in the" as one: then the second word has no span of its own.
    """

    samples: np.ndarray
    spans: list[tuple[int, float, float]]


class _EventId(ctypes.Union):
    _fields_ = [
        ("number", ctypes.c_int),
        ("name", ctypes.c_char_p),
        ("string", ctypes.c_char * 8),
    ]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    ]


_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)


def speak(words: Sequence[str], style: Style) -> Speech:
    """Speak words.

    Parameters
    ----------
    words : sequence of str
        The words, spelled for espeak-ng.
    style : Style
        Who speaks, and how.

    Returns
    -------
    Speech
        The samples and where the words are in them.

    Raises
    ------
    ModuleNotFoundError
        When ``espeakng-loader`` is not installed.
    ValueError
        When espeak-ng does not have the accent; a variant that it lacks, it ignores.

    Examples
    --------
    >>> speech = speak(["turn", "it", "off"], Style("en-us+f2"))  # doctest: +SKIP
    """
    chunks: list[bytes] = []
    marks: list[tuple[int, int, int, bytes]] = []

    @_Callback
    def collect(samples, count, events):  # type: ignore[no-untyped-def]
        if samples and count > 0:
            chunks.append(ctypes.string_at(samples, 2 * count))
        for i in itertools.count():
            event = events[i]
            if event.type == _EVENT_END_OF_LIST:
                return 0
            if event.type in (_EVENT_WORD, _EVENT_PHONEME):
                name = event.id.string if event.type == _EVENT_PHONEME else b""
                marks.append((event.type, event.text_position, event.sample, name))

    text = " ".join(words).encode()
    with fresh_library() as library:
        library.espeak_SetSynthCallback(collect)
        library.espeak_ng_SetRandSeed(ctypes.c_long(style.seed))
        if library.espeak_SetVoiceByName(style.voice.removesuffix("+default").encode()):
            raise ValueError(f"espeak-ng has no voice {style.voice!r}")
        for parameter, value in (
            (_RATE, style.rate),
            (_PITCH, style.pitch),
            (_RANGE, style.pitch_range),
            (_WORD_GAP, style.word_gap),
        ):
            library.espeak_SetParameter(parameter, value, 0)
        size = ctypes.c_size_t(len(text) + 1)
        library.espeak_Synth(text, size, 0, 1, 0, _UTF8, None, None)
    return Speech(np.frombuffer(b"".join(chunks), np.int16), _spans(words, marks))


@contextmanager
def fresh_library() -> Iterator[ctypes.CDLL]:
    """Load espeak-ng for one use, without a trace of an earlier one.

    Yields
    ------
    ctypes.CDLL
        The library, initialised; unloaded again afterwards.

    Raises
    ------
    ModuleNotFoundError
        When ``espeakng-loader`` is not installed.
    """
    try:
        import espeakng_loader
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(_INSTALL, name="espeakng_loader") from error
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    try:
        data = espeakng_loader.get_data_path().encode()
        options = _PHONEME_EVENTS | _DO_NOT_EXIT
        if library.espeak_Initialize(_OUTPUT_SYNCHRONOUS, 0, data, options) != SAMPLE_RATE:
            raise RuntimeError(f"espeak-ng did not start with its data in {data.decode()}")
        yield library
        library.espeak_Terminate()
    finally:
        unload = "FreeLibrary" if sys.platform == "win32" else "dlclose"
        getattr(_ctypes, unload)(library._handle)


def _spans(
    words: Sequence[str], marks: list[tuple[int, int, int, bytes]]
) -> list[tuple[int, float, float]]:
    """Word spans from phonemes: a word lasts from its first phoneme to the end of its last."""
    ends = list(itertools.accumulate(len(word) + 1 for word in words))
    spans: dict[int, tuple[float, float]] = {}
    index = 0
    for mark, following in itertools.pairwise(marks):
        kind, position, sample, name = mark
        if kind == _EVENT_WORD:
            index = bisect.bisect_right(ends, position - 1)
        elif name and not name.startswith(b"_"):
            start, _ = spans.get(index, (sample / SAMPLE_RATE, 0.0))
            spans[index] = (start, following[2] / SAMPLE_RATE)
    return [(index, *span) for index, span in sorted(spans.items())]
