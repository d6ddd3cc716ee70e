"""AN4: right manifests from any layout of the corpus, one clear report from other folders."""

import http.server
import importlib.util
import io
import logging
import os
import re
import subprocess
import sys
import tarfile
import threading
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner

from sru_asr.manifest import check_manifest, read_manifest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "recipes" / "AN4" / "prepare.py"
REAL = ROOT.parent / "shared" / "data" / "an4"

spec = importlib.util.spec_from_file_location("an4_prepare", SCRIPT)
assert spec
assert spec.loader
prepare = importlib.util.module_from_spec(spec)
spec.loader.exec_module(prepare)
CorpusError = prepare.CorpusError

# Published results depend on this choice: it must never change.
HELD_OUT = ["fsrb", "fwxs", "mcen", "mgah", "mmal", "mmap", "mrjc2", "mtos"]

SPEAKERS = ["fann", "feve", "fzoe", "mbob", "msam", "mtim"]
FORMATS = {"sph": "NIST", "flac": "FLAC", "wav": "WAV"}


def write_audio(path, seconds=0.25, rate=16000):
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = 0.1 * np.random.default_rng(0).standard_normal(int(seconds * rate))
    soundfile.write(path, samples, rate, format=FORMATS[path.suffix[1:]], subtype="PCM_16")


def make_corpus(folder, suffix="sph", test_part=False):
    """Six speakers with two utterances each, and two other speakers in the test part."""
    (folder / "etc").mkdir(parents=True)
    lines = []
    for speaker in SPEAKERS:
        for number in (1, 2):
            ID = f"an{number}-{speaker}-b"
            write_audio(folder / "wav" / "an4_clstk" / speaker / f"{ID}.{suffix}", number / 4)
            lines.append(f"<s> GO {speaker.upper()} </s> ({ID})")
    (folder / "etc" / "an4_train.transcription").write_text("\n".join(lines) + "\n")
    if test_part:
        for speaker in ("fnew", "mnew"):
            write_audio(folder / "wav" / "an4test_clstk" / speaker / f"an9-{speaker}-b.{suffix}")
        (folder / "etc" / "an4_test.transcription").write_text(
            "RUBOUT G M (an9-fnew-b)\n<s> YES </s> (an9-mnew-b)\n"
        )
    return folder


def add_line(corpus, line, part="train"):
    with open(corpus / "etc" / f"an4_{part}.transcription", "a") as file:
        file.write(line + "\n")


def report(folder, out, **kwargs):
    """The message of the error, which leaves no manifest behind."""
    with pytest.raises(CorpusError) as caught:
        prepare.prepare_an4(folder, out, valid_speakers=2, **kwargs)
    assert not list(Path(out).glob("*"))
    return str(caught.value)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("test_part", [False, True])
def test_manifests(tmp_path, suffix, test_part):
    corpus, out = make_corpus(tmp_path / "corpus", suffix, test_part), tmp_path / "out"
    prepare.prepare_an4(corpus, out, valid_speakers=2)
    names = ["test.csv", "train.csv", "valid.csv"] if test_part else ["train.csv", "valid.csv"]
    assert sorted(os.listdir(out)) == names
    train, valid = check_manifest(out / "train.csv"), check_manifest(out / "valid.csv")
    assert (len(train), len(valid)) == (8, 4)
    assert not {u.spk_id for u in train} & {u.spk_id for u in valid}
    assert sorted({u.spk_id[0] for u in valid}) == ["f", "m"]
    for u in train + valid:
        assert u.wrd == f"GO {u.spk_id.upper()}"
        assert u.duration == int(u.ID[2]) / 4
        assert os.path.isabs(u.wav)
    if test_part:
        test = check_manifest(out / "test.csv")
        assert [(u.ID, u.spk_id, u.wrd) for u in test] == [
            ("an9-fnew-b", "fnew", "RUBOUT G M"),
            ("an9-mnew-b", "mnew", "YES"),
        ]


def test_the_folder_that_contains_the_corpus_will_do(tmp_path):
    make_corpus(tmp_path / "data" / "an4")
    prepare.prepare_an4(tmp_path / "data", tmp_path / "out", valid_speakers=2)
    assert len(check_manifest(tmp_path / "out" / "train.csv")) == 8


