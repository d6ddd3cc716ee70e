"""Which utterances go together, and what is said when that cannot be known."""

from __future__ import annotations

import pytest

from sru_asr.breakdown import EMPTY, BreakdownError, divide, names_by_value, values_by

WORDS = {"fash-1": 3, "fash-2": 1, "mbmg-1": 5}
MANIFEST = (
    ["room", "spk_id"],
    {
        "fash-1": {"room": "hall", "spk_id": "fash"},
        "fash-2": {"room": "", "spk_id": "fash"},
        "mbmg-1": {"room": "car", "spk_id": "mbmg"},
        "other": {"room": "car", "spk_id": "x"},
    },
)


def test_values() -> None:
    assert values_by("length", WORDS) == {"fash-1": "3", "fash-2": "1", "mbmg-1": "5"}
    assert values_by("room", WORDS, MANIFEST) == {"fash-1": "hall", "fash-2": "", "mbmg-1": "car"}
    by_manifest = values_by("speaker", WORDS, MANIFEST)
    assert by_manifest == values_by("speaker", WORDS, None, "^[a-z]+")
    assert by_manifest == values_by("speaker", WORDS, None, "(?:^)(.*)-")
    assert values_by("speaker", WORDS, MANIFEST, "[12]")["fash-2"] == "2"  # the pattern is meant


@pytest.mark.parametrize(
    ("name", "manifest", "pattern", "message"),
    [
        ("speaker", None, None, "--by speaker: expected --manifest or --speaker-pattern"),
        ("room", None, "x", "--by room: expected --manifest"),
        ("snr", MANIFEST, None, "found no column snr in the manifest, which has room, spk_id"),
        ("room", (["room"], {"fash-1": {"room": "a"}}), None, "2 of 3 .*: fash-2, mbmg-1"),
        ("speaker", (["a"], {}), None, "found no column spk_id or speaker .* which has a"),
        ("speaker", None, "^f.*-", "finds no speaker in 1 of 3 ids: mbmg-1"),
        ("speaker", None, "(x)?-", "finds no speaker in 3 of 3 ids"),
        ("speaker", None, "(", "--speaker-pattern '\\(': .*expected a regular expression"),
    ],
)
def test_faults(name: str, manifest: object, pattern: str, message: str) -> None:
    with pytest.raises(BreakdownError, match=message):
        values_by(name, WORDS, manifest, pattern)  # type: ignore[arg-type]


def test_numbers_are_ordered_as_numbers() -> None:
    values = {"a": "10", "b": "9", "c": "", "d": "10.0", "e": "9"}
    assert divide(values) == {"9": ["b", "e"], "10": ["a"], "10.0": ["d"], EMPTY: ["c"]}


def test_text_is_ordered_as_text_and_keeps_the_order_of_utterances() -> None:
    assert divide({"z": "b", "y": "a", "x": "b"}) == {"a": ["y"], "b": ["z", "x"]}
    assert list(divide({"z": "s10", "y": "s9", "x": "r"})) == ["r", "s9", "s10"]


def test_names_that_are_numbers_are_not_put_into_ranges() -> None:
    values = {f"u{i}": str(i) for i in range(30)}
    assert len(divide(values, by_value=True)) == 30
    assert list(divide(values, by_value=True))[:3] == ["0", "1", "2"]
    assert len(divide(values)) == 5
    assert names_by_value("spk_id") and not names_by_value("duration")


def test_ranges_hold_what_they_say() -> None:
    values = {f"u{i}": str(0.13 * i * i) for i in range(200)}
    parts = divide(values)
    assert sum(map(len, parts.values())) == 200
    assert all(20 <= len(part) <= 60 for part in parts.values())
    below, *between, above = parts.items()
    for label, part in between:
        low, high = map(float, label.split(" to "))
        assert all(low <= float(values[one]) < high for one in part)
    assert all(float(values[one]) < float(below[0].removeprefix("below ")) for one in below[1])
    assert all(float(values[one]) >= float(above[0].split()[0]) for one in above[1])


def test_whole_numbers_have_whole_edges() -> None:
    values = {f"u{i}": str(i % 23 + 1) for i in range(230)}
    for label, part in divide(values).items():
        low, _, high = label.partition(" to ")
        assert all(int(low) <= int(values[one]) <= int(high or low) for one in part)


def test_skewed_numbers() -> None:
    values = {f"u{i}": str(max(1, i - 80)) for i in range(100)}  # nearly all are 1
    parts = divide(values)
    assert sum(map(len, parts.values())) == 100 and all(parts.values())
