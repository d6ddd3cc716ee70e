"""Which files are meant, and what they are called."""

import os

import pytest

from sru_asr.recordings import RecordingsError, find_audio, recording_ids


def test_find_audio(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("d/b/2.WAV", "d/1.flac", "d/3.sph", "d/._1.flac", "d/notes.txt", "other.pcm"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "none").mkdir()
    inside = [os.path.join("d", name) for name in ("1.flac", "3.sph", "b/2.WAV")]
    assert find_audio(["other.pcm", "d"]) == ["other.pcm", *inside]
    assert find_audio(["missing.wav"]) == ["missing.wav"]  # named when it is read, like the rest
    with pytest.raises(RecordingsError, match=r"folder none: found no audio, .* \*\.wav, "):
        find_audio(["d", "none"])
    for twice in (["d", "d/1.flac"], ["other.pcm", "./other.pcm"]):
        with pytest.raises(RecordingsError, match="more than once"):
            find_audio(twice)


def test_recording_ids():
    assert recording_ids(["a/x.wav", "/tmp/y.z.flac"]) == ["x", "y.z"]
    assert recording_ids(["r/a/x.wav", "r/b/x.wav", "r/y.wav"]) == ["a_x", "b_x", "y"]
    assert recording_ids(["x.wav", "x.flac"]) == ["x.wav", "x.flac"]
    with pytest.raises(RecordingsError, match="can be told apart"):
        recording_ids(["a_x.wav", "a/x.wav", "b/x.wav", "c/a_x.wav", "c/a/x.wav"])
