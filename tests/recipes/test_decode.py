"""Scoring a model folder again: grids of settings, draws, files."""

from __future__ import annotations

import json
import runpy
import types
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from click.testing import CliRunner, Result
from model_folder import make_models
from recipe_runs import ROOT

from sru_asr.manifest import Utterance, read_manifest, write_manifest
from sru_asr.model_folder import load_model

decode = runpy.run_path(str(ROOT / "recipes" / "decode.py"))
model_folders = pytest.fixture(make_models, scope="session")


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Three utterances of noise, the last of them shorter than what a draw may leave out."""
    rows = []
    for number, seconds in enumerate((0.5, 0.8, 0.02)):
        wav = tmp_path / f"{number}.wav"
        samples = 0.1 * np.random.default_rng(number).standard_normal(int(seconds * 16000))
        soundfile.write(wav, samples, 16000)
        rows.append(Utterance(f"u{number}", seconds, str(wav), "s", "AB A"))
    write_manifest(tmp_path / "valid.csv", rows)
    return tmp_path / "valid.csv"


def decoded(*arguments: object) -> Result:
    return CliRunner().invoke(decode["main"], [str(argument) for argument in arguments])


def test_a_row_for_each_setting_that_differs(model_folders: dict, manifest: Path) -> None:
    done = decoded(
        model_folders["joint"], manifest, "--search", "greedy", "--search", "joint",
        "--ctc_weight", 0.3, "--ctc_weight", 0.6, "--beam_size", 2,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    rows = [line.split()[:2] for line in done.output.splitlines() if " WER " in line]
    assert rows == [["greedy", "0.00"], ["joint", "0.30"], ["joint", "0.60"]]


def test_files_of_a_single_setting(model_folders: dict, manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    grid = ("--ctc_weight", 0.3, "--ctc_weight", 0.6, "--beam_size", 2, "--output", out)
    refused = decoded(model_folders["joint"], manifest, *grid)
    assert refused.exit_code == 2
    assert "--output needs a single setting, found 2" in refused.output
    done = decoded(
        model_folders["joint"], manifest, "--search", "greedy", "--output", out, "--name", "g"
    )
    assert done.exit_code == 0, done.output
    score = json.loads((out / "score_g.json").read_text())
    assert score["utterances"] == 3
    assert f"WER {score['wer']:.2f} %" in done.output
    assert len((out / "utterances_g.csv").read_text().splitlines()) == 4


def test_draws_are_others_each_time_and_the_same_in_every_run(
    model_folders: dict, manifest: Path
) -> None:
    model, rows = load_model(model_folders["joint"], "cpu"), read_manifest(manifest)

    def encoded(draw: int) -> torch.Tensor:
        with torch.inference_mode():
            return torch.cat([x.flatten() for _, x, _ in decode["encode"](model, rows, 2, draw)])

    first, second = encoded(1), encoded(2)
    assert first.shape != second.shape or not first.equal(second)
    assert first.equal(encoded(1))
    assert encoded(0).shape != first.shape or not encoded(0).equal(first)


def test_the_mean_of_the_draws_is_told_beside_the_score(
    model_folders: dict, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = iter((50.0, 10.0, 20.0, 60.0))
    score = types.SimpleNamespace(summarize=lambda: types.SimpleNamespace(wer=next(rates)))
    monkeypatch.setitem(decode["main"].callback.__globals__, "score_batches", lambda *_: score)
    done = decoded(model_folders["joint"], manifest, "--search", "greedy", "--draws", 3)
    assert done.exit_code == 0, done.output
    assert "namespace(wer=50.0)" in done.output.splitlines()[1]
    assert "mean of 3 draws: WER 30.00 %, 10.00 to 60.00" in done.output


def test_a_draw_keeps_the_words() -> None:
    signal, random = torch.randn(16000), torch.Generator().manual_seed(1)
    drawn = [decode["vary"](signal, 16000, random) for _ in range(50)]
    lengths = {len(other) for other in drawn}
    assert len(lengths) > 20
    # 30 ms less and 6 % faster; nothing less and 6 % slower.
    assert min(lengths) >= (16000 - 480) / 1.06 and max(lengths) <= 16000 / 0.94 + 1
    assert len(decode["vary"](signal[:100], 16000, random)) >= 47


@pytest.mark.parametrize(
    ("option", "found"),
    [(("--draws", -1), "--draws"), (("--phone_weight", 0.2), "no PhoneRescorer")],
)
def test_options_that_do_not_fit(
    model_folders: dict, manifest: Path, option: tuple, found: str
) -> None:
    done = decoded(model_folders["joint"], manifest, *option)
    assert done.exit_code == 2
    assert found in done.output
