"""The sentences of the Commands corpus: a small grammar of spoken commands.

A rule names its alternatives; ``<name>`` inside an alternative stands for one alternative of that
rule, all equally likely. Everything else is an upper-case word, so the vocabulary can be read off
the rules.
"""

from __future__ import annotations

import numpy as np

from sru_asr.synthetic.grammar import NAME, expand

__all__ = ["RULES", "VOCABULARY", "sample", "spoken"]

RULES: dict[str, tuple[str, ...]] = {
    "command": (
        "<switch>",
        "<shut>",
        "<clock>",
        "<level>",
        "<call>",
        "<code>",
        "<play>",
        "<calendar>",
    ),
    "switch": (
        "<turn> THE <room> <device> <state>",
        "<turn> THE <device> <state>",
        "<turn> <state> THE <room> <device>",
        "<turn> <state> THE <device> PLEASE",
    ),
    "shut": (
        "<move> THE <room> <opening>",
        "<move> THE <opening>",
        "PLEASE <move> THE <room> <opening>",
        "<move> THE <room> <opening> <when>",
    ),
    "clock": (
        "SET THE ALARM TO <time>",
        "SET THE ALARM TO <time> <when>",
        "SET THE TIMER TO <amount> <unit>",
        "<end> THE <bell>",
        "<end> THE <bell> <when>",
        "<end> NOW",
    ),
    "level": (
        "SET THE <device> TO <amount> PERCENT",
        "SET THE <room> <device> TO <amount> PERCENT",
        "TURN THE <room> <device> <way>",
        "TURN <way> THE <device>",
    ),
    "call": (
        "CALL <letter> <letter> <digit> <digit>",
        "CALL <letter> <digit> <digit>",
        "CALL <digit> <digit> <digit> <digit>",
        "PLEASE CALL <letter> <letter> <digit>",
        "CALL <room> <digit> <when>",
    ),
    "code": (
        "ENTER <digit> <digit> <digit>",
        "ENTER <digit> <digit> <digit> <digit> <digit>",
        "ENTER <letter> <letter> <letter>",
        "ENTER <letter> <digit> <letter> <digit>",
        "ENTER <letter> <digit>",
    ),
    "play": (
        "PLAY ON <date>",
        "PLAY THE RADIO ON <day>",
        "PLAY NUMBER <amount>",
        "<end> THE MUSIC",
        "PLAY MUSIC <when> AT <time>",
    ),
    "calendar": (
        "SHOW <date>",
        "MOVE <date> TO <date>",
        "MOVE <day> TO <date>",
        "SHOW <day> AT <time>",
        "<end> <date>",
    ),
    "turn": ("TURN", "SWITCH"),
    "state": ("ON", "OFF"),
    "way": ("UP", "DOWN"),
    "room": ("KITCHEN", "BEDROOM", "GARDEN", "OFFICE"),
    "device": ("LIGHT", "FAN", "HEATER", "RADIO"),
    "move": ("OPEN", "SHUT", "LOCK"),
    "opening": ("DOOR", "WINDOW"),
    "end": ("STOP", "CANCEL"),
    "bell": ("ALARM", "TIMER"),
    "unit": ("MINUTES", "HOURS"),
    "when": ("TODAY", "TOMORROW", "NOW"),
    "time": ("<hour> <minute>", "<hour> <minute>", "<hour>"),
    "hour": ("<digit>", "TEN", "ELEVEN", "TWELVE"),
    "minute": ("TEN", "FIFTEEN", "TWENTY", "THIRTY", "FORTY", "FORTY FIVE", "FIFTY"),
    "amount": ("TEN", "FIFTEEN", "<tens>", "<tens> <digit>"),
    "tens": ("TWENTY", "THIRTY", "FORTY", "FIFTY"),
    "digit": ("ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX", "SEVEN", "EIGHT", "NINE"),
    "letter": ("A", "B", "D", "F", "K", "M", "R", "S", "X"),
    "date": ("<month> <ordinal>", "<month> TWENTY <ordinal>"),
    "ordinal": ("FIRST", "SECOND", "THIRD", "FOURTH", "FIFTH"),
    "month": (
        "JANUARY",
        "FEBRUARY",
        "MARCH",
        "APRIL",
        "MAY",
        "JUNE",
        "JULY",
        "AUGUST",
        "SEPTEMBER",
        "OCTOBER",
        "NOVEMBER",
        "DECEMBER",
    ),
    "day": ("MONDAY", "FRIDAY", "SUNDAY"),
}

VOCABULARY: tuple[str, ...] = tuple(
    sorted({w for rule in RULES.values() for text in rule for w in NAME.sub("", text).split()})
)

# espeak reads a lone "a" as the article; "eh" is what it pronounces like the letter.
_SPELLING = {"A": "eh"}


def sample(rng: np.random.Generator) -> str:
    """Draw one command.

    Parameters
    ----------
    rng : numpy.random.Generator
        The only source of chance: equal states give equal commands.

    Returns
    -------
    str
        2 to 8 upper-case words, separated by single spaces.

    Examples
    --------
    >>> sample(np.random.default_rng(1))
    'TURN THE OFFICE RADIO UP'
    """
    return expand("<command>", RULES, rng)


def spoken(word: str) -> str:
    """The spelling of a word that espeak pronounces as meant.

    Examples
    --------
    >>> spoken("A"), spoken("B"), spoken("KITCHEN")
    ('eh', 'b', 'kitchen')
    """
    return _SPELLING.get(word, word.lower())
