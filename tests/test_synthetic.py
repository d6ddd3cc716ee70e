"""Synthetic speech: voices, rooms, grammars, and the corpora made of them."""

from __future__ import annotations

import itertools
import json
import wave
from pathlib import Path

import numpy as np
import pytest

from sru_asr.manifest import read_manifest
from sru_asr.synthetic import acoustics, espeak
from sru_asr.synthetic.corpus import Phrase, Take, corpus_settings, make_corpus
from sru_asr.synthetic.grammar import expand

try:
    import espeakng_loader  # noqa: F401

    HAS_ESPEAK = True
except ModuleNotFoundError:
    HAS_ESPEAK = False

needs_espeak = pytest.mark.skipif(not HAS_ESPEAK, reason="espeakng-loader is not installed")


# Grammar


def test_rules_are_expanded_within_rules_until_only_words_are_left():
    rules = {"call": ("CALL <who>",), "who": ("<digit> <digit>", "ME"), "digit": ("ONE", "TWO")}
    rng = np.random.default_rng(0)
    texts = {expand("PLEASE <call>", rules, rng) for _ in range(200)}
    numbers = {f"{a} {b}" for a, b in itertools.product(rules["digit"], repeat=2)}
    assert texts == {f"PLEASE CALL {who}" for who in {"ME", *numbers}}


def test_a_rule_may_be_a_function_and_name_others():
    rules = {"two": lambda rng: " ".join(["<digit>"] * int(rng.integers(2, 4))), "digit": ("ONE",)}
    rng = np.random.default_rng(0)
    assert {expand("<two>", rules, rng) for _ in range(20)} == {"ONE ONE", "ONE ONE ONE"}


def test_a_name_without_a_rule_is_an_error():
    with pytest.raises(KeyError, match="who"):
        expand("CALL <who>", {}, np.random.default_rng(0))


# Synthesis


@needs_espeak
@pytest.mark.parametrize("voice", ["en-us+f2", "en+m3", "en-029+croak", "en-gb-x-rp+klatt4"])
def test_speech_does_not_depend_on_what_was_spoken_before(voice):
    style = espeak.Style(voice, rate=160, pitch=60, word_gap=2, seed=5)
    words = ["turn", "the", "fan", "on"]
    first = espeak.speak(words, style)
    espeak.speak(["enter", "nine"], espeak.Style("en-us+whisper", rate=220, seed=9))
    again = espeak.speak(words, style)
    assert np.array_equal(first.samples, again.samples)
    assert first.spans == again.spans


@needs_espeak
def test_every_voice_speaks_and_each_sounds_different_but_always_the_same():
    voices = [f"en-us+{name}" for names in espeak.VARIANTS.values() for name in names]
    voices += [f"{accent}+default" for accent in espeak.ACCENTS[1:]]
    first, again = (
        [espeak.speak(["radio", "off"], espeak.Style(v)).samples.tobytes() for v in voices]
        for _ in range(2)
    )
    assert first == again
    assert len(set(first)) == len(voices) == len(set(voices))
    with pytest.raises(ValueError, match="no voice 'nowhere\\+f2'"):
        espeak.speak(["radio"], espeak.Style("nowhere+f2"))


@needs_espeak
def test_spans_follow_the_words():
    words = ["set", "the", "timer", "to", "ten", "minutes"]
    speech = espeak.speak(words, espeak.Style("en-gb-scotland+m2", word_gap=3))
    assert [index for index, _, _ in speech.spans] == list(range(6))
    times = [time for _, *span in speech.spans for time in span]
    assert times == sorted(times)
    assert times[0] >= 0
    assert times[-1] <= len(speech.samples) / espeak.SAMPLE_RATE
    # A gap is not part of a word.
    assert speech.spans[1][1] - speech.spans[0][2] >= 0.03


@needs_espeak
def test_a_pair_that_espeak_merges_has_one_span():
    speech = espeak.speak(["turn", "on", "the", "light"], espeak.Style("en-us+default"))
    assert [index for index, _, _ in speech.spans] == [0, 1, 3]


# Acoustics


def scene(**changes: object) -> acoustics.Scene:
    settings = {"silence": (0.2, 0.1), "rt60": 0.0, "direct": 6.0, "snr": 60.0, "colour": 1.0}
    return acoustics.Scene(**{**settings, "level": -25.0, **changes})  # type: ignore[arg-type]


def tone(rate: int, frequency: float = 1000, seconds: float = 0.5) -> np.ndarray:
    time = np.arange(round(seconds * rate)) / rate
    return np.hanning(len(time)) * np.sin(2 * np.pi * frequency * time)


def test_resampling_keeps_time_and_amplitude():
    found = acoustics.resample(tone(22050), 22050)
    assert np.abs(found - tone(16000)).max() < 1e-3
    assert np.abs(acoustics.resample(tone(22050, 9000), 22050)).max() < 1e-3


def test_trim_finds_the_sound():
    x = np.zeros(1000)
    assert acoustics.trim(x) == (0, 0)
    x[300], x[699] = 1.0, -0.5
    assert acoustics.trim(x) == (300, 700)


@pytest.mark.parametrize("snr", [5, 20])
@pytest.mark.parametrize("colour", [0.0, 2.0])
def test_noise_has_the_asked_level(snr, colour):
    voice = np.sin(np.arange(32000) * 0.3)
    rng = np.random.default_rng(0)
    wanted = scene(silence=(1.0, 1.0), snr=snr, colour=colour)
    x = acoustics.render(voice, wanted, rng).astype(float)
    noise = np.concatenate([x[:16000], x[-16000:]])
    speech = x[16000:-16000].var() - noise.var()
    assert 10 * np.log10(speech / noise.var()) == pytest.approx(snr, abs=2)
    assert 10 * np.log10(speech / 32767**2) == pytest.approx(-25, abs=0.5)


