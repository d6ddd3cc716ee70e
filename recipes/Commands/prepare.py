"""Make the Commands corpus: spoken commands by espeak-ng, in generated rooms.

Everything about an utterance follows from the seed, its split and its number. So the corpus does
not depend on how many processes make it, nor on whether an earlier run was interrupted.

    python recipes/Commands/prepare.py --data_folder DIR
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import logging
import multiprocessing
import os
import sys
import wave
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from acoustics import SAMPLE_RATE, draw_scene, render, resample, trim
from grammar import sample, spoken
from synthesis import ACCENTS, VARIANTS, Style, fresh_library, speak
from synthesis import SAMPLE_RATE as SPEECH_RATE
from tqdm import tqdm

from sru_asr.manifest import Utterance, write_manifest

__all__ = ["prepare_commands"]

logger = logging.getLogger(__name__)

SPLITS = ("train", "valid", "test")

# A word of an utterance: what, from second, to second.
Timing = tuple[str, float, float]


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
    sizes = dict(zip(SPLITS, (num_train, num_valid, num_test), strict=True))
    if min(sizes.values()) < 1:
        raise ValueError(f"expected at least 1 utterance in every split, found {sizes}")
    data, save = Path(data_folder), Path(save_folder or data_folder)
    settings: dict[str, Any] = {"seed": seed, **sizes, "generator": _generator()}
    IDs = [(split, index) for split, size in sizes.items() for index in range(size)]

    if _is_complete(data, save, settings, IDs):
        logger.info("Commands: the corpus in %s is complete", data)
        return
    with fresh_library():
        pass  # without espeak-ng, say so here and not from a worker
    _clear(data, save, settings)
    for split in SPLITS:
        (data / split).mkdir(parents=True, exist_ok=True)
    _write_json(data / "audio.json", settings)

    made = list(_make_all(functools.partial(_make, data, seed), IDs, workers))
    for split in SPLITS:
        rows = [utterance for utterance, _ in made if utterance.ID.startswith(split)]
        write_manifest(save / f"{split}.csv", rows)
    lines = (json.dumps({"ID": utterance.ID, "words": words}) for utterance, words in made)
    _write(save / "words.jsonl", "".join(f"{line}\n" for line in lines).encode())
    # Last, because it vouches for the rest.
    _write_json(save / "manifests.json", settings)
    hours = sum(utterance.duration for utterance, _ in made) / 3600
    logger.info("Commands: %d utterances, %.2f hours, in %s", len(made), hours, data)


def _make_all(
    make: functools.partial[tuple[Utterance, list[Timing]]],
    IDs: list[tuple[str, int]],
    workers: int | None,
) -> Iterable[tuple[Utterance, list[Timing]]]:
    """The utterances in order, made by several processes."""
    # A spawned worker would import the caller's program, which may be a training script with
    # PyTorch: seconds for each worker. Forking is the default of PyTorch's data loaders, too.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    with ProcessPoolExecutor(workers or _cores(), context) as pool:
        try:
            results = pool.map(make, IDs, chunksize=16)
            yield from tqdm(results, "Commands", len(IDs), unit="utt", disable=None)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _make(data: Path, seed: int, ID: tuple[str, int]) -> tuple[Utterance, list[Timing]]:
    """Make one utterance; a recording that is already there is kept."""
    split, index = ID
    key = (SPLITS.index(split), index)
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))
    words = sample(rng).split()
    style = _draw_style(rng, VARIANTS[split])
    scene = draw_scene(rng)

    speech = speak([spoken(word) for word in words], style)
    voice = resample(speech.samples, SPEECH_RATE)
    start, end = trim(voice)
    if start == end:
        raise RuntimeError(f"espeak-ng said nothing for {words} with {style}")
    path = _path(data, split, index)
    if not path.exists():
        _write_wav(path, render(voice[start:end], scene, rng))

    before, after = (round(seconds * SAMPLE_RATE) for seconds in scene.silence)
    duration = (before + end - start + after) / SAMPLE_RATE
    shift = (before - start) / SAMPLE_RATE
    timings = []
    for (first, begin, finish), last in zip(
        speech.spans, [i for i, _, _ in speech.spans[1:]] + [len(words)], strict=True
    ):
        text = " ".join(words[first:last])
        timings.append((text, round(begin + shift, 3), round(min(finish + shift, duration), 3)))
    wav = f"{{data_root}}/{path.relative_to(data).as_posix()}"
    return Utterance(path.stem, duration, wav, style.voice, " ".join(words)), timings


def _draw_style(rng: np.random.Generator, variants: tuple[str, ...]) -> Style:
    accent, variant = ACCENTS[rng.integers(len(ACCENTS))], variants[rng.integers(len(variants))]
    return Style(
        voice=f"{accent}+{variant}",
        rate=int(rng.integers(130, 221)),
        pitch=int(rng.integers(20, 81)),
        pitch_range=int(rng.integers(20, 81)),
        word_gap=int(rng.integers(0, 5)),
        seed=int(rng.integers(1, 2**31)),
    )


def _path(data: Path, split: str, index: int) -> Path:
    return data / split / f"{split}-{index:05d}.wav"


def _is_complete(
    data: Path, save: Path, settings: dict[str, Any], IDs: list[tuple[str, int]]
) -> bool:
    vouchers = (data / "audio.json", save / "manifests.json")
    files = [save / f"{split}.csv" for split in SPLITS] + [save / "words.jsonl"]
    files += [_path(data, split, index) for split, index in IDs]
    return all(_read_json(path) == settings for path in vouchers) and all(
        path.exists() for path in files
    )


def _clear(data: Path, save: Path, settings: dict[str, Any]) -> None:
    """Remove what does not belong to these settings, and what a killed run left half written."""
    for path in [*data.glob("*.tmp"), *data.glob("*/*.tmp")]:
        path.unlink()
    found = _read_json(data / "audio.json")
    if found == settings:
        return
    if found is not None:
        changed = [key for key in settings if settings[key] != found.get(key)]
        logger.warning(
            "Commands: making the corpus in %s anew, because its settings differ (%s)",
            data,
            ", ".join(f"{key}: {found.get(key)} is now {settings[key]}" for key in changed),
        )
    # The voucher first: without it, whatever survives an interruption here is not trusted.
    for path in (save / "manifests.json", data / "audio.json"):
        path.unlink(missing_ok=True)
    for split in SPLITS:
        for path in (data / split).glob(f"{split}-*.wav"):
            path.unlink()


def _generator() -> str:
    """A fingerprint of the code that decides how the corpus sounds."""
    digest = hashlib.sha256()
    for name in ("grammar.py", "synthesis.py", "acoustics.py", "prepare.py"):
        digest.update(Path(__file__).with_name(name).read_bytes())
    return digest.hexdigest()[:12]


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _write_wav(path: Path, samples: np.ndarray) -> None:
    # WAV and not FLAC: reading it in training takes a quarter of the time.
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file, wave.open(file, "wb") as recording:
            recording.setnchannels(1)
            recording.setsampwidth(2)
            recording.setframerate(SAMPLE_RATE)
            recording.writeframes(samples.astype("<i2").tobytes())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    _write(path, f"{json.dumps(content, indent=2)}\n".encode())


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


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
