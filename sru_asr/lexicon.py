"""Pronunciations of words: phones as the targets of an auxiliary CTC loss."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from sru_asr.tokenizer import BLANK
from sru_asr.transcripts import enumerate_some, shorten


class Lexicon:
    """A pronouncing dictionary, which spells texts in phones.

    Letters say little about sounds: "U" and "TWO" end alike, "W" is three syllables. Trained on
    phones after some of its layers, an encoder learns the sounds that words share, rare ones too
    (hierarchical multitask training: Toshniwal et al., "Multitask learning with low-level auxiliary
    tasks for encoder-decoder based speech recognition", 2017).

    Parameters
    ----------
    path : str or Path, optional
        The file to `load`. Without one the lexicon is empty, for a YAML to name before there is a
        file, as with tokenizers.

    Attributes
    ----------
    path : Path or None
        What was loaded.
    phones : list of str
        All phones, sorted. Phone i has the number i + 1: 0 is CTC's blank.
    size : int
        Outputs that a layer needs: the phones and the blank.

    Examples
    --------
    >>> import tempfile
    >>> path = f"{tempfile.mkdtemp()}/lexicon.txt"
    >>> _ = open(path, "w").write("TEN  T EH N\\nNO  N OW\\n")
    >>> lexicon = Lexicon(path)
    >>> [lexicon.phones[i - 1] for i in lexicon.encode("NO TEN")]
    ['N', 'OW', 'T', 'EH', 'N']
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path: Path | None = None
        self.phones: list[str] = []
        self.size = 1
        self._words: dict[str, list[int]] = {}
        if path is not None:
            self.load(path)

    def load(self, path: str | Path) -> None:
        """Read a file, in place of what was there.

        Parameters
        ----------
        path : str or Path
            A text file in UTF-8, a word and its phones in each line, as CMU's dictionary has it. Of
            several pronunciations the first counts, others may be marked ``WORD(2)``; ";;;" begins
            a comment.

        Raises
        ------
        OSError
            When the file cannot be read.
        ValueError
            Naming the line that has a word and no phones, or is not UTF-8; or when there is no word
            at all.
        """
        words: dict[str, list[str]] = {}
        data = Path(path).read_bytes()
        try:
            lines = data.decode("utf-8").splitlines()
        except UnicodeDecodeError as error:
            number = data[: error.start].count(b"\n") + 1
            raise ValueError(
                f"{path}: line {number}: found byte 0x{data[error.start]:02x}, expected UTF-8 text"
            ) from None
        for number, line in enumerate(lines, 1):
            if not line.strip() or line.startswith(";;;"):
                continue
            word, *phones = line.split()
            if not phones:
                raise ValueError(f"{path}: line {number}: {shorten(word, 60)!r} has no phones")
            words.setdefault(re.sub(r"(?<=.)\(\d+\)$", "", word), phones)
        if not words:
            raise ValueError(f"{path}: found no word, expected lines such as 'TEN  T EH N'")
        self.path = Path(path)
        self.phones = sorted({phone for phones in words.values() for phone in phones})
        self.size = len(self.phones) + 1
        numbers = {phone: i for i, phone in enumerate(self.phones, BLANK + 1)}
        self._words = {word: [numbers[p] for p in phones] for word, phones in words.items()}

    def encode(self, text: str) -> list[int]:
        """Spell a text, words divided by spaces, in numbers of phones.

        Raises
        ------
        KeyError
            When there is a word that the lexicon has not; see `check` and ``word in lexicon``.
        """
        return [phone for word in text.split() for phone in self._words[word]]

    def __contains__(self, word: str) -> bool:
        return word in self._words

    def check(self, texts: Iterable[str]) -> None:
        """Check that it has every word of some texts.

        Raises
        ------
        ValueError
            Listing the words that are missing.
        """
        missing = sorted({word for text in texts for word in text.split()} - self._words.keys())
        if missing:
            raise ValueError(
                f"{self.path} has no pronunciation of {len(missing)} words of the transcripts: "
                f"{enumerate_some(missing)}"
            )
