"""Which files are meant, and what they are called."""

import json
import os

import pytest

from sru_asr.recordings import RecordingsError, find_recordings, recording_ids


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ("d/b/2.WAV", "d/1.flac", "d/3.sph", "d/._1.flac", "d/notes.doc", "d/film.mp4", "x.pcm")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "none").mkdir()
    return tmp_path


def paths(*inputs, **options):
    return [recording.path for recording in find_recordings(inputs, **options)]


def test_files_and_folders():
    inside = [os.path.join("d", name) for name in ("1.flac", "3.sph", "b/2.WAV", "film.mp4")]
    assert paths("x.pcm", "d") == ["x.pcm", *inside]
    assert paths("d", recursive=False) == [inside[0], inside[1], inside[3]]
    assert paths("missing.wav") == ["missing.wav"]  # named when it is read, like the rest
    with pytest.raises(RecordingsError, match=r"folder none: found no audio, .* \*\.wav, "):
        find_recordings(["d", "none"])
    for twice in (["d", "d/1.flac"], ["x.pcm", "./x.pcm"]):
        with pytest.raises(RecordingsError, match="more than once"):
            find_recordings(twice)


def test_patterns(folder):
    assert paths("d/*.[fs]*") == ["d/1.flac", "d/3.sph"]
    assert paths("**/*.WAV") == ["d/b/2.WAV"]
    (folder / "d" / "[1].wav").touch()
    assert paths("d/[1].wav") == ["d/[1].wav"]
    with pytest.raises(RecordingsError, match=r"pattern d/\*\.ogg: found no file"):
        find_recordings(["d/*.ogg"])


def test_lists(folder):
    (folder / "d" / "list.txt").write_text("\ufeff# comment\n3.sph\r\n\n b/2.WAV \n", "utf-8")
    assert paths("d/list.txt", "x.pcm") == ["d/3.sph", "d/b/2.WAV", "x.pcm"]
    for content, words in ((b"\n#\n", "no lines"), (b"\xff", "not UTF-8"), (b"a\0b", "zero bytes")):
        (folder / "bad.txt").write_bytes(content)
        with pytest.raises(RecordingsError, match=f"list bad.txt: found .*{words}"):
            find_recordings(["bad.txt"])
    with pytest.raises(RecordingsError, match="list gone.txt: found No such file"):
        find_recordings(["gone.txt"])


def test_manifests(folder):
    (folder / "d" / "new.csv").write_text("ID,wav\nspk/u1,3.sph\nu2,{data_root}/b/2.WAV\n")
    found = find_recordings(["d/new.csv", "x.pcm"], data_root=folder / "d")
    assert [recording.id for recording in found] == ["spk/u1", "u2", "x"]
    assert [recording.stem for recording in found] == ["spk_u1", "u2", "x"]
    assert [os.path.relpath(one.path, folder) for one in found] == ["d/3.sph", "d/b/2.WAV", "x.pcm"]
    (folder / "m.json").write_text(json.dumps({"u1": {"wav": "x.pcm", "wrd": "A"}}))
    assert [recording.id for recording in find_recordings(["m.json"])] == ["u1"]
    for content, words in (
        ("ID,wrd\nu1,A\n", "missing column wav"),
        ("ID,wav\n", "is empty"),
        ("ID,wav\nu1,{data_root}/x\n", "needs a value for {data_root}"),
        ("ID,wav\nu1,x.pcm\nu1,d/1.flac\n", "duplicate ID 'u1'"),
        ("ID,wav\n,x.pcm\n", "empty ID"),
    ):
        (folder / "bad.csv").write_text(content)
        with pytest.raises(RecordingsError, match=words):
            find_recordings(["bad.csv"])


def test_names_are_told_apart(folder):
    assert recording_ids(["a/x.wav", "/tmp/y.z.flac"]) == ["x", "y.z"]
    assert recording_ids(["r/a/x.wav", "r/b/x.wav", "r/y.wav"]) == ["a_x", "b_x", "y"]
    assert recording_ids(["x.wav", "x.flac"]) == ["x.wav", "x.flac"]
    with pytest.raises(RecordingsError, match="can be told apart"):
        recording_ids(["a_x.wav", "a/x.wav", "b/x.wav", "c/a_x.wav", "c/a/x.wav"])
    (folder / "one.csv").write_text("ID,wav\nx,d/1.flac\n")
    with pytest.raises(RecordingsError, match="would have the same name"):
        find_recordings(["one.csv", "x.pcm"])
