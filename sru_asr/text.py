"""What happens to a transcript before its words are counted: an explicit, printable choice."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

# An apostrophe between two letters or digits, or else any other mark.
_MARK = re.compile(r"(?<=[^\W_])(['’])(?=[^\W_])|([^\w\s]|_)")


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
