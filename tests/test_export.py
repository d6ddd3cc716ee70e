"""A mistake in the inference section shows before training, not when the model is loaded."""

import copy

import pytest
import torch
from hyperpyyaml import load_hyperpyyaml
from model_folder import CTC, JOINT

from sru_asr.export import check_inference


@pytest.fixture(scope="module", params=[CTC, JOINT], ids=["ctc", "joint"])
def inference(request):
    return load_hyperpyyaml(request.param)["inference"]


def test_what_training_exports_is_right(inference):
    check_inference(inference)


@pytest.mark.parametrize("key", ["interface", "sample_rate", "tokenizer", "pretrainer"])
def test_a_missing_key(inference, key):
    with pytest.raises(ValueError, match=f"inference: .*{key}"):
        check_inference({k: v for k, v in inference.items() if k != key})


def test_everything_missing_is_listed(inference):
    with pytest.raises(ValueError, match=r"(?s)no sample_rate.*no tokenizer.*no modules.encoder"):
        check_inference({"interface": inference["interface"]})


def test_another_interface(inference):
    with pytest.raises(ValueError, match="'WhisperASR', expected EncoderASR or EncoderDecoderASR"):
        check_inference({**inference, "interface": "WhisperASR"})


def test_weights_that_would_not_be_stored(inference):
    # What `!copy` in place of `!ref` makes.
    encoder = copy.deepcopy(inference["modules"]["encoder"])
    modules = {**inference["modules"], "encoder": encoder}
    with pytest.raises(ValueError, match="modules.encoder has weights .* would not be stored"):
        check_inference({**inference, "modules": modules})


def test_an_encoder_without_exact_lengths(inference):
    modules = {**inference["modules"], "encoder": torch.nn.Identity()}
    with pytest.raises(ValueError, match="modules.encoder is a Identity, expected one with encode"):
        check_inference({**inference, "modules": modules})


def test_another_tokenizer_than_the_stored_one(inference):
    with pytest.raises(ValueError, match="tokenizer is not the one"):
        check_inference({**inference, "tokenizer": object()})
