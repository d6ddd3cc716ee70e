"""Searches over CTC posteriors alone: the best alignment, and a beam of prefixes."""

from __future__ import annotations

import math
import weakref
from abc import abstractmethod
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from sru_asr.decode.result import Hypothesis
from sru_asr.decode.scorer import TokenScorer
from sru_asr.decode.searcher import Searcher
from sru_asr.padding import steps_of

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


class CTCSearcher(Searcher):
    """What the searches over CTC posteriors share.

    Each sequence is searched over its own frames alone, so that it gives the same result in any
    batch.

    Parameters
    ----------
    ctc_output : Module
        Linear layer from encoded frames to the vocabulary.
    """

    def __init__(self, ctc_output: nn.Module) -> None:
        super().__init__()
        self.ctc_output = ctc_output

    @abstractmethod
    def search(self, log_probs: Tensor) -> list[Hypothesis]:
        """Find the best hypotheses of one sequence.

        Parameters
        ----------
        log_probs : Tensor, shape (T, V)
            Log posteriors, without padding; T may be 0.

        Returns
        -------
        list of Hypothesis
            At least one, best first.
        """

    @torch.no_grad()
    def nbest(self, encoded: Tensor, lengths: Tensor) -> list[list[Hypothesis]]:
        """See `Searcher.nbest`.

        Raises
        ------
        ValueError
            When a real frame gives NaN.
        """
        steps = steps_of(lengths, *encoded.shape[:2])
        assert steps is not None
        found = []
        for i, count in enumerate(steps.tolist()):
            log_probs = self.ctc_output(encoded[i : i + 1, :count])[0].float().log_softmax(-1)
            if log_probs.isnan().any():
                raise ValueError(f"encoded: found NaN posteriors in sequence {i} of the batch")
            found.append(self.search(log_probs))
        return found


class CTCGreedySearcher(CTCSearcher):
    """The tokens of the best alignment: each frame's best, repetitions and blanks removed.

    A hypothesis has the log probability of that one alignment for its score.

    Parameters
    ----------
    ctc_output : Module
        Linear layer from encoded frames to the vocabulary.
    blank_index : int
        CTC's blank.

    Examples
    --------
    >>> frames = torch.eye(3)[[1, 1, 0, 1]]
    >>> CTCGreedySearcher(nn.Identity())(frames[None], torch.ones(1)).tokens
    [[1, 1]]
    """

    def __init__(self, ctc_output: nn.Module, blank_index: int = 0) -> None:
        super().__init__(ctc_output)
        self.blank_index = blank_index

    def search(self, log_probs: Tensor) -> list[Hypothesis]:
        """See `CTCSearcher.search`."""
        best, path = log_probs.max(-1)
        tokens = [t for t in path.unique_consecutive().tolist() if t != self.blank_index]
        score = best.sum().item()
        return [Hypothesis(tuple(tokens), score, {"ctc": score})]