def test_reverberation_decays_by_60_db_within_rt60():
    click = np.zeros(16)
    click[0] = 1.0
    wanted = scene(silence=(0.0, 1.0), rt60=0.5, direct=0.0, snr=120.0)
    x = acoustics.render(click, wanted, np.random.default_rng(0)) / 32767
    energy = np.array([(x[t : t + 800] ** 2).mean() for t in (800, 4800)])
    # A quarter of a second is half of RT60, and so 30 dB.
    assert 10 * np.log10(energy[0] / energy[1]) == pytest.approx(30, abs=2)


def test_a_recording_never_clips_and_has_its_length():
    voice = np.zeros(8000)
    voice[4000] = 1.0  # as far from its own RMS as can be
    x = acoustics.render(voice, scene(level=-18.0), np.random.default_rng(0))
    assert x.dtype == np.int16
    assert len(x) == 8000 + 3200 + 1600
    assert 0.9 * 32767 < np.abs(x.astype(int)).max() < 32767


def test_a_microphone_changes_the_colour_and_not_the_level():
    voice = np.random.default_rng(1).standard_normal(32000)
    flat, falling = (
        acoustics.render(voice, scene(microphone=gains), np.random.default_rng(0)).astype(float)
        for gains in ((), (12.0, -12.0))
    )
    assert falling[3200:-1600].std() == pytest.approx(flat[3200:-1600].std(), rel=0.02)
    power = np.abs(np.fft.rfft(falling)) ** 2 / np.abs(np.fft.rfft(flat)) ** 2
    # The mel scale has its middle at 1768 Hz: there the gain is that of neither end.
    low, middle, high = (
        10 * np.log10(np.median(power[round(f * len(flat) / 16000) + np.arange(-200, 200)]))
        for f in (200, 1768, 7900)
    )
    assert low - middle == pytest.approx(12 - 24 * mel(200) / mel(8000), abs=0.5)
    assert middle - high == pytest.approx(24 * mel(7900) / mel(8000) - 12, abs=0.5)


def mel(frequency: float) -> float:
    return float(np.log1p(frequency / 700))


# Corpora


def draw(split: str, rng: np.random.Generator) -> Take:
    """Two phrases, half a second apart, in a dry and quiet room."""
    style = espeak.Style("en-us+f2" if split == "train" else "en-gb-x-rp+m3", rate=150)
    first = Phrase(("GO", "NOW"), ("go", "now"), style, pause=0.5)
    second = Phrase(("RUBOUT",), ("rub out",), style, pause=9.0)
    return Take((first, second), scene(), tract=float(rng.choice([0.9, 1.1])))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    pytest.importorskip("espeakng_loader")
    folder = tmp_path_factory.mktemp("corpus")
    make_corpus("Test", draw, {"train": 6, "valid": 2}, folder, seed=3, workers=1)
    return folder


def test_phrases_are_joined_with_their_pauses(corpus):
    rows = read_manifest(corpus / "train.csv", corpus) + read_manifest(corpus / "valid.csv", corpus)
    lines = map(json.loads, (corpus / "words.jsonl").read_text().splitlines())
    timings = {line["ID"]: line["words"] for line in lines}
    assert len(rows) == len(timings) == 8
    for row in rows:
        (go, _, _), (now, _, pause), (rubout, start, end) = timings[row.ID]
        assert (go, now, rubout) == ("GO", "NOW", "RUBOUT") == tuple(row.wrd.split())
        # Espeak-ng's last phoneme of a phrase may fade before it ends, and a pause begin with it.
        assert 0.45 < start - pause < 0.6
        # No silence but the scene's after the last phrase.
        assert end - start < 1 and row.duration - end < 0.25
        with wave.open(row.wav) as file:
            x = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(float)
        assert len(x) == round(16000 * row.duration)
        silent = x[round(16000 * (start - 0.4)) : round(16000 * (start - 0.1))]
        assert silent.std() < 0.01 * x.std()


@needs_espeak
def test_a_longer_tract_lowers_and_slows_the_voice():
    from sru_asr.synthetic.corpus import _say

    phrase = Phrase(("NINE",), ("nine",), espeak.Style("en-us+m1"))
    (short, spans), (long, long_spans) = (
        _say(Take((phrase,), scene(), tract=tract)) for tract in (1.0, 1.1)
    )
    assert len(long) / len(short) == pytest.approx(1.1, abs=0.01)
    assert long_spans[0][2] / spans[0][2] == pytest.approx(1.1, abs=0.01)


def test_a_corpus_follows_from_its_settings_alone(corpus, tmp_path):
    sizes = {"train": 6, "valid": 2}
    make_corpus("Test", draw, sizes, tmp_path, seed=3, workers=2)
    files = sorted(path.relative_to(corpus) for path in corpus.rglob("*") if path.is_file())
    assert len(files) == 6 + 2 + 2 + 1 + 2
    for file in files:
        assert (tmp_path / file).read_bytes() == (corpus / file).read_bytes()
    settings = corpus_settings(tmp_path)
    assert settings is not None and {"seed": 3, **sizes}.items() <= settings.items()
    # Another source of the sentences is another corpus, even if it has the same name.
    source = tmp_path / "source.py"
    source.write_text("RULES = 1")
    make_corpus("Test", draw, sizes, tmp_path, seed=3, workers=1, sources=[source])
    assert corpus_settings(tmp_path) != settings


def test_an_empty_split_and_a_folder_without_a_corpus(tmp_path):
    with pytest.raises(ValueError, match="at least 1 utterance in every split, found .*'valid': 0"):
        make_corpus("Test", draw, {"train": 1, "valid": 0}, tmp_path)
    assert corpus_settings(tmp_path) is None
