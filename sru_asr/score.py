"""The word error rate of a set of utterances, counted by jiwer, with its uncertainty."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, TextIO

import jiwer
import numpy as np
import numpy.typing as npt

from sru_asr.bootstrap import resample_sums
from sru_asr.files import write_atomically
from sru_asr.text import Normalizer, preset
from sru_asr.transcripts import TranscriptError, enumerate_some

Words = str | Sequence[str]

_OPERATIONS = {"equal": "=", "substitute": "S", "delete": "D", "insert": "I"}


@dataclass(frozen=True)
class UtteranceScore:
    """How one hypothesis agrees with its reference.

    Attributes
    ----------
    id : str
        Name of the utterance.
    reference, hypothesis : str
        What was said and what was recognised, normalised, words separated by single spaces.
    operations : str
        The alignment, a letter for each of its places from left to right: ``=`` the next word of
        both sides, which is the same; ``S`` the next word of both sides, a substitution; ``D`` the
        next word of the reference alone; ``I`` the next word of the hypothesis alone.
    characters, character_errors : int
        Of the reference with single spaces, and the distance to it.

    Examples
    --------
    >>> row = UtteranceScore("utt-1", "go north now", "so north", "S=D", 12, 5)
    >>> row.words, row.errors, row.substitutions, row.deletions, row.insertions
    (3, 2, 1, 1, 0)
    """

    id: str
    reference: str
    hypothesis: str
    operations: str
    characters: int
    character_errors: int

    @property
    def words(self) -> int:
        """Words in the reference."""
        return len(self.operations) - self.insertions

    @property
    def errors(self) -> int:
        """Substitutions, deletions and insertions."""
        return len(self.operations) - self.operations.count("=")

    @property
    def substitutions(self) -> int:
        """Words that were taken for another."""
        return self.operations.count("S")

    @property
    def deletions(self) -> int:
        """Words of the reference that are missing."""
        return self.operations.count("D")

    @property
    def insertions(self) -> int:
        """Words that nobody said."""
        return self.operations.count("I")


@dataclass(frozen=True)
class Score:
    """How well a hypothesis agrees with its reference; all rates in percent.

    Attributes
    ----------
    wer : float
        Word error rate, all errors of the set over all its reference words.
    words : int
        Words in the reference.
    substitutions, deletions, insertions : int
        Word errors by kind.
    ci95 : (float, float)
        95 % interval of the word error rate, by resampling utterances.
    cer : float
        Character error rate, spaces between words included.
    utterances : int
        Utterances in the set.

    Examples
    --------
    >>> print(Score(25.0, 4, 1, 0, 0, (0.0, 50.0), 10.0, 2))
    WER 25.00 % [0.00, 50.00], 1 S + 0 D + 0 I in 4 words, CER 10.00 %, 2 utterances
    """

    wer: float
    words: int
    substitutions: int
    deletions: int
    insertions: int
    ci95: tuple[float, float]
    cer: float
    utterances: int

    def to_json(self, path: str | os.PathLike[str], **extra: Any) -> None:
        """Write the score as JSON, all or nothing.

        Parameters
        ----------
        path : path
            The file to write, usually ``score_<split>.json``.
        **extra
            How the score came about: ``decoder``, ``seed`` and ``parameters``, null by default.
        """
        origin = {"decoder": None, "seed": None, "parameters": None}
        write_atomically(path, json.dumps(asdict(self) | origin | extra, indent=2) + "\n")

    def __str__(self) -> str:
        low, high = self.ci95
        return (
            f"WER {self.wer:.2f} % [{low:.2f}, {high:.2f}], {self.substitutions} S + "
            f"{self.deletions} D + {self.insertions} I in {self.words} words, "
            f"CER {self.cer:.2f} %, {self.utterances} utterances"
        )


class WordErrorRate:
    """Collect hypotheses and references, then score them all at once.

    Stands in for SpeechBrain's ``ErrorRateStats``: fill it batch by batch with `append`, then call
    `summarize` and `write_stats`.

    Parameters
    ----------
    normalization : Normalizer or str
        Applied to both sides; a `sru_asr.text.Normalization` for example, or the name of a preset.
    bootstrap : int
        Resamples for the interval, at least 100. The interval is the same in every run.
    allow_empty_reference : bool
        By default a reference without words is an error. If True, it adds no words, and every
        word of its hypothesis is an insertion.

    Examples
    --------
    >>> metric = WordErrorRate("basic")
    >>> metric.append(["utt-1", "utt-2"], ["go forth", "stop"], ["Go north!", "Stop."])
    >>> score = metric.summarize()
    >>> score.substitutions, score.words
    (1, 3)
    >>> round(metric.summarize("wer"), 2)
    33.33
    """

    def __init__(
        self,
        normalization: Normalizer | str = "none",
        bootstrap: int = 2000,
        allow_empty_reference: bool = False,
    ) -> None:
        if isinstance(normalization, str):
            normalization = preset(normalization)
        if bootstrap < 100:
            raise ValueError(f"bootstrap must be at least 100, not {bootstrap}")
        self.normalization = normalization
        self.bootstrap = bootstrap
        self.allow_empty_reference = allow_empty_reference
        self.clear()

    def clear(self) -> None:
        """Forget all utterances."""
        self._pairs: dict[str, tuple[str, str]] = {}
        self._scored: list[UtteranceScore] | None = None

    def append(self, ids: Sequence[str], predict: Sequence[Words], target: Sequence[Words]) -> None:
        """Add a batch of utterances.

        Parameters
        ----------
        ids : list of str
            Names of the utterances; a name that is already there is an error.
        predict, target : list of str, or list of lists of words
            Hypotheses and references.
        """
        if not len(ids) == len(predict) == len(target):
            raise ValueError(
                f"{len(ids)} ids, {len(predict)} hypotheses and {len(target)} references "
                f"are not of one length"
            )
        seen = Counter(ids)
        twice = [name for name in seen if seen[name] > 1 or name in self._pairs]
        if twice:
            raise TranscriptError(f"{len(twice)} duplicate ids: {enumerate_some(twice)}")
        self._scored = None
        for name, hypothesis, reference in zip(ids, predict, target, strict=True):
            self._pairs[name] = self._text(reference), self._text(hypothesis)

    def summarize(self, field: str | None = None) -> Any:
        """Score everything appended so far.

        Parameters
        ----------
        field : str, optional
            Return only this attribute of the score; "error_rate" and "WER", SpeechBrain's names,
            stand for "wer".

        Returns
        -------
        Score or number
        """
        score = score_utterances(self.utterances(), self.bootstrap)
        if field is None:
            return score
        return getattr(score, {"error_rate": "wer", "WER": "wer"}.get(field, field))

    def utterances(self) -> list[UtteranceScore]:
        """Align everything appended so far, utterance by utterance.

        Raises
        ------
        TranscriptError
            For references without words, unless they are allowed; for none with words always.
        """
        if self._scored is None:
            words, characters = self._align(), jiwer.process_characters(*self._sides())
            self._scored = [
                UtteranceScore(
                    name,
                    *texts,
                    "".join(_OPERATIONS[chunk.type] * _length(chunk) for chunk in word_chunks),
                    len(reference),
                    sum(_length(chunk) for chunk in chunks if chunk.type != "equal"),
                )
                for (name, texts), word_chunks, reference, chunks in zip(
                    self._pairs.items(),
                    words.alignments,
                    characters.references,
                    characters.alignments,
                    strict=True,
                )
            ]
        return self._scored

    def write_stats(self, file: str | os.PathLike[str] | TextIO) -> None:
        """Write the score and the alignment of every utterance that has an error.

        Parameters
        ----------
        file : path or text stream
            A path is written all or nothing.
        """
        output = self._align()
        score = score_utterances(self.utterances(), self.bootstrap)
        names = list(self._pairs)
        alignments = re.sub(
            r"^=== SENTENCE (\d+) ===$",
            lambda found: names[int(found[1]) - 1],
            jiwer.visualize_alignment(output, show_measures=False),
            flags=re.MULTILINE,
        )
        content = (
            f"{score}\nnormalisation: {self.normalization}\n\n"
            f"{alignments}\n{jiwer.visualize_error_counts(output, top_k=20)}\n"
        )
        if isinstance(file, str | os.PathLike):
            write_atomically(file, content)
        else:
            file.write(content)

    def write_csv(self, file: str | os.PathLike[str]) -> None:
        """Write a row for every utterance: what was said, what was recognised, and the errors.

        Parameters
        ----------
        file : path
            Written all or nothing; columns ``ID, words, errors, substitutions, deletions,
            insertions, reference, hypothesis``.
        """
        table = io.StringIO()
        rows = csv.writer(table, lineterminator="\n")
        rows.writerow(UTTERANCE_COLUMNS)
        rows.writerows(utterance_row(utterance) for utterance in self.utterances())
        write_atomically(file, table.getvalue())

    def _text(self, words: Words) -> str:
        return self.normalization(words if isinstance(words, str) else " ".join(words))

    def _align(self) -> jiwer.WordOutput:
        silent = [name for name, (reference, _) in self._pairs.items() if not reference]
        if silent and not self.allow_empty_reference:
            raise TranscriptError(
                f"{len(silent)} references without words (normalisation: {self.normalization}): "
                f"{enumerate_some(silent)}; expected words, or --allow-empty-reference to count "
                "what was recognised as insertions"
            )
        if len(silent) == len(self._pairs):
            raise TranscriptError("no reference words to score")
        return jiwer.process_words(*self._sides())

    def _sides(self) -> tuple[list[str], list[str]]:
        references, hypotheses = zip(*self._pairs.values(), strict=True)
        return list(references), list(hypotheses)


UTTERANCE_COLUMNS = (
    *("ID", "words", "errors", "substitutions", "deletions", "insertions"),
    *("reference", "hypothesis"),
)


def utterance_row(utterance: UtteranceScore) -> list[str | int]:
    """The cells of an utterance under `UTTERANCE_COLUMNS`."""
    return [
        *(utterance.id, utterance.words, utterance.errors),
        *(utterance.substitutions, utterance.deletions, utterance.insertions),
        *(utterance.reference, utterance.hypothesis),
    ]


def score_utterances(utterances: Sequence[UtteranceScore], resamples: int = 2000) -> Score:
    """Sum up what was counted for each utterance.

    Parameters
    ----------
    utterances : sequence of UtteranceScore
        The set, or a part of it.
    resamples : int
        Draws of the bootstrap.

    Raises
    ------
    TranscriptError
        When there is no word in the references.

    Examples
    --------
    >>> rows = [UtteranceScore("a", "go north", "go forth", "=S", 8, 2)]
    >>> score_utterances(rows).wer
    50.0
    """
    words = [utterance.words for utterance in utterances]
    if not sum(words):
        raise TranscriptError("no reference words to score")
    errors = [utterance.errors for utterance in utterances]
    characters = sum(utterance.characters for utterance in utterances)
    wrong = sum(utterance.character_errors for utterance in utterances)
    return Score(
        wer=100 * (sum(errors) / sum(words)),
        words=sum(words),
        substitutions=sum(utterance.substitutions for utterance in utterances),
        deletions=sum(utterance.deletions for utterance in utterances),
        insertions=sum(utterance.insertions for utterance in utterances),
        ci95=bootstrap_interval(errors, words, resamples),
        cer=100 * (wrong / characters),
        utterances=len(utterances),
    )


def bootstrap_interval(
    errors: npt.ArrayLike, words: npt.ArrayLike, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of an error rate, in percent, by resampling utterances.

    Every resample draws as many utterances as there are, with replacement, and divides the sum of
    their errors by the sum of their words; the interval holds the middle 95 % of these rates.

    Parameters
    ----------
    errors, words : array of int, shape (utterances,)
        Errors and reference words of each utterance.
    resamples : int
        Number of resamples; one without any words is left out.
    seed : int
        Seed of the draws.

    Examples
    --------
    >>> bootstrap_interval([1, 1, 1], [4, 4, 4])
    (25.0, 25.0)
    >>> low, high = bootstrap_interval([0, 1] * 50, [10] * 100)
    >>> 3.9 < low < 4.2 and 5.8 < high < 6.1
    True
    """
    sums = resample_sums(np.stack([errors, words], axis=-1), resamples, seed)
    some = sums[:, 1] > 0
    low, high = 100 * np.percentile(sums[some, 0] / sums[some, 1], [2.5, 97.5])
    return float(low), float(high)


def _length(chunk: jiwer.AlignmentChunk) -> int:
    # An insertion has no reference and a deletion no hypothesis; else both sides are as long.
    return max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)
