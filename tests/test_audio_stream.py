"""Reading as a stream: the same signal in pieces, at any rate, in constant memory; and ffmpeg."""

import os
import shutil
import stat
import tracemalloc

import numpy as np
import pytest
import soundfile
import torch
from scipy.signal import resample_poly
from torchaudio.functional import resample

from sru_asr.audio import AudioError, read_audio, stream_audio
from sru_asr.resampling import resample_blocks


def noise(count):
    return np.random.default_rng(0).standard_normal(count).astype(np.float32)


def split(signal, sizes):
    """Cut into pieces of these sizes, again and again."""
    at = 0
    while at < len(signal):
        for size in sizes:
            yield signal[at : at + size]
            at += size


@pytest.mark.parametrize("rates", [(8000, 16000), (44100, 16000), (48000, 16000), (22050, 8000)])
@pytest.mark.parametrize("sizes", [(1,), (441,), (7, 1000, 0, 333), (20000,), (100_000,)])
def test_blocks_give_what_the_whole_signal_gives(rates, sizes):
    signal = noise(3001 if sizes == (1,) else 50_123)
    whole = resample(torch.from_numpy(signal), *rates).numpy()
    blocks = list(resample_blocks(split(signal, sizes), *rates))
    np.testing.assert_allclose(np.concatenate(blocks), whole, atol=2e-5)
    assert max(map(len, blocks)) < (max(sizes) + 2000) * rates[1] / rates[0] + 100


@pytest.mark.parametrize("rates", [(16001, 16000), (15999, 16000), (44101, 16000)])
def test_rates_without_a_common_divisor(rates):
    signal = noise(rates[0] * 3 + 17)
    whole = resample_poly(signal, rates[1], rates[0])
    blocks = list(resample_blocks(split(signal, (30_000, 1, 9999)), *rates))
    np.testing.assert_allclose(np.concatenate(blocks), whole, atol=2e-5)
    assert len(blocks) > 2


