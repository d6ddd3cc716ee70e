"""Lexicons: what they spell, and what is wrong with a file named by its line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sru_asr.lexicon import Lexicon


def lexicon(folder: Path, content: str) -> Lexicon:
    path = folder / "lexicon.txt"
    path.write_text(content, encoding="utf-8")
    return Lexicon(path)


def spelled(lexicon: Lexicon, text: str) -> str:
    return " ".join(lexicon.phones[number - 1] for number in lexicon.encode(text))


def test_the_first_pronunciation_counts_in_any_of_cmus_layouts(tmp_path: Path) -> None:
    found = lexicon(
        tmp_path, ";;; comment\nA  AH\nA(2)  EY\n\nTEN\tT EH N\n(3)  TH R\nTEN(12) T IH N\n"
    )
    assert spelled(found, "TEN A  TEN (3)") == "T EH N AH T EH N TH R"
    assert found.phones == ["AH", "EH", "N", "R", "T", "TH"]
    assert found.size == 7
    assert min(found.encode("TEN A (3)")) == 1  # 0 is the blank
    assert max(found.encode("TEN A (3)")) == 6


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"lexicon\.txt: line 2: 'TEN' has no phones"):
        lexicon(tmp_path, "A AH\nTEN\n")
    with pytest.raises(ValueError, match=r"lexicon\.txt: found no word"):
        lexicon(tmp_path, ";;; nothing\n")
    with pytest.raises(ValueError, match=r"line 1: 'T{60}\.\.\.' has no phones"):
        lexicon(tmp_path, "T" * 1000)
    (tmp_path / "latin1.txt").write_bytes(b"A AH\nN\xd6 N OW\n")
    with pytest.raises(ValueError, match=r"latin1\.txt: line 2: found byte 0xd6, expected UTF-8"):
        Lexicon(tmp_path / "latin1.txt")
    found = lexicon(tmp_path, "A AH\n")
    found.check(["A A", ""])
    with pytest.raises(ValueError, match=re.escape("pronunciation of 2 words") + ".*: B, TEN$"):
        found.check(["A B", "TEN B"])
