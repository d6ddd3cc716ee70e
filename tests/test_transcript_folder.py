"""A folder of transcripts stays whole: killed writers, several writers, full disks."""

import os
import signal
import subprocess
import time

import pytest

from sru_asr import transcript_folder
from sru_asr.recordings import Recording
from sru_asr.segments import Transcript
from sru_asr.transcript_folder import OutputError, TranscriptFolder
from sru_asr.transcripts import read_transcripts

# Large enough for a write in pieces, should there be one.
TEXTS = {f"r{i}": f"WORD {i} " * 3000 for i in range(8)}


def write(folder, names, texts=TEXTS, kinds=("txt", "json")):
    with TranscriptFolder(folder, kinds) as transcripts:
        for name in names:
            transcripts.add(Recording(f"{name}.wav", name), Transcript(None, texts[name], 1.0))


def in_child(work):
    """Start a function in a process of its own; gives the process's number."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return child


def assert_whole(folder, names):
    expected = {f"{name}.{kind}" for name in names for kind in ("txt", "json")}
    assert {entry.name for entry in os.scandir(folder)} == expected | {"hypotheses.csv"}
    for name in names:
        assert (folder / f"{name}.txt").read_text().split() == TEXTS[name].split()
    table = read_transcripts(folder / "hypotheses.csv").texts
    assert table == {name: TEXTS[name].strip() for name in names}


@pytest.mark.parametrize("number", range(7))
def test_a_killed_writer_leaves_nothing_half_written(tmp_path, monkeypatch, number):
    """Killed right before one of the renames: of the table's, and of each file's."""
    monkeypatch.setattr(transcript_folder, "DELAY", -1.0)
    replace, count = os.replace, 0

    def killed(source, target):
        nonlocal count
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1
        replace(source, target)

    def work():
        os.replace = killed
        write(tmp_path / "out", list(TEXTS)[:4])

    _, status = os.waitpid(in_child(work), 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    out = tmp_path / "out"
    done = [name for name in TEXTS if (out / f"{name}.txt").exists()]
    assert len(done) == (number + 1) // 3  # each time the table, then both files
    for name in done:
        assert (out / f"{name}.txt").read_text().split() == TEXTS[name].split()
    again = TranscriptFolder(out, ["txt", "json"])
    assert not [entry.name for entry in os.scandir(out) if entry.name.startswith(".")]
    complete = [name for name in TEXTS if again.has(Recording("", name))]
    assert complete == list(TEXTS)[: number // 3]
    with again:
        for name in TEXTS:
            if name not in complete:
                again.add(Recording("", name), Transcript(None, TEXTS[name], 1.0))
    assert_whole(out, TEXTS)


def test_several_writers_lose_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(transcript_folder, "DELAY", -1.0)
    names = list(TEXTS)
    children = [
        in_child(lambda own=names[i:] + names[:i]: write(tmp_path / "out", own)) for i in range(4)
    ]
    parts = [in_child(lambda own=names[i::2]: write(tmp_path / "parts", own)) for i in range(2)]
    assert [os.waitpid(child, 0)[1] for child in children + parts] == [0] * 6
    assert_whole(tmp_path / "out", names)
    assert_whole(tmp_path / "parts", names)


def test_results_wait_together_but_not_for_long(tmp_path, monkeypatch):
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with TranscriptFolder(tmp_path, ["txt"]) as transcripts:
        transcripts.add(Recording("", "a"), Transcript(None, "A", 1.0))
        assert list(tmp_path.iterdir()) == []
        now += 3
        transcripts.add(Recording("", "b"), Transcript(None, "B", 1.0))
        assert len(list(tmp_path.iterdir())) == 3
    with pytest.raises(KeyboardInterrupt), TranscriptFolder(tmp_path, ["txt"]) as transcripts:
        transcripts.add(Recording("", "c"), Transcript(None, "C", 1.0))
        raise KeyboardInterrupt
    assert read_transcripts(tmp_path / "hypotheses.csv").texts == {"a": "A", "b": "B", "c": "C"}


def test_the_table_has_what_has_a_file(tmp_path):
    write(tmp_path, ["r0", "r1"])
    (tmp_path / "r0.txt").unlink()
    (tmp_path / "r0.json").unlink()
    write(tmp_path, ["r2"])
    assert list(read_transcripts(tmp_path / "hypotheses.csv").texts) == ["r1", "r2"]
    (tmp_path / "hypotheses.csv").write_text("no table")
    with pytest.raises(OutputError, match=r"hypotheses.csv .*; remove it"):
        TranscriptFolder(tmp_path, ["txt"])


def assert_full(folder, kept):
    with pytest.raises(OutputError, match="found that it cannot be written .*No space left"):
        write(folder, list(TEXTS), dict.fromkeys(TEXTS, "WORD " * 20000))
    left = {entry.name for entry in os.scandir(folder)}
    assert not [name for name in left if name.startswith(".")]
    assert kept <= left


def test_a_full_disk_is_named(tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("there is no /dev/full")
    (tmp_path / "r1.txt").symlink_to("/dev/full")
    assert_full(tmp_path, {"r0.txt", "r0.json", "hypotheses.csv"})


def test_a_disk_that_fills_up_is_named(tmp_path):
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(tmp_path)]
    try:
        if subprocess.run(mount, capture_output=True).returncode != 0:
            pytest.skip("no small disk can be mounted here")
    except FileNotFoundError:
        pytest.skip("there is no mount")
    try:
        write(tmp_path, ["r0"], {"r0": "A"})
        assert_full(tmp_path, {"r0.txt"})
        assert (tmp_path / "r0.txt").read_text() == "A\n"
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_folder_that_takes_no_files_is_named(tmp_path):
    (tmp_path / "file").touch()
    folders = [tmp_path / "file", tmp_path / "file" / "out", "/proc/out"]
    if os.geteuid() != 0:
        (tmp_path / "closed").mkdir(mode=0o555)
        folders.append(tmp_path / "closed")
    for folder in folders:
        with pytest.raises(OutputError, match=f"output folder {folder}: found that nothing can"):
            TranscriptFolder(folder, ["txt"])
