"""Joint CTC/attention beam search with everything computed once: token by token, incrementally."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sru_asr.decode.ctc_prefix import CTCPrefixes
from sru_asr.decode.result import Hypothesis, SearchResult
from sru_asr.decode.scorer import TokenScorer
from sru_asr.decode.searcher import Searcher
from sru_asr.decode.transformer_decoder import (
    AttentionPrefixes,
    embedding_of,
    log_softmax,
    positions_of,
)
from sru_asr.padding import padding_mask, steps_of


class Prefixes(Protocol):
    """What scores the hypotheses of a search: K for each of B sequences, rows of (B, K)."""

    def score(self) -> Tensor:
        """Log probability of each hypothesis with each token, float64, (B, K, V)."""

    def extend(self, rows: Tensor, tokens: Tensor, sequences: Tensor | None = None) -> None:
        """Go on with these rows, each with one more token, both (B', K'), of these sequences."""


class JointBeamSearcher(Searcher):
    """Beam search with an attention decoder and CTC prefix scores in one beam.

    Hypotheses and scores are those of SpeechBrain's ``S2STransformerBeamSearcher`` with a
    ``CTCScorer`` among the ``full_scorers`` of its ``ScorerBuilder`` and
    ``using_eos_threshold=False`` (Hori et al., "Advances in joint CTC-attention based end-to-end
    speech recognition", 2017), but nothing is computed twice: the decoder runs one position at a
    time, encoder keys and values are made once, and CTC takes one matrix product and two
    cumulative sums a token. A hypothesis of tokens h is ranked by

        (1 - ctc_weight) log p_attention(h) + ctc_weight log p_ctc(h) + lm_weight log p_lm(h)

    divided by its length, the end counted, under ``length_normalization``; without that, plus
    ``token_bonus`` for each token. At each step the ``beam_size`` best extensions go on. A sequence
    is done when ``beam_size`` hypotheses have ended, or at ``max_decode_ratio`` times its own
    length; unfinished ones then make up the number. Where only the best is wanted, it is done as
    soon as no other can get better.

    There are three differences. Ratios count a sequence's own steps, so that results do not depend
    on the batch. An unfinished hypothesis keeps its last token and no hypothesis is listed twice.
    With ``ctc_weight=1`` scores are CTC's (SpeechBrain 1.1 then adds up all steps' scores).

    Parameters
    ----------
    transformer : TransformerASR
        SpeechBrain's, or `sru_asr.SRUTransformerASR`; its decoder is used.
    attention_output : Module
        Linear layer from decoder states to the vocabulary.
    ctc_output : Module
        Linear layer from encoder states to the vocabulary.
    beam_size : int
        Hypotheses that go on at each step.
    ctc_weight : float
        0 to 1; the attention decoder's is ``1 - ctc_weight``.
    lm : TokenScorer, optional
        Language model over the same tokens, for shallow fusion.
    lm_weight : float
        Its weight, at least 0.
    length_normalization : bool
        Rank by the mean over tokens rather than by the sum.
    token_bonus : float
        Added to the sum for each token, the end not counted, at least 0: makes up for what every
        further token takes. Not with ``length_normalization``.
    max_decode_ratio, min_decode_ratio : float
        Most tokens and fewest, the end counted, for each encoder step; never more than the decoder
        has positions for (``max_length`` of TransformerASR).
    temperature : float
        Divides the attention decoder's logits.
    bos_index, eos_index, blank_index : int
        Tokens that begin and end a sentence, and CTC's blank, which no hypothesis has.

    Raises
    ------
    TypeError, ValueError
        When an option is out of its range, or the decoder is not as SpeechBrain builds it.

    Examples
    --------
    >>> import torch, sru_asr
    >>> from speechbrain.nnet.linear import Linear
    >>> from sru_asr.decode import JointBeamSearcher
    >>> net = sru_asr.SRUTransformerASR(30, 80, d_model=64, nhead=4, num_encoder_layers=2,
    ...                                 num_decoder_layers=1, d_ffn=128).eval()
    >>> attention_output, ctc_output = (Linear(input_size=64, n_neurons=30) for _ in range(2))
    >>> searcher = JointBeamSearcher(net, attention_output, ctc_output, beam_size=4)
    >>> encoded = net.encode(torch.randn(2, 50, 80))
    >>> tokens, *_ = searcher(encoded, torch.tensor([1.0, 0.6]))
    >>> len(tokens)
    2
    """

    def __init__(
        self,
        transformer: nn.Module,
        attention_output: nn.Module,
        ctc_output: nn.Module,
        beam_size: int = 10,
        ctc_weight: float = 0.4,
        lm: TokenScorer | None = None,
        lm_weight: float = 0.0,
        length_normalization: bool = True,
        token_bonus: float = 0.0,
        max_decode_ratio: float = 1.0,
        min_decode_ratio: float = 0.0,
        temperature: float = 1.0,
        bos_index: int = 1,
        eos_index: int = 2,
        blank_index: int = 0,
    ) -> None:
        super().__init__()
        positions_of(transformer)
        if beam_size < 1:
            raise ValueError(f"beam_size must be at least 1, got {beam_size}")
        if not 0 <= ctc_weight <= 1:
            raise ValueError(f"ctc_weight must be between 0 and 1, got {ctc_weight}")
        if lm is not None and not isinstance(lm, TokenScorer):
            raise TypeError(f"lm must be a TokenScorer, got {type(lm).__name__}")
        if not 0 <= lm_weight < math.inf:
            raise ValueError(f"lm_weight must be at least 0, got {lm_weight}")
        if lm_weight and lm is None:
            raise ValueError(f"lm_weight is {lm_weight}, but there is no lm")
        if not 0 <= token_bonus < math.inf:
            raise ValueError(f"token_bonus must be at least 0, got {token_bonus}")
        if token_bonus and length_normalization:
            raise ValueError("token_bonus needs length_normalization False: it is added to sums")
        if not 0 <= min_decode_ratio <= max_decode_ratio < math.inf or not max_decode_ratio:
            raise ValueError(
                "min_decode_ratio and max_decode_ratio must be at least 0, in this order, and the "
                f"latter positive, got {min_decode_ratio} and {max_decode_ratio}"
            )
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature must be positive, got {temperature}")
        if len({bos_index, eos_index, blank_index}) < 3:
            raise ValueError(
                "bos_index, eos_index and blank_index must be three different tokens, got "
                f"{bos_index}, {eos_index} and {blank_index}"
            )
        vocabulary = embedding_of(transformer).num_embeddings
        if not all(0 <= index < vocabulary for index in (bos_index, eos_index, blank_index)):
            raise ValueError(
                f"bos_index, eos_index and blank_index must be between 0 and {vocabulary - 1}, "
                f"got {bos_index}, {eos_index} and {blank_index}"
            )
        self.transformer = transformer
        self.attention_output = attention_output
        self.ctc_output = ctc_output
        self.beam_size = beam_size
        self.ctc_weight = ctc_weight
        self.lm = lm
        self.lm_weight = lm_weight
        self.length_normalization = length_normalization
        self.token_bonus = token_bonus
        self.max_decode_ratio, self.min_decode_ratio = max_decode_ratio, min_decode_ratio
        self.temperature = temperature
        self.bos_index, self.eos_index, self.blank_index = bos_index, eos_index, blank_index

    def forward(self, encoded: Tensor, lengths: Tensor) -> SearchResult:
        """Find the best hypothesis of each sequence, and end as soon as no other can get better.

        A sequence of length 0 has an empty hypothesis with score 0.
        """
        return SearchResult.of(self._search(encoded, lengths, best_only=True))

    def nbest(self, encoded: Tensor, lengths: Tensor) -> list[list[Hypothesis]]:
        """See `Searcher.nbest`: up to ``beam_size`` hypotheses of each sequence.

        Their ``parts`` have the sources whose weight is not 0: "attention", "ctc", "lm".
        """
        return self._search(encoded, lengths, best_only=False)

    @torch.inference_mode()
    def _search(self, encoded: Tensor, lengths: Tensor, best_only: bool) -> list[list[Hypothesis]]:
        if encoded.dim() != 3:
            raise ValueError(f"encoded must have shape (B, T, D), got {tuple(encoded.shape)}")
        device = encoded.device
        steps = steps_of(lengths.to(device), *encoded.shape[:2])
        assert steps is not None
        every = [self._begin(i, count) for i, count in enumerate(steps.tolist())]
        running = [sequence for sequence in every if not sequence.ended]
        sources: dict[str, Prefixes] = {}
        if running:
            chosen = torch.tensor([sequence.number for sequence in running], device=device)
            sources = self._sources(encoded[chosen], steps[chosen])
        weights = torch.tensor(list(self._weights.values()), dtype=torch.float64, device=device)
        least = torch.tensor([sequence.least for sequence in running], device=device)
        dead = torch.zeros(len(running), 1, dtype=torch.bool, device=device)
        step = 0
        while running:
            step += 1
            parts = _stack({name: source.score() for name, source in sources.items()})
            scores = (weights @ parts.flatten(1)).view(parts.shape[1:])  # (B, K, V)
            scores.masked_fill_(dead[:, :, None], -torch.inf)
            scores[:, :, self.blank_index] = -torch.inf
            if self.min_decode_ratio:
                scores[:, :, self.eos_index].masked_fill_((least >= step)[:, None], -torch.inf)
            size, beams, vocabulary = scores.shape
            best, extensions = scores.flatten(1).topk(min(self.beam_size, beams * vocabulary))
            parts = parts.flatten(2).gather(2, extensions.expand(len(parts), -1, -1))
            rows, tokens = extensions // vocabulary, extensions % vocabulary
            # The one transfer of a step. Float64 holds the integers as they are.
            table = torch.cat([extensions[None], best[None], parts]).permute(1, 2, 0).tolist()
            go_on = [
                i
                for i, (sequence, lines) in enumerate(zip(running, table, strict=True))
                if self._advance(sequence, step, vocabulary, lines, best_only)
            ]
            dead = (tokens == self.eos_index) | best.isneginf()
            rows += torch.arange(0, size * beams, beams, device=device)[:, None]
            fewer = None
            if len(go_on) < len(running):
                running = [running[i] for i in go_on]
                fewer = torch.tensor(go_on, dtype=torch.long, device=device)
                rows, tokens, dead, least = rows[fewer], tokens[fewer], dead[fewer], least[fewer]
            if running:
                for source in sources.values():
                    source.extend(rows, tokens, fewer)
        return [
            sorted(sequence.ended, key=lambda found: found.score, reverse=True)
            for sequence in every
        ]

    @property
    def _weights(self) -> dict[str, float]:
        weights = {"attention": 1 - self.ctc_weight, "ctc": self.ctc_weight, "lm": self.lm_weight}
        return {name: weight for name, weight in weights.items() if weight}

    def _sources(self, encoded: Tensor, steps: Tensor) -> dict[str, Prefixes]:
        """Begin to score the hypotheses, with all whose weight is not 0."""
        weights = self._weights
        sources: dict[str, Prefixes] = {}
        encoded = encoded.to(embedding_of(self.transformer).weight.dtype)
        encoded = encoded.masked_fill(padding_mask(steps, encoded.shape[1])[:, :, None], 0)
        if "attention" in weights:
            sources["attention"] = AttentionPrefixes(
                self.transformer,
                self.attention_output,
                encoded,
                steps,
                self.bos_index,
                self.temperature,
            )
        if "ctc" in weights:
            log_probs = log_softmax(self.ctc_output(encoded))
            sources["ctc"] = CTCPrefixes(log_probs, steps, self.blank_index, self.eos_index)
        if "lm" in weights:
            assert self.lm is not None
            sources["lm"] = LanguageModelPrefixes(
                self.lm, len(encoded), self.bos_index, encoded.device
            )
        return sources

    def _begin(self, number: int, steps: int) -> _Sequence:
        empty = Hypothesis((), 0.0, dict.fromkeys(self._weights, 0.0))
        most = min(int(steps * self.max_decode_ratio), len(positions_of(self.transformer).pe[0]))
        least = int(steps * self.min_decode_ratio)
        return _Sequence(number, most, least, [()], [empty], [] if most else [empty])

    def _advance(
        self,
        sequence: _Sequence,
        step: int,
        vocabulary: int,
        lines: list[list[float]],
        best_only: bool,
    ) -> bool:
        """Note what the beam has become, and return whether the sequence's search goes on.

        Each line is an extension: its number among all, its score and the parts of that.
        """
        if math.isnan(lines[0][1]):
            raise ValueError(f"scores of sequence {sequence.number} of the batch are not a number")
        divisor = step if self.length_normalization else 1
        names = self._weights.keys()
        prefixes: list[tuple[int, ...]] = []
        alive: list[Hypothesis] = []
        for extension, score, *parts in lines:
            row, token = divmod(int(extension), vocabulary)
            before = sequence.prefixes[row]
            prefixes.append((*before, token))
            if score == -math.inf:
                continue
            ends = token == self.eos_index
            (sequence.ended if ends else alive).append(
                Hypothesis(
                    before if ends else prefixes[-1],
                    score / divisor + self.token_bonus * (len(before) if ends else step),
                    dict(zip(names, parts, strict=True)),
                )
            )
        del sequence.ended[self.beam_size :]
        sequence.prefixes = prefixes
        if alive or sequence.ended:  # otherwise nothing can follow, and what was there stays
            sequence.alive = alive
        if step == sequence.most or not alive:
            sequence.ended += sequence.alive[: self.beam_size - len(sequence.ended)]
            return False
        if not best_only or not sequence.ended:
            return len(sequence.ended) < self.beam_size
        # Log probabilities only fall, so the most that can come of the best one is its sum over
        # the greatest length, with as many bonuses.
        bound = alive[0].score * (step / sequence.most if self.length_normalization else 1)
        bound += self.token_bonus * (sequence.most - step)
        best = max(found.score for found in sequence.ended)
        return len(sequence.ended) < self.beam_size and best < bound


@dataclass
class _Sequence:
    """One sequence's search, as far as it is on the host."""

    number: int  # in the batch
    most: int  # steps
    least: int  # steps before the end
    prefixes: list[tuple[int, ...]]  # tokens of the rows of its beam
    alive: list[Hypothesis]  # those which have not ended
    ended: list[Hypothesis]


