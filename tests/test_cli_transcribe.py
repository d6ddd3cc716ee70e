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
from sru_asr.formats import FORMATS
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


def clean(text):
    return " ".join(text.split())


def run(*args):
    return CliRunner().invoke(cli.main, ["transcribe", *map(str, args)])


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_lines_are_path_and_text_in_the_order_given(model, texts, folder):
    result = run("d", "a.wav", "--model", model)
    assert result.exit_code == 0, result.stderr
    order = [1, 2, 0]
    assert result.stdout == "".join(f"{PATHS[i]}\t{clean(texts[i])}\n" for i in order)
    assert all(texts)
    assert result.stderr.startswith("3 of 3 recordings, 3.0 s of audio, ")
    assert "real-time factor 0." in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert files(folder) == ["a.wav", "d"]


def test_json(model, texts):
    result = run("a.wav", "d", "--model", model, "--format", "json")
    assert result.exit_code == 0
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert [{key: one[key] for key in ("id", "path", "text", "duration")} for one in found] == [
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
        found = content[:-1] if kind == "txt" else json.loads(content)["text"]
        assert found.split() == text.split()
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
    assert failed == f"failed: 3 of 6: {', '.join(names)}"
    assert files(folder / "out") == ["a.txt", "b.txt", "c.txt", "hypotheses.csv"]
    result = run("text.mp3", *PATHS, "--model", model)
    assert result.exit_code == 1
    assert [line.split("\t")[1] for line in result.stdout.splitlines()] == list(map(clean, texts))


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
    assert result.stdout == f"a.wav\t{clean(texts[0])}\n"
    assert result.stderr.startswith("Error: audio file caf\\udce9.wav: found ")


def test_progress_bar_on_a_terminal(model, monkeypatch):
    from click.testing import _NamedTextIOWrapper

    monkeypatch.setattr(_NamedTextIOWrapper, "isatty", lambda self: True)
    result = run(*PATHS, "gone.wav", "--model", model)
    assert "3.00/3.00 [" in result.stderr  # seconds of audio
    assert "Error: audio file gone.wav" in result.stderr
    assert len(result.stdout.splitlines()) == 3
    for option in ("--no-progress", "--quiet"):
        assert "3.00/3.00" not in run("a.wav", "--model", model, option).stderr


def test_quiet_leaves_transcripts_and_errors(model, texts):
    result = run("a.wav", "--model", model, "--quiet")
    assert (result.stdout, result.stderr) == (f"a.wav\t{clean(texts[0])}\n", "")
    result = run("a.wav", "gone.wav", "--model", model, "--quiet")
    assert [line.split(":")[0] for line in result.stderr.splitlines()] == ["Error", "failed"]


def test_every_format(model, folder):
    result = run("d", "--model", model, "--format", "all", "--output-dir", "out")
    assert result.exit_code == 0, result.stderr
    expected = [f"{name}.{kind}" for name in "bc" for kind in FORMATS]
    assert files(folder / "out") == sorted([*expected, "hypotheses.csv"])
    for kind in FORMATS:
        one = run("a.wav", "--model", model, "--format", kind)
        assert one.exit_code == 0, one.stderr
    (line,) = run("a.wav", "--model", model, "--format", "json").stdout.splitlines()
    segment = json.loads(line)["segments"][0]
    assert (segment["words"], segment["confidence"], segment["alternatives"]) == ([], None, [])
    options = ("--word-timestamps", "--confidence", "--decoder", "ctc-beam", "--nbest", "2")
    (line,) = run("a.wav", "--model", model, "--format", "json", *options).stdout.splitlines()
    segment = json.loads(line)["segments"][0]
    assert segment["words"] and segment["confidence"] and len(segment["alternatives"]) == 2


def test_subtitles_of_given_width(model):
    options = ("--word-timestamps", "--max-line-width", "6", "--max-line-count", "1")
    result = run("a.wav", "--model", model, "--format", "srt", *options)
    assert result.exit_code == 0, result.stderr
    lines = [line for line in result.stdout.split("\n") if line]
    assert len(lines) >= 6 and "-->" in lines[1]
    assert all(len(line) <= 6 or " " not in line for line in lines[2::3])


def test_folder_pattern_list_and_manifest_are_the_same(model, folder, texts):
    (folder / "list.txt").write_text("a.wav\nd/b.flac\nd/e/c.wav\n")
    named = zip("abc", PATHS, strict=True)
    rows = "".join(f"spk/{name},{{data_root}}/{path}\n" for name, path in named)
    (folder / "set.csv").write_text("ID,wav\n" + rows)
    for inputs in (["."], ["**/*.wav", "d/*.flac"], ["list.txt"]):
        result = run(*inputs, "--model", model)
        found = dict(line.split("\t") for line in result.stdout.splitlines())
        assert sorted(found.values()) == sorted(map(clean, texts))
    result = run("set.csv", "--data-root", folder, "--model", model, "--output-dir", "out")
    assert result.exit_code == 0, result.stderr
    assert files(folder / "out") == ["hypotheses.csv", "spk_a.txt", "spk_b.txt", "spk_c.txt"]
    assert list(read_transcripts("out/hypotheses.csv").texts) == ["spk/a", "spk/b", "spk/c"]
    assert len(run("d", "--no-recursive", "--model", model).stdout.splitlines()) == 1


def test_skip_existing_leaves_out_what_is_there(model, folder, texts):
    arguments = ("--model", model, "--output-dir", "out", "--skip-existing")
    assert run("a.wav", *arguments).exit_code == 0
    (folder / "out" / "a.txt").write_text("kept\n")
    result = run("a.wav", "d", *arguments)
    assert "2 of 3 recordings (1 were there), 2.0 s of audio" in result.stderr
    assert (folder / "out" / "a.txt").read_text() == "kept\n"
    found = read_transcripts(folder / "out" / "hypotheses.csv").texts
    assert found == {name: clean(text) for name, text in zip("abc", texts, strict=True)}
    result = run("a.wav", "d", "--format", "json", *arguments)  # another format is not there
    assert result.stderr.startswith("3 of 3 recordings, 3.0 s")
    result = run("a.wav", "d", "--format", "json", *arguments)
    assert result.exit_code == 0 and result.stderr == "0 of 3 recordings (3 were there)\n"
    (folder / "out" / "hypotheses.csv").unlink()
    assert run("a.wav", *arguments).stderr.startswith("1 of 1 recordings, 1.0 s")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nothing", "--model", "{model}"], "folder nothing: found no audio, expected files named"),
        (["a.wav", "./a.wav", "--model", "{model}"], "more than once"),
        (["a.wav", "--model", "missing"], "model folder missing: found no such folder, expected"),
        (["a.wav", "--model", "d"], "model folder d: found no hyperparams.yaml in it, expected"),
        (["a.wav", "--model", "{model}", "--output-dir", "a.wav"], "output folder a.wav: found"),
        (["a.wav", "--model", "{model}", "--batch-size", "0"], "batch_seconds: found 0"),
        (["a.wav", "--model", "{model}", "--batch-size", "nan"], "batch_seconds: found nan"),
        (["a.wav", "--model", "{model}", "--window", "2"], "window_seconds: found 2, expected"),
        (["a.wav", "--model", "{model}", "--decoder", "joint"], "without a joint search"),
        (["a.wav", "--model", "{model}", "--precision", "fp16"], "precision fp16: found device"),
        (["a.wav", "--model", "{model}", "--skip-existing"], "--skip-existing: found no --output"),
        (["a.wav", "--model", "{model}", "--format", "all"], "--format all: found no --output-dir"),
        (["a.wav", "--model", "{model}", "--nbest", "2"], "--nbest: found --format txt, expected"),
        (["a.wav", "--model", "{model}", "--confidence"], "--confidence: found --format txt"),
        (["a.wav", "--model", "{model}", "--max-line-count", "2"], "found no --max-line-width"),
        (["a.wav", "--model", "{model}", "--max-line-width", "9"], "expected srt, vtt or all"),
        (["a.wav", "d", "--model", "{model}", "--format", "srt"], "found 3 recordings to print"),
        (["*.ogg", "--model", "{model}"], "pattern *.ogg: found no file that matches"),
        (["gone.csv", "--model", "{model}"], "gone.csv"),
        (["a.wav", "--model", "{model}", "--device", "cuda"], "device cuda: found 0 CUDA devices"),
        (["a.wav", "--model", "{model}", "--format", "doc"], "'doc' is not one of 'txt', 'srt'"),
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
