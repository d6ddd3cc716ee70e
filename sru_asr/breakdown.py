"""Parts of a set of utterances: by speaker, by length, by any column of a manifest."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from sru_asr.transcripts import enumerate_some

SPEAKER_COLUMNS = ("spk_id", "speaker")
MAX_VALUES = 10  # A number with more values than these is divided into ranges,
RANGES = 5  # about as many.
EMPTY = "(empty)"


class BreakdownError(ValueError):
    """Utterances that cannot be divided as asked; the message says why and what there is."""


def values_by(
    name: str,
    words: Mapping[str, int],
    manifest: tuple[Sequence[str], Mapping[str, Mapping[str, str]]] | None = None,
    speaker_pattern: str | None = None,
) -> dict[str, str]:
    """Look up what utterances are to be divided by.

    Parameters
    ----------
    name : str
        "length" for the number of words in the reference; "speaker" for the manifest's ``spk_id``
        or ``speaker``, or for what the pattern finds; else a column of the manifest.
    words : mapping of str to int
        The utterances' ids and the numbers of words in their references.
    manifest : (list of str, mapping of str to mapping), optional
        Columns and rows, as `sru_asr.manifest.read_table` reads them; other rows may be there.
    speaker_pattern : str, optional
        A regular expression that is searched in the id. What its first group matches is the
        speaker; without a group, what the whole of it matches.

    Returns
    -------
    dict of str to str
        For each id the value, as text.

    Raises
    ------
    BreakdownError
        When there is no such column, an utterance is not in the manifest, or the pattern is not
        found in an id.

    Examples
    --------
    >>> values_by("speaker", {"an4-fash-b": 2, "an5-mbmg-b": 3}, speaker_pattern="-(.*)-")
    {'an4-fash-b': 'fash', 'an5-mbmg-b': 'mbmg'}
    >>> values_by("length", {"an4-fash-b": 2, "an5-mbmg-b": 3})
    {'an4-fash-b': '2', 'an5-mbmg-b': '3'}
    """
    if name == "length":
        return {utterance: str(count) for utterance, count in words.items()}
    if name == "speaker" and speaker_pattern is not None:
        return _speakers(words, speaker_pattern)
    if manifest is None:
        remedy = "--manifest or --speaker-pattern" if name == "speaker" else "--manifest"
        raise BreakdownError(f"--by {name}: expected {remedy}, which says it for each utterance")
    columns, rows = manifest
    wanted = SPEAKER_COLUMNS if name == "speaker" else (name,)
    column = next((one for one in wanted if one in columns), None)
    if column is None:
        raise BreakdownError(
            f"--by {name}: found no column {' or '.join(wanted)} in the manifest, which has "
            f"{', '.join(columns)}"
        )
    missing = [utterance for utterance in words if utterance not in rows]
    if missing:
        raise BreakdownError(
            f"{len(missing)} of {len(words)} utterances are not in the manifest: "
            f"{enumerate_some(missing)}"
        )
    return {utterance: rows[utterance][column] for utterance in words}


def divide(values: Mapping[str, str], by_value: bool = False) -> dict[str, list[str]]:
    """Divide utterances by a value: text and few different numbers by value, others by range.

    The edges of the ranges are quantiles, rounded to two digits, so that about the same number of
    utterances is in each.

    Parameters
    ----------
    values : mapping of str to str
        For each utterance its value.
    by_value : bool
        Take numbers for names: speakers are often called by numbers.

    Returns
    -------
    dict of str to list of str
        For each part, by what it is called, its utterances: numbers in their order, else text in
        alphabetical order with numbers in theirs, then utterances with an empty value.

    Examples
    --------
    >>> divide({"u1": "hall", "u2": "car", "u3": "hall"})
    {'car': ['u2'], 'hall': ['u1', 'u3']}
    >>> parts = divide({f"u{i}": str(i) for i in range(1, 101)})
    >>> {label: len(utterances) for label, utterances in parts.items()}
    {'1 to 20': 20, '21 to 40': 20, '41 to 59': 19, '60 to 79': 20, '80 to 100': 21}
    """
    numbers = {one: _number(value) for one, value in values.items() if value}
    numeric = all(map(math.isfinite, numbers.values()))
    if numeric and not by_value and len(set(numbers.values())) > MAX_VALUES:
        labels = _ranges(numbers)
    else:
        labels = {one: values[one] for one in numbers}
    order = sorted(
        numbers, key=lambda one: (numbers[one] if numeric else 0.0, _natural_order(labels[one]))
    )
    place = {one: number for number, one in enumerate(values)}
    parts: dict[str, list[str]] = defaultdict(list)
    for one in order:
        parts[labels[one]].append(one)
    parts[EMPTY] = [one for one, value in values.items() if not value]
    return {label: sorted(part, key=place.__getitem__) for label, part in parts.items() if part}


def names_by_value(name: str) -> bool:
    """Whether what a column holds are names, also where they are written as numbers.

    Examples
    --------
    >>> names_by_value("speaker"), names_by_value("chapter_id"), names_by_value("snr")
    (True, True, False)
    """
    return name in SPEAKER_COLUMNS or re.search(r"(^|_)id$", name, re.IGNORECASE) is not None


def _speakers(ids: Mapping[str, int], pattern: str) -> dict[str, str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise BreakdownError(
            f"--speaker-pattern {pattern!r}: {error}, expected a regular expression"
        ) from None
    found = {one: compiled.search(one) for one in ids}
    speakers = {one: match[min(1, compiled.groups)] for one, match in found.items() if match}
    without = [one for one in ids if not speakers.get(one)]
    if without:
        raise BreakdownError(
            f"--speaker-pattern {pattern!r}: finds no speaker in {len(without)} of {len(ids)} ids: "
            f"{enumerate_some(without)}"
        )
    return speakers


def _natural_order(text: str) -> list[str | int]:
    # Text and numbers take turns, so that like is compared with like.
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", text)]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _ranges(numbers: Mapping[str, float]) -> dict[str, str]:
    values = np.array(list(numbers.values()))
    quantiles = np.quantile(values, np.arange(1, RANGES) / RANGES)
    edges = sorted({float(f"{edge:.2g}") for edge in quantiles})
    whole = bool((values == np.round(values)).all())
    if whole:
        edges = sorted({float(math.ceil(edge)) for edge in edges})
    # A rounded edge may lie outside of the values: nothing would be on one side of it.
    edges = [edge for edge in edges if values.min() < edge <= values.max()]
    if not edges:
        return dict.fromkeys(numbers, f"{values.min():g} to {values.max():g}")
    if whole:
        ends = zip(
            [values.min(), *edges], [*(edge - 1 for edge in edges), values.max()], strict=True
        )
        labels = [f"{a:.0f} to {b:.0f}" if a < b else f"{a:.0f}" for a, b in ends]
    else:
        between = [f"{a:g} to {b:g}" for a, b in pairwise(edges)]
        labels = [f"below {edges[0]:g}", *between, f"{edges[-1]:g} and more"]
    return {one: labels[int(np.digitize(number, edges))] for one, number in numbers.items()}
