"""Corpora of synthetic speech: many takes, each spoken by espeak-ng in a scene of its own.

Everything about an utterance follows from the seed, its split and its number. So a corpus does
not depend on how many processes make it, nor on whether an earlier run was interrupted.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import multiprocessing
import os
import sys
import wave
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from sru_asr.files import atomically, exclusively, write_atomically
from sru_asr.manifest import Utterance, write_manifest
from sru_asr.synthetic.acoustics import SAMPLE_RATE, Scene, render, resample, trim
from sru_asr.synthetic.espeak import SAMPLE_RATE as SPEECH_RATE
from sru_asr.synthetic.espeak import Style, fresh_library, speak

logger = logging.getLogger(__name__)

# A word of an utterance: what, from second, to second.
Timing = tuple[str, float, float]


@dataclass(frozen=True)
class Phrase:
    """Words spoken in one breath.

    Attributes
    ----------
    words : tuple of str
        As the transcript has them.
    spoken : tuple of str
        The same words, each spelled so that espeak-ng pronounces it as meant.
    style : Style
        Who speaks, and how.
    pause : float
        Seconds of silence after the phrase; after the last one there is none.
    """

    words: tuple[str, ...]
    spoken: tuple[str, ...]
    style: Style
    pause: float = 0.0


@dataclass(frozen=True)
class Take:
    """All that an utterance is made of.

    Attributes
    ----------
    phrases : tuple of Phrase
        What is said, in order. The voice of the first one is the utterance's ``spk_id``.
    scene : Scene
        Where it is said.
    tract : float
        All is slower and lower by this factor, at most 1.3, as if the vocal tract were longer by
        it. Where only the timbre is to change, speak faster by the same factor.
    """

    phrases: tuple[Phrase, ...]
    scene: Scene
    tract: float = 1.0


Draw = Callable[[str, np.random.Generator], Take]
"""Draws a take for a split from a source of chance."""


def make_corpus(
    name: str,
    draw: Draw,
    sizes: Mapping[str, int],
    data_folder: str | os.PathLike[str],
    save_folder: str | os.PathLike[str] | None = None,
    seed: int = 1,
    workers: int | None = None,
    sources: Sequence[str | os.PathLike[str]] = (),
) -> None:
    """Make a corpus and its manifests.

    A corpus that is already there with the same settings is left as it is; an interrupted one is
    completed; one with other settings, or made by other code, is made anew.

    Parameters
    ----------
    name : str
        Of the corpus, for messages.
    draw : callable
        Given a split and a generator, draws a take. Processes import it by its name.
    sizes : mapping of str to int
        The splits and their numbers of utterances, at least 1.
    data_folder : str or path
        Where the recordings go, as ``train/train-00000.wav`` and so on.
    save_folder : str or path, optional
        Where the manifests ``train.csv`` ... and the word timings ``words.jsonl`` go;
        `data_folder` by default. The manifests name the recordings from ``{data_root}``, which
        stands for `data_folder`.
    seed : int
        The source of all chance, not negative.
    workers : int, optional
        Processes; one for each available core by default.
    sources : sequence of str or path
        The files that decide what is said and how.

    Raises
    ------
    ModuleNotFoundError
        When ``espeakng-loader`` is not installed and there is something to make.
    OSError
        When a file cannot be written. No half file is left behind.
    ValueError
        When a split is empty, or the folder holds something else: recordings or manifests that are
        not of a synthetic corpus, or are of one of another name.

    Examples
    --------
    >>> from sru_asr.synthetic.acoustics import Scene
    >>> def draw(split, rng):
    ...     phrase = Phrase(("GO",), ("go",), Style("en-us+f2", rate=int(rng.integers(100, 200))))
    ...     return Take((phrase,), Scene((0.2, 0.2), rt60=0, direct=0, snr=30, colour=1, level=-26))
    >>> make_corpus("Go", draw, {"train": 10}, "data/go")  # doctest: +SKIP
    """
    if min(sizes.values()) < 1:
        raise ValueError(f"expected at least 1 utterance in every split, found {dict(sizes)}")
    data, save = Path(data_folder), Path(save_folder or data_folder)
    generator = _fingerprint(sources)
    settings: dict[str, Any] = {"corpus": name, "seed": seed, **sizes, "generator": generator}
    IDs = [(split, index) for split, size in sizes.items() for index in range(size)]

    if _is_complete(data, save, settings, sizes, IDs):
        logger.info("%s: the corpus in %s is complete", name, data)
        return
    _check_own(name, data, sizes)
    with fresh_library():
        pass  # without espeak-ng, say so here and not from a worker
    data.mkdir(parents=True, exist_ok=True)
    with exclusively(data / ".lock"):  # two trainings may begin with it at the same time
        if _is_complete(data, save, settings, sizes, IDs):
            return
        _clear(name, data, save, settings, sizes)
        for split in sizes:
            (data / split).mkdir(exist_ok=True)
        _write_json(data / "audio.json", settings)

        make = functools.partial(_make, draw, data, seed, list(sizes))
        made = list(tqdm(_make_all(make, IDs, workers), name, len(IDs), unit="utt", disable=None))
        for split in sizes:
            own = zip(IDs, made, strict=True)
            rows = [utterance for (of, _), (utterance, _) in own if of == split]
            write_manifest(save / f"{split}.csv", rows)
        lines = (json.dumps({"ID": utterance.ID, "words": words}) for utterance, words in made)
        write_atomically(save / "words.jsonl", "".join(f"{line}\n" for line in lines))
        # Last, because it vouches for the rest.
        _write_json(save / "manifests.json", settings)
    hours = sum(utterance.duration for utterance, _ in made) / 3600
    logger.info("%s: %d utterances, %.2f hours, in %s", name, len(made), hours, data)


def corpus_settings(data_folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The settings of the corpus in a folder, begun or complete: name, seed, sizes, generator.

    Returns
    -------
    dict or None
        None where there is no corpus.
    """
    return _read_json(Path(data_folder, "audio.json"))


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
            yield from pool.map(make, IDs, chunksize=16)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _make(
    draw: Draw, data: Path, seed: int, splits: list[str], ID: tuple[str, int]
) -> tuple[Utterance, list[Timing]]:
    """Make one utterance; a recording that is already there is kept."""
    split, index = ID
    key = (splits.index(split), index)
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))
    take = draw(split, rng)
    voice, spans = _say(take)
    path = _path(data, split, index)
    if not path.exists():
        _write_wav(path, render(voice, take.scene, rng))

    before, after = (round(seconds * SAMPLE_RATE) for seconds in take.scene.silence)
    duration = (before + len(voice) + after) / SAMPLE_RATE
    shift = before / SAMPLE_RATE
    timings = [
        (text, round(start + shift, 3), round(min(end + shift, duration), 3))
        for text, start, end in spans
    ]
    words = " ".join(word for phrase in take.phrases for word in phrase.words)
    wav = f"{{data_root}}/{path.relative_to(data).as_posix()}"
    return Utterance(path.stem, duration, wav, take.phrases[0].style.voice, words), timings


