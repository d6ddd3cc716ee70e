"""Rank a search's N-best hypotheses again by how they are pronounced."""

from __future__ import annotations

import math
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sru_asr.decode.result import Hypothesis
from sru_asr.decode.searcher import Rescorer
from sru_asr.lexicon import Lexicon
from sru_asr.padding import steps_of
from sru_asr.tokenizer import BLANK


class Decodes(Protocol):
    """A tokenizer, as sentencepiece's."""

    def decode(self, tokens: list[int]) -> str: ...


class PhoneRescorer(Rescorer):
    """Search with tokens, then choose among the N best hypotheses by CTC over phones too.

    Letters and sounds are two views of what was said, and their errors differ: where spelling is
    irregular or a word is rare, its phones are not. A hypothesis gets the searcher's score, plus
    the weighted CTC log probability of its phones::

        score + weight * log p_ctc(phones | encoded)

    A hypothesis with a word that the lexicon has not is ranked behind all others.

    Parameters
    ----------
    searcher : Module
        With ``nbest(encoded, lengths) -> list of list of Hypothesis``, ranked by sums of log
        probabilities.
    phone_output : Module
        Linear layer from encoded frames to phones, trained with the lexicon
        (`sru_asr.model.SpeechRecognizer`).
    lexicon : Lexicon
        Phones of the words. It may be loaded later.
    tokenizer : sentencepiece.SentencePieceProcessor
        Turns tokens into words.
    weight : float
        Of the phones, at least 0.

    Raises
    ------
    TypeError
        When the searcher has no N-best list.
    ValueError
        When the searcher ranks by means over tokens, which is another scale, or the weight is
        negative.

    Examples
    --------
    >>> import tempfile, torch
    >>> from sru_asr.decode import PhoneRescorer
    >>> from sru_asr.decode.result import Hypothesis
    >>> from sru_asr.lexicon import Lexicon
    >>> path = f"{tempfile.mkdtemp()}/lexicon.txt"
    >>> _ = open(path, "w").write("TEN  T EH N\\nNO  N OW\\n")
    >>> class Searcher(torch.nn.Module):
    ...     def nbest(self, encoded, lengths):
    ...         return [[Hypothesis((5, 3), -1.0, {}), Hypothesis((4,), -1.5, {})]]
    >>> class Tokenizer:
    ...     def decode(self, tokens):
    ...         return {3: "NON", 2: "TEN"}[len(tokens) + 1]
    >>> lexicon = Lexicon(path)
    >>> rescorer = PhoneRescorer(Searcher(), torch.nn.Linear(8, lexicon.size), lexicon, Tokenizer())
    >>> rescorer(torch.randn(1, 9, 8), torch.ones(1)).tokens  # NON is no word
    [[4]]
    """

    def __init__(
        self,
        searcher: nn.Module,
        phone_output: nn.Module,
        lexicon: Lexicon,
        tokenizer: Decodes,
        weight: float = 0.3,
    ) -> None:
        super().__init__(searcher)
        if not 0 <= weight < math.inf:
            raise ValueError(f"weight must be at least 0, got {weight}")
        self.phone_output = phone_output
        self.lexicon = lexicon
        self.tokenizer = tokenizer
        self.weight = weight

    def rescore(
        self, found: list[list[Hypothesis]], encoded: Tensor, lengths: Tensor
    ) -> list[list[Hypothesis]]:
        """Add the phones; ``parts`` gains "phones", minus infinity for what has none."""
        log_probs = self.phone_output(encoded).float().log_softmax(-1)
        steps = steps_of(lengths.to(encoded.device), *encoded.shape[:2])
        assert steps is not None
        return [
            self._add_phones(hypotheses, frames[:count])
            for hypotheses, frames, count in zip(found, log_probs, steps.tolist(), strict=True)
        ]

    def _add_phones(self, hypotheses: list[Hypothesis], log_probs: Tensor) -> list[Hypothesis]:
        scores = self._pronunciations([self._phones(h.tokens) for h in hypotheses], log_probs)
        return [
            Hypothesis(
                h.tokens,
                # Of weight 0 is what does not count, even what cannot be pronounced.
                h.score + (self.weight and self.weight * score),
                {**h.parts, "phones": score},
            )
            for h, score in zip(hypotheses, scores, strict=True)
        ]

    def _phones(self, tokens: tuple[int, ...]) -> list[int] | None:
        text = self.tokenizer.decode(list(tokens))
        known = all(word in self.lexicon for word in text.split())
        return self.lexicon.encode(text) if known else None

    @staticmethod
    def _pronunciations(phones: list[list[int] | None], log_probs: Tensor) -> list[float]:
        """CTC log probabilities, of all hypotheses side by side."""
        if not len(log_probs):  # nothing was said, and nothing is found
            return [0.0] * len(phones)
        known = [i for i, each in enumerate(phones) if each is not None]
        scores = [-math.inf] * len(phones)
        if not known:
            return scores
        targets = [torch.tensor(phones[i], dtype=torch.long) for i in known]
        losses = F.ctc_loss(
            log_probs[:, None].expand(-1, len(known), -1),
            nn.utils.rnn.pad_sequence(targets, batch_first=True).to(log_probs.device),
            torch.full((len(known),), len(log_probs)),
            torch.tensor([len(target) for target in targets]),
            blank=BLANK,
            reduction="none",
        )
        for i, loss in zip(known, losses.tolist(), strict=True):
            scores[i] = -loss
        return scores