def test_speechbrain_loads_the_manifests(tmp_path):
    dataset = pytest.importorskip("speechbrain.dataio.dataset")
    prepare.prepare_an4(make_corpus(tmp_path / "c"), tmp_path / "out", valid_speakers=2)
    data = dataset.DynamicItemDataset.from_csv(str(tmp_path / "out" / "train.csv"))
    data.set_output_keys(["id", "duration", "wrd"])
    assert len(data) == 8
    assert data[0]["wrd"].startswith("GO ")


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("<s> yes no </s> (x)", "YES NO"),
        ("HALF PAST (x)", "HALF PAST"),
        ("<s> <sil> READ(2) ++NOISE++ [breath] ME </s> (x)", "READ ME"),
        ("  <s>  A   B  </s>(x)  ", "A B"),
        ("<s> APOSTROPHE O'CLOCK </s> (x)", "APOSTROPHE O'CLOCK"),
    ],
)
def test_words(tmp_path, line, text):
    path = tmp_path / "an4_train.transcription"
    path.write_text(f"\n{line}\r\n")
    problems = []
    assert prepare._transcripts(path, problems) == {"x": text}
    assert problems == []


def test_a_second_run_only_looks(tmp_path, monkeypatch):
    corpus, out = make_corpus(tmp_path / "c"), tmp_path / "out"
    prepare.prepare_an4(corpus, out, valid_speakers=2)
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    monkeypatch.setattr(prepare, "audio_info", None)
    prepare.prepare_an4(corpus, out, valid_speakers=2)
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before


@pytest.mark.parametrize("change", ["speakers", "words", "damage", "missing"])
def test_manifests_that_do_not_match_are_made_again(tmp_path, change):
    corpus, out = make_corpus(tmp_path / "c"), tmp_path / "out"
    prepare.prepare_an4(corpus, out, valid_speakers=2)
    number = 2
    if change == "speakers":
        number = 3
    elif change == "words":
        words = corpus / "etc" / "an4_train.transcription"
        words.write_text(words.read_text().replace("GO", "STOP"))
    elif change == "damage":
        (out / "train.csv").write_text("ID,duration,wav,spk_id,wrd\nan1")
    else:
        (out / "valid.csv").unlink()
    prepare.prepare_an4(corpus, out, valid_speakers=number)
    prepare.prepare_an4(corpus, tmp_path / "fresh", valid_speakers=number)
    for name in ("train.csv", "valid.csv"):
        assert (out / name).read_text() == (tmp_path / "fresh" / name).read_text()


def test_more_training_utterances_are_chosen_by_the_training_transcripts(tmp_path, monkeypatch):
    corpus = make_corpus(tmp_path / "an4")
    other = tmp_path / "other.wav"
    write_audio(other, 0.5)
    heard = []

    def more(transcripts):
        heard.append(transcripts)
        return [prepare.Utterance("other", 0.5, str(other), "robot", "STOP")]

    prepare.prepare_an4(corpus, tmp_path / "out", valid_speakers=2, more=more)
    train = check_manifest(tmp_path / "out" / "train.csv")
    valid = read_manifest(tmp_path / "out" / "valid.csv")
    assert heard == [[u.wrd for u in train[:-1]]]
    assert (train[-1].ID, train[-1].duration) == ("other", 0.5)
    assert "other" not in {u.ID for u in valid}
    # Found as they were, they are left alone; without more, the manifest is the corpus's again.
    monkeypatch.setattr(prepare, "write_manifest", None)
    prepare.prepare_an4(corpus, tmp_path / "out", valid_speakers=2, more=more)
    monkeypatch.undo()
    prepare.prepare_an4(corpus, tmp_path / "out", valid_speakers=2)
    assert read_manifest(tmp_path / "out" / "train.csv") == train[:-1]


def test_skip_prep_does_nothing(tmp_path):
    prepare.prepare_an4(tmp_path / "nowhere", tmp_path / "out", skip_prep=True)
    assert not (tmp_path / "out").exists()


def test_a_test_manifest_of_another_corpus_is_put_aside(tmp_path, caplog):
    out = tmp_path / "out"
    prepare.prepare_an4(make_corpus(tmp_path / "a", test_part=True), out, valid_speakers=2)
    prepare.prepare_an4(make_corpus(tmp_path / "b"), out, valid_speakers=2)
    assert sorted(os.listdir(out)) == ["test.csv.old", "train.csv", "valid.csv"]
    assert "renamed the old test.csv" in caplog.text


def test_half_a_test_part_is_left_out_with_a_warning(tmp_path, caplog):
    corpus = make_corpus(tmp_path / "c", test_part=True)
    (corpus / "etc" / "an4_test.transcription").unlink()
    prepare.prepare_an4(corpus, tmp_path / "out", valid_speakers=2)
    assert not (tmp_path / "out" / "test.csv").exists()
    assert "has wav/an4test_clstk but no etc/an4_test.transcription" in caplog.text


