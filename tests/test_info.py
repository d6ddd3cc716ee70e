"""``sru-asr info``: what can be told of a model folder, whole, untrusted or damaged."""

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from model_folder import make_models

from sru_asr.cli import main
from sru_asr.model_card import NAME, write_card
from sru_asr.model_folder import load_model
from sru_asr.model_info import describe, read_shapes
from sru_asr.versions import version_of

SCORE = {"wer": 12.5, "words": 8, "ci95": [3.0, 25.0], "decoder": "JointBeamSearcher"}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return make_models(tmp_path_factory)


@pytest.fixture
def folder(models, tmp_path):
    return Path(shutil.copytree(models["joint"], tmp_path / "run" / "model"))


def run(folder, *options):
    done = CliRunner().invoke(main, ["info", "--model", str(folder), *options])
    assert done.exception is None or isinstance(done.exception, SystemExit)
    return done


def test_a_folder_is_described(folder):
    done = run(folder)
    assert done.exit_code == 0, done.stderr
    rows = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert rows["interface"] == "EncoderDecoderASR"
    assert "16000 Hz" in done.stdout
    assert rows["features"] == "Fbank: sample_rate 16000, n_mels 40"
    assert rows["subsampling"] == "ConvSubsampling: input_size 40, channels [8, 4]"
    assert rows["encoder"].startswith("SRUTransformerASR: tgt_vocab 9, input_size 40, d_model 32")
    assert rows["decoder"] == "JointBeamSearcher: beam_size 2"
    assert rows["tokens"] == "9 characters: A B C D E ▁ ..."
    assert rows["training"] == "unknown"
    assert rows["loads"] == "without --trust-model"
    assert "model.ckpt" in rows["files"]


@pytest.mark.parametrize("kind", ["ctc", "joint"])
def test_parameters_are_the_models(kind, models):
    model = load_model(models[kind], "cpu").hparams.pretrainer.loadables["model"]
    found = describe(models[kind])["parameters"]
    assert found["total"] == sum(p.numel() for p in model.parameters())
    assert sum(found["parts"].values()) == found["total"]
    assert found["parts"]["ctc_output"] == 9 * 33
    assert found["parts"]["encoder.subsampling"] == sum(
        p.numel() for p in model.encoder.subsampling.parameters()
    )


def test_ctc_folder(models):
    rows = run(models["ctc"]).stdout
    assert "SRUEncoder: input_size 40, hidden_size 16" in rows
    assert "decoder" in rows
    assert "ctc_greedy_decode: blank_id 0" in rows


def test_shapes_and_shared_storage(tmp_path):
    w = torch.zeros(3, 4)
    torch.save({"a": w, "b": w, "c": torch.zeros(2, dtype=torch.bfloat16)}, tmp_path / "w.pt")
    shapes = read_shapes(tmp_path / "w.pt")
    assert {name: shape for name, (_, shape) in shapes.items()} == {
        "a": (3, 4),
        "b": (3, 4),
        "c": (2,),
    }
    assert shapes["a"][0] == shapes["b"][0] != shapes["c"][0]


def test_the_card_is_shown_and_versions_compared(folder):
    write_card(
        folder,
        experiment="an4/mine.yaml",
        seed=3,
        training={"utterances": 948, "hours": 0.8},
        scores={"valid": SCORE, "other": {}, "lm": {"word_perplexity": 7.0}},
    )
    done = run(folder)
    assert done.exit_code == 0
    assert "experiment an4/mine.yaml, seed 3, created 20" in done.stdout
    assert "948 utterances, 0.8 hours" in done.stdout
    assert "WER 12.50 % [3.00, 25.00], 8 words, JointBeamSearcher" in done.stdout
    assert "perplexity 7.00 a word" in done.stdout
    assert f"torch {version_of('torch')}" in done.stdout
    assert "warning" not in done.stderr
    card = json.loads((folder / NAME).read_text())
    card["versions"]["torch"] = "1.0"
    (folder / NAME).write_text(json.dumps(card))
    done = run(folder)
    assert f"warning: trained with torch 1.0, installed is {version_of('torch')}" in done.stderr
    assert done.exit_code == 0


