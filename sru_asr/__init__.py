"""Simple Recurrent Unit encoders for speech recognition with SpeechBrain.

Everything is imported on first use (PEP 562), so that the command line's help and scoring start
without loading PyTorch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "SRU": "sru_asr.sru",
    "SRUEncoder": "sru_asr.encoder",
    "SRUTransformerASR": "sru_asr.transformer",
    "ConvSubsampling": "sru_asr.subsampling",
    "FeatureNormalization": "sru_asr.normalization",
    "load_sru_checkpoint": "sru_asr.checkpoint",
    "build_info": "sru_asr.native",
}
_MODULES = {"compat", "graph", "nnet", "onnx", "ops", "reference"}

__all__ = [
    "SRU",
    "ConvSubsampling",
    "FeatureNormalization",
    "SRUEncoder",
    "SRUTransformerASR",
    "__version__",
    "build_info",
    "compat",
    "graph",
    "load_sru_checkpoint",
    "nnet",
    "onnx",
    "ops",
    "reference",
]

if TYPE_CHECKING:
    from sru_asr import compat, graph, nnet, onnx, ops, reference
    from sru_asr.checkpoint import load_sru_checkpoint
    from sru_asr.encoder import SRUEncoder
    from sru_asr.native import build_info
    from sru_asr.normalization import FeatureNormalization
    from sru_asr.sru import SRU
    from sru_asr.subsampling import ConvSubsampling
    from sru_asr.transformer import SRUTransformerASR


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    elif name in _MODULES:
        value = importlib.import_module(f"sru_asr.{name}")
    else:
        raise AttributeError(f"module 'sru_asr' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
