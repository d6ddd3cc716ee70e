"""Paired bootstrap: certain cases, and that it keeps its level."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sru_asr.bootstrap import resample_sums
from sru_asr.comparison import compare, compare_errors, read_errors
from sru_asr.score import WordErrorRate


def write(path: Path, errors: list[int], words: int = 5) -> Path:
    rows = [f"u{i},{words},{count}" for i, count in enumerate(errors)]
    path.write_text("\n".join(["ID,words,errors", *rows]) + "\n", encoding="utf-8")
    return path


def test_the_same_runs_do_not_differ(tmp_path: Path) -> None:
    run = write(tmp_path / "a.csv", [0, 1, 2, 0, 3])
    result = compare([run], [run], resamples=200)
    assert result.wer == result.other_wer == pytest.approx(24.0)
    assert result.ci95 == (0.0, 0.0) and result.p_value == 1.0


def test_better_on_every_utterance_is_certain(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a.csv", [0] * 20), write(tmp_path / "b.csv", [1] * 20)
    result = compare([first], [second], resamples=500)
    assert result.wer - result.other_wer == pytest.approx(-20)
    assert result.p_value == pytest.approx(2 / 500)
    assert compare([second], [first], resamples=500).p_value == pytest.approx(2 / 500)


def test_runs_are_pooled_by_utterance(tmp_path: Path) -> None:
    a = [write(tmp_path / f"a{i}.csv", errors) for i, errors in enumerate([[2, 0], [0, 2]])]
    b = [write(tmp_path / "b.csv", [1, 1])]
    result = compare(a, b, resamples=200)
    assert result.wer == result.other_wer == pytest.approx(20.0)
    assert result.ci95 == (0.0, 0.0)


def test_p_values_of_equal_systems_are_uniform(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    small = 0
    for _ in range(200):
        runs = [
            write(tmp_path / f"{name}.csv", generator.poisson(0.4, 60).tolist()) for name in "ab"
        ]
        small += compare(runs[:1], runs[1:], resamples=200).p_value < 0.1
    assert 5 <= small <= 40  # 20 expected


def test_different_utterances_are_refused(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a.csv", [0, 1]), write(tmp_path / "b.csv", [0, 1, 0])
    with pytest.raises(ValueError, match=r"b\.csv.*same utterances"):
        compare([first], [second])
    other_words = write(tmp_path / "c.csv", [0, 1], words=6)
    with pytest.raises(ValueError, match=r"c\.csv"):
        compare([first], [other_words])
    with pytest.raises(ValueError, match="either system"):
        compare([first], [])


def test_reads_what_the_score_writes(tmp_path: Path) -> None:
    metric = WordErrorRate()
    metric.append(["u1", "u2"], ["go north now", "stop"], ["go forth", "stop"])
    metric.write_csv(tmp_path / "utterances_valid.csv")
    assert read_errors(tmp_path / "utterances_valid.csv") == {"u1": (2, 2), "u2": (1, 0)}
    (tmp_path / "other.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"other\.csv.*found columns a, b"):
        read_errors(tmp_path / "other.csv")


def test_draws_are_of_whole_utterances() -> None:
    columns = np.random.default_rng(1).integers(0, 9, size=(3000, 3))
    generator = np.random.default_rng(5)
    drawn = [generator.integers(3000, size=3000) for _ in range(400)]  # more than one block
    expected = [columns[rows].sum(axis=0) for rows in drawn]
    np.testing.assert_array_equal(resample_sums(columns, 400, seed=5), expected)


def test_p_counts_resamples_of_the_other_sign_and_ties() -> None:
    words, errors = np.full(12, 4), np.array([[3] + [0] * 11, [0] + [1] + [0] * 10])
    found = compare_errors(words, errors, resamples=300, seed=3)[0, 1]
    generator = np.random.default_rng(3)
    drawn = [generator.integers(12, size=12) for _ in range(300)]
    more = np.array([(errors[0] - errors[1])[rows].sum() for rows in drawn])
    share = min((more <= 0).mean(), (more >= 0).mean())
    assert 0 < share < 0.5
    assert found.p_value == pytest.approx(2 * share)
    assert found.ci95 == pytest.approx(np.percentile(100 * more / 48, [2.5, 97.5]))
    assert found.difference == pytest.approx(100 * 2 / 48)


def test_every_pair_is_compared_as_if_alone() -> None:
    generator = np.random.default_rng(2)
    words, errors = generator.integers(1, 9, 50), generator.poisson(1.0, (3, 50))
    found = compare_errors(words, errors, resamples=200)
    assert list(found) == [(0, 1), (0, 2), (1, 2)]
    assert found[0, 2] == compare_errors(words, errors[[0, 2]], resamples=200)[0, 1]
