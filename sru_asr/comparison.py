"""Whether one recogniser makes fewer errors than another: a paired bootstrap over utterances."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from sru_asr.bootstrap import resample_sums

StrPath = str | os.PathLike[str]


@dataclass(frozen=True)
class Comparison:
    """Word error rates of two systems on the same utterances, in percent.

    Attributes
    ----------
    wer, other_wer : float
        Of the first and the second system, all runs pooled.
    ci95 : (float, float)
        95 % interval of ``wer - other_wer``.
    p_value : float
        Two-sided: how often a difference so far from 0 would be found were there none.
    utterances : int
        Distinct utterances.
    """

    wer: float
    other_wer: float
    ci95: tuple[float, float]
    p_value: float
    utterances: int

    @property
    def difference(self) -> float:
        """Of the two rates; negative where the first system makes fewer errors."""
        return self.wer - self.other_wer

    def __str__(self) -> str:
        low, high = self.ci95
        return (
            f"{self.wer:.2f} % against {self.other_wer:.2f} %: difference "
            f"{self.difference:+.2f} [{low:+.2f}, {high:+.2f}], p = {self.p_value:.4f}, "
            f"{self.utterances} utterances"
        )


def compare(
    runs: Sequence[StrPath], others: Sequence[StrPath], resamples: int = 10000, seed: int = 0
) -> Comparison:
    """Compare two systems, each by one or several runs (seeds), on the same utterances.

    Every resample draws utterances with replacement, for both systems the same, and with an
    utterance all its runs (`compare_errors`).

    Parameters
    ----------
    runs, others : sequence of path
        ``utterances_<split>.csv`` of each run (`sru_asr.score.WordErrorRate.write_csv`).
    resamples : int
        Number of resamples; no p value is smaller than two divided by it.
    seed : int
        Seed of the draws.

    Raises
    ------
    ValueError
        When runs were not scored on the same utterances and references.
    """
    rows = [read_errors(path) for path in [*runs, *others]]
    if not runs or not others:
        raise ValueError("expected at least one run of either system")
    names = list(rows[0])
    for path, row in zip([*runs, *others], rows, strict=True):
        words = {name: count for name, (count, _) in row.items()}
        if words != {name: count for name, (count, _) in rows[0].items()}:
            raise ValueError(f"{path} and {runs[0]} do not hold the same utterances and words")
    count = [rows[0][name][0] for name in names]
    errors = np.array([[row[name][1] for name in names] for row in rows])
    pooled = [errors[: len(runs)].mean(axis=0), errors[len(runs) :].mean(axis=0)]
    return compare_errors(count, pooled, resamples, seed)[0, 1]


def compare_errors(
    words: npt.ArrayLike, errors: npt.ArrayLike, resamples: int = 10000, seed: int = 0
) -> dict[tuple[int, int], Comparison]:
    """Compare every two of several systems on the same utterances.

    Every resample draws as many utterances as there are, with replacement, the same for all
    systems, and takes the difference of the two rates on what was drawn; the interval holds the
    middle 95 % of these differences. The p value is twice the smaller of two shares, of resamples
    whose difference is 0 or less and of those whose difference is 0 or more; it is at most 1 and at
    least two divided by the number of resamples. Bisani and Ney, "Bootstrap estimates for
    confidence intervals in ASR performance evaluation", ICASSP 2004.

    Parameters
    ----------
    words : array of int, shape (utterances,)
        Reference words of each utterance.
    errors : array, shape (systems, utterances)
        Errors of each system; means where a system is several runs.
    resamples : int
        Number of resamples; no p value is smaller than two divided by it.
    seed : int
        Seed of the draws.

    Returns
    -------
    dict of (int, int) to Comparison
        For each pair of systems, the first before the second.

    Examples
    --------
    >>> worse, better = [1, 2, 1, 0] * 10, [0, 1, 0, 0] * 10
    >>> print(compare_errors([8] * 40, [worse, better], resamples=500)[0, 1])
    12.50 % against 3.12 %: difference +9.38 [+7.65, +10.94], p = 0.0040, 40 utterances
    """
    words, errors = np.asarray(words), np.asarray(errors)
    sums = resample_sums(np.column_stack([words, errors.T]), resamples, seed)
    drawn_words, drawn = np.maximum(1, sums[:, :1]), sums[:, 1:]
    rates = 100 * errors.sum(axis=1) / words.sum()
    found = {}
    for first, second in combinations(range(len(errors)), 2):
        # Rounded, because means of runs that are equal in sum may differ in their last bit.
        more = np.round(drawn[:, first] - drawn[:, second], 9)
        share = min(float((more <= 0).mean()), float((more >= 0).mean()))
        low, high = np.percentile(100 * more / drawn_words[:, 0], [2.5, 97.5])
        found[first, second] = Comparison(
            wer=float(rates[first]),
            other_wer=float(rates[second]),
            ci95=(float(low), float(high)),
            p_value=min(1.0, max(2 * share, 2 / resamples)),
            utterances=len(words),
        )
    return found


def read_errors(path: StrPath) -> dict[str, tuple[int, int]]:
    """Read words and errors of each utterance from an ``utterances_<split>.csv``.

    Raises
    ------
    ValueError
        When the file has no such columns or no rows.
    """
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if not {"ID", "words", "errors"} <= set(reader.fieldnames or ()):
            raise ValueError(
                f"{path}: found columns {', '.join(reader.fieldnames or ())}, expected ID, words, "
                "errors among them (utterances_<split>.csv of a run)"
            )
        rows = {row["ID"]: (int(row["words"]), int(row["errors"])) for row in reader}
    if not rows:
        raise ValueError(f"{path}: found no utterances")
    return rows
