"""The command line as a user meets it: output, exit codes, and how little it loads."""

import csv
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner

from sru_asr import cli
from sru_asr.comparison import read_errors
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
        ("ref.txt", "hyp.txt", ("hyp.txt",), "the file hyp.txt is given twice"),
        ("ref.txt", "hyp.txt", ("./hyp.txt",), "the file hyp.txt is given twice"),
        ("ref.txt", "a=hyp.txt", ("a=ref.txt",), "the name a is given twice"),
        ("ref.txt", "a=nowhere.txt", (), "a=nowhere.txt: No such file, nor is there nowhere.txt"),
        ("ref.txt", "a=", (), "nor is there a file after the ="),
        ("ref.txt", "hyp.txt", ("--name", "a", "--name", "b"), "--name: found 2 for 1 files"),
        ("ref.txt", "hyp.txt", ("--name", " "), "the name of hyp.txt is empty"),
        ("ref.txt", "hyp.txt", ("--json", "ref.txt"), "ref.txt: is read or written already"),
        ("ref.txt", "hyp.txt", ("--csv", "./x", "--json", "x"), "x: is read or written already"),
        ("ref.txt", "hyp.txt", ("--by", "room"), "--by room: expected --manifest"),
        ("ref.txt", "hyp.txt", ("--by-csv", "x"), "--by-csv: expected --by"),
        ("ref.txt", "hyp.txt", ("--by", "snr", "--manifest", "m.csv"), "no column snr in the man"),
        (
            "ref.txt",
            "hyp.txt",
            ("--by", "room", "--manifest", "m.csv"),
            "2 of 3 utterances are not",
        ),
        ("ref.txt", "hyp.txt", ("--by", "room", "--manifest", "no.csv"), "no.csv: does not exist"),
        ("ref.txt", "hyp.txt", ("--by", "speaker", "--speaker-pattern", "^x"), "in 3 of 3 ids: u1"),
        ("ref.txt", "hyp.txt", ("--audio-root", "."), "expected --html"),
        ("ref.txt", "hyp.txt", ("--html", "x", "--embed-audio"), "expected --audio-root or"),
        ("ref.txt", "hyp.txt", ("--html", "x", "--audio-root", "no"), "no: No such file or direc"),
        ("ref.txt", "hyp.txt", ("--html", "x", "--audio-root", "m.csv"), "Not a directory"),
        ("ref.txt", "hyp.txt", ("--html", "x", "--audio-root", "."), "none of the recordings"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(files, ref, hyp, options, message):
    (files / "m.csv").write_text("ID,room\nu1,hall\n")
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
    assert (files / "ref.txt").read_text() == REF and not (files / "x").exists()


def test_empty_reference_can_be_allowed(files):
    (files / "silent.kaldi").write_text("u1 the cat sat\nu2\nu3 x y\n")
    result = run("score", "silent.kaldi", "hyp.txt", "--allow-empty-reference")
    assert result.exit_code == 0
    assert "insertions     2" in result.stdout


@pytest.fixture
def several(files):
    (files / "better.trn").write_text("the cat sat (u1)\nA (u2)\nx y z (u3)\n")
    (files / "m.csv").write_text("ID,spk_id,room,wav\nu1,s1,hall,u1.wav\nu2,s1,car,\nu3,s2,car,\n")
    return files


def test_several_systems(several):
    result = run("score", "ref.txt", "hyp.txt", "better.trn", "--bootstrap", "500")
    assert (result.exit_code, result.stderr) == (0, "")
    lines = [line.split() for line in result.stdout.splitlines()]
    assert " ".join(lines[0]) == "system WER 95 % interval S D I CER SER"
    assert lines[1][:3] == ["hyp", "50.00", "%"]
    assert lines[1][6:] == ["2", "0", "1", "26.67", "%", "100.00", "%"]
    assert lines[2][:3] == ["better", "16.67", "%"]
    assert lines[2][6:] == ["0", "0", "1", "13.33", "%", "33.33", "%"]
    assert lines[5][:4] == ["hyp", "-", "better", "+33.33"]
    assert "paired bootstrap over utterances, 500 resamples" in result.stdout
    assert "matched by     id (kaldi, kaldi, trn)" in result.stdout


def test_a_score_does_not_depend_on_company(several):
    for name in ("hyp.txt", "better.trn"):
        alone = run("score", "ref.txt", name).stdout
        interval = alone.splitlines()[1].removeprefix("95 % interval ").removesuffix(" %").strip()
        together = run("score", "ref.txt", "hyp.txt", "better.trn").stdout
        row = next(line for line in together.splitlines() if line.startswith(name.split(".")[0]))
        assert interval in row


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (("hyp.txt", "better.trn"), ["hyp", "better"]),
        (("one=hyp.txt", "better.trn"), ["one", "better"]),
        (("a/hyp.txt", "b/hyp.txt"), ["a", "b"]),
        (("a/hyp.txt", "hyp.txt", "--name", "x", "--name", "a=b"), ["x", "a=b"]),
        (("lr=0.1/hyp.txt", "b=hyp.txt"), ["hyp", "b"]),
        (("x=lr=0.1/hyp.txt", "a=b.txt"), ["x", "a=b"]),
        (("lr=0.1/hyp.txt", "lr=0.2/hyp.txt"), ["lr=0.1", "lr=0.2"]),
    ],
)
def test_names(several, arguments, names):
    for folder in ("a", "b", "lr=0.1", "lr=0.2"):
        (several / folder).mkdir()
        (several / folder / "hyp.txt").write_text(HYP)
    (several / "a=b.txt").write_text(HYP)
    result = run("score", "ref.txt", *arguments, "--json", "x.json")
    assert result.exit_code == 0, result.stderr
    found = json.loads((several / "x.json").read_text())
    assert [system["name"] for system in found["systems"]] == names