class TestChooseSpeakers:
    names = frozenset(f"{sex}{i:02}x" for sex in "fm" for i in range(20))

    def test_the_same_every_time_and_another_with_another_seed(self):
        first = prepare.choose_speakers(set(self.names), 8)
        assert first == prepare.choose_speakers(set(self.names), 8)
        assert first != prepare.choose_speakers(set(self.names), 8, seed=1)

    def test_balanced(self):
        chosen = prepare.choose_speakers(set(self.names), 8)
        assert Counter(name[0] for name in chosen) == {"f": 4, "m": 4}

    def test_a_smaller_choice_is_part_of_a_larger_one(self):
        chosen = [set(prepare.choose_speakers(set(self.names), n)) for n in (4, 8, 16)]
        assert chosen[0] < chosen[1] < chosen[2]

    def test_names_that_may_be_one_person_are_not_split(self):
        speakers = {"mdcs", "mdcs2", "fann", "mbob"}
        for seed in range(20):
            assert prepare.choose_speakers(speakers, 2, seed) == ["fann", "mbob"]

    @pytest.mark.parametrize("number", [-1, 0, 6, 7])
    def test_impossible_numbers(self, number):
        with pytest.raises(CorpusError, match=f"found {number}, expected 1 to 5 of the 6"):
            prepare.choose_speakers(set(SPEAKERS), number)


class TestWrongFolder:
    def test_another_corpus(self, tmp_path):
        (tmp_path / "LibriSpeech" / "test-clean").mkdir(parents=True)
        message = report(tmp_path / "LibriSpeech", tmp_path / "out")
        assert message == (
            f"data_folder {tmp_path / 'LibriSpeech'}: found test-clean, expected the AN4 corpus "
            "(etc/an4_train.transcription and wav/an4_clstk; --download fetches it)"
        )

    def test_missing_empty_full_and_a_file(self, tmp_path):
        assert "found no such folder" in report(tmp_path / "gone", tmp_path / "out")
        (tmp_path / "empty").mkdir()
        assert "found an empty folder" in report(tmp_path / "empty", tmp_path / "out")
        (tmp_path / "many").mkdir()
        for number in range(10):
            (tmp_path / "many" / f"{number}.txt").touch()
        assert "7.txt and 2 more, expected" in report(tmp_path / "many", tmp_path / "out")
        assert "found a file" in report(tmp_path / "many" / "1.txt", tmp_path / "out")

    def test_no_audio_is_said_once(self, tmp_path):
        corpus = make_corpus(tmp_path / "c")
        for path in (corpus / "wav" / "an4_clstk").glob("*/*"):
            path.unlink()
        message = report(corpus, tmp_path / "out")
        assert "found no recordings, expected <speaker>/<ID> with .flac, .wav, .sph" in message
        assert "\n" not in message

    def test_headerless_audio_is_named(self, tmp_path):
        corpus = make_corpus(tmp_path / "c")
        for path in (corpus / "wav" / "an4_clstk").glob("*/*"):
            path.rename(path.with_suffix(".raw"))
        message = report(corpus, tmp_path / "out")
        assert "found 12 .raw files, which have no header" in message
        assert "an4_sphere.tar.gz" in message


def test_everything_wrong_with_transcripts_is_reported_at_once(tmp_path):
    corpus = make_corpus(tmp_path / "c", test_part=True)
    add_line(corpus, "<s> LOST </s> (an3-fann-b)")
    add_line(corpus, "<s> NO ID </s>")
    add_line(corpus, "<s> TWICE </s> (an1-fann-b)")
    add_line(corpus, "<s> </s> (an4-fann-b)")
    add_line(corpus, "LOST TOO (an3-fnew-b)", part="test")
    write_audio(corpus / "wav" / "an4_clstk" / "fann" / "an4-fann-b.sph")
    write_audio(corpus / "wav" / "an4_clstk" / "feve" / "an1-fann-b.sph")
    message = report(corpus, tmp_path / "out")
    assert message.startswith(f"AN4 in {corpus}: 6 problems\n")
    for expected in (
        "transcript an3-fann-b: found no audio, expected wav/an4_clstk/<speaker>/an3-fann-b",
        "line 14: found '<s> NO ID </s>', expected words and (ID)",
        "line 15: found an1-fann-b a second time",
        "line 16: found no words for an4-fann-b",
        "transcript an3-fnew-b: found no audio, expected wav/an4test_clstk/<speaker>",
        "expected one speaker",
    ):
        assert expected in message


