"""A word n-gram that scores the tokens of a word one by one."""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from sentencepiece import SentencePieceProcessor
from torch import Tensor

from sru_asr.decode.ngram import BOS, EOS, UNK, NGram, Words
from sru_asr.decode.scorer import TokenScorer

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

_SPACE = "▁"  # as sentencepiece writes it


class WordLookahead(TokenScorer):
    """Token probabilities from a word n-gram, by looking ahead to the words they may become.

    A token has the share, in the n-gram's probability of all words that begin with what has been
    said of the current word, of those that go on with this token. So a word counts from its first
    token on, and a sentence's tokens have together the probability of its words.

    The vocabulary is open. Other words, and other spellings of words than the tokenizer's own,
    have the probability of ``<unk>`` among them, in proportion to that of a sequence of pieces
    drawn independently, as often as words have them. A word that the tokenizer cannot spell counts
    among them. So every distribution sums to one.

    Hori, Cho and Watanabe, End-to-end speech recognition with word-based RNN language models (SLT
    2018), with an n-gram in place of the recurrent network and ``<unk>`` without its parameters.

    Parameters
    ----------
    ngram : NGram or path
        A word n-gram, or its ARPA file, which is read at first use: it may not be there yet.
    tokenizer : sentencepiece.SentencePieceProcessor
        Loaded by the time of first use. Words begin with a piece that begins with "▁"; without a
        dummy prefix, "▁" has to be a piece of its own and no other piece may begin with it, as
        in a model of characters.
    bos_index, eos_index : int
        Tokens that begin and end a sentence.
    cache_size : int
        Probabilities to keep for when they are asked for again, up to 8 bytes each.

    Examples
    --------
    >>> import tempfile
    >>> from sru_asr.tokenizer import train_tokenizer
    >>> tokenizer = train_tokenizer(f"{tempfile.mkdtemp()}/char.model", ["GO ON", "NO"], 6 + 1)
    >>> scorer = WordLookahead(NGram.estimate(["GO ON", "NO"]), tokenizer)
    >>> log_probs, state = scorer.score(torch.tensor([1]), scorer.initial(1))
    >>> log_probs.shape, round(log_probs.exp().sum().item(), 5)
    (torch.Size([1, 7]), 1.0)
    >>> likely = [tokenizer.id_to_piece(token) for token in log_probs[0].topk(2).indices.tolist()]
    >>> sorted(likely)
    ['G', 'N']
    """

    def __init__(
        self,
        ngram: NGram | str | os.PathLike[str],
        tokenizer: SentencePieceProcessor,
        bos_index: int = 1,
        eos_index: int = 2,
        cache_size: int = 2**25,
    ) -> None:
        super().__init__()
        self.ngram = ngram
        self.tokenizer = tokenizer
        self.bos_index = bos_index
        self.eos_index = eos_index
        self.cache_size = cache_size
        self._automaton: _Automaton | None = None

    def load(self, path: str | os.PathLike[str]) -> None:
        """Take another ARPA file, which is read at the next use.

        Parameters
        ----------
        path : path
            The file.
        """
        self.ngram = path
        self._automaton = None

    @property
    def automaton(self) -> _Automaton:
        """The n-gram over the tokenizer's pieces, made at first use."""
        if self._automaton is None:
            ngram = self.ngram if isinstance(self.ngram, NGram) else NGram.read_arpa(self.ngram)
            self._automaton = _Automaton(
                ngram, self.tokenizer, self.bos_index, self.eos_index, self.cache_size
            )
        return self._automaton

    def initial(self, size: int, device: Any = None) -> list[_State]:
        """See `TokenScorer.initial`.

        Raises
        ------
        FileNotFoundError, ValueError
            At first use, when the ARPA file or the tokenizer does not serve.
        """
        return [self.automaton.start] * size

    def score(self, tokens: Tensor, state: list[_State]) -> tuple[Tensor, list[_State]]:
        """See `TokenScorer.score`; log probabilities in float32."""
        automaton = self.automaton
        state = [automaton.advance(*pair) for pair in zip(state, tokens.tolist(), strict=True)]
        rows = np.empty((len(state), automaton.size), np.float32)
        for row, one in zip(rows, state, strict=True):
            row[:] = automaton.log_probs(one)
        return torch.from_numpy(rows).to(tokens.device), state

    def select(self, state: list[_State], rows: Tensor) -> list[_State]:
        """See `TokenScorer.select`."""
        return [state[row] for row in rows.tolist()]


