"""`sru-asr transcribe` as a user meets it: output, files, exit codes."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import soundfile
from click.testing import CliRunner
from model_folder import make_models
from test_transcribe import sound

from sru_asr import cli
from sru_asr.transcribe import Transcriber
from sru_asr.transcripts import read_transcripts

model_folders = pytest.fixture(make_models, scope="session")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Work in a folder with three recordings: a.wav, d/b.flac and d/e/c.wav."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d" / "e").mkdir(parents=True)
    soundfile.write("a.wav", sound(16000), 16000)
    soundfile.write("d/b.flac", sound(12000, 8000, seed=1), 8000)
    soundfile.write("d/e/c.wav", sound(8000, seed=2), 16000)
    return tmp_path


PATHS = ["a.wav", os.path.join("d", "b.flac"), os.path.join("d", "e", "c.wav")]


@pytest.fixture(scope="session")
def model(model_folders):
    return str(model_folders["ctc"])


@pytest.fixture
def texts(model):
    return [found.text for found in Transcriber(model).transcribe(PATHS)]


def run(*args):
    return CliRunner().invoke(cli.main, ["transcribe", *map(str, args)])


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_lines_are_path_and_text_in_the_order_given(model, texts, folder):
    result = run("d", "a.wav", "--model", model)
    assert result.exit_code == 0, result.stderr
    order = [1, 2, 0]
    assert result.stdout == "".join(f"{PATHS[i]}\t{texts[i]}\n" for i in order)
    assert all(texts)
    assert result.stderr.startswith("3 of 3 recordings, 3.0 s of audio, ")
    assert "real-time factor 0." in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert files(folder) == ["a.wav", "d"]


def test_json(model, texts):
    result = run("a.wav", "d", "--model", model, "--format", "json")
    assert result.exit_code == 0
    assert [json.loads(line) for line in result.stdout.splitlines()] == [
        {"id": name, "path": path, "text": text, "duration": duration}
        for name, path, text, duration in zip("abc", PATHS, texts, (1.0, 1.5, 0.5), strict=True)
    ]


@pytest.mark.parametrize("kind", ["txt", "json"])
def test_output_folder(model, texts, folder, kind):
    result = run("a.wav", "d", "--model", model, "--output-dir", "out/new", "--format", kind)
    assert (result.exit_code, result.stdout) == (0, "")
    out = folder / "out" / "new"
    assert files(out) == [f"a.{kind}", f"b.{kind}", f"c.{kind}", "hypotheses.csv"]
    for name, text in zip("abc", texts, strict=True):
        content = (out / f"{name}.{kind}").read_text()
        assert content.endswith("\n")
        assert text == (content[:-1] if kind == "txt" else json.loads(content)["text"])
    expected = {name: " ".join(text.split()) for name, text in zip("abc", texts, strict=True)}
    assert read_transcripts(out / "hypotheses.csv").texts == expected


def test_scoring_what_was_transcribed(model, folder, texts):
    rows = [f"{name},{text}\n" for name, text in zip("abc", texts, strict=True)]
    (folder / "ref.csv").write_text("ID,wrd\n" + "".join(rows))
    run("a.wav", "d", "--model", model, "--output-dir", "out")
    lines = run("a.wav", "d", "--model", model, "--format", "json").stdout
    (folder / "hyp.jsonl").write_text(lines)
    for hypotheses in ("out/hypotheses.csv", "hyp.jsonl"):
        result = CliRunner().invoke(cli.main, ["score", "ref.csv", hypotheses])
        assert "WER            0.00 %" in result.stdout, result.stderr


def test_broken_files_are_named_and_the_exit_code_is_1(model, texts, folder):
    (folder / "d" / "empty.wav").touch()
    (folder / "text.mp3").write_text("no audio")
    result = run("text.mp3", "a.wav", "gone.wav", "d", "--model", model, "--output-dir", "out")
    assert result.exit_code == 1
    *errors, summary, failed = result.stderr.splitlines()
    names = ["text.mp3", "gone.wav", os.path.join("d", "empty.wav")]
    assert [error.split(": found")[0] for error in errors] == [
        f"Error: audio file {name}" for name in names
    ]
    assert all("expected" in error for error in errors)
    assert summary.startswith("3 of 6 recordings")
    assert failed == f"failed: {', '.join(names)}"
    assert files(folder / "out") == ["a.txt", "b.txt", "c.txt", "hypotheses.csv"]
    result = run("text.mp3", *PATHS, "--model", model)
    assert result.exit_code == 1
    assert [line.split("\t")[1] for line in result.stdout.splitlines()] == texts


def test_all_broken(model, folder):
    (folder / "empty.wav").touch()
    result = run("empty.wav", "--model", model)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "0 of 1 recordings" in result.stderr


def test_shared_names_stay_apart(model, folder):
    shutil.copyfile("a.wav", "d/a.wav")
    assert run("a.wav", "d", "--model", model, "--output-dir", "out").exit_code == 0
    assert files(folder / "out") == ["a.txt", "b.txt", "c.txt", "d_a.txt", "hypotheses.csv"]


def test_names_that_are_not_utf8_do_not_stop_the_others(model, texts):
    name = os.fsdecode(b"caf\xe9.wav")
    shutil.copyfile("a.wav", name)
    result = run(name, "a.wav", "--model", model)
    assert result.exit_code == 1
    assert result.stdout == f"a.wav\t{texts[0]}\n"
    assert result.stderr.startswith("Error: audio file caf\\udce9.wav: found ")


def test_progress_bar_on_a_terminal(model, monkeypatch):
    from click.testing import _NamedTextIOWrapper

    monkeypatch.setattr(_NamedTextIOWrapper, "isatty", lambda self: True)
    result = run(*PATHS, "gone.wav", "--model", model)
    assert "4/4 [" in result.stderr
    assert "Error: audio file gone.wav" in result.stderr
    assert len(result.stdout.splitlines()) == 3


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nothing", "--model", "{model}"], "folder nothing: found no audio, expected files named"),
        (["a.wav", "./a.wav", "--model", "{model}"], "more than once"),
        (["a.wav", "--model", "missing"], "model folder missing: found no such folder, expected"),
        (["a.wav", "--model", "d"], "model folder d: found no hyperparams.yaml in it, expected"),
        (["a.wav", "--model", "{model}", "--output-dir", "a.wav"], "output folder a.wav: found"),
        (["a.wav", "--model", "{model}", "--batch-seconds", "0"], "batch_seconds: found 0"),
        (["a.wav", "--model", "{model}", "--batch-seconds", "nan"], "batch_seconds: found nan"),
        (["a.wav", "--model", "{model}", "--device", "cuda"], "device cuda: found 0 CUDA devices"),
        (["a.wav", "--model", "{model}", "--format", "srt"], "'srt' is not one of 'txt', 'json'"),
        (["a.wav"], "Missing option '--model'"),
        (["--model", "{model}"], "Missing argument 'AUDIO...'"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(model, folder, monkeypatch, args, message):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    (folder / "nothing").mkdir()
    result = run(*(arg.format(model=model) for arg in args))
    assert (result.exit_code, result.stdout) == (2, "")
    assert isinstance(result.exception, SystemExit)
    error = result.stderr.splitlines()[-1]
    assert error.startswith("Error: ")
    assert message in error


def test_help_does_not_load_torch():
    program = (
        "import sys\n"
        f"sys.path[:] = {[entry for entry in sys.path if entry]!r}\n"
        "from sru_asr.cli import main\n"
        "try: main(['transcribe', '--help'])\n"
        "finally: print(sorted({'torch', 'speechbrain', 'tqdm'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
