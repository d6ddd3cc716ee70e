"""Cutting at quiet places, whatever the noise; and joining without losing or doubling a word."""

import numpy as np
import pytest

from sru_asr.segments import Word
from sru_asr.windows import cut, join

RATE = 16000


def speech(rng, seconds, level=0.1):
    """Noise whose loudness goes up and down as syllables do, four a second."""
    time = np.arange(round(seconds * RATE)) / RATE
    envelope = 0.05 + np.abs(np.sin(np.pi * 4 * time + rng.uniform(0, 3)))
    return (level * envelope * rng.standard_normal(len(time))).astype(np.float32)


def recording(rng, noise=0.0, count=40, pauses=(0.3, 1.5), level=0.1):
    """Phrases and pauses in noise; gives the signal and where each phrase is."""
    signal, phrases, at = [], [], 0
    for _ in range(count):
        phrase = speech(rng, rng.uniform(1, 8), level)
        pause = np.zeros(round(rng.uniform(*pauses) * RATE), np.float32)
        signal += [phrase, pause]
        phrases.append((at / RATE, (at + len(phrase)) / RATE))
        at += len(phrase) + len(pause)
    signal = np.concatenate(signal)
    return (signal + noise * rng.standard_normal(len(signal))).astype(np.float32), phrases


def spans(windows):
    return [(w.start / RATE, (w.start + len(w.samples)) / RATE) for w in windows]


def assert_phrases_are_whole(windows, phrases, slack=0.05):
    """Of each phrase, every bit but its very edges is in exactly one window."""
    inside = spans(windows)
    for begin, end in phrases:
        within = [span for span in inside if span[0] < end - slack and span[1] > begin + slack]
        assert len(within) == 1, (begin, end, within)
        assert within[0][0] <= begin + slack and within[0][1] >= end - slack


@pytest.mark.parametrize("noise", [0.0, 1e-5, 1e-3, 1e-2])
@pytest.mark.parametrize("longest", [12.0, 30.0])
def test_cuts_are_in_pauses_at_any_noise(noise, longest):
    signal, phrases = recording(np.random.default_rng(0), noise)
    windows = list(cut([signal], RATE, longest))
    assert all(0 < len(w.samples) <= longest * RATE for w in windows)
    assert not any(w.before or w.after for w in windows)
    assert_phrases_are_whole(windows, phrases)
    for w in windows:
        np.testing.assert_array_equal(w.samples, signal[w.start : w.start + len(w.samples)])


def test_hum_is_no_speech():
    signal, phrases = recording(np.random.default_rng(1), 1e-4)
    hum = 0.2 * np.sin(2 * np.pi * 50 * np.arange(len(signal)) / RATE)
    windows = list(cut([(signal + hum).astype(np.float32)], RATE, 15))
    assert_phrases_are_whole(windows, phrases)


def test_noise_that_sets_in_and_a_speaker_further_away():
    rng = np.random.default_rng(2)
    (quiet, first), (noisy, second) = recording(rng, 1e-5), recording(rng, 5e-3)
    (far, third) = recording(rng, 5e-6, level=0.01)
    signal = np.concatenate([quiet, noisy, quiet, far])
    windows = list(cut([signal], RATE, 20))
    assert not any(w.before for w in windows if w.start < len(quiet))
    shift = (2 * len(quiet) + len(noisy)) / RATE
    assert_phrases_are_whole(windows, first)
    heard = np.zeros(len(signal), bool)
    for w in windows:
        heard[w.start : w.start + len(w.samples)] = True
    for begin, end in [(a + len(quiet) / RATE, b + len(quiet) / RATE) for a, b in second] + [
        (a + shift, b + shift) for a, b in third
    ]:
        assert heard[int((begin + 0.05) * RATE) : int((end - 0.05) * RATE)].all()


def test_blocks_make_no_difference():
    signal, _ = recording(np.random.default_rng(3), 1e-4, count=15)
    whole = list(cut([signal], RATE, 10))
    for size in (777, 16000, 123_457):
        blocks = (signal[i : i + size] for i in range(0, len(signal), size))
        for one, other in zip(whole, cut(blocks, RATE, 10), strict=True):
            assert (one.start, one.before, one.after) == (other.start, other.before, other.after)
            np.testing.assert_array_equal(one.samples, other.samples)