class _State(NamedTuple):
    """What has been said: words, and the first ``depth`` tokens of one more.

    The words with that beginning are numbered from ``low`` to before ``high``. If there are none,
    it does not matter how the word began, and ``depth`` is 1.
    """

    history: Words
    low: int
    high: int
    depth: int


class _Branches(NamedTuple):
    """How the words of a state go on; the history does not matter."""

    bounds: Integers  # words from each bound to before the next one have the same next token
    tokens: Integers
    unigrams: Floats  # what these words have as unigrams
    others: Floats  # shares of other words' probability, by token


class _Followers(NamedTuple):
    """The words that an n-gram lists after a history, of one word at least."""

    numbers: Integers  # sorted
    probabilities: Floats
    gains: Floats  # how much more that is than by backing off
    backoff: float


class _Automaton:
    """Goes from state to state by tokens; each state has the probabilities of the next token.

    Words are numbered in the order of their spellings, so that those that begin alike are
    neighbours. After them come the words that cannot be spelt, the unknown one among them, and
    last the end of the sentence.
    """

    def __init__(
        self,
        ngram: NGram,
        tokenizer: SentencePieceProcessor,
        bos_index: int,
        eos_index: int,
        cache_size: int,
    ) -> None:
        self.ngram = ngram
        self.bos_index = bos_index
        self.eos_index = eos_index
        self.cache_size = cache_size
        self.size: int = tokenizer.vocab_size()
        spellings = _spellings(tokenizer, ngram.vocabulary)
        special = {bos_index, eos_index}
        special.update(i for i in range(self.size) if tokenizer.is_unknown(i))
        special.update(i for i in range(self.size) if tokenizer.is_control(i))
        beginnings = _word_beginnings(tokenizer, special)
        inner = set(range(self.size)) - special - beginnings
        # The space before the first word, where it is not said.
        self.unsaid: int | None = None
        if not any(spelling[0] in beginnings for spelling in spellings.values()):
            self.unsaid = _lone_space(tokenizer, beginnings)
            spellings = {word: [self.unsaid, *rest] for word, rest in spellings.items()}
        self.word_ends = beginnings | {eos_index}  # when one of these follows

        self.words = sorted(spellings, key=spellings.__getitem__)
        others = sorted(ngram.followers[()].keys() - {EOS, *self.words})
        self.numbers = {word: i for i, word in enumerate([*self.words, *others, EOS])}
        # After the last token stands -1, which sorts before all tokens and indexes the last entry
        # of distributions over tokens: the end of the word.
        longest = max(map(len, spellings.values()))
        self.spellings = np.full((len(self.words), longest + 1), -1)
        for row, word in zip(self.spellings, self.words, strict=True):
            row[: len(spellings[word])] = spellings[word]

        # The draws of other words: each piece once more often than the vocabulary has it.
        first, later = self.spellings[:, 0], self.spellings[:, 1:-1]
        self.first_draw, self.draw = np.zeros((2, self.size + 1))
        self.first_draw[sorted(beginnings)] = 1
        self.draw[sorted(inner)] = 1
        np.add.at(self.first_draw, first, 1)
        np.add.at(self.draw, later[later >= 0], 1)
        self.draw[-1] = len(self.words)
        self.first_draw /= self.first_draw.sum()
        self.draw /= self.draw.sum()
        # What draws would give the vocabulary's words, which are drawn again.
        factors = np.append(self.draw[:-1], 1.0)
        self.redrawn = self.first_draw[first] * factors[later].prod(1) * self.draw[-1]
        self.not_redrawn = 1 - self.redrawn.sum()

        self.unigrams = np.zeros(len(self.numbers))
        for word, log_prob in ngram.followers[()].items():
            self.unigrams[self.numbers[word]] = 10**log_prob
        self.tail = np.array([len(self.words), len(self.numbers) - 1, len(self.numbers)])
        self.tail_unigrams = np.array(
            [self.unigrams[len(self.words) : -1].sum(), self.unigrams[-1]]
        )

        self._clear()
        self.start = self._at_word(ngram.context([BOS]))

    def _clear(self) -> None:
        self._kept = 0
        self._log_probs: dict[_State, npt.NDArray[np.float32]] = {}
        self._followers: dict[Words, _Followers] = {}
        self._tails: dict[Words, Floats] = {}
        self._beginnings: dict[Words, Floats] = {}
        self._branches: dict[tuple[int, int, int], _Branches] = {}

    def _keep(self, numbers: int) -> None:
        """Make room for more in the caches."""
        self._kept += numbers
        if self._kept > self.cache_size:
            self._clear()

    def _at_word(self, history: Words) -> _State:
        return _State(history, 0, len(self.words), 0)

    def advance(self, state: _State, token: int) -> _State:
        """Append a token; what begins a sentence says nothing."""
        if token == self.bos_index:
            return state
        if not state.depth and self.unsaid is not None:
            state = self._descend(state, self.unsaid)
        if state.depth and token in self.word_ends:
            state = self._at_word(self._history_after(state))
        return self._descend(state, token)

    def _descend(self, state: _State, token: int) -> _State:
        history, low, high, depth = state
        column = self.spellings[low:high, depth]
        begin, end = (low + int(i) for i in column.searchsorted([token, token + 1]))
        return _State(history, begin, end, depth + 1) if begin < end else _State(history, 0, 0, 1)

    def _history_after(self, state: _State) -> Words:
        """The history once the word ends here."""
        history, low, high, depth = state
        is_word = low < high and self.spellings[low, depth] < 0
        return self.ngram.context((*history, self.words[low] if is_word else UNK))

    def log_probs(self, state: _State) -> npt.NDArray[np.float32]:
        """Log probabilities of the next token, shape (V,)."""
        if state not in self._log_probs:
            self._keep(self.size)
            with np.errstate(divide="ignore"):
                log_probs = np.log(self._probabilities(state)).astype(np.float32)
            self._log_probs[state] = log_probs
        return self._log_probs[state]

    def _probabilities(self, state: _State) -> Floats:
        if not state.depth:
            beginning = self._beginning(state.history)
            if self.unsaid is None:
                return beginning
            said = beginning[self.unsaid] * self._probabilities(self._descend(state, self.unsaid))
            said[self.eos_index] += beginning[self.eos_index]
            return said
        following = self._following(state)
        return following[:-1] + following[-1] * self._beginning(self._history_after(state))

    def _beginning(self, history: Words) -> Floats:
        """Probabilities of a word's first token, or of the end of the sentence."""
        if history not in self._beginnings:
            self._keep(self.size)
            following = self._following(self._at_word(history))
            beginning = following[:-1].copy()
            beginning[self.eos_index] += following[-1]
            self._beginnings[history] = beginning
        return self._beginnings[history]

    def _following(self, state: _State) -> Floats:
        """Probabilities of the current word's next token and, last, of its end.

        Where no word has begun, the last is the end of the sentence.
        """
        history, low, high, depth = state
        draw = self.draw if depth else self.first_draw
        if low == high:
            return draw
        branches = self._branches_of(low, high, depth)
        unknown, end = self._tail(history)
        following = unknown * branches.others
        following[branches.tokens] += self._masses(history, branches.bounds, branches.unigrams)
        if not depth:
            following[-1] = end
        total = following.sum()
        return following / total if total > 0 else draw

    def _branches_of(self, low: int, high: int, depth: int) -> _Branches:
        key = low, high, depth
        if key not in self._branches:
            self._keep(self.size)
            column = self.spellings[low:high, depth]
            starts = np.append(0, 1 + np.flatnonzero(column[1:] != column[:-1]))
            tokens = column[starts]
            # Of all that is drawn, what begins so and is no word of the vocabulary.
            others = self.draw.copy() if depth else self.first_draw.copy()
            if depth:
                first, *later = self.spellings[low, :depth]
                others *= self.first_draw[first] * self.draw[later].prod()
            others[tokens] -= np.add.reduceat(self.redrawn[low:high], starts)
            self._branches[key] = _Branches(
                np.append(low + starts, high),
                tokens,
                np.add.reduceat(self.unigrams[low:high], starts),
                others.clip(min=0) / self.not_redrawn,
            )
        return self._branches[key]

    def _tail(self, history: Words) -> Floats:
        """Probabilities of all words that cannot be spelt, and of the end of the sentence."""
        if history not in self._tails:
            self._keep(2)
            self._tails[history] = self._masses(history, self.tail, self.tail_unigrams)
        return self._tails[history]

    def _masses(self, history: Words, bounds: Integers, unigrams: Floats) -> Floats:
        """Probabilities of all words from each bound to before the next, given the unigrams'.

        What a history lists is far less than the vocabulary, and all that is looked at.
        """
        masses, weight = np.zeros(len(unigrams)), 1.0
        while history:
            numbers, _, gains, backoff = self._listed(history)
            at = numbers.searchsorted(bounds)
            first, last = at[0], at[-1]
            if first < last:
                sums = np.zeros(last - first + 1)
                gains[first:last].cumsum(out=sums[1:])
                sums = sums[at - first]
                masses += weight * (sums[1:] - sums[:-1])
            history, weight = history[1:], weight * backoff
        return (masses + weight * unigrams).clip(min=0)

    def _listed(self, history: Words) -> _Followers:
        if history not in self._followers:
            # Some models list <s>, which never follows.
            log_probs = {
                self.numbers[word]: log_prob
                for word, log_prob in self.ngram.followers.get(history, {}).items()
                if word != BOS
            }
            self._keep(4 * len(log_probs))
            numbers = np.array(sorted(log_probs), dtype=np.int64)
            probabilities = 10.0 ** np.array([log_probs[number] for number in numbers.tolist()])
            backoff = 10 ** self.ngram.backoffs.get(history, 0.0)
            gains = probabilities - backoff * self._word_probabilities(history[1:], numbers)
            self._followers[history] = _Followers(numbers, probabilities, gains, backoff)
        return self._followers[history]

    def _word_probabilities(self, history: Words, numbers: Integers) -> Floats:
        if not history:
            return self.unigrams[numbers]
        listed = self._listed(history)
        result = listed.backoff * self._word_probabilities(history[1:], numbers)
        _, here, there = np.intersect1d(
            numbers, listed.numbers, assume_unique=True, return_indices=True
        )
        result[here] = listed.probabilities[there]
        return result


