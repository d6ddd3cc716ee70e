"""AN4's YAMLs: their models are what the README says, and every parameter learns."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from recipe_runs import ROOT

from sru_asr.training import load_hparams

README = (ROOT / "recipes/AN4/README.md").read_text(encoding="utf-8")
CORPUS_OPTIONS = {
    "download",
    "num_valid_speakers",
    "num_sentences",
    "sentences_file",
    "synthetic_folder",
    "word_occurrences",
}
MODELS = ["srupp_ctc_attention", "srupp_ctc", "sru_ctc", "conformer_ctc_attention"]


def load(name: str, folder: Path, overrides: str = "") -> dict[str, Any]:
    folders = f"data_folder: {folder}\noutput_folder: {folder}\n"
    return load_hparams(str(ROOT / f"hparams/an4/{name}.yaml"), folders + overrides, CORPUS_OPTIONS)


@pytest.mark.parametrize("name", MODELS)
def test_model_is_the_readmes_and_learns(name: str, tmp_path: Path) -> None:
    model = load(name, tmp_path)["model"]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    (stated,) = re.findall(rf"^\| `{name}\.yaml` .*\| ([\d.]+) M \|$", README, re.MULTILINE)
    assert parameters / 1e6 == pytest.approx(float(stated), abs=0.006)
    assert parameters <= 8e6

    torch.manual_seed(0)
    lengths = torch.tensor([1.0, 0.7])
    posteriors = model(torch.randn(2, 8000), lengths, torch.randint(3, 30, (2, 5)))
    # Not a plain sum: of log posteriors that leaves no gradient in an output layer's bias.
    outputs = posteriors.ctc, posteriors.attention, posteriors.intermediate, posteriors.phones
    scores = [output for output in outputs if output is not None]
    torch.stack([(score * torch.randn_like(score)).sum() for score in scores]).sum().backward()
    idle = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # Attention inside the projection begins with its scale at 0.
    assert all(re.search(r"key_value|pos_bias|linear_pos", n) for n in idle), idle


@pytest.mark.parametrize("name", MODELS)
def test_two_views_of_an_utterance_differ_only_in_masks(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    feats = 1 + torch.rand(3, 60, 80)  # never 0, which masks are
    lengths = torch.ones(3)
    assert len(load(name, tmp_path)["fea_augment"](feats, lengths)[0]) == 3
    hparams = load(name, tmp_path, "views: 2")
    warped, lengths = hparams["fea_augment"](feats, lengths)
    first, second = warped.chunk(2)
    assert len(first) == 3 and lengths[:3].equal(lengths[3:])
    masked = [view == 0 for view in (first, second)]
    assert not masked[0].equal(masked[1])
    seen = ~(masked[0] | masked[1])
    assert first[seen].equal(second[seen]) and seen.sum() > 1000
    assert hparams["consistency_weight"] == 0.2
