"""The benchmarks run, and their files say what a reader needs."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ruamel.yaml import YAML

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
        ("beam_search", {"JointBeamSearcher", "S2STransformerBeamSearcher"}),
        ("startup", {"python", "sru-asr --help", "sru-asr score", "import torch"}),
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


def test_products_of_both_routines(run, tmp_path, capsys):
    run("product", "--quick")
    panels = json.loads((tmp_path / "product_cpu.json").read_text())["panels"]
    assert len(panels) == 8
    assert all(set(panel["cases"]) == {"linear", "convolution"} for panel in panels)
    assert "forward and backward, 125 rows, 18 to 72" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="--device must be cpu, got cuda"):
        run("product", "--quick", "--device", "cuda")


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


HPARAMS = Path(__file__).resolve().parents[1] / "hparams" / "an4"
SRUPP, PEER = HPARAMS / "srupp_ctc_attention.yaml", HPARAMS / "conformer_ctc_attention.yaml"
TINY = {
    "channels": "[4, 4]",
    "d_model": "16",
    "encoder_size": "24",
    "projection_size": "8",
    "num_decoder_layers": "1",
    "max_batch_seconds": "4",
    "num_buckets": "6",
}


@pytest.fixture
def training(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("training")


@pytest.fixture
def load(training, tmp_path):
    """Load a tiny model to train on noise or on a corpus; gives it and the arguments."""

    def make(path, utterances=None):
        args, _ = training._parse([str(path), "--quick"])
        found = training.recipes([str(SRUPP), str(PEER)], TINY, None)
        (recipe,) = (recipe for recipe in found if recipe.path == str(path))
        torch.manual_seed(0)
        return training.Training(recipe, tmp_path, utterances or training.noise(0.3, 0.6), args)

    return make


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_training_compares_recipes_on_the_same_batches(device, run, tmp_path, capsys):
    yamls = [str(HPARAMS / name) for name in ("sru_lm.yaml", SRUPP.name, PEER.name)]
    overrides = [f"--{key}={value}" for key, value in TINY.items()]
    run("training", *yamls, "--quick", "--device", device, *overrides)

    stem = tmp_path / f"training_0_3-0_6s_{device}"
    record = json.loads(stem.with_suffix(".json").read_text())
    panels = {panel["title"]: panel for panel in record["panels"]}
    for panel in panels.values():
        assert list(panel["cases"]) == [PEER.stem, SRUPP.stem]  # what is compared with comes first
        assert all(case["min"] > 0 for case in panel["cases"].values())
    for kind in ("training", "encoder"):
        seconds = [case["samples"] for case in panels[f"{kind} step"]["cases"].values()]
        quotients = panels[f"{kind} step, times as fast"]["cases"][SRUPP.stem]
        expected = [theirs / ours for theirs, ours in zip(*seconds, strict=True)]
        assert quotients["samples"] == pytest.approx(expected) and len(expected) == 2
    described = panels["training step"]["settings"]
    assert len(described["utterances"]) == len(described["seconds"]) == 2
    total = sum(panels["training step"]["cases"][SRUPP.stem]["samples"])
    throughput = panels["throughput of training"]["cases"][SRUPP.stem]["median"]
    assert throughput == pytest.approx(sum(described["utterances"]) / total)
    memory = [panels[f"peak memory of {what}"]["cases"][SRUPP.stem] for what in TRAINING_MEMORY]
    assert memory[0]["median"] > 4 * 4 * described["parameters"][SRUPP.stem]  # with Adam's states
    assert memory[0]["median"] > memory[1]["median"]

    printed = capsys.readouterr().out
    assert "left out" in printed and "sru_lm.yaml" in printed
    rows = stem.with_suffix(".md").read_text()
    assert rows in printed
    caption, _, heads, _, *cells = [row.split(" | ") for row in rows.splitlines()]
    assert "0_3-0_6s, 2 steps of" in caption[0]
    assert [row[0] for row in cells] == [f"| {PEER.stem}", f"| {SRUPP.stem}"]
    assert {len(row) for row in cells} == {len(heads)}


TRAINING_MEMORY = ("training", "an encoder step")


def test_encoder_steps_leave_the_training_as_it_is(training, load):
    timed, plain = load(SRUPP), load(SRUPP)
    batches = timed.batches(3)
    steps, encoder_steps = training.measure({"timed": timed}, batches, "cpu")
    assert len(steps["timed"]) == len(encoder_steps["timed"]) == 2
    for number, indices in enumerate(batches):
        batch = plain.batch(indices)
        torch.manual_seed(number)
        plain.step(batch)
    before = load(SRUPP).model.state_dict()
    states = [t.model.state_dict() for t in (timed, plain)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in before)
    assert any(not torch.equal(states[0][name], before[name]) for name in before)


def test_encoder_step_gives_gradients_to_the_encoder_alone(load):
    peer = load(PEER)
    indices = peer.batches(1)[0]
    peer.encoder_step(peer.batch(indices))()
    core = peer.model.encoder.encoder
    assert all(p.grad is not None for p in core.encoder.parameters())
    assert all(p.grad is None for p in core.decoder.parameters())
    assert all(p.grad is None for p in peer.model.ctc_output.parameters())


def test_models_train_on_the_same_noise(load):
    trainings = [load(path) for path in (SRUPP, PEER)]
    indices = trainings[0].batches(1)[0]
    assert len(indices) > 1
    ours, theirs = (training.batch(indices) for training in trainings)
    assert torch.equal(ours.sig.data, theirs.sig.data) and torch.equal(
        ours.tokens.data, theirs.tokens.data
    )
    assert ours.tokens.data.max() > 2 and (ours.sig.lengths <= 1).all()
    assert ours.sig.data.std() > 0.05


def test_corpus_is_prepared_as_its_recipe_does(training, load, tmp_path):
    soundfile = pytest.importorskip("soundfile")
    lines, corpus = [], tmp_path / "an4"
    for number, letter in enumerate("ABCDEFGHIJ"):
        name = f"f{letter.lower()}xx"
        folder = corpus / "wav" / "an4_clstk" / name
        folder.mkdir(parents=True)
        soundfile.write(folder / f"an-{name}.wav", 0.1 * torch.randn(8000 + number).numpy(), 16000)
        lines.append(f"<s> ABCDEFGHIJKLMNOPQRSTUVWXYZ {letter} </s> (an-{name})\n")
    (corpus / "etc").mkdir()
    (corpus / "etc" / "an4_train.transcription").write_text("".join(lines))

    utterances = training.an4(str(corpus), tmp_path / "manifests")
    assert len(utterances) == 2  # the other eight speakers are held out
    trained = load(SRUPP, utterances)
    batch = trained.batch([0, 1])
    assert batch.sig.data.shape[0] == 2 and batch.sig.data.shape[1] in range(8000, 8010)
    tokens = batch.tokens.data.tolist()
    assert [trained.hparams["tokenizer"].decode(ids) for ids in tokens] == [
        utterance.wrd for utterance in utterances
    ]
    trained.step(batch)

    with pytest.raises(training.RecipeError, match="expected the AN4 corpus"):
        training.an4(str(tmp_path / "nowhere"), tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.yaml"], "nowhere.yaml: no such file"),
        ([str(SRUPP), "--hidden_sizes=3"], "no recipe has the option hidden_sizes to override"),
        ([str(SRUPP), "--against", "lstm"], "--against: found 'lstm', expected one of srupp"),
        ([str(SRUPP), str(SRUPP)], "has the same name"),
        ([str(HPARAMS / "sru_lm.yaml")], "found no recogniser's recipe among"),
        ([str(SRUPP), "--lengths", "5", "2"], "--lengths: found 5 2, expected 0 < LOW <= HIGH"),
        ([str(SRUPP), "--steps", "0"], "--steps: found 0, expected at least 1"),
        ([str(SRUPP), "--step"], "unrecognized argument --step"),
    ],
)
def test_training_names_what_is_wrong_with_its_options(run, words, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        run("training", *words)
    assert message in str(stopped.value) + capsys.readouterr().err


def test_peak_memory_is_that_of_the_block():
    # In a fresh process: one that has run other tests has memory of its own to reuse.
    script = """
