"""What every search is: encoded frames in, hypotheses out, whatever the batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from sru_asr.decode.result import Hypothesis, SearchResult


class Searcher(nn.Module, ABC):
    """A search over encoded frames, whose result for a sequence does not depend on its batch.

    A YAML names it as ``search`` or among ``searches``, and a model folder as its ``decoder``.
    """

    @abstractmethod
    def nbest(self, encoded: Tensor, lengths: Tensor) -> list[list[Hypothesis]]:
        """Find the best hypotheses of each sequence.

        Parameters
        ----------
        encoded : Tensor, shape (B, T, D)
            Encoder output; what stands in the padding has no effect.
        lengths : Tensor, shape (B,)
            Relative lengths, 0 to 1.

        Returns
        -------
        list of list of Hypothesis
            For each sequence at least one, best first.
        """

    def forward(self, encoded: Tensor, lengths: Tensor) -> SearchResult:
        """Find the best hypothesis of each sequence; see `nbest`."""
        return SearchResult.of(self.nbest(encoded, lengths))


class Rescorer(Searcher):
    """A search around a search: it ranks the other's N best hypotheses anew.

    Parameters
    ----------
    searcher : Module
        With ``nbest(encoded, lengths) -> list of list of Hypothesis``, ranked by sums of log
        probabilities.

    Raises
    ------
    TypeError
        When the searcher has no N-best list.
    ValueError
        When it ranks by means over tokens, which is another scale.
    """

    def __init__(self, searcher: nn.Module) -> None:
        super().__init__()
        if not callable(getattr(searcher, "nbest", None)):
            raise TypeError(
                f"searcher must have a method nbest, got {type(searcher).__name__} without one"
            )
        if getattr(searcher, "length_normalization", False):
            raise ValueError("searcher must have length_normalization False: sums can be added to")
        self.searcher = searcher

    @abstractmethod
    def rescore(
        self, found: list[list[Hypothesis]], encoded: Tensor, lengths: Tensor
    ) -> list[list[Hypothesis]]:
        """Give the hypotheses of each sequence other scores, in the same order."""

    @torch.no_grad()
    def nbest(self, encoded: Tensor, lengths: Tensor) -> list[list[Hypothesis]]:
        """See `Searcher.nbest`; of equals, what the searcher had first."""
        searcher: Any = self.searcher
        rescored = self.rescore(searcher.nbest(encoded, lengths), encoded, lengths)
        return [sorted(each, key=lambda hypothesis: -hypothesis.score) for each in rescored]
