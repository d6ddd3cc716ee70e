"""The README's snippets, run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from recipe_runs import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
SHELL = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
TOOL = [block for block in SHELL if block.startswith("sru-asr")]


def execute(command: list[str], folder: Path) -> str:
    """Run a command where the demo left its results, with our scripts on the PATH."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PATH": path},
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_python_snippet(number: int, trained: Path) -> None:
    if "sru_asr.onnx" in PYTHON[number]:
        pytest.importorskip("onnxscript")
    execute([sys.executable, "-c", PYTHON[number]], trained)


def test_command_line_snippet(trained: Path) -> None:
    assert len(TOOL) == 1
    printed = execute(["bash", "-euc", TOOL[0]], trained)
    assert re.search(r"^WER +[\d.]+ %$", printed, re.MULTILINE)
    assert re.search(r"^utterances +8$", printed, re.MULTILINE)


def test_snippets_of_all_three_uses_are_there() -> None:
    text = "\n".join(PYTHON + SHELL)
    for use in ("sru_asr.SRU(", "SRUEncoder(", "Transcriber(", "recipes/AN4/train.py", "make demo"):
        assert use in text


def test_files_the_readme_names_exist() -> None:
    named = set(re.findall(r"\]\((?!http)([^)#]+)\)", README))
    named |= set(re.findall(r"\b(?:recipes|hparams)/\w+/[\w.]+\.(?:py|yaml)", README))
    assert len(named) >= 6
    for path in named:
        assert (ROOT / path).exists(), path