class CTCBeamSearcher(CTCSearcher):
    """Beam search over prefixes: the alignments of the same tokens are summed.

    A hypothesis is scored by ``log P_ctc + lm_weight * log P_lm + token_bonus * tokens``. The
    language model scores each token as it is appended and, last, the end of the sentence.

    Graves, Supervised sequence labelling with recurrent neural networks (2012), section 7.5;
    Hannun, Maas, Jurafsky and Ng, First-pass large vocabulary continuous speech recognition using
    bi-directional recurrent DNNs (2014).

    Parameters
    ----------
    ctc_output : Module
        Linear layer from encoded frames to the vocabulary.
    beam_size : int
        Prefixes kept after each frame, and the most hypotheses returned.
    lm : TokenScorer, optional
        Language model over the same tokens.
    lm_weight : float
        Its weight; with 0 it is not asked.
    token_bonus : float
        Added for each token; above 0 it makes up for the language model's liking for few of them.
    token_threshold : float
        A frame's tokens below that log posterior are not appended. Where the blank leaves no other
        token so much, the frame costs next to nothing. Minus infinity considers all of them.
    blank_index, bos_index, eos_index : int
        CTC's blank, and the tokens that begin and end a sentence; none is ever part of one.

    Raises
    ------
    ValueError
        When ``beam_size`` is not positive, or a weight is negative or not finite.

    Examples
    --------
    >>> search = CTCBeamSearcher(nn.Identity(), beam_size=4)
    >>> even = torch.tensor([0.5, 0.0, 0.0, 0.4, 0.1]).log()  # blank, two more, 3, 4
    >>> [[best, second, *_]] = search.nbest(torch.stack([even, even])[None], torch.ones(1))
    >>> best.tokens, round(best.parts["ctc"], 3)  # log(0.4 * 0.5 + 0.5 * 0.4 + 0.4 * 0.4)
    ((3,), -0.58)
    >>> second.tokens
    ()
    """

    def __init__(
        self,
        ctc_output: nn.Module,
        beam_size: int = 20,
        lm: TokenScorer | None = None,
        lm_weight: float = 0.5,
        token_bonus: float = 0.0,
        token_threshold: float = -10.0,
        blank_index: int = 0,
        bos_index: int = 1,
        eos_index: int = 2,
    ) -> None:
        super().__init__(ctc_output)
        if beam_size < 1:
            raise ValueError(f"beam_size: found {beam_size}, expected at least 1")
        if not 0 <= lm_weight < math.inf:
            raise ValueError(f"lm_weight: found {lm_weight}, expected a number not below 0")
        if not math.isfinite(token_bonus):
            raise ValueError(f"token_bonus: found {token_bonus}, expected a finite number")
        if not token_threshold < 0:
            raise ValueError(f"token_threshold: found {token_threshold}, expected one below 0")
        self.beam_size = beam_size
        self.lm = lm
        self.lm_weight = lm_weight
        self.token_bonus = token_bonus
        self.token_threshold = token_threshold
        self.blank_index = blank_index
        self.bos_index = bos_index
        self.eos_index = eos_index

    def search(self, log_probs: Tensor) -> list[Hypothesis]:
        """See `CTCSearcher.search`."""
        device = log_probs.device
        frames = log_probs.double().cpu().numpy()
        eligible = frames >= self.token_threshold
        eligible[:, [self.blank_index, self.bos_index, self.eos_index]] = False
        root = _Prefix(None, self.bos_index)
        if self._scorer is not None:
            root.state = self._scorer.initial(1, device)
        beam = _Beam([root], np.zeros(1), np.full(1, -np.inf))
        for frame, tokens in zip(frames, map(np.flatnonzero, eligible), strict=True):
            # A token that comes again is another one after a blank only.
            last = np.array([prefix.token for prefix in beam.prefixes])
            total = beam.total()
            grown = np.where(tokens == last[:, None], beam.blank[:, None], total[:, None])
            grown += frame[tokens]
            beam = _Beam(beam.prefixes, total + frame[self.blank_index], beam.label + frame[last])
            if len(tokens):
                _merge(beam, tokens, grown)
                beam = self._best(beam, tokens, grown, device)
        return self._finished(beam, device)

    def _best(self, beam: _Beam, tokens: Integers, grown: Floats, device: torch.device) -> _Beam:
        """Choose among the prefixes as they are and, ``grown`` (N, C), with one token more."""
        prefixes, size = beam.prefixes, len(beam.prefixes)
        prior = np.array([self._prior(prefix.lm, prefix.size) for prefix in prefixes])
        gain = np.full(grown.shape, self.token_bonus)
        if self._scorer is not None:
            _look_ahead(self._scorer, prefixes, device)
            gain += self.lm_weight * np.stack([prefix.next[tokens] for prefix in prefixes])
        scores = np.append(beam.total() + prior, grown + prior[:, None] + gain)
        best = _largest(scores, self.beam_size)
        stay, grow = best[best < size], best[best >= size] - size
        rows, columns = np.divmod(grow, len(tokens))
        longer = zip(rows, tokens[columns].tolist(), strict=True)
        return _Beam(
            [prefixes[i] for i in stay] + [prefixes[i].child(token) for i, token in longer],
            np.append(beam.blank[stay], np.full(len(grow), -np.inf)),
            np.append(beam.label[stay], grown[rows, columns]),
        )

    def _finished(self, beam: _Beam, device: torch.device) -> list[Hypothesis]:
        """End the sentences, and rank them."""
        if self._scorer is not None:
            _look_ahead(self._scorer, beam.prefixes, device)
        hypotheses = []
        for prefix, ctc in zip(beam.prefixes, beam.total().tolist(), strict=True):
            parts = {"ctc": ctc}
            if self._scorer is not None:
                parts["lm"] = prefix.lm + float(prefix.next[self.eos_index])
            score = ctc + self._prior(parts.get("lm", 0.0), prefix.size)
            hypotheses.append(Hypothesis(prefix.tokens(), score, parts))
        return sorted(hypotheses, key=lambda hypothesis: -hypothesis.score)

    @property
    def _scorer(self) -> TokenScorer | None:
        """The language model, if it counts."""
        return self.lm if self.lm_weight else None

    def _prior(self, lm: float, size: int) -> float:
        """What counts besides the CTC probability."""
        return self.lm_weight * lm + self.token_bonus * size


