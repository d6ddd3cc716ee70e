"""The package as a whole: lazy import, public names, and examples that run."""

import doctest
import importlib
import pkgutil
import subprocess
import sys

import pytest

import sru_asr

MODULES = ["sru_asr", *(m.name for m in pkgutil.walk_packages(sru_asr.__path__, "sru_asr."))]
MODULES = [name for name in MODULES if not name.rpartition(".")[2].startswith("_")]


def python(code):
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.strip()


def test_import_is_lazy():
    code = "import sys, sru_asr; dir(sru_asr); print({'torch', 'speechbrain'} & set(sys.modules))"
    assert python(code) == "set()"


def test_layers_need_torch_only():
    names = "sru_asr.SRU, sru_asr.SRUEncoder, sru_asr.ConvSubsampling, sru_asr.nnet.SRU"
    code = f"import sys, sru_asr; {names}, sru_asr.ops; print('speechbrain' in sys.modules)"
    assert python(code) == "False"


@pytest.mark.parametrize("name", sru_asr.__all__)
def test_public_names_resolve(name):
    assert getattr(sru_asr, name) is not None
    assert name in dir(sru_asr)


def test_the_public_interface_is_there():
    promised = {"SRU", "SRUEncoder", "SRUTransformerASR", "load_sru_checkpoint", "build_info"}
    assert promised | {"graph", "nnet", "onnx", "ops", "reference", "__version__"} <= set(
        sru_asr.__all__
    )


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'LSTM'"):
        _ = sru_asr.LSTM


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    if name == "sru_asr.onnx_recurrence":
        pytest.importorskip("onnxscript")
    results = doctest.testmod(importlib.import_module(name))
    assert results.failed == 0
