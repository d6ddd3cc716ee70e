"""What every search is: encoded frames in, hypotheses out, whatever the batch."""

from __future__ import annotations

from abc import ABC, abstractmethod

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
