"""Joined recordings hold every word once, and what the benchmark says of them is so."""

import argparse
import importlib
import json
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from model_folder import make_models
from speechbrain.decoders.ctc import ctc_greedy_decode

from sru_asr.audio import read_audio
from sru_asr.manifest import Utterance, write_manifest
from sru_asr.transcribe import Transcriber

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
RATE = 16000
SPEAKERS = {"anna": 3, "bert": 2, "carl": 2}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return make_models(tmp_path_factory)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Seven utterances of three speakers, in an order that mixes them."""
    folder = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    utterances = []
    for number in range(max(SPEAKERS.values())):
        for speaker, count in SPEAKERS.items():
            if number < count:
                name = f"{speaker}-{number}"
                duration = 0.4 + 0.1 * len(utterances)
                signal = 0.1 * generator.standard_normal(round(duration * RATE))
                soundfile.write(folder / f"{name}.wav", signal, RATE)
                words = "AB" if number else "AB DE"
                utterances.append(
                    Utterance(name, round(duration, 4), f"{{data_root}}/{name}.wav", speaker, words)
                )
    write_manifest(folder / "test.csv", utterances)
    return folder / "test.csv"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("long_recordings")


@pytest.fixture
def run(benchmark, manifest, tmp_path):
    """Run it as its command does; gives what it wrote as JSON."""

    def main(*models, options=()):
        root = str(manifest.parent)
        words = [*models, "--csv", manifest, "--data_root", root, "--output", tmp_path, *options]
        benchmark.main([str(word) for word in words])
        (written,) = tmp_path.glob("long_recordings_*.json")
        return json.loads(written.read_text())

    return main


@pytest.fixture
def here(benchmark, monkeypatch):
    """Stay in this process, which is quicker."""
    monkeypatch.setattr(
        benchmark, "in_fresh_process", lambda device, call, *arguments: call(*arguments)
    )


def runs_of(record, label):
    return {run["factor"]: run for run in record["runs"] if run["model"] == label}


@pytest.mark.usefixtures("here")
def test_every_word_counts_once_at_each_length(run, models, manifest, tmp_path, capsys):
    options = ("--factors", "3", "1", "--label", "CTC", "joint")
    record = run(models["ctc"], models["joint"], options=options)

    alone = Transcriber(models["joint"])
    for label in ("CTC", "joint"):
        by_factor = runs_of(record, label)
        assert list(by_factor) == [1, 3]
        assert [len(by_factor[factor]["recordings"]) for factor in (1, 3)] == [7, 3]
        for found in by_factor.values():
            names = [name for r in found["recordings"] for name in r["id"].split("+")]
            assert sorted(names) == sorted(
                f"{s}-{i}" for s, n in SPEAKERS.items() for i in range(n)
            )
            assert found["score"]["words"] == 10
            assert found["score"]["utterances"] == len(found["recordings"])
            assert sum(r["seconds"] for r in found["recordings"]) == pytest.approx(4.9)
            assert found["longest"] == max(r["seconds"] for r in found["recordings"])
            assert found["peak_bytes"] >= found["loaded_bytes"] > 2**20
            assert found["real_time_factor"] > 0 and found["failed"] == 0
        for recording in by_factor[3]["recordings"]:
            joined = [read_audio(manifest.parent / f"{n}.wav") for n in recording["id"].split("+")]
            if label == "joint":
                (transcript,) = alone.transcribe([torch.cat(joined)])
                assert recording["hypothesis"] == transcript.text
    assert record["models"]["CTC"]["decoder"] == "ctc_greedy_decode"
    assert record["models"]["joint"]["decoder"] == type(alone.model.mods.decoder).__name__
    assert record["models"]["joint"]["parameters"] == sum(
        p.numel() for p in alone.model.mods.parameters()
    )
    assert record["machine"]["cpu"] and record["build"]["versions"]["torch"]
    stem = tmp_path / "long_recordings_cpu"
    text = stem.with_suffix(".txt").read_text()
    assert text in capsys.readouterr().out
    assert "joint: 0.0" in text and " x3 " in text
    assert stem.with_suffix(".png").stat().st_size > 1000
    for place in (manifest.parent, models["ctc"].parent):
        assert str(place) not in stem.with_suffix(".json").read_text() + text


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_models_run_in_processes_of_their_own(run, models, manifest, device):
    record = run(models["ctc"], options=("--factors", "7", "--device", device))
    (found,) = record["runs"]
    (recording,) = found["recordings"]
    signals = [read_audio(manifest.parent / f"{n}.wav") for n in recording["id"].split("+")]
    (transcript,) = Transcriber(models["ctc"]).transcribe([torch.cat(signals)])
    if device == "cpu":
        assert recording["hypothesis"] == transcript.text
        assert found["loaded_bytes"] > 2**26  # PyTorch alone is larger
    assert found["peak_bytes"] > found["loaded_bytes"]


@pytest.mark.usefixtures("here")
def test_greedy_decoder_reads_the_ctc_output_of_any_model(run, models, manifest):
    options = ("--factors", "2", "--label", "ctc", "joint", "--decoder", "greedy")
    record = run(models["ctc"], models["joint"], options=options)

    assert {model["decoder"] for model in record["models"].values()} == {"greedy CTC"}
    plain = {name: Transcriber(models[name]) for name in ("ctc", "joint")}
    mods = plain["joint"].model.mods
    recordings = (runs_of(record, label)[2]["recordings"] for label in ("ctc", "joint"))
    for ctc, joint in zip(*recordings, strict=True):
        assert ctc["id"] == joint["id"]
        signal = torch.cat([read_audio(manifest.parent / f"{n}.wav") for n in ctc["id"].split("+")])
        assert ctc["hypothesis"] == plain["ctc"].transcribe([signal])[0].text != ""
        with torch.no_grad():
            frames = mods.encoder(signal[None])
            posteriors = mods.ctc_output(frames).log_softmax(-1)
        (tokens,) = ctc_greedy_decode(posteriors, torch.ones(1), blank_id=0)
        assert joint["hypothesis"] == plain["joint"].model.tokenizer.decode_ids(tokens) != ""


@pytest.mark.usefixtures("here")
def test_weight_of_ctc_is_that_of_the_search(
    run, models, manifest, benchmark, monkeypatch, tmp_path
):
    loaded = []
    load = benchmark.load
    monkeypatch.setattr(benchmark, "load", lambda *given: loaded.append(load(*given)) or loaded[-1])
    record = run(models["joint"], options=("--factors", "3", "--ctc_weight", "0.85"))

    searchers = [transcriber.model.mods["decoder"] for transcriber in loaded]
    assert [searcher.ctc_weight for searcher in searchers] == [0.85, 0.85]
    own = Transcriber(models["joint"]).model.mods.decoder
    assert own.ctc_weight != 0.85
    assert {searcher.beam_size for searcher in searchers} == {own.beam_size}
    assert record["settings"]["ctc_weight"] == 0.85
    assert "CTC weight 0.85" in (tmp_path / "long_recordings_cpu.txt").read_text()
    for recording in record["runs"][0]["recordings"]:
        joined = [read_audio(manifest.parent / f"{n}.wav") for n in recording["id"].split("+")]
        (transcript,) = loaded[-1].transcribe([torch.cat(joined)])
        assert recording["hypothesis"] == transcript.text


@pytest.mark.usefixtures("here")
def test_weight_of_ctc_needs_a_joint_search(run, models):
    with pytest.raises(SystemExit, match="model folder .*: decoder joint: found a model folder"):
        run(models["ctc"], options=("--ctc_weight", "0.5"))
    with pytest.raises(SystemExit, match=r"model folder .*: .*ctc_weight must be between 0 and 1"):
        run(models["joint"], options=("--ctc_weight", "1.5"))


@pytest.mark.usefixtures("here")
def test_gap_lengthens_recordings_between_their_utterances(run, models):
    record = run(models["ctc"], options=("--factors", "1", "3", "--gap", "0.5", "--label", "a"))
    by_factor = runs_of(record, "a")
    seconds = {f: sum(r["seconds"] for r in by_factor[f]["recordings"]) for f in (1, 3)}
    assert seconds == pytest.approx({1: 4.9, 3: 4.9 + 4 * 0.5})  # 3 + 3 + 1 utterances


def utterances(order):
    every = [Utterance(f"{s}{i}", 1.0, "", s, "A") for s, n in SPEAKERS.items() for i in range(n)]
    return [every[i] for i in order]


def test_speakers_stay_together_in_an_order_that_only_the_seed_decides(benchmark):
    lined_up = benchmark.line_up(utterances(range(7)), seed=4)
    assert lined_up == benchmark.line_up(utterances([6, 2, 4, 0, 5, 1, 3]), seed=4)
    assert sorted(u.ID for u in lined_up) == sorted(u.ID for u in utterances(range(7)))
    changes = sum(a.spk_id != b.spk_id for a, b in pairwise(lined_up))
    assert changes == len(SPEAKERS) - 1
    orders = {tuple(u.ID for u in benchmark.line_up(utterances(range(7)), s)) for s in range(20)}
    assert len(orders) > 10


@pytest.mark.parametrize(
    ("factor", "sizes"), [(1, [1] * 7), (2, [2, 2, 2, 1]), (7, [7]), (20, [7])]
)
def test_groups_follow_the_order_and_keep_the_remainder(benchmark, factor, sizes):
    every = utterances(range(7))
    groups = benchmark.group(every, factor)
    assert [len(members) for members in groups] == sizes
    assert list(chain(*groups)) == every


def test_recording_that_fails_counts_as_deleted_words(benchmark):
    common = {"seconds": 2.0, "took": 1.0, "reference": "A B C"}
    run = benchmark.Run(
        10,
        30,
        [
            {**common, "id": "a", "hypothesis": "A B C", "error": None},
            {**common, "id": "b", "hypothesis": "", "error": "too long"},
        ],
    )
    assert run.failed == 1
    assert (run.score().deletions, run.score().wer) == (3, 50.0)
    assert run.real_time_factor == 0.5
    row = benchmark.table({"model": {5: run}}).splitlines()[-1]
    assert row.split()[:4] == ["x5", "2", "2.0", "50.00"]


def test_greedy_decoder_needs_a_ctc_output(benchmark, models, monkeypatch):
    real = benchmark.Transcriber

    def without_output(*arguments, **options):
        transcriber = real(*arguments, **options)
        del transcriber.model.mods["ctc_output"]
        return transcriber

    monkeypatch.setattr(benchmark, "Transcriber", without_output)
    args = argparse.Namespace(decoder="greedy", ctc_weight=None, device="cpu")
    with pytest.raises(benchmark.ModelFolderError, match="found no modules.ctc_output"):
        benchmark.load(str(models["joint"]), args)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--factors", "0"], "--factors: found 0, expected 1 or more"),
        (["--gap", "-1"], "--gap: found -1"),
        (["--ctc_weight", "0.5", "--decoder", "greedy"], "--ctc_weight: found 0.5 with --decoder"),
        (["--label", "a", "b"], "--label: found 2 names, expected one for each model"),
        (["--csv", "nowhere.csv"], "nowhere.csv: does not exist"),
    ],
)
def test_bad_option_is_named(run, models, capsys, options, message):
    with pytest.raises(SystemExit) as stopped:
        run(models["ctc"], options=options)
    assert message in str(stopped.value) + capsys.readouterr().err


@pytest.mark.usefixtures("here")
def test_folder_that_is_no_model_stops_it_before_any_is_measured(
    run, models, monkeypatch, benchmark
):
    monkeypatch.setattr(benchmark, "transcribe", None)
    with pytest.raises(SystemExit, match="model folder .*: found no hyperparams.yaml"):
        run(models["ctc"], models["ctc"].parents[1], options=["--label", "a", "b"])


def test_models_are_named_by_their_training_folders(benchmark):
    assert benchmark.labels(["results/a/1/model", "other/b"], None) == ["a/1", "b"]
    with pytest.raises(ValueError, match="two models of one name"):
        benchmark.labels(["x/a", "y/a"], None)
