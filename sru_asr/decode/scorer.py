"""What every search asks of a language model: the next token's probabilities, step by step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn


class TokenScorer(nn.Module, ABC):
    """A language model over tokens, scored incrementally for many hypotheses at once.

    A hypothesis starts with the beginning-of-sentence token and ends with the end-of-sentence
    token; a search keeps one row of the state for each of its hypotheses::

        state = scorer.initial(n, device)
        log_probs, state = scorer.score(bos, state)          # bos (n,), log_probs (n, V)
        state = scorer.select(state, survivors)              # rows of the hypotheses that go on
        log_probs, state = scorer.score(chosen, state)

    So the whole prefix is never computed again.
    """

    @abstractmethod
    def initial(self, size: int, device: Any = None) -> Any:
        """Make the state of ``size`` hypotheses that have no token yet."""

    @abstractmethod
    def score(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Append a token to each hypothesis and score what may follow.

        Parameters
        ----------
        tokens : integer Tensor, shape (n,)
            The last token of each hypothesis.
        state : object
            From `initial`, `score` or `select`; it is not changed.

        Returns
        -------
        log_probs : Tensor, shape (n, V)
            Natural logarithms of the next token's probabilities, the end of the sentence included.
        state : object
        """

    @abstractmethod
    def select(self, state: Any, rows: Tensor) -> Any:
        """Take rows of the state, in any order, each as often as wanted.

        Parameters
        ----------
        state : object
            Of n hypotheses.
        rows : integer Tensor, shape (m,)
            Row numbers, 0 to n - 1.
        """