@pytest.mark.parametrize("suffix", FORMATS)
def test_everything_wrong_with_audio_is_reported_at_once(tmp_path, suffix):
    corpus = make_corpus(tmp_path / "c", suffix)
    empty, text, short = sorted((corpus / "wav" / "an4_clstk").glob("*/*"))[::4]
    empty.write_bytes(b"")
    text.write_text("not audio " * 100)
    short.write_bytes(short.read_bytes()[:-2000])
    message = report(corpus, tmp_path / "out")
    assert message.startswith(f"AN4 in {corpus}: 3 problems\n")
    assert f"{empty}: found an empty file" in message
    assert f"{text}: found a file that is not audio" in message
    assert re.search(rf"{short}: found .*truncated", message)


def test_an_empty_transcription(tmp_path):
    corpus = make_corpus(tmp_path / "c")
    (corpus / "etc" / "an4_train.transcription").write_text("")
    assert "an4_train.transcription: found an empty file" in report(corpus, tmp_path / "out")


def test_recordings_without_words_are_a_warning(tmp_path, caplog):
    corpus = make_corpus(tmp_path / "c")
    write_audio(corpus / "wav" / "an4_clstk" / "fann" / "an7-fann-b.sph")
    prepare.prepare_an4(corpus, tmp_path / "out", valid_speakers=2)
    assert "left out 1 recordings without words: an7-fann-b" in caplog.text


def test_a_recording_in_two_formats_is_one_recording(tmp_path):
    corpus = make_corpus(tmp_path / "c")
    write_audio(corpus / "wav" / "an4_clstk" / "fann" / "an1-fann-b.wav")
    prepare.prepare_an4(corpus, tmp_path / "out", valid_speakers=2)
    rows = read_manifest(tmp_path / "out" / "train.csv")
    rows += read_manifest(tmp_path / "out" / "valid.csv")
    assert len(rows) == 12
    assert sum(u.wav.endswith(".wav") for u in rows) == 1


@pytest.mark.skipif(not REAL.is_dir(), reason="needs the training part of AN4 in ../shared/data")
def test_the_real_corpus(tmp_path):
    prepare.prepare_an4(REAL, tmp_path)
    train, valid = check_manifest(tmp_path / "train.csv"), check_manifest(tmp_path / "valid.csv")
    assert (len(train), len(valid)) == (845, 103)
    assert len({u.spk_id for u in train}) == 66
    assert sorted({u.spk_id for u in valid}) == HELD_OUT
    assert len({word for u in train + valid for word in u.wrd.split()}) == 99
    assert 42 < sum(u.duration for u in train + valid) / 60 < 44


# Downloads, from this machine to itself.

COUNTS = {"train": 12, "test": 2}


@pytest.fixture
def archive(tmp_path):
    make_corpus(tmp_path / "made" / "an4", test_part=True)
    path = tmp_path / "server" / "an4_sphere.tar.gz"
    path.parent.mkdir()
    with tarfile.open(path, "w:gz") as tar:
        tar.add(tmp_path / "made" / "an4", arcname="an4")
    return path


class RangeHandler(http.server.SimpleHTTPRequestHandler):
    """Serves files, and the rest of a file where one is asked for; `limit` breaks off early."""

    ranges: list
    limit = None

    def do_GET(self):
        content = Path(self.translate_path(self.path)).read_bytes()
        requested = self.headers.get("Range")
        self.ranges.append(requested)
        start = int(requested[6:-1]) if requested else 0
        if start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if requested else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start:][: self.limit])

    def log_message(self, *args):
        pass


@pytest.fixture
def server(archive):
    """The archive's URL, and the handler class that serves it."""
    handler = type("Handler", (RangeHandler,), {"ranges": []})
    address = ("127.0.0.1", 0)
    with http.server.ThreadingHTTPServer(
        address, partial(handler, directory=str(archive.parent))
    ) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}/{archive.name}", handler
        running.shutdown()


def test_download(tmp_path, server):
    url, handler = server
    folder = tmp_path / "data"
    corpus = prepare.download_an4(folder, url, COUNTS)
    assert corpus == folder / "an4"
    assert sorted(os.listdir(folder)) == ["an4", "an4_sphere.tar.gz"]
    prepare.prepare_an4(folder, tmp_path / "out", valid_speakers=2)
    assert len(check_manifest(tmp_path / "out" / "test.csv")) == 2
    # A second call finds the corpus; without it, the archive.
    prepare.download_an4(folder, url, COUNTS)
    (folder / "an4").rename(tmp_path / "moved")
    prepare.download_an4(folder, url, COUNTS)
    assert handler.ranges == [None]