def test_scores_of_a_folder_without_a_card_are_those_of_the_run_around_it(folder):
    (folder.parent / "score_test_greedy.json").write_text(json.dumps(SCORE))
    assert "score test_greedy  WER 12.50 %" in run(folder).stdout


def test_json(folder):
    write_card(folder, seed=3)
    found = json.loads(run(folder, "--json").stdout)
    assert found == describe(folder)
    assert found["card"]["seed"] == 3
    assert found["files"]["model.ckpt"] == (folder / "model.ckpt").stat().st_size
    assert found["trusted"] is True
    assert found["problems"] == []
    assert found["versions"]["torch"]["installed"] == version_of("torch")


def test_an_untrusted_folder_is_described_and_nothing_runs(folder, tmp_path):
    yaml, mark = folder / "hyperparams.yaml", tmp_path / "mark"
    yaml.write_text(f'x: !apply:os.system ["touch {mark}"]\n{yaml.read_text()}')
    done = run(folder)
    assert done.exit_code == 1
    assert "SRUTransformerASR" in done.stdout
    assert "only with --trust-model" in done.stdout
    assert "problem: " in done.stderr
    assert "line 1: found !apply:os.system" in done.stderr
    assert not mark.exists()


class Bomb:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def test_pickled_objects_do_not_run(folder, tmp_path):
    torch.save({"w": Bomb(tmp_path / "mark")}, folder / "model.ckpt")
    done = run(folder)
    assert done.exit_code == 1
    assert "model.ckpt: found no weights (UnpicklingError: found posix.system" in done.stderr
    assert "unknown" in done.stdout.split("parameters")[1].splitlines()[0]
    assert not (tmp_path / "mark").exists()
    torch.load(folder / "model.ckpt", weights_only=False)
    assert (tmp_path / "mark").exists(), "this is no bomb, so the test above shows nothing"


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("hyperparams.yaml", None, "hyperparams.yaml: found no interface"),
        ("hyperparams.yaml", b"a: [1", "hyperparams.yaml: found no interface"),
        ("hyperparams.yaml", b"a: 1", "found no pretrainer.loadables in hyperparams.yaml"),
        ("model.ckpt", None, "found no model.ckpt"),
        ("model.ckpt", b"x", "model.ckpt: found no weights (BadZipFile"),
        ("model.ckpt", pickle.dumps(3), "model.ckpt: found no weights"),
        ("tokenizer.ckpt", None, "found no tokenizer.ckpt"),
        ("tokenizer.ckpt", b"x", "Error"),
        (NAME, b"{", "model_card.json: found no JSON"),
        (NAME, b"[]", "model_card.json: found no keys and values"),
        (NAME, b'{"scores": 3}', "model_card.json: found scores of another kind"),
        (NAME, b"\xff", "model_card.json: found no JSON"),
    ],
)
def test_a_damaged_folder_is_described_as_far_as_it_can_be(folder, name, content, problem):
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    done = run(folder)
    assert done.exit_code == 1
    assert problem in done.stderr
    assert "Traceback" not in done.output
    rest = {"hyperparams.yaml": "9 characters", "tokenizer.ckpt": "EncoderDecoderASR"}
    assert rest.get(name, "Fbank") in done.stdout


def test_no_folder(tmp_path):
    done = run(tmp_path / "gone")
    assert done.exit_code == 2
    assert "found no such folder, expected one as training leaves it" in done.stderr


def test_the_terminal_is_not_the_folders(folder):
    write_card(folder, experiment="\x1b[2J\rgone", scores={"\x1b[1m": SCORE})
    done = run(folder)
    assert "\x1b" not in done.output
    assert "\r" not in done.output
    assert "?[2J?gone" in done.stdout
