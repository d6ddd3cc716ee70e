"""Several systems and parts of the set: sums, not means, and nothing where there are no words."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from sru_asr.evaluation import Evaluation, evaluate, sentence_error_rate
from sru_asr.score import UtteranceScore, WordErrorRate, score_utterances

REFERENCE = {"a": "x y z", "b": "x", "c": ""}
GOOD = {"a": "x y z", "b": "y", "c": ""}
BAD = {"a": "x q", "b": "x", "c": "w w"}
PARTS = {"kind": {"long": ["a"], "short": ["b"], "silent": ["c"]}}


def scored(hypotheses: dict[str, str]) -> list[UtteranceScore]:
    metric = WordErrorRate(bootstrap=100, allow_empty_reference=True)
    metric.append(list(REFERENCE), list(hypotheses.values()), list(REFERENCE.values()))
    return metric.utterances()


@pytest.fixture
def evaluation() -> Evaluation:
    systems = {"good": scored(GOOD), "bad": scored(BAD)}
    return evaluate(systems, "ref", "single spaces", PARTS, resamples=100)


def test_operations_tell_the_alignment() -> None:
    first, second, third = scored(BAD)
    assert (first.operations, second.operations, third.operations) == ("=SD", "=", "II")
    assert (first.words, first.errors, first.characters, first.character_errors) == (3, 2, 5, 3)
    assert (third.words, third.insertions, third.hypothesis) == (0, 2, "w w")


def test_rates(evaluation: Evaluation) -> None:
    good, bad = evaluation.systems
    assert (good.score.wer, good.ser) == (25.0, pytest.approx(100 / 3))
    assert (bad.score.wer, bad.ser) == (100.0, pytest.approx(200 / 3))
    assert evaluation.comparisons[0, 1].difference == -75.0
    assert sentence_error_rate(scored(REFERENCE)) == 0.0


def test_parts_are_scored_as_if_alone(evaluation: Evaluation) -> None:
    (breakdown,) = evaluation.breakdowns
    long, short, silent = breakdown.groups
    assert long.scores == [score_utterances(scored(one)[:1], 100) for one in (GOOD, BAD)]
    assert [score and score.wer for score in short.scores] == [100.0, 0.0]
    assert (silent.scores, silent.sers) == ([None, None], [0.0, 100.0])


def test_json_and_csv_know_parts_without_words(evaluation: Evaluation, tmp_path: Path) -> None:
    found = json.loads(json.dumps(evaluation.as_dict(), allow_nan=False))
    assert found["breakdowns"][0]["groups"][2] == {
        "label": "silent",
        "utterances": 1,
        "systems": [None, None],
    }
    assert found["comparisons"][0] | {"ci95": 0, "p_value": 0} == {
        "first": "good",
        "second": "bad",
        "difference": -75.0,
        "ci95": 0,
        "p_value": 0,
    }
    evaluation.write_breakdowns(tmp_path / "by.csv")
    with open(tmp_path / "by.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["group"], row["system"], row["wer"]) for row in rows[-2:]] == [
        ("silent", "good", ""),
        ("silent", "bad", ""),
    ]
    assert all(None not in row for row in rows)
    assert rows[0]["cer"] == "0.0" and rows[-1]["ser"] == "100.0"


def test_a_single_system_has_nothing_to_be_compared_with() -> None:
    assert evaluate({"good": scored(GOOD)}, "ref", "none").comparisons == {}
