"""The benchmarks run, and their files say what a reader needs."""

import json
import runpy
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.mark.parametrize(
    ("name", "cases"),
    [
        ("recurrence", {"sru_recurrence", "memory copy"}),
        ("layer", {"SRU", "its products", "nn.LSTM", "nn.GRU"}),
    ],
)
def test_benchmark_runs(name, cases, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(BENCHMARKS)
    main = runpy.run_path(str(BENCHMARKS / f"{name}.py"))["main"]
    main(["--quick", "--output", str(tmp_path)])

    record = json.loads((tmp_path / f"{name}_cpu.json").read_text())
    assert record["machine"]["cpu"] and record["machine"]["threads"] >= 1
    assert record["build"]["versions"]["torch"]
    for panel in record["panels"]:
        assert set(panel["cases"]) == cases
        for case in panel["cases"].values():
            assert case["min"] <= case["q1"] <= case["median"] <= case["q3"]
            assert len(case["samples"]) == 2 and case["min"] > 0
    printed = capsys.readouterr().out
    assert (tmp_path / f"{name}_cpu.txt").read_text() in printed
    assert all(case in printed for case in cases)
    assert (tmp_path / f"{name}_cpu.png").stat().st_size > 1000
