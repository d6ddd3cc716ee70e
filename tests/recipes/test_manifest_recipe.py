"""One's own data: trained on, gone on with, and everything wrong with it said at once."""

from __future__ import annotations

import csv
import importlib.util
import json
import logging
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from recipe_runs import ROOT, recipe, run
from sentencepiece import SentencePieceProcessor
from speechbrain.dataio.sampler import DynamicBatchSampler

from sru_asr import training
from sru_asr.manifest import Utterance, read_manifest
from sru_asr.transcribe import Transcriber

AN4 = ROOT.parent / "shared/data/an4"

spec = importlib.util.spec_from_file_location(
    "manifest_schedule", ROOT / "recipes/Manifest/schedule.py"
)
assert spec
assert spec.loader
schedule = importlib.util.module_from_spec(spec)
spec.loader.exec_module(schedule)

SMALL: dict[str, object] = {
    "number_of_epochs": 1,
    "channels": "[4, 4]",
    "hidden_size": 8,
    "projection_size": 8,
    "num_layers": 2,
    "train_loader_options": "{num_workers: 0}",
}
TEXTS = ["GO", "STOP", "GO NORTH", "SOUTH", "TURN", "GO SOUTH"]


def write_manifest(folder: Path, texts: list[str], name: str = "train.csv") -> list[dict[str, Any]]:
    """Noise of about a second each, in FLAC beside the manifest, from six speakers."""
    (folder / "wav").mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0)
    rows = []
    for number, text in enumerate(texts):
        seconds = 1.0 + 0.01 * number
        wav = f"wav/{number}.flac"
        soundfile.write(folder / wav, noise.uniform(-0.3, 0.3, int(16000 * seconds)), 16000)
        speaker = f"s{number % 6}"
        rows.append(
            {"ID": f"u{number}", "duration": seconds, "wav": wav, "spk_id": speaker, "wrd": text}
        )
    save(folder / name, rows)
    return rows


