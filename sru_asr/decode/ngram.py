"""A word n-gram with back-off: estimated from sentences, kept in ARPA files."""

from __future__ import annotations

import gzip
import math
import os
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sru_asr.files import write_atomically
from sru_asr.transcripts import shorten

BOS, EOS, UNK = "<s>", "</s>", "<unk>"
_LN10 = math.log(10)

Words = tuple[str, ...]


@dataclass(frozen=True)
class NGram:
    """A word n-gram language model.

    An n-gram that is not listed has the probability that its shorter history gives, times the
    back-off weight of the longer one (Katz, 1987). Nothing is pruned.

    Attributes
    ----------
    order : int
        Longest n-gram.
    followers : dict of history to dict of str to float
        Base 10 logarithm of each listed word's probability after a history, a tuple of words.
    backoffs : dict of history to float
        Base 10 logarithm of back-off weights; a history that is not listed has 0.

    Examples
    --------
    >>> ngram = NGram.estimate(["GO NORTH", "GO SOUTH", "STOP"], order=2)
    >>> ngram.vocabulary
    ('GO', 'NORTH', 'SOUTH', 'STOP')
    >>> ngram.log_prob("NORTH", ["<s>", "GO"]) > ngram.log_prob("STOP", ["<s>", "GO"])
    True
    """

    order: int
    followers: dict[Words, dict[str, float]]
    backoffs: dict[Words, float]

    @property
    def vocabulary(self) -> Words:
        """All words, sorted, without those that begin and end a sentence and the unknown one."""
        return tuple(sorted(self.followers[()].keys() - {BOS, EOS, UNK}))

    def context(self, history: Sequence[str]) -> Words:
        """Cut a history to what the model knows of it; the next word's distribution is the same.

        Parameters
        ----------
        history : sequence of str
            Preceding words, beginning with ``<s>`` where the sentence does.

        Returns
        -------
        tuple of str
            Its longest end that has listed followers or a back-off weight.
        """
        unigrams = self.followers[()]
        kept = history[max(0, len(history) - self.order + 1) :]
        words = tuple(w if w in unigrams or w == BOS else UNK for w in kept)
        while words and words not in self.followers and words not in self.backoffs:
            words = words[1:]
        return words

    def log_prob(self, word: str, history: Sequence[str] = ()) -> float:
        """Natural logarithm of a word's probability.

        Parameters
        ----------
        word : str
            A word, or ``</s>``; one out of the vocabulary counts as ``<unk>``.
        history : sequence of str
            Preceding words, beginning with ``<s>`` where the sentence does.

        Returns
        -------
        float
            Minus infinity for an unknown word where the model does not list ``<unk>``.
        """
        if word not in self.followers[()]:
            word = UNK
        context = self.context(history)
        backoff = 0.0
        while word not in self.followers.get(context, {}):
            if not context:
                return -math.inf
            backoff += self.backoffs.get(context, 0.0)
            context = context[1:]
        return (backoff + self.followers[context][word]) * _LN10

    def perplexity(self, sentences: Iterable[str]) -> float:
        """Perplexity of sentences, their ends and unknown words included.

        Examples
        --------
        >>> NGram.estimate(["A"], order=1).perplexity(["A"]) < 3
        True
        """
        log_prob, count = 0.0, 0
        for padded in _padded(sentences):
            for position in range(1, len(padded)):
                log_prob += self.log_prob(padded[position], padded[:position])
                count += 1
        if not count:
            raise ValueError("found no sentence, expected some to measure perplexity with")
        return math.exp(-log_prob / count) if log_prob > -math.inf else math.inf

    @classmethod
    def estimate(cls, sentences: Iterable[str], order: int = 3) -> NGram:
        """Estimate by interpolated Kneser-Ney smoothing with three discounts.

        Where a corpus is so small that the counts from which the three come are missing or give
        no valid discount, all counts have the one discount of the original method, or 1/2 where
        even that cannot be told. The unknown word has one share of the uniform distribution with
        which the unigrams are interpolated.

        Chen and Goodman, An empirical study of smoothing techniques for language modeling (1998),
        section 3.

        Parameters
        ----------
        sentences : iterable of str
            Words separated by white space.
        order : int
            Longest n-gram, at least 1.

        Returns
        -------
        NGram

        Raises
        ------
        ValueError
            When the order is not positive, there is no sentence, or one holds ``<s>``, ``</s>`` or
            ``<unk>``.
        """
        if order < 1:
            raise ValueError(f"order: found {order}, expected at least 1")
        counts = _counts(sentences, order)
        if not counts[0]:
            raise ValueError("sentences: found none, expected some to estimate an n-gram from")
        followers: dict[Words, dict[str, float]] = {}
        backoffs: dict[Words, float] = {}
        outcomes = len(counts[0][()]) + 1  # the words, </s> and <unk>
        # Of the order below, at first the uniform distribution.
        lower: dict[Words, dict[str, float]] = {}
        for of_order in counts:
            discounts = _discounts(of_order)
            probabilities: dict[Words, dict[str, float]] = {}
            for history, words in of_order.items():
                total = sum(words.values())
                weight = sum(discounts[min(count, 3) - 1] for count in words.values()) / total
                if history:
                    backoffs[history] = math.log10(weight)
                    shorter = lower[history[1:]]
                else:
                    words = Counter({**words, UNK: 0})
                    shorter = dict.fromkeys(words, 1 / outcomes)
                probabilities[history] = {
                    word: (count - (discounts[min(count, 3) - 1] if count else 0)) / total
                    + weight * shorter[word]
                    for word, count in words.items()
                }
                followers[history] = {w: math.log10(p) for w, p in probabilities[history].items()}
            lower = probabilities
        return cls(order, followers, backoffs)

    def write_arpa(self, path: str | os.PathLike[str]) -> None:
        """Write an ARPA file, all or nothing; what is read back is exactly the same.

        Parameters
        ----------
        path : path
            The file.
        """
        # A word that is never predicted has to be listed all the same, for its back-off weight.
        sections = [[f"-99\t{BOS}\t{self.backoffs.get((BOS,), 0.0)!r}"]]
        sections += [[] for _ in range(self.order - 1)]
        if self.order == 1:
            sections[0] = [f"-99\t{BOS}"]
        for history in sorted(self.followers):
            for word, log_prob in sorted(self.followers[history].items()):
                ngram = (*history, word)
                line = f"{log_prob!r}\t{' '.join(ngram)}"
                if len(ngram) < self.order:
                    line += f"\t{self.backoffs.get(ngram, 0.0)!r}"
                sections[len(ngram) - 1].append(line)
        lines = ["\\data\\"]
        lines += [f"ngram {n}={len(section)}" for n, section in enumerate(sections, 1)]
        for n, section in enumerate(sections, 1):
            lines += ["", f"\\{n}-grams:", *section]
        write_atomically(path, "\n".join([*lines, "", "\\end\\", ""]))

    @classmethod
    def read_arpa(cls, path: str | os.PathLike[str]) -> NGram:
        r"""Read an ARPA file, as estimation tools write it; compressed if it ends in ``.gz``.

        Parameters
        ----------
        path : path
            The file, UTF-8.

        Raises
        ------
        FileNotFoundError
            When it is not there.
        ValueError
            When it is not an ARPA file; the message names the line.

        Examples
        --------
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "words.arpa"
        >>> ngram = NGram.estimate(["GO NORTH", "STOP"])
        >>> ngram.write_arpa(file)
        >>> NGram.read_arpa(file) == ngram
        True
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file, expected an n-gram in ARPA format")
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            reader = _ArpaReader(enumerate(file, 1))
            try:
                reader.read()
            except (ValueError, EOFError, OSError, zlib.error) as error:
                reason = shorten(str(error), 300)
                raise ValueError(f"{path}, line {reader.line}: {reason}") from error
        return cls(len(reader.sizes), reader.followers, reader.backoffs)


class _ArpaReader:
    """Goes through the lines of an ARPA file once."""

    def __init__(self, lines: Iterator[tuple[int, bytes]]) -> None:
        self.lines = lines
        self.line = 0
        self.sizes: list[int] = []
        self.followers: dict[Words, dict[str, float]] = {}
        self.backoffs: dict[Words, float] = {}

    def read(self) -> None:
        self.read_sizes()
        for n, size in enumerate(self.sizes, 1):
            self.read_section(n, size)
        if (found := self.fields()) != ["\\end\\"]:
            raise ValueError(f"found {_shown(found)}, expected \\end\\")

    def fields(self) -> list[str]:
        """The next line that is not blank; no fields at the end of the file."""
        for number, line in self.lines:
            self.line = number
            if fields := line.decode().split():
                return fields
        return []

    def read_sizes(self) -> None:
        while (fields := self.fields()) != ["\\data\\"]:  # anything may stand before it
            if not fields:
                raise ValueError("found the end of the file, expected \\data\\")
        while (fields := self.fields())[:1] == ["ngram"]:
            n, _, size = "".join(fields[1:]).partition("=")
            if n != str(len(self.sizes) + 1) or not size.isdecimal():
                raise ValueError(f"found {_shown(fields)}, expected ngram {len(self.sizes) + 1}=N")
            self.sizes.append(int(size))
        if not self.sizes:
            raise ValueError(f"found {_shown(fields)}, expected ngram 1=N")
        self.check_head(fields, 1)

    def check_head(self, fields: list[str], n: int) -> None:
        if fields != [f"\\{n}-grams:"]:
            raise ValueError(f"found {_shown(fields)}, expected \\{n}-grams:")

    def read_section(self, n: int, size: int) -> None:
        if n > 1:
            self.check_head(self.fields(), n)
        for _ in range(size):
            fields = self.fields()
            if not n + 1 <= len(fields) <= n + 2:
                raise ValueError(
                    f"found {_shown(fields)}, expected one of {size} {n}-grams: a logarithm, "
                    f"{n} word{'s'[: n > 1]} and perhaps a back-off weight"
                )
            *history, word = ("<unk>" if w == "<UNK>" else w for w in fields[1 : n + 1])
            self.add(tuple(history), word, *map(float, (fields[0], *fields[n + 1 :])))

    def add(self, history: Words, word: str, log_prob: float, backoff: float = 0.0) -> None:
        if not log_prob <= 0 or not backoff < math.inf:  # nor NaN
            raise ValueError(f"found {log_prob:g} and {backoff:g}, expected logarithms")
        words = self.followers.setdefault(history, {})
        ngram = (*history, word)
        if word in words:
            raise ValueError(f"found {' '.join(ngram)!r} a second time")
        strange = [w for w in ngram if w not in self.followers[()] and w != BOS]
        if history and strange:
            raise ValueError(f"found {strange[0]!r}, which is not among the 1-grams")
        if history or word != BOS:
            words[word] = log_prob
        if backoff:
            self.backoffs[ngram] = backoff


def _shown(fields: list[str]) -> str:
    return repr(" ".join(fields)[:60]) if fields else "the end of the file"


def _padded(sentences: Iterable[str]) -> Iterator[list[str]]:
    """The words of each sentence, with its beginning and end."""
    for sentence in sentences:
        words = sentence.split()
        if reserved := {BOS, EOS, UNK}.intersection(words):
            raise ValueError(f"sentence {sentence[:60]!r}: found {min(reserved)}, expected words")
        yield [BOS, *words, EOS]


def _counts(sentences: Iterable[str], order: int) -> list[dict[Words, Counter[str]]]:
    """Counts of each word after each history, for every order.

    Those of the highest order, and at the beginning of a sentence, are plain; the others count the
    different words that precede (Kneser and Ney, 1995).
    """
    counts: list[dict[Words, Counter[str]]] = [defaultdict(Counter) for _ in range(order)]
    for words in _padded(sentences):
        for end in range(1, len(words)):
            for start in range(max(0, end - order + 1), end + 1):
                # What a longer n-gram precedes is counted below.
                if start == 0 or start == end - order + 1:
                    counts[end - start][tuple(words[start:end])][words[end]] += 1
    for lower, higher in zip(counts[-2::-1], counts[:0:-1], strict=True):
        for history, followers in higher.items():
            for word in followers:
                lower[history[1:]][word] += 1
    return counts


def _discounts(counts: dict[Words, Counter[str]]) -> tuple[float, float, float]:
    """What is taken from n-grams that occur once, twice and more often."""
    times = Counter(count for followers in counts.values() for count in followers.values())
    once, twice, thrice, more = (times[count] for count in (1, 2, 3, 4))
    if not once or not twice:
        return 0.5, 0.5, 0.5
    share = once / (once + 2 * twice)
    if thrice and more:
        three = (
            1 - 2 * share * twice / once,
            2 - 3 * share * thrice / twice,
            3 - 4 * share * more / thrice,
        )
        if all(0 < discount < count for count, discount in enumerate(three, 1)):
            return three
    return share, share, share