class _Prefix:
    """The tokens of a hypothesis: its parent's, and one more.

    The same tokens are the same object, for as long as the beam or a longer prefix holds it.
    """

    def __init__(self, parent: _Prefix | None, token: int) -> None:
        self.parent = parent
        self.token = token
        self.children: weakref.WeakValueDictionary[int, _Prefix] = weakref.WeakValueDictionary()
        self.size = 0
        self.lm = 0.0  # log probability of the tokens
        # Where the language model stands: before the last token until it is asked what comes next.
        self.state: Any = None
        self.row = 0
        self.next: Any = None  # log probabilities, shape (V,)
        if parent is not None:
            self.size = parent.size + 1
            self.state, self.row = parent.state, parent.row
            if parent.next is not None:
                self.lm = parent.lm + float(parent.next[token])

    def child(self, token: int) -> _Prefix:
        """The prefix with one token more."""
        child = self.children.get(token)
        if child is None:
            child = self.children[token] = _Prefix(self, token)
        return child

    def tokens(self) -> tuple[int, ...]:
        """All of them, in order."""
        tokens, prefix = [], self
        while prefix.parent is not None:
            tokens.append(prefix.token)
            prefix = prefix.parent
        return tuple(reversed(tokens))


class _Beam(NamedTuple):
    """Prefixes and the log probabilities of their alignments that end in a blank, and do not."""

    prefixes: list[_Prefix]
    blank: Floats
    label: Floats

    def total(self) -> Floats:
        return np.logaddexp(self.blank, self.label)


def _merge(beam: _Beam, tokens: Integers, grown: Floats) -> None:
    """Move what grows into a prefix of the beam there, in place."""
    rows = {prefix: row for row, prefix in enumerate(beam.prefixes)}
    columns = {token: column for column, token in enumerate(tokens.tolist())}
    for i, prefix in enumerate(beam.prefixes):
        if prefix.parent in rows and prefix.token in columns:
            at = rows[prefix.parent], columns[prefix.token]
            beam.label[i] = np.logaddexp(beam.label[i], grown[at])
            grown[at] = -np.inf


def _look_ahead(lm: TokenScorer, prefixes: list[_Prefix], device: torch.device) -> None:
    """Ask the language model what comes next, where it is not known yet.

    A prefix is not asked for until it is about to grow, since most are dropped before. Prefixes
    that go on from the same state are scored together.
    """
    together: dict[int, list[_Prefix]] = {}
    for prefix in prefixes:
        if prefix.next is None:
            together.setdefault(id(prefix.state), []).append(prefix)
    for group in together.values():
        rows = torch.tensor([prefix.row for prefix in group], device=device)
        tokens = torch.tensor([prefix.token for prefix in group], device=device)
        log_probs, state = lm.score(tokens, lm.select(group[0].state, rows))
        for row, (prefix, after) in enumerate(
            zip(group, log_probs.double().cpu().numpy(), strict=True)
        ):
            prefix.state, prefix.row, prefix.next = state, row, after


def _largest(scores: Floats, count: int) -> Integers:
    """Where the largest scores are, in any order; the impossible ones only if all are."""
    best = np.arange(len(scores))
    if len(scores) > count:
        best = np.argpartition(-scores, count)[:count]
    possible = best[scores[best] > -np.inf]
    return possible if len(possible) else best[:1]