import torch
from peak import peak_memory
kept = torch.ones(2**22)
with peak_memory("cpu") as memory:
    del kept
    torch.ones(2**24)  # 64 MiB, and gone
    torch.ones(2**20)
print(memory.before, memory.peak, memory.added)
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=BENCHMARKS, check=True, capture_output=True, text=True)
    before, peak, added = map(int, done.stdout.split())
    assert 44 <= added / 2**20 <= 66
    assert peak - before == added


def test_long_audio_needs_no_more_memory_in_blocks(run, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(BENCHMARKS)
    long_audio = importlib.import_module("long_audio")
    recipe = YAML(typ="rt").load(SRUPP.read_text())
    assert {name: recipe[name] for name in long_audio.SIZES} == long_audio.SIZES
    assert recipe["channels"][-1] * recipe["n_mels"] // 4 == long_audio.FEATURES

    run("long_audio", "--quick", "--window", "20")
    record = json.loads((tmp_path / "long_audio_cpu.json").read_text())
    memory, seconds = record["panels"]
    for panel in (memory, seconds):
        assert list(panel["cases"]) == ["SRU++ in blocks", "at once"]
        assert all(case["min"] > 0 for case in panel["cases"].values())
        assert panel["settings"]["frames"] == 15000 and panel["settings"]["window"] == 20
        assert panel["settings"]["difference"] < 1e-4 < panel["settings"]["largest"]
    assert "10 minutes, window 20: " in capsys.readouterr().out


def test_transcribing_is_measured_with_any_joint_model(monkeypatch, tmp_path, capsys):
    soundfile = pytest.importorskip("soundfile")
    from model_folder import JOINT, make_model

    from sru_asr.manifest import Utterance, write_manifest

    monkeypatch.syspath_prepend(BENCHMARKS)
    transcribe = importlib.import_module("transcribe")
    model = make_model(tmp_path / "run", JOINT.replace("beam_size: 2", "beam_size: 10"))
    utterances = []
    for number in range(4):
        signal = 0.1 * torch.randn(16000 + number)
        soundfile.write(tmp_path / f"{number}.wav", signal.numpy(), 16000)
        utterances.append(Utterance(f"u{number}", 1.0, f"{tmp_path}/{number}.wav", "", "AB DE"))
    write_manifest(tmp_path / "test.csv", utterances)
    options = ["--quick", "--peer", "2", "--output", str(tmp_path)]
    transcribe.main([str(model), "--csv", str(tmp_path / "test.csv"), *options])
    record = json.loads((tmp_path / "transcribe_cpu.json").read_text())
    names = [figure["name"] for figure in record["figures"]]
    assert len(set(names)) == 15 and all(figure["goal"] for figure in record["figures"])
    assert record["speed"]["peer"]["files"] == 2
    for score in record["errors"]["greedy"].values():
        assert [draw["words"] for draw in score] == [8]
    assert record["errors"]["greedy"].keys() == {"cut by hand", *transcribe.PAUSES}
    signal, generator = np.random.default_rng(0).normal(0, 0.1, 16000), np.random.default_rng(1)
    for kind, power in {"silence": 0, "background": 0.01, "white noise": 0.01}.items():
        quiet = transcribe.pause(kind, signal, 8000, generator)
        assert quiet.shape == (8000,) and quiet.dtype == np.float32
        assert np.square(quiet).mean() == pytest.approx(power, rel=0.25)
    assert record["hours"]["0.02 h"]["audio_seconds"] == 72
    printed = capsys.readouterr().out
    assert (tmp_path / "transcribe_cpu.txt").read_text() in printed
    assert all(name in printed for name in names)
    assert str(tmp_path) not in (tmp_path / "transcribe_cpu.json").read_text()
