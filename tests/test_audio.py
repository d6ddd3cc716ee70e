"""Reading audio: the right signal from any format, the right sentence for anything unusable."""

import numpy as np
import pytest
import soundfile
import torch

from sru_asr.audio import AudioError, AudioInfo, audio_info, read_audio

FORMATS = {"wav": "WAV", "flac": "FLAC", "mp3": "MP3", "sph": "NIST", "ogg": "OGG"}
LOSSLESS = ("wav", "flac", "sph")


def tone(seconds=1.0, rate=16000, frequency=440.0):
    time = np.arange(int(seconds * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * frequency * time)).astype(np.float32)


def write(folder, suffix, samples, rate=16000, **kwargs):
    path = folder / f"audio.{suffix}"
    soundfile.write(path, samples, rate, format=FORMATS[suffix], **kwargs)
    return path


def error_of(path, read=read_audio):
    """The message, which is one line that names the file, what was found and what was expected."""
    with pytest.raises(AudioError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(f"audio file {path}: found ")
    assert ", expected " in message
    assert "\n" not in message
    return message


def cut(path, fraction):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * fraction)])
    return path


@pytest.mark.parametrize("suffix", FORMATS)
def test_formats(tmp_path, suffix):
    samples = tone()
    path = write(tmp_path, suffix, samples)
    signal = read_audio(path)
    assert signal.dtype == torch.float32
    assert signal.shape == (16000,)
    # One step of 16 bits, or what a lossy codec may do to a plain tone.
    tolerance = 2**-15 if suffix in LOSSLESS else 0.03
    assert np.abs(signal.numpy() - samples)[500:-500].max() <= tolerance
    assert audio_info(str(path)) == AudioInfo(1.0, 16000, 1)


@pytest.mark.parametrize("suffix", LOSSLESS)
def test_8_channels_become_their_mean(tmp_path, suffix):
    channels = np.stack([tone(0.1) * k / 8 for k in range(8)], axis=1)
    path = write(tmp_path, suffix, channels)
    assert audio_info(path) == AudioInfo(0.1, 16000, 8)
    signal = read_audio(path)
    assert signal.shape == (1600,)
    np.testing.assert_allclose(signal.numpy(), channels.mean(axis=1), atol=2**-15)


@pytest.mark.parametrize("rate", [8000, 11025, 16001, 44100, 48000])
def test_any_sample_rate(tmp_path, rate):
    path = write(tmp_path, "wav", tone(rate=rate), rate, subtype="FLOAT")
    assert audio_info(path) == AudioInfo(1.0, rate, 1)
    signal = read_audio(path)
    assert signal.shape == (16000,)
    # The same tone at the new rate, away from the ends where the filter sees silence.
    np.testing.assert_allclose(signal.numpy()[200:-200], tone()[200:-200], atol=2e-3)


def test_another_target_rate(tmp_path):
    path = write(tmp_path, "wav", tone(), subtype="FLOAT")
    signal = read_audio(path, sample_rate=8000)
    np.testing.assert_allclose(signal.numpy()[200:-200], tone(rate=8000)[200:-200], atol=2e-3)


def test_a_file_longer_than_one_block(tmp_path, monkeypatch):
    monkeypatch.setattr("sru_asr.audio.BLOCK_FRAMES", 1000)
    samples = tone()[:15999]
    path = write(tmp_path, "wav", samples, subtype="FLOAT")
    np.testing.assert_array_equal(read_audio(path).numpy(), samples)


def test_one_sample(tmp_path):
    path = write(tmp_path, "wav", np.array([0.5], np.float32), subtype="FLOAT")
    assert read_audio(path).tolist() == [0.5]


def test_missing(tmp_path):
    for read in (read_audio, audio_info):
        assert "found no such file" in error_of(tmp_path / "gone.wav", read)


def test_a_folder(tmp_path):
    for read in (read_audio, audio_info):
        assert "found a folder" in error_of(tmp_path, read)


@pytest.mark.parametrize("suffix", FORMATS)
def test_empty(tmp_path, suffix):
    path = tmp_path / f"audio.{suffix}"
    path.touch()
    for read in (read_audio, audio_info):
        assert "found an empty file (0 bytes)" in error_of(path, read)


