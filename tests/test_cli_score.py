"""The command line as a user meets it: output, exit codes, and how little it loads."""

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from sru_asr import cli
from sru_asr.versions import version_of

REF = "u1 the cat sat\nu2 A\nu3 x y\n"
HYP = "u3 x y z\nu1 the cat sit\nu2 a\n"


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ref.txt").write_text(REF)
    (tmp_path / "hyp.txt").write_text(HYP)
    return tmp_path


def run(*args):
    return CliRunner().invoke(cli.main, args)


def test_table(files):
    result = run("score", "ref.txt", "hyp.txt")
    assert (result.exit_code, result.stderr) == (0, "")
    rows = dict(line.split("  ", 1) for line in result.stdout.splitlines())
    assert {name: value.strip() for name, value in rows.items() if "interval" not in name} == {
        "WER": "50.00 %",
        "substitutions": "2",
        "deletions": "0",
        "insertions": "1",
        "words": "6",
        "CER": "26.67 %",
        "utterances": "3",
        "normalisation": "none (single spaces)",
        "matched by": "id (kaldi, kaldi)",
    }
    assert "95 % interval  " in result.stdout


def test_normalisation_is_applied_and_printed(files):
    result = run("score", "ref.txt", "hyp.txt", "--normalize", "basic")
    assert "WER            33.33 %" in result.stdout
    assert "basic (lower case" in result.stdout


def test_files_written(files):
    args = ("--json", "out/score.json", "--details", "out/wer.txt", "--bootstrap", "500")
    assert run("score", "ref.txt", "hyp.txt", *args).exit_code == 0
    found = json.loads((files / "out" / "score.json").read_text())
    assert (found["wer"], found["words"], found["decoder"]) == (50.0, 6, None)
    assert found["ci95"][0] <= found["wer"] <= found["ci95"][1]
    assert "sat --> sit = 1x" in (files / "out" / "wer.txt").read_text()


def test_formats_can_be_stated(files):
    result = run("score", "ref.txt", "ref.txt", "--ref-format", "plain", "--hyp-format", "plain")
    assert "words          9" in result.stdout
    assert "matched by     line" in result.stdout


def test_single_letters_and_mixed_formats(files):
    (files / "ref.csv").write_text("ID,wrd\na1,y e s\na2,B\n")
    (files / "hyp.jsonl").write_text('{"id":"a2","text":"B"}\n{"id":"a1","text":"y s"}\n')
    result = run("score", "ref.csv", "hyp.jsonl")
    assert "WER            25.00 %" in result.stdout
    assert "deletions      1" in result.stdout


@pytest.mark.parametrize(
    ("ref", "hyp", "options", "message"),
    [
        ("ref.txt", "nowhere.txt", (), "nowhere.txt: No such file"),
        ("ref.txt", "empty.txt", (), "empty.txt: the file is empty"),
        ("ref.txt", "short.txt", (), "2 of 3 ids missing (u2, u3)"),
        ("short.txt", "ref.txt", (), "2 extra ids (u2, u3)"),
        ("ref.txt", "twice.trn", (), "1 duplicate ids: u1 (line 1, line 2)"),
        ("silent.kaldi", "ref.txt", (), "1 references without words (normalisation: single"),
        ("ref.txt", "latin.txt", (), "line 1: found byte 0xe9"),
        ("ref.txt", "hyp.txt", ("--json", "."), "Is a directory"),
        ("ref.txt", "hyp.txt", ("--hyp-format", "csv"), "found the columns u3 x y z"),
        ("ref.txt", "hyp.txt", ("--normalize", "x"), "'x' is not one of 'none', 'basic'"),
        ("ref.txt", "hyp.txt", ("--bootstrap", "1"), "1 is not in the range x>=100"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(files, ref, hyp, options, message):
    (files / "empty.txt").touch()
    (files / "short.txt").write_text("u1 the cat sat\n")
    (files / "twice.trn").write_text("a (u1)\na (u1)\n")
    (files / "silent.kaldi").write_text("u1 a\nu2\nu3 b\n")
    (files / "latin.txt").write_bytes(b"caf\xe9\n")
    result = run("score", ref, hyp, *options)
    assert result.exit_code == 2
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    error = result.stderr.splitlines()[-1]
    assert error.startswith("Error: ")
    assert message in error


def test_empty_reference_can_be_allowed(files):
    (files / "silent.kaldi").write_text("u1 the cat sat\nu2\nu3 x y\n")
    result = run("score", "silent.kaldi", "hyp.txt", "--allow-empty-reference")
    assert result.exit_code == 0
    assert "insertions     2" in result.stdout


def test_version():
    assert run("--version").stdout.startswith("sru-asr ")


def test_env_lists_versions_and_the_build(monkeypatch):
    class Native:
        @staticmethod
        def build_info():
            return {"cpu": "avx2", "cuda": {"architectures": ["sm_80", "sm_90"], "reason": None}}

    monkeypatch.setitem(sys.modules, "sru_asr.native", Native)
    lines = run("env").stdout.splitlines()
    assert "build.cpu: avx2" in lines
    assert "build.cuda.architectures: sm_80, sm_90" in lines
    assert f"packages.jiwer: {version_of('jiwer')}" in lines
    assert json.loads(run("env", "--json").stdout)["build"] == Native.build_info()


def test_env_survives_a_broken_installation(monkeypatch):
    monkeypatch.setitem(sys.modules, "sru_asr.native", None)
    result = run("env")
    assert result.exit_code == 0
    assert "build.error: ModuleNotFoundError" in result.stdout


@pytest.mark.parametrize("args", [["--help"], ["score", "--help"], ["score", "ref.txt", "hyp.txt"]])
def test_help_and_scoring_do_not_load_torch(files, args):
    program = (
        "import sys; from sru_asr.cli import main\n"
        f"try: main({args!r})\n"
        "finally: print(sorted({'torch', 'speechbrain', 'torchaudio'} & set(sys.modules)))"
    )
    path = [entry for entry in sys.path if entry]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:] = {path!r}\n{program}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "[]"