def test_names_of_files_that_are_not_utf8(several):
    name = os.fsdecode(b"caf\xe9.txt")
    (several / name).write_text(HYP)
    result = run("score", name, name, "ref.txt", "--json", "x.json", "--html", "x.html")
    assert result.exit_code == 0, result.stderr
    found = json.loads((several / "x.json").read_text())
    assert (found["reference"], found["systems"][0]["name"]) == ("caf\ufffd.txt", "caf\ufffd")


def test_parts(several):
    args = ("--by", "speaker", "--by", "length", "--by", "room", "--manifest", "m.csv")
    result = run("score", "ref.txt", "hyp.txt", *args, "--by-csv", "by.csv", "--json", "x.json")
    assert result.exit_code == 0, result.stderr
    rows = [line.split() for line in result.stdout.splitlines()]
    assert ["s1", "2", "4", "50.00", "%"] in [row[:5] for row in rows]
    with open(several / "by.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [(row["by"], row["group"], row["words"], float(row["wer"])) for row in table] == [
        ("speaker", "s1", "4", 50.0),
        ("speaker", "s2", "2", 50.0),
        ("length", "1", "1", 100.0),
        ("length", "2", "2", 50.0),
        ("length", "3", "3", pytest.approx(100 / 3)),
        ("room", "car", "3", pytest.approx(200 / 3)),
        ("room", "hall", "3", pytest.approx(100 / 3)),
    ]
    found = json.loads((several / "x.json").read_text())
    assert found["wer"] == 50.0 and [one["name"] for one in found["breakdowns"]] == [
        "speaker",
        "length",
        "room",
    ]


def test_rows_of_utterances(several):
    assert run("score", "ref.txt", "hyp.txt", "--csv", "x.csv").exit_code == 0
    assert read_errors(several / "x.csv") == {"u1": (3, 1), "u2": (1, 1), "u3": (2, 1)}
    assert run("score", "ref.txt", "hyp.txt", "better.trn", "--csv", "x.csv").exit_code == 0
    with open(several / "x.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["system"], row["ID"], row["errors"]) for row in rows] == [
        *(("hyp", "u1", "1"), ("hyp", "u2", "1"), ("hyp", "u3", "1")),
        *(("better", "u1", "0"), ("better", "u2", "0"), ("better", "u3", "1")),
    ]
    assert rows[0]["hypothesis"] == "the cat sit"


