"""SpeechBrain's own tests with our modules in the places of its own.

Each test loads a file of SpeechBrain's checkout, unchanged, after putting our class where that file
looks its class up, or after adding to what its YAML says; then it calls the test in there.
`run_speechbrain.sh CHECKOUT` runs them and prints what replaced what.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
import types
from pathlib import Path

import pytest
import speechbrain.dataio.dataio
import speechbrain.lobes.models.transformer.Transformer
import speechbrain.lobes.models.transformer.TransformerASR
import speechbrain.nnet.losses
import speechbrain.nnet.RNN
import speechbrain.processing.features
import torch

from sru_asr.nnet import SRU
from sru_asr.padding import padding_mask, steps_of
from sru_asr.transducer import transducer_loss

CHECKOUT = os.environ.get("SPEECHBRAIN_CHECKOUT")
pytestmark = pytest.mark.skipif(
    not CHECKOUT, reason="needs SpeechBrain's repository: tests/third_party/run_speechbrain.sh"
)


@pytest.fixture
def theirs(record_property):
    """Return a function that loads a file of theirs and notes it for the table."""

    def load(path: str, name: str, replaced: str = "nothing") -> types.ModuleType:
        record_property("theirs", f"{Path(path).name}::{name}")
        record_property("replaced", replaced)
        file = Path(CHECKOUT) / "tests" / path
        specification = importlib.util.spec_from_file_location(file.stem, file)
        module = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(module)
        return module

    return load


class NormalizedSRU(SRU):
    """SRU with LiGRU's word for a normalised projection."""

    def __init__(self, *args, normalization, **options):
        assert normalization == "layernorm"
        super().__init__(*args, layer_norm="pre", **options)


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("RNN", SRU),
        ("GRU", SRU),
        ("LSTM", SRU),
        ("LiGRU", NormalizedSRU),
        pytest.param(
            "QuasiRNN",
            SRU,
            marks=pytest.mark.xfail(
                raises=IndexError,
                strict=True,
                reason="it reads the states as QuasiRNN stacks them, hn[layer][1]; GRU's contract, "
                "which is ours, has hn[layer]",
            ),
        ),
    ],
)
def test_rnn(theirs, monkeypatch, name, ours):
    monkeypatch.setattr(speechbrain.nnet.RNN, name, ours)
    torch.manual_seed(0)
    theirs("unittests/test_RNN.py", "test_RNN", f"{name} by nnet.SRU").test_RNN("cpu")


def unpadded(lengths, max_len=None, dtype=None, device=None):
    """padding_mask under length_to_mask's contract: 1 where a step is real."""
    mask = ~padding_mask(lengths, int(lengths.max()) if max_len is None else max_len)
    return mask.to(lengths.dtype if dtype is None else dtype).to(device)


def padded(lengths, max_len=None):
    """padding_mask under get_mask_from_lengths's contract, which it shares."""
    return padding_mask(lengths, int(lengths.max()) if max_len is None else max_len)


def unpadded_of_relative(x, lengths=None, length_dim=1, eps=1e-6):
    """padding_mask of relative lengths under make_padding_mask's contract."""
    steps = steps_of(lengths, x.shape[0], x.shape[length_dim])
    return ~padding_mask(steps, x.shape[length_dim])[:, :, None]


@pytest.mark.parametrize(
    ("name", "module", "function", "ours"),
    [
        ("test_length_to_mask", speechbrain.dataio.dataio, "length_to_mask", unpadded),
        (
            "test_get_mask_from_lengths",
            speechbrain.lobes.models.transformer.Transformer,
            "get_mask_from_lengths",
            padded,
        ),
        pytest.param(
            "test_make_padding_mask",
            speechbrain.processing.features,
            "make_padding_mask",
            unpadded_of_relative,
            marks=pytest.mark.xfail(
                raises=AssertionError,
                strict=True,
                reason="it wants relative lengths rounded up, as feature normalisation does; "
                "TransformerASR rounds to the nearest step, and so do we",
            ),
        ),
    ],
)
def test_masks(theirs, monkeypatch, name, module, function, ours):
    monkeypatch.setattr(module, function, ours)
    replaced = f"{function} by padding.padding_mask"
    getattr(theirs("unittests/test_length_mask.py", name, replaced), name)("cpu")


@pytest.mark.parametrize(
    ("path", "name", "arguments"),
    [
        ("test_transformer_src_tgt_masks.py", "test_make_transformer_src_tgt_masks", ["device"]),
        ("test_callchains.py", "test_lengths_arg_exists", []),
        ("test_callchains.py", "test_lengths_capable_chain", []),
        ("test_checkpoints.py", "test_average_ckpts", ["tmpdir"]),
    ],
)
def test_with_nothing_to_replace(theirs, tmpdir, path, name, arguments):
    """All in these is SpeechBrain's or made on the spot; test_nnet has the same with our layer."""
    values = {"device": "cpu", "tmpdir": tmpdir}
    getattr(theirs(f"unittests/{path}", name), name)(*(values[key] for key in arguments))


@pytest.mark.parametrize(
    ("folder", "file", "model"),
    [
        ("ASR_CTC", "example_asr_ctc_experiment.py", "model"),
        ("ASR_seq2seq", "example_asr_seq2seq_experiment.py", "enc"),
        ("ASR_Transducer", "example_asr_transducer_experiment.py", "enc"),
    ],
)
def test_recipes(theirs, monkeypatch, folder, file, model):
    """They end in a bound on the training loss: 1 for CTC and seq2seq, 90 for the transducer."""
    replaced = "CRDNN's rnn_class by nnet.SRU"
    if folder == "ASR_Transducer":
        # The test asks for numba on behalf of the CUDA loss alone.
        monkeypatch.setitem(sys.modules, "numba", types.ModuleType("numba"))
        monkeypatch.setattr(speechbrain.nnet.losses, "transducer_loss", transducer_loss)
        replaced += ", the loss by transducer.transducer_loss"
    example = theirs(f"integration/{folder}/{file}", "test_error", replaced)
    monkeypatch.setattr(
        example,
        "load_hyperpyyaml",
        functools.partial(
            example.load_hyperpyyaml, overrides=f"{model}: {{rnn_class: !name:sru_asr.nnet.SRU }}"
        ),
    )
    example.test_error("cpu")
