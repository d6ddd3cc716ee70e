"""The Commands corpus: what is said, who says it, in which room, and that it is reproducible."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest

from sru_asr.manifest import check_manifest

RECIPE = Path(__file__).parents[2] / "recipes" / "Commands"
sys.path.insert(0, str(RECIPE))

import acoustics  # noqa: E402
import grammar  # noqa: E402
import synthesis  # noqa: E402

try:
    import espeakng_loader  # noqa: F401

    HAS_ESPEAK = True
except ModuleNotFoundError:
    HAS_ESPEAK = False

needs_espeak = pytest.mark.skipif(not HAS_ESPEAK, reason="espeakng-loader is not installed")

SIZES = ("--num_train", "24", "--num_valid", "3", "--num_test", "5")

# A file that grows beyond this limit fails as on a full disk.
WITH_FULL_DISK = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
runpy.run_path(sys.argv[0], run_name="__main__")
"""
WITHOUT_ESPEAK = """
import runpy, sys
sys.modules["espeakng_loader"] = None
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def prepare(folder: Path, *options: str, before: str = "") -> subprocess.CompletedProcess[str]:
    # A process of its own: that is how it is run, and other recipes have a `prepare` module too.
    script = str(RECIPE / "prepare.py")
    if before:
        # As Python does for a script: its name first in argv, its folder first in the path.
        start = f"import sys; sys.argv[0] = {script!r}; sys.path[0] = {str(RECIPE)!r}\n"
        command = [sys.executable, "-c", start + before]
    else:
        command = [sys.executable, script]
    return subprocess.run(
        [*command, "--data_folder", str(folder), *SIZES, *options],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


# Grammar


def sentences(count: int = 3000, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [grammar.sample(rng) for _ in range(count)]


def pattern(rule: str) -> str:
    alternatives = (
        re.sub(r"<(\w+)>", lambda name: pattern(name[1]), text) for text in grammar.RULES[rule]
    )
    return f"(?:{'|'.join(alternatives)})"


def test_vocabulary_is_small_and_all_of_it_is_used():
    assert 60 <= len(grammar.VOCABULARY) <= 100
    assert all(word.isascii() and word.isalpha() and word.isupper() for word in grammar.VOCABULARY)
    assert {word for text in sentences() for word in text.split()} == set(grammar.VOCABULARY)


def test_sentences_have_2_to_8_words_and_follow_from_the_seed():
    texts = sentences()
    assert {2, 8} <= {len(text.split()) for text in texts} <= set(range(2, 9))
    assert all(text == " ".join(text.split()) for text in texts)
    assert texts == sentences() != sentences(seed=1)


@pytest.mark.parametrize(
    "text",
    [
        "TURN THE KITCHEN LIGHT ON",
        "SET THE ALARM TO SEVEN THIRTY",
        "CALL A B SEVEN FOUR",
        "PLAY ON MARCH TWENTY THIRD",
        "ENTER NINE NINE TWO",
    ],
)
def test_typical_commands_belong_to_the_grammar(text):
    assert re.fullmatch(pattern("command"), text)


# Synthesis


@needs_espeak
@pytest.mark.parametrize("accent", synthesis.ACCENTS)
def test_letters_are_spoken_as_letters(accent):
    import ctypes

    meant = dict(
        zip("ABDFKMRSX", ["eI", "bi:", "di:", "Ef", "keI", "Em", "A@", "Es", "Eks"], strict=True)
    )
    assert set(meant) == set(grammar.RULES["letter"])
    with synthesis.fresh_library() as library:
        library.espeak_TextToPhonemes.restype = ctypes.c_char_p
        assert library.espeak_SetVoiceByName(accent.encode()) == 0
        for letter, phonemes in meant.items():
            text = ctypes.c_char_p(grammar.spoken(letter).encode())
            heard = library.espeak_TextToPhonemes(ctypes.byref(text), 1, 0).decode()
            assert re.fullmatch(f"{re.escape(phonemes)}r?", heard.replace("'", "")), letter


@needs_espeak
@pytest.mark.parametrize("voice", ["en-us+f2", "en+m3", "en-029+croak", "en-gb-x-rp+klatt4"])
def test_speech_does_not_depend_on_what_was_spoken_before(voice):
    style = synthesis.Style(voice, rate=160, pitch=60, word_gap=2, seed=5)
    words = ["turn", "the", "fan", "on"]
    first = synthesis.speak(words, style)
    synthesis.speak(["enter", "nine"], synthesis.Style("en-us+whisper", rate=220, seed=9))
    again = synthesis.speak(words, style)
    assert np.array_equal(first.samples, again.samples)
    assert first.spans == again.spans


@needs_espeak
def test_every_voice_speaks_and_each_sounds_different_but_always_the_same():
    voices = [f"en-us+{name}" for names in synthesis.VARIANTS.values() for name in names]
    voices += [f"{accent}+default" for accent in synthesis.ACCENTS[1:]]
    first, again = (
        [synthesis.speak(["radio", "off"], synthesis.Style(v)).samples.tobytes() for v in voices]
        for _ in range(2)
    )
    assert first == again
    assert len(set(first)) == len(voices) == len(set(voices))
    with pytest.raises(ValueError, match="no voice 'nowhere\\+f2'"):
        synthesis.speak(["radio"], synthesis.Style("nowhere+f2"))


@needs_espeak
def test_spans_follow_the_words():
    words = ["set", "the", "timer", "to", "ten", "minutes"]
    speech = synthesis.speak(words, synthesis.Style("en-gb-scotland+m2", word_gap=3))
    assert [index for index, _, _ in speech.spans] == list(range(6))
    times = [time for _, *span in speech.spans for time in span]
    assert times == sorted(times)
    assert times[0] >= 0
    assert times[-1] <= len(speech.samples) / synthesis.SAMPLE_RATE
    # A gap is not part of a word.
    assert speech.spans[1][1] - speech.spans[0][2] >= 0.03


@needs_espeak
def test_a_pair_that_espeak_merges_has_one_span():
    speech = synthesis.speak(["turn", "on", "the", "light"], synthesis.Style("en-us+default"))
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


def test_scenes_stay_within_their_ranges():
    rng = np.random.default_rng(0)
    scenes = [acoustics.draw_scene(rng) for _ in range(500)]
    assert all(0.05 <= seconds <= 0.3 for s in scenes for seconds in s.silence)
    assert all(s.rt60 == 0 or 0.1 <= s.rt60 <= 0.6 for s in scenes)
    assert 0.4 < np.mean([s.rt60 > 0 for s in scenes]) < 0.6
    assert 0.5 < np.mean([s.snr <= 30 for s in scenes]) < 0.7
    assert min(s.snr for s in scenes) >= 5


# The corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    if not HAS_ESPEAK:
        pytest.skip("espeakng-loader is not installed")
    folder = tmp_path_factory.mktemp("commands")
    done = prepare(folder, "--workers", "1")
    assert done.returncode == 0, done.stderr
    return folder


def test_manifests_describe_the_recordings(corpus):
    timings = {
        line["ID"]: line["words"]
        for line in map(json.loads, (corpus / "words.jsonl").read_text().splitlines())
    }
    counts = {}
    for split in ("train", "valid", "test"):
        rows = check_manifest(corpus / f"{split}.csv", data_root=corpus)
        counts[split] = len(rows)
        for row in rows:
            with wave.open(row.wav) as file:
                assert (file.getframerate(), file.getsampwidth(), file.getnchannels()) == (
                    16000,
                    2,
                    1,
                )
                assert file.getnframes() == round(row.duration * 16000)
                x = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(float)
            assert 0.5 < row.duration < 7
            words = timings[row.ID]
            assert " ".join(text for text, _, _ in words) == row.wrd
            times = [time for _, *span in words for time in span]
            assert times == sorted(times)
            assert times[0] >= 0
            assert times[-1] <= row.duration
            # The words are where the timings say, and not next to them.
            start, end = round(times[0] * 16000), round(times[-1] * 16000)
            edges = np.concatenate([x[: max(start - 160, 160)], x[end + 320 :]])
            assert x[start:end].var() > 2 * edges.var()
    assert counts == {"train": 24, "valid": 3, "test": 5}


def test_test_voices_are_unheard(corpus):
    speakers = {
        split: {row.spk_id.split("+")[1] for row in check_manifest(corpus / f"{split}.csv", corpus)}
        for split in ("train", "valid", "test")
    }
    for split, variants in synthesis.VARIANTS.items():
        assert speakers[split] <= set(variants)
        for other in set(synthesis.VARIANTS) - {split}:
            assert not set(variants) & set(synthesis.VARIANTS[other])


def test_number_of_processes_changes_nothing(corpus, tmp_path):
    assert prepare(tmp_path, "--workers", "2").returncode == 0
    assert contents(tmp_path) == contents(corpus)


def test_a_run_that_fails_leaves_no_half_files_and_can_be_resumed(corpus, tmp_path):
    failed = prepare(tmp_path, "--workers", "2", before=WITH_FULL_DISK)
    assert failed.returncode != 0
    assert "File too large" in failed.stderr.splitlines()[-1]
    whole, partial = contents(corpus), contents(tmp_path)
    assert 1 < len(partial) < len(whole)
    assert all(whole[name] == content for name, content in partial.items())
    assert not list(tmp_path.glob("*.csv"))

    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.wav")}
    (tmp_path / "train" / "train-00000.wav.1.tmp").write_bytes(b"of a killed run")
    assert prepare(tmp_path).returncode == 0
    assert contents(tmp_path) == whole
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())


def test_equal_settings_do_nothing_and_others_start_anew(corpus, tmp_path):
    assert prepare(tmp_path).returncode == 0
    before = contents(tmp_path)
    # Not even espeak-ng is needed for a corpus that is there.
    again = prepare(tmp_path, before=WITHOUT_ESPEAK)
    assert again.returncode == 0 and "is complete" in again.stderr
    assert contents(tmp_path) == before

    other = prepare(tmp_path, "--seed", "7", "--num_train", "20")
    assert "seed: 1986 is now 7, train: 24 is now 20" in other.stderr
    assert not (tmp_path / "train" / "train-00020.wav").exists()
    # All of it changed.
    assert not set(contents(tmp_path).values()) & set(before.values())


def test_manifests_may_go_elsewhere(tmp_path, corpus):
    save = tmp_path / "manifests"
    assert prepare(tmp_path / "audio", "--save_folder", str(save)).returncode == 0
    assert (save / "train.csv").read_bytes() == (corpus / "train.csv").read_bytes()
    assert check_manifest(save / "train.csv", data_root=tmp_path / "audio")


def test_without_espeak_there_is_one_clear_sentence(tmp_path):
    failed = prepare(tmp_path / "new", before=WITHOUT_ESPEAK)
    assert failed.returncode != 0
    assert failed.stderr.strip().splitlines() == [
        "prepare.py: the Commands corpus needs espeak-ng: pip install 'sru-asr[demo]'"
    ]
    assert not (tmp_path / "new").exists()


def test_an_empty_split_is_refused(tmp_path):
    failed = prepare(tmp_path, "--num_test", "0")
    assert failed.returncode != 0
    assert "at least 1 utterance" in failed.stderr
