"""Going on from a model folder: its architecture, and its weights as far as they fit."""

import logging
import shutil

import pytest
import torch
from hyperpyyaml import load_hyperpyyaml
from model_folder import make_models

from sru_asr.pretrained import load_pretrained
from sru_asr.tokenizer import train_tokenizer

EXPERIMENT = """
pretrained: !PLACEHOLDER
output_neurons: auto
shared: {}
first: !ref <shared>
second: !ref <shared>
inference: !applyref:sru_asr.pretrained.architecture
    folder: !ref <pretrained>
    output_neurons: !ref <output_neurons>
model: !ref <inference[pretrainer][loadables][model]>
tokenizer: !ref <inference[tokenizer]>
search: !applyref:sru_asr.pretrained.searcher [!ref <inference>]
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return make_models(tmp_path_factory)


@pytest.fixture(params=["ctc", "joint"])
def folder(request, models):
    return models[request.param]


def experiment(folder, **overrides):
    return load_hyperpyyaml(EXPERIMENT, {"pretrained": str(folder), **overrides})


def stored(folder):
    return torch.load(folder / "model.ckpt", weights_only=True)


def tokenizer_of(folder):
    return train_tokenizer(folder / "tokenizer.ckpt", [], 9)


def test_the_architecture_is_the_folders(folder):
    hparams = experiment(folder)
    model = hparams["model"]
    assert {k: v.shape for k, v in model.state_dict().items()} == {
        k: v.shape for k, v in stored(folder).items()
    }
    assert hparams["inference"]["pretrainer"].loadables["model"] is model
    assert hparams["inference"]["tokenizer"] is hparams["tokenizer"]
    modules = hparams["inference"]["modules"]
    if folder.parent.name == "joint":
        assert hparams["search"] is modules["decoder"]
        assert {id(p) for p in hparams["search"].parameters()} <= {
            id(p) for p in model.parameters()
        }
        assert modules["encoder"] is model.encoder
    else:
        assert hparams["search"] is None
        assert modules["encoder"].encoder is model.encoder


def test_another_number_of_pieces_reaches_every_layer_that_has_a_row_for_each(folder):
    state = experiment(folder, output_neurons=12)["model"].state_dict()
    changed = {k for k, v in stored(folder).items() if v.shape != state[k].shape}
    expected = {"ctc_output.w.weight", "ctc_output.w.bias"}
    if folder.parent.name == "joint":
        expected |= {"attention_output.w.weight", "attention_output.w.bias"}
        expected |= {"encoder.encoder.custom_tgt_module.layers.0.emb.Embedding.weight"}
    assert changed == expected
    assert {state[k].shape[0] for k in changed} == {12}


def test_the_same_tokenizer_loads_everything(folder, caplog):
    caplog.set_level(logging.INFO)
    model = experiment(folder)["model"]
    load_pretrained(model, folder, tokenizer_of(folder))
    for name, value in model.state_dict().items():
        assert torch.equal(value, stored(folder)[name]), name
    count = len(stored(folder))
    assert f"loaded {count} of {count} tensors" in caplog.text
    assert "anew" not in caplog.text


@pytest.mark.parametrize("texts", [["ABX E DC"], ["CABDE "], ["E", "A"]])
def test_rows_of_known_pieces_are_carried_over(folder, tmp_path, texts):
    size = len(set("".join(texts).strip())) + 3
    new, old = train_tokenizer(tmp_path / "new", texts, size), tokenizer_of(folder)
    model = experiment(folder, output_neurons=size)["model"]
    fresh = {k: v.clone() for k, v in model.state_dict().items()}
    load_pretrained(model, folder, new)
    state, before = model.state_dict(), stored(folder)
    by_piece = [k for k in state if "_output" in k or "custom_tgt" in k]
    for name in state.keys() - set(by_piece):
        assert torch.equal(state[name], before[name]), name
    assert len(by_piece) == (5 if folder.parent.name == "joint" else 2)
    for name in by_piece:
        for piece in range(size):
            number = old.piece_to_id(new.id_to_piece(piece))
            known = number or piece == 0
            expected = before[name][number] if known else fresh[name][piece]
            assert torch.equal(state[name][piece], expected), (name, new.id_to_piece(piece))


def test_letters_of_the_other_case(folder, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    new, old = train_tokenizer(tmp_path / "new", ["Aa bz"], 8), tokenizer_of(folder)
    model = experiment(folder, output_neurons=8)["model"]
    load_pretrained(model, folder, new)
    rows, before = model.ctc_output.w.weight, stored(folder)["ctc_output.w.weight"]
    for piece in "Aab":
        assert torch.equal(rows[new.piece_to_id(piece)], before[old.piece_to_id(piece.upper())])
    assert "carried over 7 of 8 rows; anew: z" in caplog.text


def test_layers_on_one_side_only_are_named(models, caplog):
    caplog.set_level(logging.INFO)
    joint = experiment(models["joint"])["model"]
    joint.attention_output = None
    load_pretrained(joint, models["joint"], tokenizer_of(models["joint"]))
    assert "Not in this model, left out: attention_output.w.bias, attention_output.w" in caplog.text
    joint.intermediate_output = torch.nn.Linear(32, 9)
    load_pretrained(joint, models["joint"], tokenizer_of(models["joint"]))
    assert "starts anew: intermediate_output.bias, intermediate_output.weight" in caplog.text


def test_other_sizes_are_refused(models):
    model = experiment(models["ctc"])["model"]
    model.encoder.encoder.norm = torch.nn.LayerNorm(7)
    with pytest.raises(ValueError, match=r"2 problems\n.*norm.weight has shape \(32,\), expected"):
        load_pretrained(model, models["ctc"], tokenizer_of(models["ctc"]))
    with pytest.raises(ValueError, match="no layer that this model has"):
        load_pretrained(torch.nn.Linear(2, 2), models["ctc"], tokenizer_of(models["ctc"]))


def test_folders_that_are_not_model_folders(models, tmp_path):
    for name, found in (("gone", "no such folder"), ("", "no hyperparams.yaml and no model.ckpt")):
        with pytest.raises(ValueError, match=f"{found}.*expected a model folder"):
            experiment(tmp_path / name)
    shutil.copytree(models["ctc"], tmp_path / "copy")
    for text in ("interface: EncoderASR\n", "- 1\n", "a: [1\n"):
        (tmp_path / "copy" / "hyperparams.yaml").write_text(text)
        with pytest.raises(
            ValueError, match="expected (the model of a sru_asr recipe|a model folder)"
        ):
            experiment(tmp_path / "copy")