@pytest.mark.parametrize("count", [0, 1, 2, 5, 100])
def test_lengths_are_rounded_up_once(count):
    for rates in ((44100, 16000), (8000, 16000), (11025, 16000)):
        blocks = resample_blocks(split(noise(count), (3,)), *rates)
        assert sum(map(len, blocks)) == -(-count * rates[1] // rates[0])


def test_there_is_no_drift():
    """An impulse after twenty minutes stays where it is."""
    blocks = [np.zeros(441_000, np.float32) for _ in range(120)]
    blocks.append(np.eye(1, 44100, 22050, dtype=np.float32)[0])
    out = np.concatenate(list(resample_blocks(iter(blocks), 44100, 16000)))
    assert len(out) == 1201 * 16000
    assert abs(int(np.argmax(out)) - (1200 * 16000 + 8000)) <= 1


@pytest.mark.parametrize("rate", [16000, 44100])
def test_a_stream_is_the_signal_in_pieces(tmp_path, monkeypatch, rate):
    monkeypatch.setattr("sru_asr.audio.BLOCK_FRAMES", 5000)
    path = tmp_path / "a.wav"
    soundfile.write(path, noise(70_000).reshape(-1, 2), rate, subtype="FLOAT")
    blocks = list(stream_audio(path))
    assert len(blocks) > 3
    np.testing.assert_array_equal(np.concatenate(blocks), read_audio(path).numpy())
    assert all(block.dtype == np.float32 for block in blocks)


@pytest.mark.parametrize("minutes", [1, 8])
def test_memory_does_not_grow_with_the_recording(tmp_path, minutes):
    path = tmp_path / "long.flac"
    with soundfile.SoundFile(path, "w", 44100, 2) as file:
        for _ in range(minutes * 6):
            file.write(np.zeros((441_000, 2), np.float32))
    list(resample_blocks([noise(1000)], 44100, 16000))  # imports
    tracemalloc.start()
    count = sum(map(len, stream_audio(path)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == minutes * 60 * 16000
    assert peak < 12 * 2**20


def test_damage_is_found_on_the_way(tmp_path):
    path = tmp_path / "a.flac"
    soundfile.write(path, np.clip(0.1 * noise(2_000_000), -1, 1), 16000)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    blocks = []
    with pytest.raises(AudioError, match="truncated"):
        blocks.extend(stream_audio(path))
    assert sum(map(len, stream_until_error(path))) > 500_000


def stream_until_error(path):
    try:
        yield from stream_audio(path)
    except AudioError:
        return


# ffmpeg


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Put a script in the place of ffmpeg; gives what writes it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def write(body):
        script = folder / "ffmpeg"
        script.write_text(f"#!/bin/sh\n{body}\n")
        script.chmod(script.stat().st_mode | stat.S_IXUSR)

    return write


@pytest.fixture
def film(tmp_path):
    path = tmp_path / "film.mp4"
    path.write_bytes(b"\0\0\0\x20ftypisom" + bytes(1000))
    return path


def test_without_ffmpeg_it_is_named(film, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(AudioError, match="found a file that is not audio .* need ffmpeg on the PA"):
        read_audio(film)


def test_ffmpeg_gives_raw_samples(film, program, tmp_path):
    samples = noise(500_000)
    (tmp_path / "raw").write_bytes(samples.astype("<f4").tobytes())
    program(f'echo "$@" > {tmp_path}/arguments; cat {tmp_path}/raw')
    blocks = list(stream_audio(film, 8000))
    assert len(blocks) > 1
    np.testing.assert_array_equal(np.concatenate(blocks), samples)
    arguments = (tmp_path / "arguments").read_text()
    assert f"-i file:{film} " in arguments and "-ac 1 -ar 8000 -f f32le" in arguments


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (
            "echo one >&2; echo 'Invalid data found' >&2; exit 1",
            r"not audio \(ffmpeg: Invalid data",
        ),
        ("exit 3", "ffmpeg: exit code 3"),
        ("true", "found 0 samples, expected at least one sample"),
        ("head -c 64000 /dev/zero; echo broken >&2; exit 1", r"beyond 1.0 s \(broken\)"),
        (r"printf '\000\000\300\177'", "NaN or infinite samples, the first at 0.000 s"),
    ],
)
def test_what_ffmpeg_says_is_passed_on(film, program, body, words):
    program(body)
    with pytest.raises(AudioError, match=words) as caught:
        read_audio(film)
    assert str(caught.value).startswith(f"audio file {film}: found ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.wav", "a.FLAC", "a.mp3"])
def test_damaged_audio_is_no_matter_for_ffmpeg(tmp_path, program, name):
    program("head -c 64000 /dev/zero")  # as it takes a text for AMR
    (tmp_path / name).write_text("<html>404 Not Found</html>")
    with pytest.raises(AudioError, match="found a file that is not audio") as caught:
        read_audio(tmp_path / name)
    assert "ffmpeg" not in str(caught.value)
    (tmp_path / "a").write_text("<html>404 Not Found</html>")
    assert len(read_audio(tmp_path / "a")) == 16000


def test_ffmpeg_is_stopped_with_the_stream(film, program, tmp_path):
    program(f"echo $$ > {tmp_path}/pid; exec cat /dev/zero")
    stream = stream_audio(film)
    next(stream)
    stream.close()
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="there is no ffmpeg")
def test_a_real_film(tmp_path):
    import subprocess

    samples = np.sin(2 * np.pi * 440 * np.arange(44100 * 3) / 44100).astype(np.float32) / 2
    soundfile.write(tmp_path / "a.wav", samples, 44100)
    for name, codec in (("a.m4a", ["-c:a", "aac"]), ("a.mkv", ["-c:a", "pcm_s16le"])):
        command = ["ffmpeg", "-v", "error", "-i", str(tmp_path / "a.wav"), *codec]
        subprocess.run([*command, str(tmp_path / name)], check=True)
        signal = read_audio(tmp_path / name).numpy()
        assert abs(len(signal) - 48000) <= 2200  # AAC has frames of 1024 samples
        power = np.abs(np.fft.rfft(signal[8000:40000]))
        assert np.argmax(power) == 440 * 2
    content = (tmp_path / "a.m4a").read_bytes()
    (tmp_path / "cut.m4a").write_bytes(content[: len(content) // 2])
    with pytest.raises(AudioError):
        read_audio(tmp_path / "cut.m4a")
    (tmp_path / "text.m4a").write_text("no audio\n" * 100)
    with pytest.raises(AudioError, match=r"found a file that is not audio \(ffmpeg: "):
        read_audio(tmp_path / "text.m4a")
