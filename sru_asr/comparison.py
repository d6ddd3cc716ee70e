"""Whether one recogniser makes fewer errors than another: a paired bootstrap over utterances."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

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

    def __str__(self) -> str:
        low, high = self.ci95
        return (
            f"{self.wer:.2f} % against {self.other_wer:.2f} %: difference "
            f"{self.wer - self.other_wer:+.2f} [{low:+.2f}, {high:+.2f}], p = {self.p_value:.4f}, "
            f"{self.utterances} utterances"
        )


def compare(
    runs: Sequence[StrPath], others: Sequence[StrPath], resamples: int = 10000, seed: int = 0
) -> Comparison:
    """Compare two systems, each by one or several runs (seeds), on the same utterances.

    Every resample draws utterances with replacement, for both systems the same, and with an
    utterance all its runs; Bisani and Ney, "Bootstrap estimates for confidence intervals in ASR
    performance evaluation", ICASSP 2004.

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
    count = np.array([rows[0][name][0] for name in names])
    errors = np.array([[row[name][1] for name in names] for row in rows])
    first, second = errors[: len(runs)].mean(axis=0), errors[len(runs) :].mean(axis=0)
    generator = np.random.default_rng(seed)
    differences: npt.NDArray[np.float64] = np.empty(resamples)
    for i in range(resamples):
        drawn = generator.integers(len(names), size=len(names))
        words_drawn = max(1, count[drawn].sum())
        differences[i] = 100 * (first[drawn].sum() - second[drawn].sum()) / words_drawn
    below = min(float((differences <= 0).mean()), float((differences >= 0).mean()))
    low, high = np.percentile(differences, [2.5, 97.5])
    return Comparison(
        wer=float(100 * first.sum() / count.sum()),
        other_wer=float(100 * second.sum() / count.sum()),
        ci95=(float(low), float(high)),
        p_value=min(1.0, max(2 * below, 2 / resamples)),
        utterances=len(names),
    )


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
