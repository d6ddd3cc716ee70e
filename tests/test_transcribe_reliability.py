"""`sru-asr transcribe` with many files, bad ones among them, and when it is killed."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner
from model_folder import make_models
from test_transcribe import sound

from sru_asr import cli
from sru_asr.transcribe import Transcriber
from sru_asr.transcripts import read_transcripts

model_folders = pytest.fixture(make_models, scope="session")
# As the command runs, but every result is written at once, and slowly enough to be killed.
PROGRAM = f"""
import sys, time
sys.path[:] = {[entry for entry in sys.path if entry]!r}
from sru_asr import transcript_folder
from sru_asr.cli import main
transcript_folder.DELAY = -1.0
write = transcript_folder.write_atomically
transcript_folder.write_atomically = lambda *args: (time.sleep(0.05), write(*args))
main()
"""


def break_one(path, kind):
    """Make a bad recording of a good one."""
    content = path.read_bytes()
    signal, rate = soundfile.read(path, dtype="float32")
    signal[len(signal) // 2] = np.nan
    if kind == "folder":
        path.unlink()
        path.mkdir()
    elif kind == "missing":
        path.unlink()
    elif kind == "nan":
        soundfile.write(path, signal, rate, subtype="FLOAT")
    else:
        bad = {
            "empty": b"",
            "short": content[: len(content) // 2],
            "text": b"<html>404 Not Found</html>\n" * 9,
            "silent": content[:40] + bytes(4),
            "header": content[:20] + b"\xff" * 24 + content[44:],
            "zeros": bytes(len(content)),
        }
        path.write_bytes(bad[kind])


KINDS = ("empty", "short", "text", "silent", "header", "zeros", "nan", "missing", "folder")


def make_recordings(folder, count, seconds=0.3):
    folder.mkdir()
    paths = [folder / f"r{i:03}.wav" for i in range(count)]
    for seed, path in enumerate(paths):
        soundfile.write(path, sound(round((seconds + 0.001 * seed) * 16000), seed=seed), 16000)
    return paths


def test_200_files_of_which_20_are_bad(model_folders, tmp_path):
    paths = make_recordings(tmp_path / "in", 200)
    expected = [found.text for found in Transcriber(model_folders["ctc"]).transcribe(paths)]
    bad = paths[3::10]
    for number, path in enumerate(bad):
        break_one(path, KINDS[number % len(KINDS)])
    (tmp_path / "list.txt").write_text("".join(f"{path}\n" for path in paths))
    arguments = ["transcribe", str(tmp_path / "list.txt"), "--model", str(model_folders["ctc"])]
    result = CliRunner().invoke(
        cli.main, [*arguments, "--output-dir", str(tmp_path / "out"), "--format", "json"]
    )
    assert result.exit_code == 1
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == len(bad) == 20
    for error, path in zip(errors, bad, strict=True):
        assert error.startswith(f"Error: audio file {path}: found ")
        assert ", expected " in error
    summary, failed = result.stderr.splitlines()[-2:]
    assert summary.startswith("180 of 200 recordings, ")
    assert failed == f"failed: 20 of 200: {', '.join(map(str, bad))}"
    good = {path.stem: text for path, text in zip(paths, expected, strict=True) if path not in bad}
    table = read_transcripts(tmp_path / "out" / "hypotheses.csv").texts
    assert table == {name: " ".join(text.split()) for name, text in good.items()}
    assert len(list((tmp_path / "out").iterdir())) == 181
    for name, text in good.items():
        assert json.loads((tmp_path / "out" / f"{name}.json").read_text())["text"] == text


def start(model, out, inputs):
    command = [sys.executable, "-c", PROGRAM, "transcribe", *map(str, inputs)]
    options = ["--model", str(model), "--output-dir", str(out), "--batch-size", "2", "--quiet"]
    return subprocess.Popen([*command, *options, "--skip-existing"], stderr=subprocess.PIPE)


@pytest.mark.slow
def test_killed_and_started_again(model_folders, tmp_path):
    paths = make_recordings(tmp_path / "in", 60)
    expected = [found.text for found in Transcriber(model_folders["ctc"]).transcribe(paths)]
    out = tmp_path / "out"
    counts = []
    for _ in range(2):
        before = len(list(out.glob("*.txt"))) if out.exists() else 0
        process = start(model_folders["ctc"], out, paths)
        while process.poll() is None and len(list(out.glob("*.txt"))) < before + 10:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        counts.append(len(list(out.glob("*.txt"))))
        for path, text in zip(paths, expected, strict=True):
            if (file := out / f"{path.stem}.txt").exists():
                assert file.read_text().split() == text.split()
    assert 10 <= counts[0] < counts[1] < 60
    untouched = {file: file.stat().st_mtime_ns for file in out.glob("*.txt")}
    process = start(model_folders["ctc"], out, paths)
    assert process.wait() == 0, process.stderr.read()
    for file, when in sorted(untouched.items())[: counts[1] - 1]:
        assert file.stat().st_mtime_ns == when  # not done twice
    names = [path.stem for path in paths]
    assert sorted(os.listdir(out)) == sorted([*(f"{name}.txt" for name in names), "hypotheses.csv"])
    found = read_transcripts(out / "hypotheses.csv").texts
    assert found == {n: " ".join(t.split()) for n, t in zip(names, expected, strict=True)}


@pytest.mark.slow
def test_two_processes_share_an_output_folder(model_folders, tmp_path):
    paths = make_recordings(tmp_path / "in", 40)
    expected = [found.text for found in Transcriber(model_folders["ctc"]).transcribe(paths)]
    out = tmp_path / "out"
    processes = [start(model_folders["ctc"], out, part) for part in (paths[:30], paths[10:])]
    for process in processes:
        assert process.wait() == 0, process.stderr.read()
    found = read_transcripts(out / "hypotheses.csv").texts
    texts = {path.stem: " ".join(t.split()) for path, t in zip(paths, expected, strict=True)}
    assert found == texts
    for name, text in texts.items():
        assert (out / f"{name}.txt").read_text().split() == text.split()
    assert len(os.listdir(out)) == 41


MEMORY = f"""
import sys
sys.path[:] = {[entry for entry in sys.path if entry]!r}
import torch
from sru_asr.transcribe import Transcriber
torch.set_num_threads(1)
transcriber = Transcriber(sys.argv[1])
transcriber.transcribe(torch.randn(16000))
def used(key):
    with open("/proc/self/status") as file:
        return int(next(line for line in file if line.startswith(key)).split()[1])
loaded = used("VmRSS")
found = transcriber.transcribe(sys.argv[2])
assert found.error is None and len(found.segments) > 100
print((used("VmHWM") - loaded) // 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="there is no /proc")
def test_memory_does_not_grow_with_the_recording(model_folders, tmp_path):
    added = []
    for minutes in (15, 60):
        path = tmp_path / f"{minutes}.flac"
        with soundfile.SoundFile(path, "w", 16000, 1) as file:
            for number in range(minutes * 12):
                file.write(np.pad(sound(65_000, seed=number % 20), (0, 15_000)))
        command = [sys.executable, "-c", MEMORY, str(model_folders["ctc"]), str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        added.append(int(done.stdout))
    assert added[1] <= added[0] + 30
    assert added[1] <= 300