def _spellings(tokenizer: SentencePieceProcessor, words: Words) -> dict[str, list[int]]:
    """The tokens of each word that the tokenizer can spell."""
    if not tokenizer.vocab_size():
        raise ValueError("tokenizer: found none loaded, expected a sentencepiece model")
    tokens = tokenizer.encode(list(words))
    texts = tokenizer.decode(tokens)
    spellings = {w: t for w, t, text in zip(words, tokens, texts, strict=True) if text == w}
    if not spellings:
        some = ", ".join(words[:3])
        raise ValueError(
            f"tokenizer: found pieces that spell none of the n-gram's words ({some}), "
            "expected those of the same language, in the same case"
        )
    return spellings


def _word_beginnings(tokenizer: SentencePieceProcessor, special: Collection[int]) -> set[int]:
    """The pieces that begin a word."""
    pieces = {i: tokenizer.id_to_piece(i) for i in range(tokenizer.vocab_size())}
    for i, piece in pieces.items():
        if _SPACE in piece[1:] and i not in special:
            raise ValueError(f"tokenizer: found the piece {piece!r}, expected none of two words")
    return {i for i, piece in pieces.items() if piece[0] == _SPACE and i not in special}


def _lone_space(tokenizer: SentencePieceProcessor, beginnings: Collection[int]) -> int:
    """The piece between words, when nothing else begins one."""
    pieces = [tokenizer.id_to_piece(i) for i in beginnings]
    if pieces != [_SPACE]:
        found = ", ".join(sorted(pieces)[:4]) or "none"
        raise ValueError(
            f"tokenizer: found no dummy prefix, but {found} to begin words with, expected {_SPACE} "
            "alone, or a dummy prefix"
        )
    return next(iter(beginnings))
