"""Make the Commands corpus: spoken commands by espeak-ng, in generated rooms.

Everything about an utterance follows from the seed, its split and its number. So the corpus does
not depend on how many processes make it, nor on whether an earlier run was interrupted.

    python recipes/Commands/prepare.py --data_folder DIR
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import numpy as np
from grammar import sample, spoken

from sru_asr.synthetic.acoustics import Scene
from sru_asr.synthetic.corpus import Phrase, Take, make_corpus
from sru_asr.synthetic.espeak import ACCENTS, VARIANTS, Style

__all__ = ["prepare_commands"]


def prepare_commands(
    data_folder: str,
    save_folder: str | None = None,
    num_train: int = 7500,
    num_valid: int = 200,
    num_test: int = 300,
    seed: int = 1986,
    workers: int | None = None,
    skip_prep: bool = False,
) -> None:
    """Make the corpus and its manifests.

    A corpus that is already there with the same settings is left as it is; an interrupted one is
    completed; one with other settings is made anew.

    Parameters
    ----------
    data_folder : str
        Where the recordings go, as ``train/train-00000.wav`` and so on.
    save_folder : str, optional
        Where ``train.csv``, ``valid.csv``, ``test.csv`` and the word timings ``words.jsonl`` go;
        `data_folder` by default. The manifests name the recordings from ``{data_root}``, which
        stands for `data_folder`.
    num_train, num_valid, num_test : int
        Utterances of each split, at least 1.
    seed : int
        The source of all chance, not negative.
    workers : int, optional
        Processes; one for each available core by default.
    skip_prep : bool
        Do nothing.

    Raises
    ------
    ModuleNotFoundError
        When ``espeakng-loader`` is not installed and there is something to make.
    OSError
        When a file cannot be written. No half file is left behind.

    Examples
    --------
    >>> prepare_commands("data/commands", num_train=100)  # doctest: +SKIP
    """
    if skip_prep:
        return
    sizes = {"train": num_train, "valid": num_valid, "test": num_test}
    sources = (__file__, Path(__file__).with_name("grammar.py"))
    make_corpus("Commands", draw_take, sizes, data_folder, save_folder, seed, workers, sources)


def draw_take(split: str, rng: np.random.Generator) -> Take:
    """Draw a command, one of the split's speakers, and a scene."""
    words = tuple(sample(rng).split())
    style = draw_style(rng, VARIANTS[split])
    phrase = Phrase(words, tuple(spoken(word) for word in words), style)
    return Take((phrase,), draw_scene(rng))


def draw_style(rng: np.random.Generator, variants: tuple[str, ...]) -> Style:
    """Draw an accent, a variant and a manner of speaking."""
    accent, variant = ACCENTS[rng.integers(len(ACCENTS))], variants[rng.integers(len(variants))]
    return Style(
        voice=f"{accent}+{variant}",
        rate=int(rng.integers(130, 221)),
        pitch=int(rng.integers(20, 81)),
        pitch_range=int(rng.integers(20, 81)),
        word_gap=int(rng.integers(0, 5)),
        seed=int(rng.integers(1, 2**31)),
    )


def draw_scene(rng: np.random.Generator) -> Scene:
    """Draw a scene: 60 % of them are noisy, half of them reverberate."""
    before, after = rng.uniform(0.05, 0.3, 2)
    reverberant, noisy = rng.random(2) < (0.5, 0.6)
    return Scene(
        silence=(float(before), float(after)),
        rt60=float(rng.uniform(0.1, 0.6)) if reverberant else 0.0,
        direct=float(rng.uniform(0, 12)),
        # A quiet room rather than digital silence, which no microphone delivers.
        snr=float(rng.uniform(5, 30) if noisy else rng.uniform(40, 60)),
        colour=float(rng.uniform(0, 2)),
        level=float(rng.uniform(-32, -18)),
    )


def main() -> None:
    """The command line of `prepare_commands`."""
    parser = argparse.ArgumentParser(description="Make the Commands corpus.")
    parser.add_argument("--data_folder", required=True, help="where the recordings go")
    parser.add_argument("--save_folder", help="where the manifests go (default: the data folder)")
    parser.add_argument("--num_train", type=int, default=7500, help="utterances (%(default)s)")
    parser.add_argument("--num_valid", type=int, default=200, help="utterances (%(default)s)")
    parser.add_argument("--num_test", type=int, default=300, help="utterances (%(default)s)")
    parser.add_argument("--seed", type=int, default=1986, help="source of chance (%(default)s)")
    parser.add_argument("--workers", type=int, help="processes (default: one for each core)")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        prepare_commands(**vars(parser.parse_args()))
    except (ModuleNotFoundError, OSError, ValueError) as error:
        sys.exit(f"prepare.py: {error}")


if __name__ == "__main__":
    main()