class LanguageModelPrefixes:
    """Log probabilities that a language model gives the hypotheses of a beam search.

    Parameters
    ----------
    lm : TokenScorer
        The language model.
    size : int
        Sequences, B.
    bos : int
        Token that begins every hypothesis.
    device : device
        Where tokens are.
    """

    def __init__(self, lm: TokenScorer, size: int, bos: int, device: Any) -> None:
        self.lm = lm
        self.state = lm.initial(size, device)
        self.tokens = torch.full((size, 1), bos, device=device)
        self.totals = torch.zeros(size, 1, dtype=torch.float64, device=device)

    def score(self) -> Tensor:
        """Score the hypotheses that are one token longer; as `CTCPrefixes.score`."""
        log_probs, self.state = self.lm.score(self.tokens.flatten(), self.state)
        self.scores = self.totals[:, :, None] + log_probs.view(*self.tokens.shape, -1)
        return self.scores

    def extend(self, rows: Tensor, tokens: Tensor, sequences: Tensor | None = None) -> None:
        """Append a token to the hypotheses that go on; as `CTCPrefixes.extend`."""
        self.totals = self.scores.take(rows * self.scores.shape[2] + tokens)
        self.state = self.lm.select(self.state, rows.flatten())
        self.tokens = tokens


def _stack(scores: dict[str, Tensor]) -> Tensor:
    sizes = {name: score.shape[2] for name, score in scores.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"all must have the same vocabulary, got these numbers of tokens: {sizes}")
    return torch.stack(list(scores.values()))
