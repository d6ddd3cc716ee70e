"""Scores against distances worked out by hand, by a small dynamic program, and by jiwer."""

import io
import json
import math

import jiwer
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sru_asr.score import Score, WordErrorRate, bootstrap_interval
from sru_asr.text import Normalization
from sru_asr.transcripts import TranscriptError


def scored(references, hypotheses, *args, **options):
    metric = WordErrorRate(*args, **options)
    metric.append([f"u{i}" for i in range(len(references))], hypotheses, references)
    return metric.summarize()


def distance(reference, hypothesis):
    row = list(range(len(hypothesis) + 1))
    for i, expected in enumerate(reference, 1):
        diagonal, row[0] = row[0], i
        for j, found in enumerate(hypothesis, 1):
            diagonal, row[j] = (
                row[j],
                min(row[j] + 1, row[j - 1] + 1, diagonal + (expected != found)),
            )
    return row[-1]


@pytest.mark.parametrize(
    ("reference", "hypothesis", "words", "subs", "dels", "ins", "cer"),
    [
        ("the cat sat", "the cat sat", 3, 0, 0, 0, 0),
        ("the cat sat", "the cat sit", 3, 1, 0, 0, 1 / 11),
        ("the cat sat", "cat sat", 3, 0, 1, 0, 4 / 11),
        ("the cat sat", "the cat sat on", 3, 0, 0, 1, 3 / 11),
        ("the cat sat", "", 3, 0, 3, 0, 1),
        ("a", "b", 1, 1, 0, 0, 1),
        ("a", "", 1, 0, 1, 0, 1),
        ("y e s", "y s", 3, 0, 1, 0, 2 / 5),
        ("a", "b c d", 1, 1, 0, 2, 5),
        (" the\tcat \u00a0 sat ", "the  cat\nsat", 3, 0, 0, 0, 0),
        ("été à là", "ete à là", 3, 1, 0, 0, 2 / 8),
        ("你 好", "你 们", 2, 1, 0, 0, 1 / 3),
        ("The cat.", "the cat", 2, 2, 0, 0, 2 / 8),
    ],
)
def test_by_hand(reference, hypothesis, words, subs, dels, ins, cer):
    score = scored([reference], [hypothesis])
    assert (score.words, score.utterances) == (words, 1)
    assert (score.substitutions, score.deletions, score.insertions) == (subs, dels, ins)
    assert score.wer == pytest.approx(100 * (subs + dels + ins) / words)
    assert score.cer == pytest.approx(100 * cer)
    assert score.ci95 == (score.wer, score.wer)


def test_sums_not_means_of_rates():
    # one error in one word, none in nine: 10 %, not 50 %
    assert scored(["a", "b " * 9], ["x", "b " * 9]).wer == pytest.approx(10)


def test_word_lists_and_strings_are_the_same():
    texts = ["the  cat sat", "a"]
    lists = [["the", "", "cat", "sat"], ["a"]]
    assert scored(texts, lists) == scored(lists, texts) == scored(texts, texts)


def test_normalisation_applies_to_both_sides():
    upper, spoken = ["Don’t  stop, now!"], ["don't STOP now"]
    assert scored(upper, spoken).wer == 100
    assert scored(upper, spoken, "basic").wer == 0
    assert scored(upper, spoken, Normalization(lower_case=True)).substitutions == 3