def save(path: Path, rows: list[dict[str, Any]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def command(name: str, overrides: dict[str, object]) -> list[str]:
    return recipe("Manifest", f"manifest/{name}.yaml", overrides)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stranger's folder after a first training, on manifests with relative paths."""
    folder = tmp_path_factory.mktemp("stranger")
    write_manifest(folder / "data", TEXTS * 3)
    settings = {**SMALL, "train_csv": "data/train.csv", "output_folder": "results/first"}
    done = run(command("srupp_ctc", settings), folder)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "printed").write_text(done.stdout + done.stderr)
    return folder


def test_a_first_training_needs_nothing_but_a_manifest(folder: Path) -> None:
    printed = (folder / "printed").read_text()
    assert "Held out for validation: 3 of 18 utterances" in printed
    assert re.search(r"Settings for 15 utterances, 0.00 hours.*\n  output_neurons: 13\n", printed)
    results = folder / "results/first"
    for name in (
        *("score_valid.json", "wer_valid.txt", "utterances_valid.csv", "training.png"),
        *("model/hyperparams.yaml", "save/train.csv"),
    ):
        assert (results / name).is_file(), name
    valid = read_manifest(results / "save/valid.csv")
    assert json.loads((results / "score_valid.json").read_text())["utterances"] == len(valid) == 3
    assert len({row.spk_id for row in valid}) == 1
    assert Path(valid[0].wav).is_file()
    assert len(Transcriber(results / "model").transcribe([valid[0].wav])) == 1


def test_going_on_with_another_tokenizer(folder: Path) -> None:
    write_manifest(folder / "other", [text.capitalize() + "!" for text in TEXTS] * 2)
    settings = {
        "train_csv": "other/train.csv",
        "valid_csv": "other/train.csv",
        "test_csv": "{mine: other/train.csv, also: data/train.csv}",
        "pretrained": "results/first/model",
        "output_folder": "results/second",
        "number_of_epochs": 1,
        "lr": 1e-9,
        "train_loader_options": "{num_workers: 0}",
    }
    done = run([*command("finetune", settings), "--tokenizer=new"], folder)
    printed = done.stdout + done.stderr
    assert done.returncode == 0, printed
    assert re.search(r"Pretrained results/first/model: loaded \d+ of \d+ tensors", printed)
    assert "carried over 15 of 16 rows; anew: !" in printed
    assert "train and valid share 12 recordings: " in printed
    assert "also: the tokenizer" in printed
    results = folder / "results/second"
    assert {path.name for path in results.glob("score_*")} == {
        *("score_valid.json", "score_mine.json", "score_also.json")
    }
    before, after = (
        torch.load(folder / "results" / name / "model/model.ckpt", weights_only=True)
        for name in ("first", "second")
    )
    for name, value in before.items():  # with such a learning rate
        if value.shape == after[name].shape:
            torch.testing.assert_close(after[name], value, msg=name)
    rows = [
        SentencePieceProcessor(
            model_file=str(folder / "results" / name / "model/tokenizer.ckpt")
        ).piece_to_id(piece)
        for name, piece in (("first", "O"), ("second", "o"))
    ]
    torch.testing.assert_close(
        after["ctc_output.w.weight"][rows[1]], before["ctc_output.w.weight"][rows[0]]
    )
    Transcriber(results / "model")


def test_the_old_tokenizer_must_spell_everything(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    rows = write_manifest(folder / "odd", [text.capitalize() + "!" for text in TEXTS] * 2)
    save(folder / "odd/train.csv", [{**rows[0], "wav": "gone"}, *rows[1:]])
    tree = {**TREE, "train_csv": "odd/train.csv", "text_normalization": "none"}
    tree |= {"pretrained": "results/first/model", "pretrained_tokenizer": "old"}
    assert schedule.derive_settings(tree)["output_neurons"] == 13
    with pytest.raises(ValueError) as caught:
        training.read_splits(tree, training.find_old_tokenizer(tree))
    message = str(caught.value)
    assert "manifest odd/train.csv: 2 problems" in message
    assert "gone does not exist" in message
    assert re.search(
        r"the tokenizer .*first/model/tokenizer.ckpt cannot spell 9 characters, 8 of which it "
        r"knows in the other case: 'o' \(14 times, in u0, u1 and 8 more\), '!' \(12 times, in u0",
        message,
    )
    assert "--tokenizer=new makes one of these transcripts" in message
    assert message.endswith("--text_normalization=none|basic|lower|upper changes the transcripts")


@pytest.mark.slow
def test_the_old_tokenizer_after_normalization(folder: Path) -> None:
    write_manifest(folder / "lower", [text.lower() for text in TEXTS] * 2)
    settings = {
        "train_csv": "lower/train.csv",
        "pretrained": "results/first/model",
        "output_folder": "results/third",
        "number_of_epochs": 1,
        "text_normalization": "upper",
        "train_loader_options": "{num_workers: 0}",
    }
    done = run(command("finetune", settings), folder)
    assert done.returncode == 0, done.stdout + done.stderr
    models = [folder / "results" / name / "model/tokenizer.ckpt" for name in ("first", "third")]
    assert models[0].read_bytes() == models[1].read_bytes()


def test_everything_wrong_is_said_at_once_and_before_training(tmp_path: Path) -> None:
    rows = write_manifest(tmp_path, TEXTS)
    rows[0]["wav"] = "gone.flac"
    rows[1]["wrd"] = " "
    rows[2]["duration"] = 1020
    content = (tmp_path / "wav/3.flac").read_bytes()
    (tmp_path / "wav/3.flac").write_bytes(content[: len(content) // 2])
    save(tmp_path / "train.csv", rows)
    save(tmp_path / "valid.csv", [{**rows[4], "wav": "nowhere.wav"}])
    with pytest.raises(training.RecipeError) as caught:
        training.complete_overrides(
            str(ROOT / "hparams/manifest/srupp_ctc.yaml"),
            f"train_csv: {tmp_path}/train.csv\nvalid_csv: {tmp_path}/valid.csv",
            settings=schedule.derive_settings,
        )
    message = str(caught.value).splitlines()
    assert message[0] == f"manifest {tmp_path}/train.csv: 4 problems"
    for line, found in zip(
        message[1:5],
        [
            "line 3 (ID 'u1'): empty wrd",
            "line 2 (ID 'u0'): audio file .*gone.flac does not exist",
            "line 4 (ID 'u2'): duration 1020 s (is it in milliseconds?), but .* has 1.020 s",
            "line 5 (ID 'u3'): audio file .*wav/3.flac is cut short",
        ],
        strict=True,
    ):
        assert re.search(re.sub(r"([()?])", r"\\\1", found), line)
    assert re.search(r"manifest .*valid.csv: line 2 .*nowhere.wav does not exist", message[5])


def test_a_loss_that_is_not_finite_names_the_batch(folder: Path) -> None:
    settings = {
        **SMALL,
        "train_csv": "data/train.csv",
        "output_folder": "results/diverged",
        "lr": 1e30,
        "warmup_steps": 1,
        "number_of_epochs": 3,
    }
    done = run(command("srupp_ctc", settings), folder)
    assert done.returncode == 2, done.stdout + done.stderr
    assert re.search(r"error: the loss became .* on the batch of .*u\d+", done.stderr)


class TestBadSettings:
    """The hook that works settings out meets them before a model is built."""

    @pytest.mark.parametrize(
        ("overrides", "found"),
        [
            ({"train_csv": "gone.csv"}, "manifest gone.csv: does not exist"),
            ({"test_csv": "gone.csv"}, "test_csv gone.csv: found no such file"),
            ({"test_csv": {"a": "data.csv", "b": "gone.csv"}}, "test_csv gone.csv: found no such"),
            ({"data_folder": "gone"}, "data_folder gone: found no such folder"),
            ({"text_normalization": "loud"}, "found 'loud', expected none, basic, lower, upper"),
            ({"pretrained_tokenizer": "odd"}, "pretrained_tokenizer: found 'odd', expected old or"),
            ({"pretrained_tokenizer": "old", "pretrained": "gone"}, "pretrained gone: found no su"),
        ],
    )
    def test_they_are_named(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        overrides: dict[str, Any],
        found: str,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        write_manifest(tmp_path, TEXTS, "data.csv")
        with pytest.raises(ValueError, match=found):
            schedule.derive_settings({**TREE, **overrides})

    @pytest.mark.parametrize(
        ("name", "given", "missing"),
        [
            ("srupp_ctc", "", "train_csv"),
            ("finetune", "pretrained: x", "train_csv"),
            ("finetune", "train_csv: x", "pretrained"),
        ],
    )
    def test_what_is_needed_is_said(self, name: str, given: str, missing: str) -> None:
        yaml = str(ROOT / f"hparams/manifest/{name}.yaml")
        with pytest.raises(training.RecipeError, match=f"give one: --{missing}=..."):
            training.complete_overrides(yaml, given, settings=schedule.derive_settings)

    def test_going_on_needs_the_other_yaml(self) -> None:
        yaml = str(ROOT / "hparams/manifest/srupp_ctc.yaml")
        with pytest.raises(training.RecipeError, match="no option 'pretrained'.*finetune.yaml"):
            training.complete_overrides(
                yaml, "train_csv: x\npretrained: y", settings=schedule.derive_settings
            )


TREE: dict[str, Any] = {
    "train_csv": "data.csv",
    "valid_csv": None,
    "test_csv": {},
    "data_folder": None,
    "token_type": "char",
    "output_neurons": "auto",
    "number_of_epochs": "auto",
}


def test_only_what_says_auto_is_worked_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_manifest(tmp_path, TEXTS, "data.csv")
    settings = schedule.derive_settings(TREE)
    assert set(settings) == {"output_neurons", "number_of_epochs"}
    assert "number_of_epochs: 60" in capsys.readouterr().out
    known = {**TREE, "output_neurons": 99, "number_of_epochs": 3}
    assert schedule.derive_settings(known) == {}


def utterances(hours: float, seconds: float = 5.0) -> list[Utterance]:
    """Lengths as in speech, log-normal about a mean."""
    draw = np.random.default_rng(0)
    lengths = draw.lognormal(np.log(seconds) - 0.08, 0.4, int(hours * 3600 / seconds))
    return [Utterance(f"u{i}", float(d), "", "", "A") for i, d in enumerate(lengths)]


@pytest.mark.parametrize("hours", [0.05, 0.5, 5.0, 100.0])
def test_plans_for_any_amount_of_data(hours: float) -> None:
    rows = utterances(hours)
    plan = schedule.plan(rows, {})
    assert 15 <= plan["number_of_epochs"] <= 60
    assert 30 <= plan["max_batch_seconds"] <= 240
    assert plan["warmup_steps"] < plan["total_steps"] / 2
    if hours >= 0.5:
        assert 2000 < plan["total_steps"] < 40_000
    tuned = schedule.plan(rows, {}, fine_tuning=True)
    assert tuned["number_of_epochs"] == -(-plan["number_of_epochs"] // 3)
    # Batches are well filled.
    batches = plan["total_steps"] / plan["number_of_epochs"]
    filled = sum(row.duration for row in rows) / batches / plan["max_batch_seconds"]
    assert filled > (0.6 if hours >= 0.5 else 0.3)


def test_more_data_is_gone_through_less_often_in_larger_batches() -> None:
    plans = [schedule.plan(utterances(hours), {}) for hours in (0.5, 5, 100)]
    epochs = [plan["number_of_epochs"] for plan in plans]
    assert epochs == sorted(epochs, reverse=True)
    for key in ("max_batch_seconds", "total_steps", "warmup_steps"):
        values = [plan[key] for plan in plans]
        assert values == sorted(values)


def test_other_settings_follow_those_that_are_given() -> None:
    rows = utterances(1.0)
    known = {"number_of_epochs": 2, "max_batch_seconds": 100, "seed": 3}
    plan = schedule.plan(rows, known)
    assert "seed" not in plan
    assert (plan["number_of_epochs"], plan["max_batch_seconds"]) == (2, 100)
    assert plan["total_steps"] == pytest.approx(2 * 36, rel=0.4)
    assert schedule.plan(rows, {"total_steps": 700})["warmup_steps"] == 100


def test_a_batch_takes_the_longest_recording() -> None:
    rows = [Utterance("a", 400.5, "", "", "A"), *utterances(0.1)]
    assert schedule.plan(rows, {})["max_batch_seconds"] == 401
    assert schedule.plan(rows[:1], {})["total_steps"] > 0


@pytest.mark.parametrize("hours", [0.01, 0.3, 2.0])
def test_the_steps_are_those_of_the_sampler(hours: float) -> None:
    logging.disable()
    rows = utterances(hours)
    plan = schedule.plan(rows, {})
    sampler = DynamicBatchSampler(
        rows,
        plan["max_batch_seconds"],
        bucket_boundaries=plan["bucket_boundaries"],
        lengths_list=[row.duration for row in rows],
    )
    logging.disable(logging.NOTSET)
    assert len(sampler) * plan["number_of_epochs"] == plan["total_steps"]


def test_the_readme_shows_what_runs(folder: Path) -> None:
    text = (ROOT / "recipes/Manifest/README.md").read_text()
    for path in set(re.findall(r"\b(?:recipes|hparams)/[\w/]+\.(?:py|yaml)", text)):
        assert (ROOT / path).is_file(), path
    options = set(re.findall(r"--(\w+)[ =]", text))
    yamls = "".join((ROOT / f"hparams/manifest/{n}.yaml").read_text() for n in YAMLS)
    known = set(re.findall(r"^(\w+):", yamls, re.MULTILINE))
    others = {"tokenizer", "device", "precision", "standalone", "nproc_per_node", "model"}
    assert options <= known | others, options - known - others


YAMLS = ("srupp_ctc", "finetune")


@pytest.mark.slow
@pytest.mark.skipif(not AN4.is_dir(), reason="needs the AN4 corpus")
def test_the_flacs_of_an4_as_a_strangers(tmp_path: Path) -> None:
    """The README's way from a folder of recordings to a first model, and on from it."""
    text = (ROOT / "recipes/Manifest/README.md").read_text()
    (script,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "make_manifest.py").write_text(script)
    (tmp_path / "an4").symlink_to(AN4)
    done = run([sys.executable, "make_manifest.py"], tmp_path)
    assert done.returncode == 0, done.stderr
    settings = {**SMALL, "train_csv": "an4.csv", "data_folder": "an4", "output_folder": "first"}
    done = run(command("srupp_ctc", settings), tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    with open(tmp_path / "an4.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 948
    save(tmp_path / "lower.csv", [{**row, "wrd": row["wrd"].lower()} for row in rows[::4]])
    settings = {
        "train_csv": "lower.csv",
        "data_folder": "an4",
        "pretrained": "first/model",
        "tokenizer": "new",
        "number_of_epochs": 1,
        "output_folder": "second",
    }
    done = run(command("finetune", settings), tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "carried over 30 of 30 rows; anew: none" in done.stdout + done.stderr
