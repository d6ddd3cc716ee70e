"""What people say in a corpus such as AN4: answers to a census, and commands to a form.

Names, streets and towns are spelled; house numbers, zip codes, telephone numbers and birth dates
are said in the many ways there are; control words come alone or with letters and numbers. The
rules cover all letters, numbers and dates, whether or not AN4's training part happens to have them.

A comma marks where speakers like to pause; it is no part of the sentence.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from string import ascii_uppercase

import numpy as np
from names import NAMES

from sru_asr.files import write_atomically
from sru_asr.synthetic.grammar import NAME, Rule, expand

INVENTED = 0.5
"""Share of the names that are not in a list but like those that are."""


def spelled(names: Sequence[str]) -> Callable[[np.random.Generator], str]:
    """A rule that spells a name: one of the list, or one made of its sequences of three letters.

    So that a model learns to hear letters rather than to know a list by heart.

    Examples
    --------
    >>> spelled(["ANNA"])(np.random.default_rng(1))
    'A N N A'
    """
    following: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        letters = f"^^{name}$"
        for i in range(len(letters) - 2):
            following[letters[i : i + 2]].append(letters[i + 2])

    def invent(rng: np.random.Generator) -> str:
        name = "^^"
        while not name.endswith("$"):
            choices = following[name[-2:]]
            name += choices[rng.integers(len(choices))]
        return name[2:-1]

    def rule(rng: np.random.Generator) -> str:
        name = names[rng.integers(len(names))]
        if rng.random() < INVENTED:
            # Some are invented too short or too long for a name.
            drawn = (invent(rng) for _ in range(100))
            name = next((new for new in drawn if 3 <= len(new) <= 14), name)
        return " , ".join(" ".join(word) for word in name.split("_"))

    return rule


def code(rng: np.random.Generator) -> str:
    """Letters at random, most often four or five of them."""
    count = rng.choice([1, 2, 3, 4, 5, 6], p=[0.05, 0.05, 0.1, 0.4, 0.35, 0.05])
    return " ".join(rng.choice(list(ascii_uppercase), count))


WORDS = {
    kind: tuple(words.split())
    for kind, words in {
        "control": "YES NO GO HELP STOP START REPEAT ENTER ERASE RUBOUT",
        "unit": "ONE TWO THREE FOUR FIVE SIX SEVEN EIGHT NINE",
        "teen": """TEN ELEVEN TWELVE THIRTEEN FOURTEEN FIFTEEN SIXTEEN SEVENTEEN EIGHTEEN
            NINETEEN""",
        "tens": "TWENTY THIRTY FORTY FIFTY SIXTY SEVENTY EIGHTY NINETY",
        "unit_th": "FIRST SECOND THIRD FOURTH FIFTH SIXTH SEVENTH EIGHTH NINTH",
        "teen_th": """TENTH ELEVENTH TWELFTH THIRTEENTH FOURTEENTH FIFTEENTH SIXTEENTH SEVENTEENTH
            EIGHTEENTH NINETEENTH""",
        "tens_th": """TWENTIETH THIRTIETH FORTIETH FIFTIETH SIXTIETH SEVENTIETH EIGHTIETH
            NINETIETH""",
        "month": """JANUARY FEBRUARY MARCH APRIL MAY JUNE JULY AUGUST SEPTEMBER OCTOBER NOVEMBER
            DECEMBER""",
    }.items()
}

RULES: dict[str, Rule] = {
    **WORDS,
    "sentence": (
        *["<control>"] * 2,
        *["ENTER <number>"] * 2,
        *["<edit> <code> , <number>"] * 3,
        *["<code> , <number>"] * 3,
        "<code>",
        "<number>",
        *["<surname>"] * 3,
        *["<given>"] * 2,
        "<given> , <surname>",
        *["<house>"] * 2,
        *["<street>"] * 3,
        *["<town>"] * 2,
        *["<zip>"] * 2,
        *["<phone>"] * 2,
        *["<date>"] * 4,
    ),
    "edit": ("ERASE", "RUBOUT"),
    # Spelled
    "letter": list(ascii_uppercase),
    "code": code,
    "surname": (*["<name>"] * 30, "<letter> APOSTROPHE <name>", "<name> , <mark> , <name>"),
    "mark": ("DASH", "HYPHEN", "SPACE"),
    "name": spelled(NAMES["surname"]),
    "given": (*["<first>"] * 12, "<first> , <letter>", "<first> , <first>"),
    "first": spelled(NAMES["given"]),
    "street": (
        *["<road>"] * 8,
        *["<road> , <way>"] * 8,
        "<ordinal> <way>",
        "<direction> , <ordinal> , <way>",
        "<digits> , <road>",
    ),
    "road": spelled(NAMES["street"]),
    "way": (
        *("S T R E E T", "A V E N U E", "D R I V E", "R O A D", "L A N E", "P L A C E"),
        *("S T", "A V E", "D R", "R D", "L N", "B L V D", "W A Y", "C O U R T", "C I R C L E"),
    ),
    "direction": ("N O R T H", "S O U T H", "E A S T", "W E S T", "N", "S", "E", "W"),
    "town": spelled(NAMES["town"]),
    # Numbers
    "digit": ("ZERO", "OH", *["<unit>"] * 18),
    "pair": (*["<teen>"] * 2, "<tens>", *["<tens> <unit>"] * 4),
    "ending": ("OH <unit>", *["<pair>"] * 3),
    "digits": (
        "<unit> <digit>",
        *["<unit> <digit> <digit>"] * 2,
        *["<unit> <digit> <digit> <digit>"] * 2,
        "<unit> <digit> <digit> <digit> <digit>",
    ),
    "number": (
        *["<digit>"] * 4,
        *["<pair>"] * 5,
        *["<digits>"] * 5,
        *["<unit> <ending>"] * 3,
        *["<pair> <ending>"] * 2,
        "<hundreds>",
        "<thousands>",
    ),
    "hundreds": ("<pair> HUNDRED", *["<hundred>"] * 4),
    "hundred": (
        "<unit> HUNDRED",
        "<unit> HUNDRED <pair>",
        "<unit> HUNDRED AND <pair>",
        "<unit> HUNDRED AND <unit>",
    ),
    "thousands": (
        "<unit> THOUSAND",
        *["<unit> THOUSAND <hundred>"] * 2,
        "<pair> THOUSAND <hundred>",
        "<unit> THOUSAND AND <pair>",
        "<unit> THOUSAND <ending>",
    ),
    "ordinal": (*["<unit_th>"] * 3, "<teen_th>", *["<tens> <unit_th>"] * 2, "<tens_th>"),
    # Census
    "house": (
        *["<digits>"] * 6,
        *["<pair> <ending>"] * 5,
        *["<unit> <ending>"] * 4,
        *["<pair>", "<hundreds>", "<unit> THOUSAND"],
        "<pair> <ending> AND A HALF",
        "<pair> <ending> , <letter>",
        "B O X , <number>",
        "A P A R T M E N T , <number>",
    ),
    "zip": (*["<digit> <digit> <digit> <digit> <digit>"] * 5, "<digit> <digit> <digit> , <ending>"),
    "phone": (
        *["<three> , <four>"] * 5,
        *["<three> , <three> , <four>"] * 3,
        "AREA CODE <three> , <three> , <four>",
        "<three> , <pair> , <ending>",
        "<four>",
    ),
    "three": (*["<unit> <digit> <digit>"] * 9, "<unit> HUNDRED"),
    "four": ("<digit> <digit> <digit> <digit>",) * 5 + ("<pair> , <ending>", "<unit> THOUSAND"),
    "date": (
        *["<month> <nth> , <year>"] * 8,
        *["<month> <day> , <year>"] * 3,
        *["<nth> OF <month> , <year>", "THE <nth> OF <month> , <year>"],
        *["<day> <month> , <year>"] * 2,
        *["<number_of_month> , <day> , <year>"] * 6,
        "<number_of_month> , <day> OF <year>",
        "OH <unit> , OH <unit> , <digit> <digit>",
        "<short> , <day> , <year>",
        "<day> , <short> , <year>",
    ),
    "short": [" ".join(word) for month in WORDS["month"] for word in (month, month[:3])],
    "number_of_month": (*WORDS["unit"], *WORDS["teen"][:3]),
    # Each of the 31 days as often as another.
    "day": (
        *[*["<unit>"] * 9, *["<teen>"] * 10, "TWENTY", *["TWENTY <unit>"] * 9],
        *["THIRTY", "THIRTY ONE"],
    ),
    "nth": (
        *[*["<unit_th>"] * 9, *["<teen_th>"] * 10, "TWENTIETH", *["TWENTY <unit_th>"] * 9],
        *["THIRTIETH", "THIRTY FIRST"],
    ),
    "year": (
        *["NINETEEN <pair>"] * 8,
        *["<tens> <unit>"] * 5,
        *["<tens>", "NINETEEN OH <unit>", "ONE NINE <unit> <digit>", "NINETEEN HUNDRED <pair>"],
    ),
}


def sample(rng: np.random.Generator) -> str:
    """Draw a sentence, commas included.

    Parameters
    ----------
    rng : numpy.random.Generator
        The only source of chance: equal states give equal sentences.

    Returns
    -------
    str
        Upper-case words and commas, separated by single spaces.

    Examples
    --------
    >>> sample(np.random.default_rng(1))
    'V I E R'
    """
    return expand("<sentence>", RULES, rng)


def write_sentences(path: str | os.PathLike[str], count: int, seed: int = 0) -> None:
    """Write sentences as transcripts have them, one on each line: text for a language model.

    Parameters
    ----------
    path : str or path
        The text file.
    count : int
        Sentences; the same sentence may come several times, as short ones do in speech.
    seed : int
        What they follow from, together with the rules.
    """
    rng = np.random.default_rng(seed)
    words = (sample(rng).replace(",", " ").split() for _ in range(count))
    write_atomically(Path(path), "".join(" ".join(line) + "\n" for line in words))


# What espeak-ng would not say as most Americans do: it takes a lone "a" for the article, and
# knows neither "rubout" nor, in its British voices, "zee".
_SPELLING = {"A": "eh", "Z": "zee", "RUBOUT": "rub out", "ERASE": "erayce"}


def spoken(word: str, following: str | None = None) -> str:
    """The spelling of a word that espeak-ng pronounces as meant.

    Parameters
    ----------
    word : str
        A word of a sentence.
    following : str, optional
        The next one: "A HALF" has an article, "A H" a letter.

    Examples
    --------
    >>> spoken("A", "H"), spoken("A", "HALF"), spoken("B"), spoken("NINTH")
    ('eh', 'a', 'b', 'ninth')
    """
    if (word, following) == ("A", "HALF"):
        return "a"
    return _SPELLING.get(word, word.lower())


def vocabulary() -> set[str]:
    """All words that the rules can say."""
    texts = (text for rule in RULES.values() if not callable(rule) for text in rule)
    words = {word for text in texts for word in NAME.sub("", text).split()}
    return words - {","} | set(ascii_uppercase)