utterances = st.lists(
    st.tuples(
        st.lists(st.sampled_from(["a", "b", "ab", "é"]), min_size=1, max_size=8),
        st.lists(st.sampled_from(["a", "b", "ab", "é"]), max_size=8),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=150, deadline=None)
@given(utterances)
def test_agrees_with_a_small_dynamic_program_and_with_jiwer(pairs):
    references, hypotheses = map(list, zip(*pairs, strict=True))
    score = scored(references, hypotheses, bootstrap=100)
    errors = score.substitutions + score.deletions + score.insertions
    words = sum(map(len, references))
    assert errors == sum(map(distance, references, hypotheses))
    assert score.words == words
    assert score.deletions - score.insertions == words - sum(map(len, hypotheses))
    assert score.wer == pytest.approx(100 * errors / words)

    strings = [" ".join(words) for words in references], [" ".join(words) for words in hypotheses]
    characters = sum(map(distance, *strings))
    assert score.cer == pytest.approx(100 * characters / sum(map(len, strings[0])))
    whole = jiwer.process_words(*strings)
    assert score.wer == 100 * whole.wer
    assert (score.substitutions, score.deletions, score.insertions) == (
        whole.substitutions,
        whole.deletions,
        whole.insertions,
    )


def test_batches_add_up_in_any_order():
    rows = [(f"u{i}", f"word {i} x", f"word {i % 3}") for i in range(10)]
    whole, parts = WordErrorRate(), WordErrorRate()
    whole.append(*zip(*rows, strict=True))
    for start in (5, 0):
        parts.append(*zip(*rows[start : start + 5], strict=True))
    a, b = whole.summarize(), parts.summarize()
    assert (a.wer, a.cer, a.substitutions) == (b.wer, b.cer, b.substitutions)
    whole.clear()
    whole.append(*zip(*rows[:1], strict=True))
    assert whole.summarize("utterances") == 1


def test_speechbrain_names_of_the_rate():
    metric = WordErrorRate()
    metric.append(["u"], ["a b"], ["a c"])
    assert (
        metric.summarize("error_rate") == metric.summarize("WER") == metric.summarize("wer") == 50
    )


def test_faults():
    metric = WordErrorRate()
    with pytest.raises(TranscriptError, match="no reference words"):
        metric.summarize()
    metric.append(["u1", "u2"], ["a", "a"], ["a", "a"])
    with pytest.raises(TranscriptError, match="3 duplicate ids: u2, u3, u1"):
        metric.append(["u2", "u3", "u3", "u1"], ["a"] * 4, ["a"] * 4)
    with pytest.raises(ValueError, match="2 ids, 1 hypotheses and 2 references"):
        metric.append(["u5", "u6"], ["a"], ["a", "b"])
    assert metric.summarize("utterances") == 2
    with pytest.raises(ValueError, match="at least 100"):
        WordErrorRate(bootstrap=10)
    with pytest.raises(ValueError, match="unknown normalisation"):
        WordErrorRate("no")


def test_empty_references():
    with pytest.raises(TranscriptError, match=r"2 references .*single spaces\): u1, u2"):
        scored(["a", "", " "], ["a", "b c", ""])
    with pytest.raises(TranscriptError, match="punctuation removed.*: u0"):
        scored(["...", "a"], ["...", "a"], "basic")
    score = scored(["a b", "", ""], ["a b", "b c", ""], allow_empty_reference=True)
    assert (score.words, score.insertions, score.wer, score.utterances) == (2, 2, 100, 3)
    assert all(map(math.isfinite, score.ci95))
    with pytest.raises(TranscriptError, match="no reference words"):
        scored(["", ""], ["a", ""], allow_empty_reference=True)


def test_interval_is_deterministic_and_contains_the_rate():
    rng = np.random.default_rng(1)
    references = ["a b c d e"] * 60
    hypotheses = [" ".join(rng.choice(list("abcdex"), 5)) for _ in references]
    first, second = (scored(references, hypotheses) for _ in range(2))
    assert first == second
    low, high = first.ci95
    assert 0 < low < first.wer < high


def test_interval_of_a_known_distribution():
    # independent words: the standard error of the rate is sqrt(p (1 - p) / words)
    p, words, utterances = 0.1, 10, 2000
    errors = np.random.default_rng(0).binomial(words, p, utterances)
    low, high = bootstrap_interval(errors, np.full(utterances, words), 4000)
    half_width = 100 * 1.96 * math.sqrt(p * (1 - p) / (words * utterances))
    assert (high - low) / 2 == pytest.approx(half_width, rel=0.1)
    assert (high + low) / 2 == pytest.approx(100 * errors.mean() / words, abs=0.1 * half_width)


def test_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(200):
        errors = rng.binomial(6, 0.2, 100)
        low, high = bootstrap_interval(errors, np.full(100, 6), 300)
        covered += low <= 20 <= high
    assert 180 <= covered <= 199


def test_resamples_without_words_are_left_out():
    # two utterances of which one is silent: 1 of 2 words, or 2 errors in 2 words
    assert bootstrap_interval([1, 1], [0, 2]) == (50, 100)


SCORE = Score(25.0, 4, 1, 0, 0, (0.0, 50.0), 10.0, 2)
KEYS = [
    *("wer", "words", "substitutions", "deletions", "insertions", "ci95", "cer", "utterances"),
    *("decoder", "seed", "parameters"),
]


def test_json_has_exactly_the_documented_form(tmp_path):
    path = tmp_path / "score_test.json"
    SCORE.to_json(path)
    found = json.loads(path.read_text())
    assert list(found) == KEYS
    assert found["ci95"] == [0, 50]
    assert found["decoder"] is found["seed"] is found["parameters"] is None
    SCORE.to_json(path, seed=7, decoder="greedy", parameters=3)
    found = json.loads(path.read_text())
    assert list(found) == KEYS
    assert [found[key] for key in KEYS[-3:]] == ["greedy", 7, 3]
    assert [file.name for file in tmp_path.iterdir()] == ["score_test.json"]


def test_listing_shows_the_errors_under_their_ids(tmp_path):
    metric = WordErrorRate()
    metric.append(["good", "bad-1"], ["a b", "the dog sat on"], ["a b", "the cat sat"])
    metric.write_stats(tmp_path / "wer.txt")
    listing = (tmp_path / "wer.txt").read_text()
    stream = io.StringIO()
    metric.write_stats(stream)
    assert stream.getvalue() == listing
    assert listing.startswith(f"{metric.summarize()}\nnormalisation: single spaces\n")
    assert "bad-1\n\nREF: the cat sat **\nHYP: the dog sat on\n" in listing
    assert "good" not in listing
    assert "cat --> dog = 1x" in listing


def test_listing_without_errors():
    metric = WordErrorRate()
    metric.append(["u"], ["a"], ["a"])
    stream = io.StringIO()
    metric.write_stats(stream)
    assert "REF" not in stream.getvalue()