@pytest.mark.parametrize("suffix", FORMATS)
def test_not_audio(tmp_path, suffix):
    path = tmp_path / f"audio.{suffix}"
    path.write_text("<html>404 Not Found</html>\n" * 100)
    for read in (read_audio, audio_info):
        assert "found a file that is not audio" in error_of(path, read)


@pytest.mark.parametrize("suffix", ["wav", "sph"])
def test_no_samples(tmp_path, suffix):
    path = write(tmp_path, suffix, np.zeros(0, np.float32))
    for read in (read_audio, audio_info):
        assert error_of(path, read).endswith("found 0 samples, expected at least one sample")


@pytest.mark.parametrize("fraction", [0.5, 0.97])
@pytest.mark.parametrize("suffix", LOSSLESS)
@pytest.mark.parametrize("channels", [1, 2])
def test_truncated(tmp_path, suffix, fraction, channels):
    samples = np.repeat(tone()[:, None], channels, axis=1)
    path = cut(write(tmp_path, suffix, samples), fraction)
    assert "truncated" in error_of(path)
    assert "truncated" in error_of(path, lambda p: audio_info(p, decode=True))
    if suffix != "flac":
        # These two need no decoding: header and size of the file disagree.
        assert f"expected {32000 * channels} bytes" in error_of(path, audio_info)


@pytest.mark.parametrize("suffix", ["mp3", "ogg"])
def test_truncated_lossy(tmp_path, suffix):
    error_of(cut(write(tmp_path, suffix, tone(3.0)), 0.5))


def test_a_damaged_flac_is_seen_only_when_decoded(tmp_path):
    path = write(tmp_path, "flac", tone(2.0))
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 2000] = b"\x00" * 2000
    path.write_bytes(content)
    assert audio_info(path).duration == 2.0
    error_of(path)
    error_of(path, lambda p: audio_info(p, decode=True))


def test_a_wav_from_a_pipe_has_no_size_and_is_read_whole(tmp_path):
    path = write(tmp_path, "wav", tone())
    content = bytearray(path.read_bytes())
    start = content.index(b"data") + 4
    content[4:8] = content[start : start + 4] = b"\xff" * 4
    path.write_bytes(content)
    assert read_audio(path).shape == (16000,)


def test_a_wav_with_other_chunks_before_and_after_the_audio(tmp_path):
    path = write(tmp_path, "wav", tone())
    content = path.read_bytes()
    odd_chunk = b"note\x03\x00\x00\x00abc\x00"
    path.write_bytes(content[:36] + odd_chunk + content[36:] + odd_chunk)
    assert read_audio(path).shape == (16000,)
    assert "truncated" in error_of(cut(path, 0.5), audio_info)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_samples_that_are_not_finite(tmp_path, bad):
    samples = tone()
    samples[[8000, 9000]] = bad
    path = write(tmp_path, "wav", samples, subtype="FLOAT")
    message = error_of(path)
    assert "found NaN or infinite samples, the first at 0.500 s, expected finite" in message


@pytest.mark.parametrize("rate", [1, 999, 768_001, 2**31 - 1])
def test_a_sample_rate_that_no_recorder_has(tmp_path, rate):
    path = tmp_path / "strange.wav"
    soundfile.write(path, np.zeros(16000), rate)
    assert f"found a sample rate of {rate} Hz, expected 1000 to 768000 Hz" in error_of(path)


def test_a_sphere_header_whose_length_is_damaged(tmp_path):
    path = write(tmp_path, "sph", tone(0.1))
    path.write_bytes(path.read_bytes().replace(b"   1024\n", b"   1024\xff", 1))
    message = error_of(path, audio_info)
    assert "found a SPHERE header without its length" in message or "not audio" in message


def test_headerless_audio_is_named_as_such(tmp_path):
    path = tmp_path / "audio.raw"
    path.write_bytes(b"\x00\x01" * 1000)
    assert "a .raw file, which has no header" in error_of(path)


def test_a_file_name_that_is_not_ascii(tmp_path):
    path = tmp_path / "größe 言葉.wav"
    soundfile.write(path, tone(), 16000)
    assert read_audio(path).shape == (16000,)
