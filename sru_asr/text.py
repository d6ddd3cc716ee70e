"""What happens to a transcript before its words are counted: an explicit, printable choice."""

from __future__ import annotations

import functools
import re
import unicodedata
from dataclasses import dataclass
from typing import Protocol

from sru_asr.versions import version_of

# An apostrophe between two letters or digits, or else any other mark.
_MARK = re.compile(r"(?<=[^\W_])(['’])(?=[^\W_])|([^\w\s]|_)")


class Normalizer(Protocol):
    """What rewrites a transcript before it is scored, and says in one line how."""

    def __call__(self, text: str, /) -> str:
        """Normalise one transcript; its words are separated by single spaces."""

    def __str__(self) -> str:
        """The steps, with the version of a library that takes them."""


@dataclass(frozen=True)
class Normalization:
    """Rewrite a transcript before it is scored.

    Runs of white space always become single spaces; everything else is off unless asked for.

    Parameters
    ----------
    lower_case, upper_case : bool
        Change the case; at most one of the two.
    compose : bool
        Write accented characters in their composed form (Unicode NFC), so that the same text
        typed in two ways is the same text.
    remove_punctuation : bool
        Replace punctuation (the Unicode categories P*) by spaces, so that "forty-two" becomes two
        words. An apostrophe inside a word stays, and a typographic one becomes ``'``. Symbols
        such as ``$`` and ``+`` are not punctuation and stay.

    Examples
    --------
    >>> basic = Normalization.preset("basic")
    >>> basic("  Don’t  say “forty-two”!")
    "don't say forty two"
    >>> print(basic)
    lower case, composed (NFC), punctuation removed (apostrophes in words kept), single spaces
    >>> print(Normalization())
    single spaces
    """

    lower_case: bool = False
    upper_case: bool = False
    compose: bool = False
    remove_punctuation: bool = False

    def __post_init__(self) -> None:
        if self.lower_case and self.upper_case:
            raise ValueError("lower_case and upper_case exclude each other")

    @classmethod
    def preset(cls, name: str) -> Normalization:
        """Look up a normalisation by its name, "none" or "basic"."""
        if name not in PRESETS:
            raise ValueError(
                f"unknown normalisation {name!r}, expected one of {', '.join(PRESETS)}"
            )
        return PRESETS[name]

    def __call__(self, text: str) -> str:
        """Normalise one transcript."""
        if self.lower_case:
            text = text.lower()
        if self.upper_case:
            text = text.upper()
        if self.compose:
            text = unicodedata.normalize("NFC", text)
        if self.remove_punctuation:
            text = _MARK.sub(_without_punctuation, text)
        return " ".join(text.split())

    def __str__(self) -> str:
        steps = {
            "lower case": self.lower_case,
            "upper case": self.upper_case,
            "composed (NFC)": self.compose,
            "punctuation removed (apostrophes in words kept)": self.remove_punctuation,
            "single spaces": True,
        }
        return ", ".join(step for step, taken in steps.items() if taken)


def _without_punctuation(mark: re.Match[str]) -> str:
    if mark[1]:
        return "'"
    return " " if unicodedata.category(mark[2]).startswith("P") else mark[2]


PRESETS = {
    "none": Normalization(),
    "basic": Normalization(lower_case=True, compose=True, remove_punctuation=True),
}


class EnglishNormalization:
    """Whisper's normalisation of English text, by the package ``whisper-normalizer``.

    Contractions are written out, numbers become digits, British spellings American, titles words;
    case, punctuation, diacritics, fillers ("uh", "hmm") and what stands in brackets are removed.
    Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision", appendix C. Unlike
    `Normalization`, it may change the same text again when it is applied twice.

    Raises
    ------
    ModuleNotFoundError
        When the package is not installed; the message names the command.

    Examples
    --------
    >>> english = EnglishNormalization()  # doctest: +SKIP
    >>> english("Mr. Brown won't pay twenty-five pounds, uh, for colour TV!")  # doctest: +SKIP
    'mister brown will not pay £25 for color tv'
    """

    def __init__(self) -> None:
        try:
            from whisper_normalizer.english import EnglishTextNormalizer
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"the english normalisation needs the package {error.name}; install it with: "
                "pip install 'sru-asr[english]'",
                name=error.name,
            ) from None
        # It takes milliseconds, and several systems have the same reference and many a transcript.
        self._normalize = functools.cache(EnglishTextNormalizer())

    def __call__(self, text: str) -> str:
        """Normalise one transcript."""
        return " ".join(self._normalize(text).split())

    def __str__(self) -> str:
        version = version_of("whisper-normalizer")
        return f"Whisper's normalisation of English, whisper-normalizer {version}"


PRESET_NAMES = (*PRESETS, "english")


def preset(name: str) -> Normalizer:
    """Look up a normalisation by its name, one of `PRESET_NAMES`.

    Raises
    ------
    ValueError
        For any other name.
    ModuleNotFoundError
        For "english" without the package ``whisper-normalizer``.

    Examples
    --------
    >>> preset("basic")("Go north!")
    'go north'
    """
    if name == "english":
        return EnglishNormalization()
    return Normalization.preset(name)