def test_an_interrupted_download_is_resumed(tmp_path, server, archive):
    url, handler = server
    folder = tmp_path / "data"
    handler.limit = 1000
    size = archive.stat().st_size
    with pytest.raises(CorpusError, match=f"found 1000 bytes, expected {size}; run again"):
        prepare.download_an4(folder, url, COUNTS)
    assert os.listdir(folder) == ["an4_sphere.tar.gz.part"]
    handler.limit = None
    prepare.download_an4(folder, url, COUNTS)
    assert handler.ranges == [None, "bytes=1000-"]
    assert (folder / archive.name).read_bytes() == archive.read_bytes()


def test_a_finished_part_is_not_fetched_again(tmp_path, server, archive):
    url, handler = server
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / f"{archive.name}.part").write_bytes(archive.read_bytes())
    prepare.download_an4(folder, url, COUNTS)
    assert handler.ranges == [f"bytes={archive.stat().st_size}-"]


def test_a_server_that_cannot_resume_starts_again(tmp_path, archive):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / f"{archive.name}.part").write_bytes(b"something else")
    prepare.download_an4(folder, archive.as_uri(), COUNTS)
    assert (folder / archive.name).read_bytes() == archive.read_bytes()


def test_no_server(tmp_path):
    with pytest.raises(CorpusError, match=r"download of file:.*/gone.tar.gz: found .*No such file"):
        prepare.download_an4(tmp_path, (tmp_path / "gone.tar.gz").as_uri())


@pytest.mark.parametrize("damage", ["cut", "flipped", "html", "counts", "traversal", "other"])
def test_an_archive_that_is_not_the_corpus_is_refused(tmp_path, archive, damage):
    content, counts = bytearray(archive.read_bytes()), COUNTS
    expected = "delete the file to download it again"
    if damage == "cut":
        archive.write_bytes(content[:-500])
    elif damage == "flipped":
        content[len(content) // 2] ^= 0xFF
        archive.write_bytes(content)
    elif damage == "html":
        archive.write_text("<html>Please log in</html>")
    elif damage == "counts":
        counts, expected = None, "12 utterances in the train part instead of 948"
    else:
        name = "../outside.txt" if damage == "traversal" else "readme.txt"
        with tarfile.open(archive, "w:gz") as tar:
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    with pytest.raises(CorpusError, match=expected) as caught:
        prepare.download_an4(archive.parent, archive.as_uri(), counts)
    assert str(caught.value).startswith(f"archive {archive}: found ")
    assert os.listdir(archive.parent) == [archive.name]
    assert not (tmp_path / "outside.txt").exists()


def test_download_does_not_overwrite_another_folder(tmp_path):
    (tmp_path / "an4").mkdir()
    with pytest.raises(CorpusError, match="found something that is not AN4"):
        prepare.download_an4(tmp_path)


def test_command_line(tmp_path, archive, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(prepare, "URL", archive.as_uri())
    monkeypatch.setattr(prepare, "UTTERANCES", COUNTS)
    options = ["--data_folder", str(tmp_path / "data"), "--output", str(tmp_path / "out")]
    options += ["--valid_speakers", "2"]

    refused = CliRunner().invoke(prepare.main, options)
    assert refused.exit_code == 1
    assert "Error: data_folder" in refused.output
    assert not (tmp_path / "data").exists()  # nothing is fetched unless asked for

    done = CliRunner().invoke(prepare.main, [*options, "--download"], catch_exceptions=False)
    assert done.exit_code == 0
    assert "train.csv has 8 utterances of 4 speakers" in caplog.text
    assert len(check_manifest(tmp_path / "out" / "test.csv")) == 2


def test_the_script_runs_from_a_terminal(tmp_path):
    corpus = make_corpus(tmp_path / "c")
    command = [sys.executable, str(SCRIPT), f"--data_folder={corpus}", f"--output={tmp_path}/out"]
    done = subprocess.run(
        [*command, "--valid_speakers=2"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert "validation speakers: f" in done.stderr
    wrong = subprocess.run(
        [*command, "--valid_speakers=99"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert wrong.returncode == 1
    assert wrong.stderr.startswith("Error: valid_speakers: found 99, expected 1 to 5")
