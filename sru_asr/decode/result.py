"""What the searches return."""

from __future__ import annotations

from typing import NamedTuple


class Hypothesis(NamedTuple):
    """One hypothesis of a search.

    Attributes
    ----------
    tokens : tuple of int
        Without the tokens that begin and end a sentence.
    score : float
        What the search ranks by: larger is better.
    parts : dict of str to float
        Natural log probabilities by source, before weighting: "attention", "ctc", "lm".
    """

    tokens: tuple[int, ...]
    score: float
    parts: dict[str, float]


class SearchResult(NamedTuple):
    """The best hypothesis of each sequence of a batch.

    Four fields because SpeechBrain's inference classes unpack four and use the first.

    Attributes
    ----------
    tokens : list of list of int
        Without the tokens that begin and end a sentence.
    lengths : list of int
        Numbers of tokens.
    scores : list of float
        As `Hypothesis.score`.
    parts : list of dict of str to float
        As `Hypothesis.parts`.
    """

    tokens: list[list[int]]
    lengths: list[int]
    scores: list[float]
    parts: list[dict[str, float]]

    @classmethod
    def of(cls, nbest: list[list[Hypothesis]]) -> SearchResult:
        """Take the first of each N-best list."""
        best = [hypotheses[0] for hypotheses in nbest]
        return cls(
            [list(h.tokens) for h in best],
            [len(h.tokens) for h in best],
            [h.score for h in best],
            [h.parts for h in best],
        )
