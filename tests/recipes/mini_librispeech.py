"""A LibriSpeech of noise: the corpus's own layout, a second each, about."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

WORDS = ("HE", "HAD", "PACED", "UP", "AND", "DOWN", "A", "FULL", "HOUR", "DON'T")


def write_flac(path: Path, seconds: float) -> None:
    """Write noise, 16 kHz."""
    noise = 0.1 * np.random.default_rng(0).standard_normal(round(16000 * seconds))
    soundfile.write(path, noise, 16000)


def make_librispeech(root: Path, splits: dict[str, int]) -> dict[str, list[str]]:
    """Write ``LibriSpeech`` in a folder: so many utterances a split, three to a chapter.

    Returns the IDs of each split in the order of speakers, chapters and utterances.
    """
    IDs: dict[str, list[str]] = {}
    for place, (split, count) in enumerate(splits.items(), start=1):
        IDs[split] = []
        for number in range(count):
            speaker, chapter = 100 * place + number // 6, 1000 + number // 3
            folder = root / "LibriSpeech" / split / str(speaker) / str(chapter)
            folder.mkdir(parents=True, exist_ok=True)
            ID = f"{speaker}-{chapter}-{number % 3:04d}"
            # Of different lengths, long enough for three words
            write_flac(folder / f"{ID}.flac", 0.8 + 0.05 * (number % 5))
            words = " ".join(WORDS[(number + k) % len(WORDS)] for k in range(1 + number % 3))
            with open(folder / f"{speaker}-{chapter}.trans.txt", "a", encoding="utf-8") as file:
                file.write(f"{ID} {words}\n")
            IDs[split].append(ID)
    return IDs
