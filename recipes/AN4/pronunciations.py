"""Pronunciations of AN4's words and of the synthetic corpus's: ``lexicon.txt``."""

from __future__ import annotations

import os
from pathlib import Path

from sru_asr.files import write_atomically

# A word and its phones, those of CMU's dictionary, in each line.
LEXICON = Path(__file__).with_name("lexicon.txt")


def copy_lexicon(save_folder: str | os.PathLike[str]) -> None:
    """Put the lexicon with a run's manifests.

    Parameters
    ----------
    save_folder : str or path
        Receives ``lexicon.txt``.
    """
    write_atomically(Path(save_folder, "lexicon.txt"), LEXICON.read_text(encoding="utf-8"))
