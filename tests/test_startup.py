"""What a command does not import: its start would take seconds."""

import json
import subprocess
import sys

import pytest
from model_folder import CTC, make_model

# Of ``sru-asr --help``, on an idle core: 0.1 s; PyTorch alone takes 1.5 s, SpeechBrain 3 s.
HEAVY = {"torch", "torchaudio", "speechbrain", "scipy", "matplotlib", "soundfile", "hyperpyyaml"}
MIDDLING = {"numpy", "jiwer", "sentencepiece", "ruamel", "tqdm", "email", "importlib.metadata"}
SCRIPT = """
import json, sys
from sru_asr.cli import main
try:
    main(sys.argv[1:], standalone_mode=False)
finally:
    print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""


def modules(*arguments):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *map(str, arguments)],
        check=True,
        capture_output=True,
        text=True,
    )
    return set(json.loads(done.stderr.splitlines()[-1]))


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], *([c, "--help"] for c in ("transcribe", "score", "info", "env"))],
    ids=" ".join,
)
def test_help_imports_click_alone(arguments):
    assert not modules(*arguments) & (HEAVY | MIDDLING)


def test_score_imports_no_torch(tmp_path):
    for name in ("ref.txt", "hyp.txt"):
        (tmp_path / name).write_text("a b\nc d\n")
    found = modules("score", tmp_path / "ref.txt", tmp_path / "hyp.txt")
    assert "jiwer" in found
    assert not found & HEAVY


def test_info_imports_no_torch(tmp_path):
    found = modules("info", "--model", make_model(tmp_path / "run", CTC))
    assert {"ruamel", "sentencepiece"} <= found
    assert not found & HEAVY