def test_page_and_details(several):
    (several / "u1.wav").touch()
    args = ("--html", "out/x.html", "--manifest", "m.csv", "--details", "x.txt")
    result = run("score", "ref.txt", "hyp.txt", "better.trn", *args)
    assert result.stdout.endswith("out/x.html: 3 utterances, 1 with a player\n")
    assert "./../u1.wav" in (several / "out" / "x.html").read_text()
    details = (several / "x.txt").read_text()
    assert details.index("##### hyp") < details.index("sat --> sit") < details.index("##### better")


def test_words_in_time(several):
    (several / "hyp.ctm").write_text("u1 1 0.5 0.1 cat\nu1 1 0.1 0.1 the\nu3 1 0.1 0.1 y 0.9\n")
    result = run("score", "ref.txt", "hyp.ctm")
    assert "deletions      3" in result.stdout
    assert "matched by     id (kaldi, ctm)" in result.stdout
    assert "without words  1 recordings that are not in the CTM file" in result.stdout
    result = run("score", "ref.txt", "better.trn", "hyp.ctm")
    assert "without words of hyp 1 recordings" in result.stdout


def test_english_normalisation_or_how_to_get_it(several, monkeypatch):
    (several / "colour.txt").write_text("u1 The cat, uh, sat\nu2 a\nu3 X Y\n")
    monkeypatch.setitem(sys.modules, "whisper_normalizer.english", None)
    result = run("score", "ref.txt", "colour.txt", "--normalize", "english")
    assert result.exit_code == 2
    assert "pip install 'sru-asr[english]'" in result.stderr
    monkeypatch.undo()
    monkeypatch.chdir(several)
    pytest.importorskip("whisper_normalizer")
    result = run("score", "ref.txt", "colour.txt", "--normalize", "english")
    assert "WER            0.00 %" in result.stdout
    assert "whisper-normalizer 0." in result.stdout


def test_one_reference_for_all(several):
    (several / "plain.txt").write_text("the cat sat\nA\nx y\n")
    (several / "ids.txt").write_text("the cat\nA\nx\n")
    result = run("score", "plain.txt", "ids.txt", "better.trn")
    assert result.exit_code == 2
    assert "plain.txt was read as plain text without ids but better.trn as trn" in result.stderr


@pytest.mark.slow
def test_2620_utterances_take_seconds(tmp_path):
    generator = np.random.default_rng(0)
    vocabulary = np.array([f"word{i}" for i in range(5000)])
    texts = [generator.choice(vocabulary, size) for size in generator.integers(1, 40, 2620)]
    for name, share in (("ref", 0), ("one", 0.05), ("two", 0.06)):
        lines = [
            " ".join([f"u-{i}", *np.where(generator.random(len(text)) < share, "wrong", text)])
            for i, text in enumerate(texts)
        ]
        (tmp_path / f"{name}.kaldi").write_text("\n".join(lines) + "\n")
    args = [str(tmp_path / f"{name}.kaldi") for name in ("ref", "one", "two")]
    program = (
        "import sys, time; from sru_asr.cli import main\n"
        f"try: main(['score', *{args!r}])\n"
        "finally: print(time.process_time())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert float(done.stdout.splitlines()[-1]) < 10


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


@pytest.mark.parametrize(
    "args",
    [
        ["--help"],
        ["score", "--help"],
        ["score", "ref.txt", "hyp.txt"],
        ["score", "ref.txt", "hyp.txt", "--html", "x.html", "--by", "room", "--manifest", "m.csv"],
    ],
)
def test_help_and_scoring_do_not_load_torch(several, args):
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
