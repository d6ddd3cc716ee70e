"""Searches for the best words, and the language models that help them."""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "CTCBeamSearcher": "sru_asr.decode.ctc",
    "CTCGreedySearcher": "sru_asr.decode.ctc",
    "KenlmCTCSearcher": "sru_asr.decode.ctc_kenlm",
    "JointBeamSearcher": "sru_asr.decode.joint",
    "NBestRescorer": "sru_asr.decode.rescore",
    "NGram": "sru_asr.decode.ngram",
    "PhoneRescorer": "sru_asr.decode.phones",
    "SRULanguageModel": "sru_asr.decode.language_model",
    "WordLookahead": "sru_asr.decode.lookahead",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sru_asr.decode' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
