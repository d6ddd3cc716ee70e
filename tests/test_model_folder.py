"""Loading model folders of people one does not know."""

import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from model_folder import CTC, make_model

from sru_asr.decode.language_model import load as load_language_model
from sru_asr.model_folder import ModelFolderError, load_model
from sru_asr.onnx import feature_posteriors
from sru_asr.pretrained import architecture

ATTACK = "extra: !new:subprocess.Popen {args: [touch, MARK]}\n"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("models") / "ctc", CTC)


@pytest.fixture
def folder(original, tmp_path):
    return Path(shutil.copytree(original, tmp_path / "model"))


class Bomb:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def add(folder, line):
    yaml = folder / "hyperparams.yaml"
    yaml.write_text(yaml.read_text().replace("interface:", f"{line}interface:"))


@pytest.mark.parametrize("name", ["model.ckpt", "tokenizer.ckpt"])
@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_pickled_objects_do_not_run(kind, trust, name, folder, tmp_path):
    mark = tmp_path / "mark"
    if kind == "pickle":
        (folder / name).write_bytes(pickle.dumps(Bomb(mark)))
    else:
        torch.save({"w": Bomb(mark)}, folder / name)
    with pytest.raises(ModelFolderError, match="found files that cannot be loaded"):
        load_model(folder, "cpu", trust)
    assert not mark.exists()
    if kind == "torch":
        torch.load(folder / name, weights_only=False)
        assert mark.exists(), "this is no bomb, so the test above shows nothing"


def test_pytorchs_setting_to_unpickle_anything_does_not_count(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save({"w": Bomb(tmp_path / "mark")}, folder / "model.ckpt")
    with pytest.raises(ModelFolderError, match="found files that cannot be loaded"):
        load_model(folder, "cpu")
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    "load",
    [
        lambda folder, trust: load_model(folder, "cpu", trust),
        feature_posteriors,
        lambda folder, trust: architecture(folder, trust=trust),
    ],
    ids=["load_model", "onnx", "pretrained"],
)
def test_a_yaml_runs_code_with_trust_alone(load, folder, tmp_path):
    mark = tmp_path / "mark"
    add(folder, ATTACK.replace("MARK", str(mark)))
    with pytest.raises(ModelFolderError, match=r"line 1: found !new:subprocess.Popen.*trust"):
        load(folder, False)
    assert not mark.exists()
    load(folder, True)


def test_a_language_models_yaml_runs_no_code_either(folder, tmp_path):
    add(folder, ATTACK.replace("MARK", str(tmp_path / "mark")))
    (folder / "language_model.ckpt").touch()
    with pytest.raises(ModelFolderError, match="line 1: found !new:subprocess.Popen"):
        load_language_model(folder)
    assert not (tmp_path / "mark").exists()


def test_ones_own_class_needs_trust(folder):
    add(folder, "extra: !new:collections.OrderedDict {a: 1}\n")
    with pytest.raises(ModelFolderError, match=r"found !new:collections.OrderedDict.*trust"):
        load_model(folder, "cpu")
    assert load_model(folder, "cpu", trust=True).hparams.extra == {"a": 1}


def test_weights_of_another_model_are_refused(folder):
    state = torch.load(folder / "model.ckpt", weights_only=True)
    state.pop(next(name for name in state if "ctc_output" in name))
    torch.save(state, folder / "model.ckpt")
    with pytest.raises(ModelFolderError, match="cannot be loaded.*Missing key"):
        load_model(folder, "cpu")
