"""The Commands corpus: what is said, who says it, in which room, and that it is reproducible."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest

from sru_asr.manifest import check_manifest
from sru_asr.synthetic import espeak

RECIPE = Path(__file__).parents[2] / "recipes" / "Commands"
sys.path.insert(0, str(RECIPE))

import grammar  # noqa: E402

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


# Voices and rooms


@needs_espeak
@pytest.mark.parametrize("accent", espeak.ACCENTS)
def test_letters_are_spoken_as_letters(accent):
    import ctypes

    meant = dict(
        zip("ABDFKMRSX", ["eI", "bi:", "di:", "Ef", "keI", "Em", "A@", "Es", "Eks"], strict=True)
    )
    assert set(meant) == set(grammar.RULES["letter"])
    with espeak.fresh_library() as library:
        library.espeak_TextToPhonemes.restype = ctypes.c_char_p
        assert library.espeak_SetVoiceByName(accent.encode()) == 0
        for letter, phonemes in meant.items():
            text = ctypes.c_char_p(grammar.spoken(letter).encode())
            heard = library.espeak_TextToPhonemes(ctypes.byref(text), 1, 0).decode()
            assert re.fullmatch(f"{re.escape(phonemes)}r?", heard.replace("'", "")), letter


def test_scenes_stay_within_their_ranges():
    prepare = runpy.run_path(str(RECIPE / "prepare.py"), run_name="prepare")
    rng = np.random.default_rng(0)
    scenes = [prepare["draw_scene"](rng) for _ in range(500)]
    assert all(0.05 <= seconds <= 0.3 for s in scenes for seconds in s.silence)
    assert all(s.rt60 == 0 or 0.1 <= s.rt60 <= 0.6 for s in scenes)
    assert 0.4 < np.mean([s.rt60 > 0 for s in scenes]) < 0.6
    assert 0.5 < np.mean([s.snr <= 30 for s in scenes]) < 0.7
    assert min(s.snr for s in scenes) >= 5


# The corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    pytest.importorskip("espeakng_loader")
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
    for split, variants in espeak.VARIANTS.items():
        assert speakers[split] <= set(variants)
        for other in set(espeak.VARIANTS) - {split}:
            assert not set(variants) & set(espeak.VARIANTS[other])


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
    (tmp_path / "train" / ".1.train-00000.wav").write_bytes(b"of a killed run")
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
        "prepare.py: synthetic speech needs espeak-ng: pip install 'sru-asr[demo]'"
    ]
    assert not (tmp_path / "new").exists()


def test_an_empty_split_is_refused(tmp_path):
    failed = prepare(tmp_path, "--num_test", "0")
    assert failed.returncode != 0
    assert "at least 1 utterance" in failed.stderr
