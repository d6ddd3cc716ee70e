"""Make a synthetic corpus of AN4's kind, to start a model from: espeak-ng in generated rooms.

    python recipes/AN4/synthetic.py --data_folder=data/an4_synthetic

What is said is in ``census.py``. How it is said was set by what can be measured of AN4's training
part: seconds per letter and per digit, how often and how long people pause while they spell, the
silence around an utterance, its level and noise.
"""

from __future__ import annotations

import logging
from dataclasses import replace

import census
import click
import names
import numpy as np

from sru_asr.synthetic.acoustics import Scene
from sru_asr.synthetic.corpus import Phrase, Take, corpus_settings, make_corpus
from sru_asr.synthetic.espeak import ACCENTS, VARIANTS, Style

NUM_TRAIN, NUM_VALID, SEED = 12000, 300, 1991

SPEAKERS = {"train": VARIANTS["train"] + VARIANTS["valid"], "valid": VARIANTS["test"]}

# Speakers of AN4 are Americans for the most part.
ACCENT_SHARES = [0.7 if accent == "en-us" else 0.3 / (len(ACCENTS) - 1) for accent in ACCENTS]

# Words per minute, as espeak-ng counts them: letters are spelled slowly.
LETTER_RATE, WORD_RATE = 140, 185
SLOWEST, FASTEST = 80, 300

# How the voice moves at the end of a phrase: shares of none, a comma, a full stop, a question mark.
INNER, FINAL = (0.3, 0.7, 0, 0), (0.4, 0.15, 0.4, 0.05)


def prepare_synthetic(
    data_folder: str,
    num_train: int | None = None,
    num_valid: int | None = None,
    seed: int | None = None,
    workers: int | None = None,
) -> None:
    """Make the corpus and its manifests, ``train.csv`` and ``valid.csv``.

    A corpus that is already there with the same settings is left as it is; an interrupted one is
    completed; one with other settings is made anew.

    Parameters
    ----------
    data_folder : str
        Where recordings and manifests go.
    num_train, num_valid : int, optional
        Utterances of each split, at least 1. By default those of the corpus that is there, and
        12000 and 300 of a new one: nine hours.
    seed : int, optional
        The source of all chance, not negative. By default likewise.
    workers : int, optional
        Processes; one for each available core by default.

    Raises
    ------
    ModuleNotFoundError
        When ``espeakng-loader`` is not installed and there is something to make.
    OSError
        When a file cannot be written. No half file is left behind.

    Examples
    --------
    >>> prepare_synthetic("data/an4_synthetic", num_train=100)  # doctest: +SKIP
    """
    defaults = {"train": NUM_TRAIN, "valid": NUM_VALID, "seed": SEED}
    settings = {**defaults, **(corpus_settings(data_folder) or {})}
    chosen = {"train": num_train, "valid": num_valid, "seed": seed}
    settings.update({key: value for key, value in chosen.items() if value is not None})
    sizes = {split: settings[split] for split in SPEAKERS}
    make_corpus(
        "Synthetic AN4",
        draw_take,
        sizes,
        data_folder,
        seed=settings["seed"],
        workers=workers,
        sources=[__file__, census.__file__, names.__file__],
    )


def draw_take(split: str, rng: np.random.Generator) -> Take:
    """Draw a sentence, one of the split's speakers, a manner of speaking, and a scene."""
    sentence = census.sample(rng)
    accent = rng.choice(ACCENTS, p=ACCENT_SHARES)
    tract = float(rng.uniform(0.88, 1.14))
    speaker = Style(
        voice=f"{accent}+{rng.choice(SPEAKERS[split])}",
        pitch=int(rng.integers(15, 86)),
        pitch_range=int(rng.integers(10, 86)),
        word_gap=int(rng.integers(0, 6)),
        seed=int(rng.integers(1, 2**31)),
    )
    phrases = draw_phrases(sentence, speaker, tract, rng)
    return Take(tuple(phrases), draw_scene(rng), tract)


def draw_phrases(
    sentence: str, speaker: Style, tract: float, rng: np.random.Generator
) -> list[Phrase]:
    """Cut a sentence into phrases, which people do as they please, and choose their pace."""
    # Most people pause seldom, some after every letter.
    pausing = rng.beta(0.5, 2.0)
    pace = tract * rng.lognormal(0, 0.16)
    marked = [part.split() for part in sentence.split(" , ")]
    words = [word for part in marked for word in part]
    marks = set(np.cumsum([len(part) for part in marked]) - 1)
    pairs = list(zip(words, [*words[1:], None], strict=True))
    spellings = [census.spoken(*pair) for pair in pairs]
    # The article of "and a half" is no letter.
    letters = [len(word) == 1 and following != "HALF" for word, following in pairs]

    phrases: list[Phrase] = []
    start = 0
    for i, letter in enumerate(letters):
        last = i + 1 == len(words)
        pauses = rng.random() < (0.25 + 0.75 * pausing if i in marks else pausing)
        if not (last or pauses or letter != letters[i + 1]):
            continue
        rate = (LETTER_RATE if letter else WORD_RATE) * pace * rng.lognormal(0, 0.06)
        style = replace(speaker, rate=int(np.clip(rate, SLOWEST, FASTEST)))
        spoken = spellings[start : i + 1]
        spoken[-1] += rng.choice(["", ",", ".", "?"], p=FINAL if last else INNER)
        pause = rng.lognormal(np.log(0.19), 0.5) if pauses else rng.uniform(0.01, 0.06)
        own = tuple(words[start : i + 1])
        phrases.append(Phrase(own, tuple(spoken), style, float(min(pause, 1.2))))
        start = i + 1
    return phrases


def draw_scene(rng: np.random.Generator) -> Scene:
    """Draw a scene: a microphone near the mouth, in a quiet room for the most part."""
    noisy = rng.random() < 0.2
    return Scene(
        silence=(float(rng.uniform(0.15, 0.45)), float(rng.uniform(0.0, 0.35))),
        rt60=float(rng.uniform(0.05, 0.4)) if rng.random() < 0.5 else 0.0,
        direct=float(rng.uniform(4, 20)),
        snr=float(rng.uniform(8, 28) if noisy else rng.uniform(30, 50)),
        colour=float(rng.uniform(0.5, 2.5)),
        level=float(rng.uniform(-36, -23)),
        # No two are alike, but all let little through below the voice.
        microphone=tuple(rng.normal([-8, *[0] * 7], 3).tolist()),
    )


@click.command()
@click.option("--data_folder", required=True, help="Where the recordings and manifests go.")
@click.option("--num_train", type=int, help=f"Utterances.  [default: {NUM_TRAIN}]")
@click.option("--num_valid", type=int, help=f"Utterances.  [default: {NUM_VALID}]")
@click.option("--seed", type=int, help=f"Source of chance.  [default: {SEED}]")
@click.option("--workers", type=int, help="Processes.  [default: one for each core]")
def main(data_folder: str, **options: int | None) -> None:
    """Make a synthetic corpus of AN4's kind: espeak-ng in generated rooms."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        prepare_synthetic(data_folder, **options)
    except (ModuleNotFoundError, OSError, ValueError) as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
