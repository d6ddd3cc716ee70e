"""ONNX models give what PyTorch gives, for any batch size, number of steps and lengths."""

import importlib.util
import sys

import pytest
import torch
from model_folder import make_models
from trained import trained

from sru_asr import SRU, SRUEncoder, native, nnet

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytest.importorskip("onnx")

from sru_asr.onnx import export_ctc_onnx, export_onnx, feature_posteriors  # noqa: E402

needs_kernels = pytest.mark.skipif(
    native.why_missing("cpu") is not None, reason=str(native.why_missing("cpu"))
)
SIZES = [(3, 17), (1, 1), (2, 1), (4, 2), (1, 90)]  # (B, T)


def run(path, inputs):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == list(inputs)
    outputs = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    return [torch.from_numpy(output) for output in outputs]


def compare(path, module, inputs, within=1e-5):
    with torch.no_grad():
        expected = module(**inputs)
    expected = [expected] if isinstance(expected, torch.Tensor) else list(expected)
    for found, wanted in zip(run(path, inputs), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=within, atol=within)


def lengths_of(batch, steps):
    lengths = torch.randint(0, steps + 1, (batch,))
    lengths[0] = steps
    return lengths


@needs_kernels
@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        ({"bidirectional": True, "layer_norm": "post"}, torch.float32),
        ({"batch_first": True, "highway": False, "activation": "tanh"}, torch.float32),
        ({"projection_size": 3, "recurrent_gates": False, "bidirectional": True}, torch.float64),
    ],
    ids=str,
)
def test_layer(options, dtype, tmp_path):
    sru = trained(SRU(5, 4, 2, **options)).to(dtype)
    export_onnx(sru, tmp_path / "sru.onnx", hx=True)
    for batch, steps in SIZES:
        x = torch.randn(steps, batch, 5, dtype=dtype)
        lengths = lengths_of(batch, steps)
        x[lengths.max() :] = torch.nan
        inputs = {
            "input": x.transpose(0, 1).contiguous() if sru.batch_first else x,
            "hx": torch.randn(sru.num_layers * sru.output_size // 4, batch, 4, dtype=dtype),
            "lengths": lengths,
        }
        compare(tmp_path / "sru.onnx", sru, inputs)


@needs_kernels
def test_speechbrain_layer_without_lengths(tmp_path):
    sru = trained(nnet.SRU(4, input_size=8, bidirectional=True))  # three lanes
    export_onnx(sru, tmp_path / "sru.onnx", lengths=False)
    for batch, steps in SIZES:
        compare(tmp_path / "sru.onnx", sru, {"x": torch.randn(batch, steps, 8)})


@needs_kernels
def test_chunks_go_on_where_the_last_ended(tmp_path):
    sru = trained(SRU(5, 4, 2, batch_first=True))
    export_onnx(sru, tmp_path / "sru.onnx", hx=True, lengths=False)
    x, state, outputs = torch.randn(2, 10, 5), torch.zeros(2, 2, 4), []
    for chunk in x.split((3, 1, 6), dim=1):
        output, state = run(tmp_path / "sru.onnx", {"input": chunk.contiguous(), "hx": state})
        outputs.append(output)
    with torch.no_grad():
        torch.testing.assert_close(torch.cat(outputs, 1), sru(x)[0], rtol=1e-5, atol=1e-5)


@needs_kernels
@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("options", [{}, {"conv_kernel": 5}, {"d_ffn": 7, "num_heads": 5}], ids=str)
def test_encoder(window, options, tmp_path):
    options = {"num_heads": 2, "attention_window": window} | options
    encoder = trained(SRUEncoder(5, 4, 3, 6, attention_every=2, **options))
    export_onnx(encoder, tmp_path / "encoder.onnx")
    for batch, steps in SIZES:
        lengths = lengths_of(batch, steps)
        x = torch.randn(batch, steps, 5)
        x[:, lengths.max() :] = torch.nan
        inputs = {"x": x, "lengths": lengths / steps}
        compare(tmp_path / "encoder.onnx", encoder, inputs)


@needs_kernels
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ctc", "joint"])
def test_model_folder(kind, tmp_path, tmp_path_factory):
    folder = make_models(tmp_path_factory)[kind]
    export_ctc_onnx(folder, tmp_path / "model.onnx")
    model = feature_posteriors(folder)
    for batch, steps in [*SIZES, (2, 4), (2, 5)]:
        lengths = lengths_of(batch, steps).clamp(min=1)
        inputs = {"features": 5 * torch.randn(batch, steps, 40), "lengths": lengths / steps}
        compare(tmp_path / "model.onnx", model, inputs, 1e-4)
    # And from the waveform on, it is what the recogniser computes.
    wavs, lengths = 0.1 * torch.randn(2, 8000), torch.tensor([1.0, 0.6])
    wavs[1, 4800:] = 0
    with torch.no_grad():
        encoded, relative = model.encoder.encode(wavs, lengths)
        expected = model.ctc_output(encoded).log_softmax(-1)
        features = model.encoder.features(torch.nn.functional.pad(wavs, (0, 640)))[:, :51]
    frames = (lengths * 8000).round() // 160 + 1
    found, found_lengths = run(
        tmp_path / "model.onnx", {"features": features.contiguous(), "lengths": frames / 51}
    )
    torch.testing.assert_close(found_lengths, relative)
    for b, steps in enumerate((relative * found.shape[1]).round().long()):
        torch.testing.assert_close(found[b, :steps], expected[b, :steps], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("module", "options", "error", "message"),
    [
        (SRU(3, 2), {}, ValueError, r"module must be in evaluation mode: call module.eval"),
        (torch.nn.GRU(3, 2).eval(), {}, TypeError, "module must be a sru_asr.SRU, .* got GRU"),
        (SRUEncoder(3, 2, 1, 2).eval(), {"hx": True}, ValueError, "hx must be False: SRUEncoder"),
    ],
)
@needs_kernels
def test_what_cannot_be_exported(module, options, error, message, tmp_path):
    with pytest.raises(error, match=message):
        export_onnx(module, tmp_path / "x.onnx", **options)
    assert not list(tmp_path.iterdir())


def test_missing_package_is_named(monkeypatch, tmp_path):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxscript" else found(name)
    )
    with pytest.raises(ImportError, match=r"onnxscript, which is not .* 'sru-asr\[onnx\]'"):
        export_onnx(SRU(3, 2).eval(), tmp_path / "x.onnx")


def test_missing_kernels_are_named(monkeypatch, tmp_path):
    monkeypatch.setitem(native._missing, "cpu", "no C++ compiler was found")
    with pytest.raises(RuntimeError, match="exporting needs the compiled kernels: no C"):
        export_onnx(SRU(3, 2).eval(), tmp_path / "x.onnx")


def test_importing_it_needs_no_onnx(monkeypatch):
    for name in list(sys.modules):
        if name.split(".")[0] in ("onnx", "onnxscript") or name.startswith("sru_asr.onnx"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    importlib.import_module("sru_asr.onnx")
