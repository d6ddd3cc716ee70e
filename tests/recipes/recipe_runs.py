"""Running recipes as a user does, on very small corpora."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

SMALL_COMMANDS: dict[str, object] = {
    "num_train": 64,
    "num_valid": 8,
    "num_test": 8,
    "number_of_epochs": 2,
    "max_batch_seconds": 30,
    "num_buckets": 2,
    "channels": "[8, 8]",
    "hidden_size": 32,
    "projection_size": 16,
    "num_layers": 2,
    "data_folder": "data/commands",
    "output_folder": "results/demo",
}


# Threads that wait for one another would crawl on a busy machine, and the models are tiny.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def recipe(
    name: str, hparams: str | Path, overrides: dict[str, object], *options: str
) -> list[str]:
    """The command line of a recipe, without a progress bar."""
    pairs = [f"--{key}={value}" for key, value in overrides.items()]
    script = ROOT / "recipes" / name / "train.py"
    words = [sys.executable, script, ROOT / "hparams" / hparams, "--device=cpu", *pairs, *options]
    return [str(word) for word in [*words, "--noprogressbar"]]


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder and keep what it prints."""
    return subprocess.run(
        command, cwd=folder, env=ENVIRONMENT, text=True, capture_output=True, check=False
    )
