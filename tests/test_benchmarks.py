"""The benchmarks run, and their files say what a reader needs."""

import importlib
import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.filterwarnings("ignore:Running SRU on CPU")
BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
PRODUCTS = {"products F.linear"}


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run a benchmark by its name as its command does, with results in ``tmp_path``."""
    monkeypatch.syspath_prepend(BENCHMARKS)

    def main(name, *options):
        importlib.import_module(name).main([*options, "--output", str(tmp_path)])

    return main


@pytest.mark.parametrize(
    ("name", "cases"),
    [
        ("recurrence", {"sru_recurrence", "memory copy"}),
        ("layer", {"SRU", "SRU bf16", "nn.LSTM", "nn.GRU", "nn.Conv1d k=3"} | PRODUCTS),
        ("step", {"SRU", "nn.LSTM", "nn.GRU"}),
        ("scaling", set()),
        ("memory", {"SRU"}),
        ("sweep", {"SRU", "nn.LSTM", "nn.GRU", "nn.Conv1d k=3"} | PRODUCTS),
    ],
)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_benchmark_runs(device, name, cases, run, tmp_path, capsys):
    run(name, "--quick", "--device", device)

    stem = tmp_path / f"{name}_{device}"
    record = json.loads(stem.with_suffix(".json").read_text())
    assert record["machine"]["cpu"] and record["machine"]["threads"] >= 1
    assert record["build"]["versions"]["torch"]
    for panel in record["panels"]:
        assert set(panel["cases"]) >= cases
        for case in panel["cases"].values():
            assert 0 < case["min"] <= case["q1"] <= case["median"] <= case["q3"]
            assert case["samples"]
    if name == "scaling":
        over = {"steps": {"SRU T10", "SRU T80"}, "threads": {"SRU 1 thread", "nn.LSTM 1 thread"}}
        assert record["panels"][0]["settings"]["over"] == "steps"
        assert record["panels"][-1]["settings"]["over"] == (
            "threads" if device == "cpu" else "steps"
        )
        for panel in record["panels"]:
            assert set(panel["cases"]) >= over[panel["settings"]["over"]]
    printed = capsys.readouterr().out
    assert stem.with_suffix(".txt").read_text() in printed
    assert all(case in printed for case in cases)
    assert stem.with_suffix(".png").stat().st_size > 1000


def test_slow_case_takes_three_samples_and_no_time_of_the_others(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    harness = importlib.import_module("harness")
    seconds = {"fast": 1.0, "slow": 100.0}
    monkeypatch.setattr(harness, "_cpu_seconds", lambda call, number: seconds[call()])
    panel = harness.Panel("", {name: lambda name=name: name for name in seconds}, {})
    harness.measure(panel, harness.parser("").parse_args(["--seconds", "10"]))
    assert {name: len(samples) for name, samples in panel.samples.items()} == {
        "fast": 11,
        "slow": 3,
    }


def test_summary_divides_medians_and_names_what_is_missing(run, tmp_path, capsys):
    shape = {"batch": 16, "steps": 500, "features": 256, "hidden": 256, "layers": 4}
    medians = {"SRU": 0.3, "products F.linear": 0.4, "products oneDNN": 0.2, "nn.LSTM": 0.9}
    panel = {
        "settings": {**shape, "mode": "inference"},
        "cases": {case: {"median": median} for case, median in medians.items()},
    }
    record = {"machine": {"cpu": "a processor", "threads": 2}, "panels": [panel]}
    (tmp_path / "layer_cpu.json").write_text(json.dumps(record))

    run("summary")
    printed = capsys.readouterr().out
    rows = {" ".join(line.split()) for line in printed.splitlines()}
    start = "inference B16 T500 256->256:"
    assert f"{start} layer / its products 1.5 ≤ 1.15 missed" in rows
    assert f"{start} nn.LSTM / ours 3 ≥ 1.7 met" in rows
    assert f"{start} nn.GRU / ours not measured" in rows
    assert "training B16 T500 256->256: nn.LSTM / ours not measured ≥ 1.9" in rows
    assert (tmp_path / "summary_cpu.txt").read_text() == printed

    run("summary", "--device", "cuda")
    assert "not measured" in capsys.readouterr().out
