"""The n-gram against its definition, written out plainly, and against kenlm; ARPA files."""

import gzip
import math
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from sru_asr.decode.ngram import NGram, _discounts

AN4 = Path(__file__).parents[2] / "shared/data/an4/etc/an4_train.transcription"
TINY = ["GO ON", "GO", "STOP", "GO ON", "NO GO"]


def many(words=12, sentences=300, seed=0):
    """Sentences with words of all frequencies, the next one depending on the last."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(sentences):
        sentence = [int(rng.zipf(1.5)) % words]
        while rng.random() < 0.8:
            sentence.append((sentence[-1] + int(rng.zipf(1.5))) % words)
        made.append(" ".join(f"w{word}" for word in sentence))
    return made


CORPORA = {"tiny": TINY, "one": ["A"], "empty_line": ["", "A B", "A"], "many": many()}


def plain_probability(sentences, order, word, history):
    """Interpolated modified Kneser-Ney, from the definition."""
    padded = [("<s>", *sentence.split(), "</s>") for sentence in sentences]
    outcomes = {w for sentence in padded for w in sentence[1:]} | {"<unk>"}
    counts = [
        Counter(s[i : i + n] for s in padded for i in range(len(s) - n + 1))
        for n in range(1, order + 2)
    ]

    def count(ngram):
        """How often, or after how many different words."""
        if len(ngram) == order or ngram[0] == "<s>":
            return counts[len(ngram) - 1][ngram]
        return sum(longer[1:] == ngram for longer in counts[len(ngram)])

    def discounts(n):
        times = Counter(count(g) for g in counts[n - 1] if g[-1] != "<s>")
        n1, n2, n3, n4 = (times[i] for i in (1, 2, 3, 4))
        if not n1 or not n2:
            return [0.5] * 3
        y = n1 / (n1 + 2 * n2)
        if n3 and n4:
            d = [1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3]
            if 0 < d[0] < 1 and 0 < d[1] < 2 and 0 < d[2] < 3:
                return d
        return [y] * 3

    def probability(word, history):
        shorter = probability(word, history[1:]) if history else 1 / len(outcomes)
        seen = {w: count((*history, w)) for w in outcomes if counts[len(history)][(*history, w)]}
        if not seen:
            return shorter
        d = discounts(len(history) + 1)
        taken = {w: d[min(c, 3) - 1] for w, c in seen.items()}
        total = sum(seen.values())
        own = (seen[word] - taken[word]) / total if word in seen else 0
        return own + sum(taken.values()) / total * shorter

    return probability(word, history)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("corpus", CORPORA)
def test_probabilities_by_definition(corpus, order):
    sentences = CORPORA[corpus][:50]
    ngram = NGram.estimate(sentences, order)
    histories = [("<s>",), ("<s>", "GO"), ("w1", "w2"), ("A",), ()]
    for history in histories:
        for word in [*ngram.vocabulary[:5], "</s>", "<unk>"]:
            known = history[max(0, len(history) - order + 1) :]
            expected = plain_probability(sentences, order, word, known)
            assert math.exp(ngram.log_prob(word, history)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize("corpus", CORPORA)
def test_every_distribution_sums_to_one(corpus, order):
    ngram = NGram.estimate(CORPORA[corpus], order)
    words = [*ngram.vocabulary, "</s>", "<unk>"]
    for history in [*list(ngram.followers)[:100], ("never", "seen"), ("<s>", "never"), ("A",) * 9]:
        assert sum(math.exp(ngram.log_prob(w, history)) for w in words) == pytest.approx(1)
    assert all(math.isfinite(ngram.log_prob("other", history)) for history in ngram.followers)


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        # Share 100 / 180; 1 - 2 * 40/180, 2 - 3 * 20/40 * 100/180, 3 - 4 * 15/20 * 100/180.
        ([100, 40, 20, 15], (1 - 4 / 9, 2 - 5 / 6, 3 - 5 / 3)),
        ([100, 40, 20, 0], (5 / 9,) * 3),
        ([100, 40, 0, 15], (5 / 9,) * 3),
        ([100, 40, 100, 0], (5 / 9,) * 3),
        ([10, 1, 5, 5], (10 / 12,) * 3),  # two would be 2 - 12.5
        ([10, 0, 5, 5], (0.5,) * 3),
        ([0, 10, 5, 5], (0.5,) * 3),
    ],
)
def test_discounts(times, expected):
    counts = [count for count, number in enumerate(times, 1) for _ in range(number)]
    followers = Counter({f"w{i}": count for i, count in enumerate(counts)})
    assert _discounts({(): followers, ("a",): Counter(b=7)}) == pytest.approx(expected)


def test_perplexity():
    ngram = NGram.estimate(["A"], order=1)
    # Once each: A and the end, less 1/2, and a third of what is taken; the unknown has that third.
    shares = {"A": 0.25 + 0.5 / 3, "</s>": 0.25 + 0.5 / 3, "B": 0.5 / 3}
    for word, share in shares.items():
        assert math.exp(ngram.log_prob(word)) == pytest.approx(share)
    expected = (shares["A"] * shares["B"] * shares["</s>"]) ** (-1 / 3)
    assert ngram.perplexity(["A B"]) == pytest.approx(expected)
    with pytest.raises(ValueError, match="found no sentence"):
        ngram.perplexity([])


@pytest.mark.skipif(not AN4.exists(), reason="needs AN4")
def test_perplexity_of_an4():
    """Longer histories help with speakers that were held out."""
    lines = AN4.read_text().splitlines()
    utterances = [re.fullmatch(r"<s> (.*) </s> \((.*)\)", line) for line in lines]
    sentences = [(m[2].split("-")[1], m[1]) for m in utterances if m]
    held_out = sorted({speaker for speaker, _ in sentences})[::10]
    perplexities = [
        NGram.estimate((s for who, s in sentences if who not in held_out), order).perplexity(
            s for who, s in sentences if who in held_out
        )
        for order in (1, 2, 3, 4)
    ]
    assert perplexities == sorted(perplexities, reverse=True)
    assert perplexities[-1] < 20


@pytest.mark.parametrize(
    ("sentences", "order", "message"),
    [
        ([], 2, "sentences: found none"),
        (["A"], 0, "order: found 0"),
        (["A </s>"], 2, "found </s>"),
        (["A", "B <unk> C"], 2, "'B <unk> C': found <unk>"),
    ],
)
def test_bad_input(sentences, order, message):
    with pytest.raises(ValueError, match=message):
        NGram.estimate(sentences, order)


@pytest.mark.parametrize("order", [1, 2, 4])
@pytest.mark.parametrize("corpus", CORPORA)
def test_arpa_round_trip_is_exact(tmp_path, corpus, order):
    ngram = NGram.estimate([*CORPORA[corpus], "ÉTÉ 你好 #1"], order)
    file = tmp_path / "new" / "words.arpa"
    ngram.write_arpa(file)
    assert NGram.read_arpa(file) == ngram
    assert [p.name for p in file.parent.iterdir()] == ["words.arpa"]
    with gzip.open(tmp_path / "words.arpa.gz", "wb") as zipped:
        zipped.write(file.read_bytes())
    assert NGram.read_arpa(tmp_path / "words.arpa.gz") == ngram


FOREIGN = """some words of the tool that made it