def test_a_recording_within_the_limit_is_one_window():
    signal, _ = recording(np.random.default_rng(4), count=2)
    for longest in (len(signal) / RATE, 60):
        (window,) = cut([signal[:999], signal[999:]], RATE, longest)
        assert (window.start, window.before, window.after) == (0, 0, 0)
        np.testing.assert_array_equal(window.samples, signal)
    assert len(list(cut([signal], RATE, len(signal) / RATE - 0.02))) > 1
    assert list(cut([], RATE)) == []


def test_silence_is_in_no_window():
    rng = np.random.default_rng(5)
    silence = np.zeros(100 * RATE, np.float32)
    assert list(cut([silence], RATE)) == []
    word = speech(rng, 2)
    found = spans(cut([silence, word, silence, word, silence], RATE))
    assert found == [
        pytest.approx((100, 102), abs=0.05),
        pytest.approx((202, 204), abs=0.05),
    ]


def test_without_pauses_windows_overlap():
    rng = np.random.default_rng(6)
    # Of two people, one always speaks.
    signal = speech(rng, 100) + speech(rng, 100)
    windows = list(cut([signal], RATE, 20, overlap=4))
    assert spans(windows) == [(16.0 * i, min(16.0 * i + 20, 100)) for i in range(6)]
    assert [w.before for w in windows] == [0, *[4 * RATE] * 5]
    assert [w.after for w in windows] == [*[4 * RATE] * 5, 0]
    hard = list(cut([signal], RATE, 20, overlap=0))
    assert spans(hard) == [(20.0 * i, 20.0 * i + 20) for i in range(5)]


@pytest.mark.parametrize("options", [{"longest": 1}, {"overlap": 15}, {"overlap": -1}])
def test_options_out_of_range(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}: found"):
        list(cut([], RATE, **options))


def words(*items):
    return [Word(text, start, end, sure) for text, start, end, sure in items]


def test_join_at_a_word_that_both_have():
    before = words(("A", 1, 1.4, 1), ("B", 7, 7.4, 1), ("C", 8, 8.4, 1), ("X", 9.8, 10, 1))
    after = words(("Y", 6, 6.2, 1), ("B", 7.1, 7.4, 1), ("C", 8, 8.3, 1), ("D", 9.7, 10.2, 1))
    stop, first = join(before, after, 6, 10)
    joined = before[:stop] + after[first:]
    assert [word.text for word in joined] == ["A", "B", "C", "D"]


@pytest.mark.parametrize("shift", [-0.1, 0.1])
def test_join_where_the_times_of_a_word_differ(shift):
    """It is before the middle in one window and after it in the other."""
    before = words(("C", 7.85 - shift, 8.15 - shift, 1))
    after = words(("C", 7.85 + shift, 8.15 + shift, 1))
    stop, first = join(before, after, 6, 10)
    assert stop + 1 - first == 1


def test_join_a_repeated_word_by_its_time():
    said = [("YES", 0.5 * i, 0.5 * i + 0.4, 1.0) for i in range(40)]
    before = words(*(s for s in said if s[2] <= 12))
    shifted = [(t, a + 0.1, b + 0.1, c) for t, a, b, c in said if a >= 8]
    stop, first = join(before, words(*shifted), 8, 12)
    assert stop + len(shifted) - first == 40


def test_join_without_a_common_word():
    before, after = words(("A", 7.0, 7.5, 1)), words(("B", 8.5, 9, 1))
    assert join(before, after, 6, 10) == (1, 0)
    # One sound, taken for two words: the surer one stays.
    before, after = words(("FOR", 7.7, 8.2, 0.4)), words(("FOUR", 7.9, 8.3, 0.9))
    assert join(before, after, 6, 10) == (0, 0)
    assert join(before, words(("FOUR", 7.9, 8.3, 0.2)), 6, 10) == (1, 1)
    assert join([], [], 6, 10) == (0, 0)
    assert join(before, [], 6, 10) == (1, 0)
