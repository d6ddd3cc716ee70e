"""Several systems against one reference: their scores, whether they differ, and where."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sru_asr.comparison import Comparison, compare_errors
from sru_asr.files import write_atomically
from sru_asr.score import (
    UTTERANCE_COLUMNS,
    Score,
    UtteranceScore,
    score_utterances,
    utterance_row,
)


@dataclass(frozen=True)
class System:
    """What one system made of the reference.

    Attributes
    ----------
    name : str
        As it is called in tables.
    score : Score
        Of all utterances.
    utterances : list of UtteranceScore
        In the order of the reference, which is the same for all systems.
    """

    name: str
    score: Score
    utterances: list[UtteranceScore]

    @property
    def ser(self) -> float:
        """Sentence error rate: utterances with at least one wrong word, in percent."""
        return sentence_error_rate(self.utterances)


@dataclass(frozen=True)
class Group:
    """A part of the utterances.

    Attributes
    ----------
    label : str
        What the utterances have in common.
    ids : list of str
        Their names.
    scores : list of Score or None
        Of each system; None where the references have no word.
    sers : list of float
        Sentence error rates of each system.
    """

    label: str
    ids: list[str]
    scores: list[Score | None]
    sers: list[float]


@dataclass(frozen=True)
class Breakdown:
    """All utterances, divided by one thing.

    Attributes
    ----------
    name : str
        By what.
    groups : list of Group
        The parts, in the order in which to show them.
    """

    name: str
    groups: list[Group]


@dataclass(frozen=True)
class Evaluation:
    """Systems, each against the same reference.

    Attributes
    ----------
    systems : list of System
        In the order given.
    comparisons : dict of (int, int) to Comparison
        Of each pair of systems.
    breakdowns : list of Breakdown
        What was asked for.
    reference : str
        Where the reference was read.
    normalization : str
        What both sides went through.
    resamples : int
        Draws of every bootstrap; the seed is 0.
    """

    systems: list[System]
    comparisons: dict[tuple[int, int], Comparison]
    breakdowns: list[Breakdown]
    reference: str
    normalization: str
    resamples: int

    def as_dict(self) -> dict[str, Any]:
        """All but the utterances, as JSON can hold it.

        Returns
        -------
        dict
            ``reference``, ``normalization``, ``resamples``; ``systems``, each a `Score` with
            ``name`` and ``ser``; ``comparisons`` with ``first``, ``second``, ``difference``,
            ``ci95``, ``p_value``; ``breakdowns`` with ``name`` and ``groups``.
        """
        names = [system.name for system in self.systems]
        return {
            "reference": self.reference,
            "normalization": self.normalization,
            "resamples": self.resamples,
            "systems": [
                {"name": system.name, **asdict(system.score), "ser": system.ser}
                for system in self.systems
            ],
            "comparisons": [
                {
                    "first": names[first],
                    "second": names[second],
                    "difference": found.difference,
                    "ci95": found.ci95,
                    "p_value": found.p_value,
                }
                for (first, second), found in self.comparisons.items()
            ],
            "breakdowns": [self._breakdown(breakdown) for breakdown in self.breakdowns],
        }

    def _breakdown(self, breakdown: Breakdown) -> dict[str, Any]:
        groups = [
            {
                "label": group.label,
                "utterances": len(group.ids),
                "systems": [
                    {"name": system.name, **asdict(score), "ser": ser} if score else None
                    for system, score, ser in zip(
                        self.systems, group.scores, group.sers, strict=True
                    )
                ],
            }
            for group in breakdown.groups
        ]
        return {"name": breakdown.name, "groups": groups}

    def write_csv(self, path: str | os.PathLike[str]) -> None:
        """Write a row for each utterance; of several systems for each of them, named first.

        The columns of a single system are those of `sru_asr.score.WordErrorRate.write_csv`.
        """
        named = len(self.systems) > 1
        rows: list[Sequence[Any]] = [("system",) * named + UTTERANCE_COLUMNS]
        for system in self.systems:
            rows += [[system.name] * named + utterance_row(one) for one in system.utterances]
        _write_rows(path, rows)

    def write_breakdowns(self, path: str | os.PathLike[str]) -> None:
        """Write a CSV row for each group and system; rates are empty where there are no words."""
        header = ("by", "group", "system", "utterances", "words", "wer", "low", "high")
        counts = ("substitutions", "deletions", "insertions", "cer", "ser")
        rows: list[Sequence[Any]] = [header + counts]
        for breakdown in self.breakdowns:
            for group in breakdown.groups:
                for system, score, ser in zip(self.systems, group.scores, group.sers, strict=True):
                    row = [breakdown.name, group.label, system.name, len(group.ids)]
                    if score:
                        errors = [score.substitutions, score.deletions, score.insertions]
                        row += [score.words, score.wer, *score.ci95, *errors, score.cer, ser]
                    else:
                        row += [0, *[""] * 7, ser]
                    rows.append(row)
        _write_rows(path, rows)


def evaluate(
    systems: Mapping[str, list[UtteranceScore]],
    reference: str,
    normalization: str,
    parts: Mapping[str, Mapping[str, Sequence[str]]] | None = None,
    resamples: int = 2000,
) -> Evaluation:
    """Score several systems, compare every two of them, and score parts of the set.

    Parameters
    ----------
    systems : mapping of str to list of UtteranceScore
        By name, on the same utterances in the same order.
    reference, normalization : str
        Where the reference was read, and what both sides went through.
    parts : mapping of str to mapping of str to list of str, optional
        By what, then the ids under each label (`sru_asr.breakdown.divide`).
    resamples : int
        Draws of every bootstrap.

    Raises
    ------
    sru_asr.transcripts.TranscriptError
        When there is no word in the references.

    Examples
    --------
    >>> good = [UtteranceScore("a", "go on", "go on", "==", 5, 0)]
    >>> bad = [UtteranceScore("a", "go on", "go", "=D", 5, 3)]
    >>> found = evaluate({"good": good, "bad": bad}, "ref.txt", "single spaces")
    >>> [(system.name, system.score.wer, system.ser) for system in found.systems]
    [('good', 0.0, 0.0), ('bad', 50.0, 100.0)]
    >>> found.comparisons[0, 1].difference
    -50.0
    """
    scored = [
        System(name, score_utterances(utterances, resamples), utterances)
        for name, utterances in systems.items()
    ]
    words = [utterance.words for utterance in scored[0].utterances]
    errors = [[utterance.errors for utterance in system.utterances] for system in scored]
    by_id = [{utterance.id: utterance for utterance in system.utterances} for system in scored]

    def group(label: str, ids: Sequence[str]) -> Group:
        found = [[system[name] for name in ids] for system in by_id]
        some = any(utterance.words for utterance in found[0])
        scores = [score_utterances(one, resamples) if some else None for one in found]
        return Group(label, list(ids), scores, [sentence_error_rate(one) for one in found])

    return Evaluation(
        systems=scored,
        comparisons=compare_errors(words, errors, resamples) if len(scored) > 1 else {},
        breakdowns=[
            Breakdown(name, [group(label, ids) for label, ids in labels.items()])
            for name, labels in (parts or {}).items()
        ],
        reference=reference,
        normalization=normalization,
        resamples=resamples,
    )


def sentence_error_rate(utterances: Sequence[UtteranceScore]) -> float:
    """Utterances with at least one wrong word, in percent.

    Examples
    --------
    >>> rows = [UtteranceScore(name, "go", "go", "=", 2, 0) for name in "abc"]
    >>> sentence_error_rate([*rows, UtteranceScore("d", "go", "no", "S", 2, 1)])
    25.0
    """
    return 100 * sum(utterance.errors > 0 for utterance in utterances) / len(utterances)


def _write_rows(path: str | os.PathLike[str], rows: Sequence[Sequence[Any]]) -> None:
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows(rows)
    write_atomically(path, table.getvalue())
