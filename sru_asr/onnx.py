"""Export to ONNX: layers, the encoder, and a trained recogniser from features to posteriors.

PyTorch's exporter does it; the recurrence, an operator of our own, becomes a Scan
(`sru_asr.onnx_recurrence`). Needs the extra ``onnx``.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from pathlib import Path

import torch
from torch import nn

from sru_asr.files import atomically
from sru_asr.graph import example_call
from sru_asr.model import FeaturePosteriors, SpeechEncoder


def export_onnx(
    module: nn.Module, path: str | os.PathLike[str], *, lengths: bool = True, hx: bool = False
) -> None:
    """Write a module as an ONNX model, for any batch size and number of steps from one on.

    Inputs have the names of the arguments of ``module.forward``, their shapes, dtypes and meaning;
    outputs those of what it returns:

    =======================  =====================  =============================
    module                   inputs                 outputs
    =======================  =====================  =============================
    `sru_asr.SRU`            input, hx, lengths     output, c_n
    `sru_asr.nnet.SRU`       x, hx, lengths         output, c_n
    `sru_asr.SRUEncoder`     x, lengths             encoded
    `FeaturePosteriors`      features, lengths      log_posteriors, frame_lengths
    =======================  =====================  =============================

    Parameters
    ----------
    module, lengths, hx
        As in `sru_asr.graph.export_graph`.
    path : str or path
        The file to write.

    Raises
    ------
    ImportError
        When ``onnx`` or ``onnxscript`` is not installed.
    TypeError, ValueError, RuntimeError
        As in `sru_asr.graph.export_graph`.

    Examples
    --------
    >>> import sru_asr
    >>> from sru_asr.onnx import export_onnx
    >>> sru = sru_asr.SRU(80, 128, batch_first=True, bidirectional=True).eval()
    >>> export_onnx(sru, "sru.onnx")  # doctest: +SKIP
    """
    for package in ("onnx", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            raise ImportError(
                f"exporting to ONNX needs the package {package}, which is not installed: "
                "pip install 'sru-asr[onnx]'"
            )
    example = example_call(module, lengths=lengths, hx=hx)

    from sru_asr.onnx_recurrence import recurrence_forward

    with torch.no_grad(), warnings.catch_warnings(), atomically(Path(path)) as temporary:
        # The exporter's about itself: something deprecated, and axes that share a name.
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)`", FutureWarning)
        warnings.filterwarnings("ignore", "# The axis name: batch will not be used", UserWarning)
        torch.onnx.export(
            module,
            (),
            temporary,
            kwargs=example.inputs,
            dynamic_shapes=example.axes,
            input_names=list(example.inputs),
            output_names=example.outputs,
            custom_translation_table={
                torch.ops.sru_asr.recurrence_forward.default: recurrence_forward
            },
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def export_ctc_onnx(
    model_dir: str | os.PathLike[str], path: str | os.PathLike[str], *, trust: bool = False
) -> None:
    """Write a trained recogniser's way from features to CTC log posteriors as an ONNX model.

    Parameters
    ----------
    model_dir : str or path
        A model folder as training leaves it; with an attention decoder, its CTC output is taken.
    path : str or path
        The file to write. Inputs and outputs are those of `sru_asr.model.FeaturePosteriors`: what
        the model's Fbank gives, and relative lengths.
    trust : bool
        Let the folder's YAML make any object: it can run any code.

    Raises
    ------
    ModelFolderError
        When it is not a model folder, or not trusted with what its YAML makes.
    ValueError
        When the model has no CTC output.
    ImportError, RuntimeError
        As in `export_onnx`.

    Examples
    --------
    >>> from sru_asr.onnx import export_ctc_onnx
    >>> export_ctc_onnx("results/demo/model", "demo.onnx")  # doctest: +SKIP
    """
    export_onnx(feature_posteriors(model_dir, trust), path)


def feature_posteriors(model_dir: str | os.PathLike[str], trust: bool = False) -> FeaturePosteriors:
    """Load what `export_ctc_onnx` exports; argument and errors are the same."""
    from sru_asr.model_folder import load_model

    modules = load_model(Path(model_dir), "cpu", trust).mods
    # EncoderASR's encoder goes on to the posteriors, EncoderDecoderASR's stops before them.
    goes_on = hasattr(modules.encoder, "ctc_output")
    encoder = modules.encoder.encoder if goes_on else modules.encoder
    output = getattr(modules.encoder if goes_on else modules, "ctc_output", None)
    if output is None or not isinstance(encoder, SpeechEncoder):
        raise ValueError(
            f"model folder {model_dir}: found no ctc_output beside a SpeechEncoder in its modules, "
            "expected a model with a CTC output"
        )
    return FeaturePosteriors(encoder, output).eval()
