"""Normalisation does what its one-line description says, and nothing else."""

import importlib.metadata
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sru_asr.text import PRESET_NAMES, PRESETS, EnglishNormalization, Normalization, preset


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  a \t b\u00a0 c\n", "a b c"),
        ("Hello, World!", "Hello, World!"),
        ("", ""),
        ("   ", ""),
        ("cafe\u0301", "cafe\u0301"),
    ],
)
def test_none_changes_white_space_only(text, expected):
    assert Normalization()(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello, World!", "hello world"),
        ("DON'T", "don't"),
        ("don’t", "don't"),
        ("rock 'n' roll", "rock n roll"),
        ("the dogs' 'quoted' o'clock", "the dogs quoted o'clock"),
        ("forty-two", "forty two"),
        ("one,two", "one two"),
        ("a_b", "a b"),
        ("¿Qué?", "qué"),
        ("cafe\u0301", "café"),
        ("l’été", "l'été"),
        ("你好。", "你好"),
        ("5 $ + 3 €", "5 $ + 3 €"),
        ("- ...", ""),
        ("A", "a"),
    ],
)
def test_basic(text, expected):
    assert Normalization.preset("basic")(text) == expected


def test_options_act_alone():
    assert Normalization(upper_case=True)("straße, ok") == "STRASSE, OK"
    assert Normalization(lower_case=True)("Hi, YOU") == "hi, you"
    assert Normalization(remove_punctuation=True)("Hi, YOU") == "Hi YOU"
    assert Normalization(compose=True)("E\u0301!") == "É!"


def test_contradiction_and_unknown_preset_are_refused():
    with pytest.raises(ValueError, match="exclude each other"):
        Normalization(lower_case=True, upper_case=True)
    with pytest.raises(ValueError, match="unknown normalisation 'whisper'.*none, basic"):
        Normalization.preset("whisper")


def test_description_is_one_line_and_names_every_step():
    everything = Normalization(upper_case=True, compose=True, remove_punctuation=True)
    assert len(str(everything).splitlines()) == 1
    for step in ("upper case", "NFC", "punctuation removed", "single spaces"):
        assert step in str(everything)
        assert (step in str(Normalization())) == (step == "single spaces")


@given(st.text())
@pytest.mark.parametrize("preset", PRESETS)
def test_idempotent_and_single_spaced(preset, text):
    normalize = Normalization.preset(preset)
    once = normalize(text)
    assert normalize(once) == once
    assert once == " ".join(once.split())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Mr. Brown won't pay", "mister brown will not pay"),
        ("The colour,  uh, of [laughs] tea", "the color of tea"),
        ("twenty-five percent", "25%"),
        ("", ""),
    ],
)
def test_english(text, expected):
    pytest.importorskip("whisper_normalizer")
    assert preset("english")(text) == expected


def test_english_names_the_version_that_is_there():
    pytest.importorskip("whisper_normalizer")
    assert importlib.metadata.version("whisper-normalizer") in str(EnglishNormalization())


def test_english_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "whisper_normalizer.english", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'sru-asr\[english\]'"):
        preset("english")


def test_presets_by_name():
    assert PRESET_NAMES == ("none", "basic", "english")
    assert preset("basic") is PRESETS["basic"]
    with pytest.raises(ValueError, match="unknown normalisation 'x'"):
        preset("x")