\\data\\
ngram 1 = 4
ngram 2=2

\\1-grams:
-0.5 </s>
-99 <s> -0.25
-0.75\tA\t-0.125
-1.25\t<UNK>

\\2-grams:
-0.0625\t<s> A
-0.5 A </s>

\\end\\
"""


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_other_peoples_files(tmp_path, ends):
    file = tmp_path / "lm.arpa"
    file.write_bytes(FOREIGN.replace("\n", ends).encode())
    ngram = NGram.read_arpa(file)
    assert (ngram.order, ngram.vocabulary) == (2, ("A",))
    for word, history, expected in [
        ("A", ["<s>"], -0.0625),
        ("</s>", ["<s>"], -0.75),
        ("</s>", ["A"], -0.5),
        ("B", ["A"], -1.375),
        ("A", ["B"], -0.75),
    ]:
        assert ngram.log_prob(word, history) / math.log(10) == pytest.approx(expected)


def test_a_closed_vocabulary(tmp_path):
    file = tmp_path / "lm.arpa"
    file.write_text(FOREIGN.replace("-1.25\t<UNK>\n", "").replace("1 = 4", "1 = 3"))
    ngram = NGram.read_arpa(file)
    assert ngram.log_prob("B", ["A"]) == -math.inf
    assert ngram.perplexity(["A B"]) == math.inf


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("\\data\\", "data", 17, "end of the file, expected \\data\\"),
        ("ngram 1 = 4", "ngram 1 = four", 4, "expected ngram 1=N"),
        ("ngram 2=2", "ngram 3=2", 5, "expected ngram 2=N"),
        ("ngram 1 = 4\nngram 2=2\n", "", 5, "found '\\\\1-grams:', expected ngram 1=N"),
        ("\\1-grams:", "\\2-grams:", 7, "expected \\1-grams:"),
        ("1 = 4", "1 = 5", 13, "found '\\\\2-grams:', expected one of 5 1-grams"),
        ("1 = 4", "1 = 3", 11, "found '-1.25 <UNK>', expected \\2-grams:"),
        ("2=2", "2=1", 15, "found '-0.5 A </s>', expected \\end\\"),
        ("-0.75\tA", "x\tA", 10, "'x'"),
        ("-0.75\tA", "0.75\tA", 10, "found 0.75"),
        ("-0.75\tA", "nan\tA", 10, "found nan"),
        ("-0.125", "nan", 10, "found -0.75 and nan"),
        ("-0.75\tA", "-0.75\t</s>", 10, "'</s>' a second time"),
        ("<s> A", "<s> B", 14, "'B', which is not among the 1-grams"),
        ("<s> A", "A", 14, "expected one of 2 2-grams: a logarithm, 2 words"),
        ("\\end\\", "", 17, "end of the file, expected \\end\\"),
        ("A", "\udcff", 10, "utf-8"),
    ],
)
def test_broken_files_name_the_line(tmp_path, old, new, line, message):
    file = tmp_path / "broken.arpa"
    file.write_bytes(FOREIGN.replace(old, new, 1).encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError) as error:
        NGram.read_arpa(file)
    assert str(error.value).startswith(f"{file}, line {line}: ")
    assert message in str(error.value)


def test_missing_and_truncated_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none.arpa: no such file, expected an n-gram"):
        NGram.read_arpa(tmp_path / "none.arpa")
    file = tmp_path / "cut.arpa.gz"
    file.write_bytes(gzip.compress(FOREIGN.encode())[:60])
    with pytest.raises(ValueError, match=r"cut.arpa.gz, line \d+: "):
        NGram.read_arpa(file)
    file.write_bytes(gzip.compress(FOREIGN.encode())[:20] + b"\xff" * 60)
    with pytest.raises(ValueError, match=r"cut.arpa.gz, line 0: Error -3 while decompressing"):
        NGram.read_arpa(file)


def test_a_message_does_not_repeat_a_line_without_end(tmp_path):
    file = tmp_path / "long.arpa"
    file.write_text(FOREIGN.replace("-0.75", "x" * 100_000, 1))
    with pytest.raises(ValueError, match=r"line 10: could not convert .*x\.\.\.$") as error:
        NGram.read_arpa(file)
    assert len(str(error.value)) < 1000


def test_kenlm_agrees(tmp_path):
    kenlm = pytest.importorskip("kenlm", reason="needs the extra kenlm")
    for corpus, order in [("many", 2), ("many", 4), ("tiny", 3)]:
        ngram = NGram.estimate(CORPORA[corpus], order)
        file = tmp_path / f"{corpus}{order}.arpa"
        ngram.write_arpa(file)
        other = kenlm.Model(str(file))
        for sentence in [*many(seed=1)[:50], *TINY, "w1 STRANGE w2", ""]:
            words = [*sentence.split(), "</s>"]
            scores = other.full_scores(sentence)
            for i, (score, _, unknown) in enumerate(scores):
                ours = ngram.log_prob(words[i], ["<s>", *words[:i]]) / math.log(10)
                assert ours == pytest.approx(score, abs=1e-5)
                assert unknown == (words[i] not in (*ngram.vocabulary, "</s>"))


def test_needs_no_torch():
    code = "import sys, sru_asr.decode.ngram; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