def _say(take: Take) -> tuple[np.ndarray, list[Timing]]:
    """The voice of a take, pauses included, before it is in a room; and where its words are."""
    # The nearest rate that has a large divisor in common with the corpus's.
    rate = 50 * round(SPEECH_RATE / take.tract / 50)
    pieces: list[np.ndarray] = []
    spans: list[Timing] = []
    length = 0
    for phrase in take.phrases:
        speech = speak(phrase.spoken, phrase.style)
        voice = resample(speech.samples, rate)
        start, end = trim(voice)
        if start == end:
            raise RuntimeError(f"espeak-ng said nothing for {phrase}")
        shift = (length - start) / SAMPLE_RATE
        following = [first for first, _, _ in speech.spans[1:]] + [len(phrase.words)]
        for (first, begin, finish), last in zip(speech.spans, following, strict=True):
            text = " ".join(phrase.words[first:last])
            begin, finish = (time * SPEECH_RATE / rate + shift for time in (begin, finish))
            spans.append((text, begin, finish))
        pause = np.zeros(round(phrase.pause * SAMPLE_RATE))
        pieces += [voice[start:end], pause]
        length += end - start + len(pause)
    return np.concatenate(pieces[:-1]), spans


def _path(data: Path, split: str, index: int) -> Path:
    return data / split / f"{split}-{index:05d}.wav"


def _is_complete(
    data: Path,
    save: Path,
    settings: dict[str, Any],
    splits: Iterable[str],
    IDs: list[tuple[str, int]],
) -> bool:
    vouchers = (data / "audio.json", save / "manifests.json")
    files = [save / f"{split}.csv" for split in splits] + [save / "words.jsonl"]
    files += [_path(data, split, index) for split, index in IDs]
    return all(_read_json(path) == settings for path in vouchers) and all(
        path.exists() for path in files
    )


def _check_own(name: str, data: Path, splits: Iterable[str]) -> None:
    """Refuse a folder with recordings or manifests that are not this corpus's: they would go."""
    found = _read_json(data / "audio.json")
    what = ""
    if found is None:
        paths = [data / f"{split}.csv" for split in splits if (data / f"{split}.csv").exists()]
        paths += [path for split in splits for path in (data / split).glob("*.wav")]
        if paths:
            what = f"{paths[0].relative_to(data)}, which is not of a synthetic corpus,"
    elif found.get("corpus", name) != name:
        what = f"the corpus {found['corpus']}"
    if what:
        raise ValueError(
            f"{name}: found {what} in {data}, expected an empty folder or this corpus; "
            "choose another folder"
        )


def _clear(
    name: str, data: Path, save: Path, settings: dict[str, Any], splits: Iterable[str]
) -> None:
    """Remove what does not belong to these settings, and what a killed run left half written."""
    for path in [*data.glob(".[0-9]*.json"), *data.glob("*/.[0-9]*.wav")]:
        path.unlink()  # named so by `atomically`
    found = _read_json(data / "audio.json")
    if found == settings:
        return
    if found:
        changed = [key for key in settings if settings[key] != found.get(key)]
        logger.warning(
            "%s: making the corpus in %s anew, because its settings differ (%s)",
            name,
            data,
            ", ".join(f"{key}: {found.get(key)} is now {settings[key]}" for key in changed),
        )
    # The vouchers first: whatever survives an interruption here is not trusted, but known as ours.
    (save / "manifests.json").unlink(missing_ok=True)
    if found is not None:
        _write_json(data / "audio.json", {})
    for split in splits:
        for path in (data / split).glob(f"{split}-*.wav"):
            path.unlink()


def _fingerprint(sources: Sequence[str | os.PathLike[str]]) -> str:
    """A digest of the code that decides how the corpus sounds."""
    own = [Path(__file__).with_name(f"{name}.py") for name in ("acoustics", "corpus", "espeak")]
    digest = hashlib.sha256()
    for path in [*own, Path(__file__).with_name("grammar.py"), *map(Path, sources)]:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _write_wav(path: Path, samples: np.ndarray) -> None:
    # WAV and not FLAC: reading it in training takes a quarter of the time.
    with atomically(path) as temporary, wave.open(str(temporary), "wb") as recording:
        recording.setnchannels(1)
        recording.setsampwidth(2)
        recording.setframerate(SAMPLE_RATE)
        recording.writeframes(samples.astype("<i2").tobytes())


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_atomically(path, f"{json.dumps(content, indent=2)}\n")


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
