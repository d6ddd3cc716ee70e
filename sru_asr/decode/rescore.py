"""Rank a search's N-best hypotheses again with language models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sru_asr.decode.result import Hypothesis
from sru_asr.decode.scorer import TokenScorer
from sru_asr.decode.searcher import Rescorer
from sru_asr.tokenizer import BOS, EOS


def sentence_log_probs(
    scorer: TokenScorer, sentences: Sequence[Sequence[int]], device: torch.device | None = None
) -> Tensor:
    """Score whole sentences, all of them side by side.

    Parameters
    ----------
    scorer : TokenScorer
        The language model.
    sentences : sequence of sequence of int
        Tokens without those that begin and end a sentence.
    device : torch.device, optional
        Where the scorer computes.

    Returns
    -------
    Tensor, shape (len(sentences),)
        Natural logarithms of the sentences' probabilities, the end of the sentence included.

    Raises
    ------
    ValueError
        When a sentence has a token that the scorer does not know.

    Examples
    --------
    >>> import torch
    >>> from sru_asr.decode import SRULanguageModel
    >>> from sru_asr.decode.rescore import sentence_log_probs
    >>> model = SRULanguageModel(9, 4, 4, num_layers=1, projection_size=4).eval()
    >>> sentence_log_probs(model, [(5, 3), ()]).shape
    torch.Size([2])
    """
    totals = torch.zeros(len(sentences), device=device, dtype=torch.float64)
    if not sentences:
        return totals
    lengths = torch.tensor([len(sentence) for sentence in sentences], device=device)
    targets = torch.full((len(sentences), int(lengths.max()) + 1), EOS, device=device)
    for row, sentence in zip(targets, sentences, strict=True):
        row[: len(sentence)] = torch.tensor(sentence, dtype=torch.long, device=device)
    alive = torch.arange(len(sentences), device=device)
    last = torch.full_like(alive, BOS)
    state = scorer.initial(len(sentences), device)
    for step in range(targets.shape[1]):
        log_probs, state = scorer.score(last, state)
        if step == 0 and int(targets.max()) >= log_probs.shape[-1]:
            raise ValueError(
                f"found token {int(targets.max())} in a hypothesis, but the language model has "
                f"{log_probs.shape[-1]} tokens: it must share the recogniser's tokenizer"
            )
        last = targets[alive, step]
        totals[alive] += log_probs.gather(-1, last[:, None])[:, 0]
        go_on = (lengths[alive] > step).nonzero()[:, 0]
        if len(go_on) < len(alive):
            alive, last, state = alive[go_on], last[go_on], scorer.select(state, go_on)
    return totals


class NBestRescorer(Rescorer):
    """Search with one model, then choose among its N best hypotheses with language models too.

    A hypothesis gets the searcher's score, plus each language model's weighted log probability of
    the whole sentence with its end, plus a bonus for each token, which makes up for what a
    language model takes from longer sentences::

        score + sum(weight * log P(tokens, end)) + token_bonus * len(tokens)

    A searcher itself, it wraps any other and may be wrapped in its turn.

    Parameters
    ----------
    searcher : Module
        With ``nbest(encoded, lengths) -> list of list of Hypothesis``, ranked by sums of log
        probabilities.
    lm : TokenScorer, or mapping of str to TokenScorer
        One, called "lm", or several by name. They score the tokens of the searcher.
    weight : float, or mapping of str to float
        Weight of the one, or of each by name.
    token_bonus : float
        Added for each token of a hypothesis.

    Raises
    ------
    TypeError
        When the searcher has no N-best list, or something else is no language model.
    ValueError
        When the searcher ranks by means over tokens, which is another scale, or weights and
        language models have different names.

    Examples
    --------
    >>> import torch
    >>> from sru_asr.decode import NBestRescorer, SRULanguageModel
    >>> from sru_asr.decode.result import Hypothesis
    >>> class Searcher(torch.nn.Module):
    ...     def nbest(self, encoded, lengths):
    ...         return [[Hypothesis((5, 3), -1.0, {}), Hypothesis((5,), -1.5, {})]]
    >>> model = SRULanguageModel(9, 4, 4, num_layers=1, projection_size=4)
    >>> rescorer = NBestRescorer(Searcher(), model, weight=0.3, token_bonus=0.5).eval()
    >>> best, second = rescorer.nbest(torch.zeros(1, 7, 8), torch.ones(1))[0]
    >>> best.score > second.score, list(best.parts)
    (True, ['lm'])
    """

    def __init__(
        self,
        searcher: nn.Module,
        lm: TokenScorer | Mapping[str, TokenScorer],
        weight: float | Mapping[str, float],
        token_bonus: float = 0.0,
    ) -> None:
        super().__init__(searcher)
        models = lm if isinstance(lm, Mapping) else {"lm": lm}
        for name, model in models.items():
            if not isinstance(model, TokenScorer):
                raise TypeError(f"lm {name!r} must be a TokenScorer, got {type(model).__name__}")
        weights = weight if isinstance(weight, Mapping) else {"lm": weight}
        if weights.keys() != models.keys():
            raise ValueError(
                f"weight must name the language models {sorted(models)}, got {sorted(weights)}"
            )
        self.lms = nn.ModuleDict(models)
        self.weights = dict(weights)
        self.token_bonus = token_bonus

    def rescore(
        self, found: list[list[Hypothesis]], encoded: Tensor, lengths: Tensor
    ) -> list[list[Hypothesis]]:
        """Add the language models' log probabilities, which ``parts`` gains unweighted."""
        sentences = [hypothesis.tokens for hypotheses in found for hypothesis in hypotheses]
        columns: dict[str, Iterator[float]] = {}
        lms: Any = self.lms
        for name, model in lms.items():
            log_probs = sentence_log_probs(model, sentences, encoded.device)
            columns[name] = iter(log_probs.tolist())
        return [
            [
                self._rescore(hypothesis, {name: next(column) for name, column in columns.items()})
                for hypothesis in hypotheses
            ]
            for hypotheses in found
        ]

    def _rescore(self, hypothesis: Hypothesis, log_probs: dict[str, float]) -> Hypothesis:
        if taken := hypothesis.parts.keys() & log_probs.keys():
            raise ValueError(
                f"the searcher gave its hypotheses parts {sorted(taken)} itself; give "
                "lm and weight as mappings, with other names"
            )
        score = hypothesis.score + self.token_bonus * len(hypothesis.tokens)
        # Of weight 0 is what does not count, even where the model has it for impossible.
        score += sum(w * log_probs[name] for name, w in self.weights.items() if w)
        return Hypothesis(hypothesis.tokens, score, {**hypothesis.parts, **log_probs})
