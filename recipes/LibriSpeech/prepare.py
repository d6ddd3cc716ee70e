"""Prepare LibriSpeech: one manifest for each split.

    python recipes/LibriSpeech/prepare.py --data_folder=/data/LibriSpeech \
        --output=results/librispeech/manifests --splits=dev-clean,test-clean

The corpus is used in its public layout (Panayotov et al., "LibriSpeech: an ASR corpus based on
public domain audio books", ICASSP 2015; <https://www.openslr.org/12>)::

    LibriSpeech/<split>/<speaker>/<chapter>/<speaker>-<chapter>-<utterance>.flac
    LibriSpeech/<split>/<speaker>/<chapter>/<speaker>-<chapter>.trans.txt
        1089-134686-0001 STUFF IT INTO YOU HIS BELLY COUNSELLED HIM

Manifests name recordings relative to the data folder (``{data_root}``), so they outlive a corpus
that moves.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, TypeVar

import click
from tqdm import tqdm

from sru_asr.audio import AudioError, audio_info
from sru_asr.manifest import (
    ManifestError,
    Utterance,
    list_problems,
    read_manifest,
    write_manifest,
)

logger = logging.getLogger(__name__)

ALL_SPLITS = (
    "train-clean-100",
    "train-clean-360",
    "train-other-500",
    "dev-clean",
    "dev-other",
    "test-clean",
    "test-other",
)
# More than there are processors: the threads wait for the file system most of the time.
THREADS = 16

T = TypeVar("T")
R = TypeVar("R")


class CorpusError(ValueError):
    """A folder that is not a usable LibriSpeech; the message lists everything wrong."""


class Chapter(NamedTuple):
    """What a chapter's folder holds: utterances, problems, recordings without words."""

    utterances: list[Utterance]
    problems: list[str]
    wordless: list[str]


def prepare_librispeech(
    data_folder: str | os.PathLike[str],
    manifest_folder: str | os.PathLike[str],
    splits: Sequence[str] = ALL_SPLITS,
    skip_prep: bool = False,
) -> None:
    """Write ``<split>.csv`` for each split.

    A manifest that is there already and says the same as the corpus is left alone: the durations of
    281 241 training recordings are read once. Splits that are whole get their manifests even where
    others have problems.

    Parameters
    ----------
    data_folder : str or path
        The folder that contains the splits, or contains them as ``LibriSpeech``.
    manifest_folder : str or path
        Where the manifests go; made when it is missing. Experiments may share it.
    splits : sequence of str
        Which ones: those of the corpus, or any folder of the same layout.
    skip_prep : bool
        Do nothing (SpeechBrain's convention).

    Raises
    ------
    CorpusError
        With all problems of all splits at once: missing folders, transcripts that are empty,
        cannot be parsed or have no audio, recordings that cannot be read.

    Examples
    --------
    >>> prepare_librispeech("/data/LibriSpeech", "manifests", ["dev-clean"])  # doctest: +SKIP
    """
    if skip_prep:
        return
    corpus = find_corpus(data_folder)
    # Relative to what the recipe will give as {data_root}, be it the corpus or its parent.
    root = Path("{data_root}", corpus.relative_to(data_folder))
    problems: list[str] = []
    for split in dict.fromkeys(splits):
        problems += _prepare_split(corpus, root, split, Path(manifest_folder))
    if problems:
        raise CorpusError(list_problems(f"LibriSpeech in {corpus}", problems))


def join_splits(
    manifest_folder: str | os.PathLike[str], splits: Sequence[str], path: str | os.PathLike[str]
) -> None:
    """Write one manifest that has the utterances of several splits.

    Parameters
    ----------
    manifest_folder : str or path
        Holds ``<split>.csv`` for each, from `prepare_librispeech`.
    splits : sequence of str
        Which ones, each once.
    path : str or path
        The manifest to write.

    Raises
    ------
    CorpusError
        Without a split, or with one named twice.
    """
    if not splits or len(set(splits)) < len(splits):
        found = ", ".join(splits) or "no split"
        raise CorpusError(f"{Path(path).name}: found {found}, expected splits, each once")
    folder = Path(manifest_folder)
    write_manifest(path, (u for split in splits for u in read_manifest(folder / f"{split}.csv")))


def find_corpus(data_folder: str | os.PathLike[str]) -> Path:
    """The folder that holds the splits: ``LibriSpeech`` in `data_folder`, or that itself.

    Raises
    ------
    CorpusError
        If there is no such folder.
    """
    folder = Path(data_folder)
    if (folder / "LibriSpeech").is_dir():
        return folder / "LibriSpeech"
    if folder.is_dir():
        return folder
    found = "a file" if folder.exists() else "no such folder"
    raise CorpusError(
        f"data_folder {folder}: found {found}, expected LibriSpeech with its splits (dev-clean, "
        "...), to be had from https://www.openslr.org/12"
    )


def _prepare_split(corpus: Path, root: Path, split: str, manifest_folder: Path) -> list[str]:
    """Write one split's manifest, unless it is there, and return what is wrong with the split."""
    folder = corpus / split
    if not folder.is_dir():
        there = ", ".join(sorted(p.name for p in corpus.iterdir() if p.is_dir())) or "no folders"
        return [f"split {split}: found no folder {folder} (there: {there})"]
    chapters = list(
        _in_parallel(
            lambda path: _read_chapter(path, root / path.relative_to(corpus)),
            sorted(path for path in folder.glob("*/*") if path.is_dir()),
            f"{split}: transcripts",
        )
    )
    utterances = [u for chapter in chapters for u in chapter.utterances]
    problems = [problem for chapter in chapters for problem in chapter.problems]
    wordless = [name for chapter in chapters for name in chapter.wordless]
    if wordless:
        names = ", ".join(wordless[:5]) + (", ..." if len(wordless) > 5 else "")
        logger.warning("%s: left out %d recordings without words: %s", split, len(wordless), names)
    if not utterances and not problems:
        expected = "<speaker>/<chapter>/<speaker>-<chapter>.trans.txt"
        return [f"split {split}: found no transcripts in {folder}, expected {expected}"]

    manifest = manifest_folder / f"{split}.csv"
    if not problems and _is_done(manifest, utterances):
        logger.info("%s: %s is up to date, %d utterances", split, manifest, len(utterances))
        return []
    # By chapters: a task for each recording would cost more than reading its header.
    measured: list[Utterance] = []
    for done in _in_parallel(
        lambda chapter: [_measure(u, corpus, root) for u in chapter.utterances],
        chapters,
        f"{split}: durations",
    ):
        measured += [u for u in done if isinstance(u, Utterance)]
        problems += [problem for problem in done if isinstance(problem, str)]
    if not problems:
        write_manifest(manifest, measured)
        hours = sum(u.duration for u in measured) / 3600
        logger.info("%s: %s, %d utterances, %.1f h", split, manifest, len(measured), hours)
    return problems


def _read_chapter(folder: Path, relative: Path) -> Chapter:
    """The utterances of one chapter in the order of its transcripts, durations still 0."""
    speaker, name = folder.parent.name, f"{folder.parent.name}-{folder.name}"
    recordings = {path.stem: path.name for path in folder.glob("*.flac")}
    transcripts = folder / f"{name}.trans.txt"
    if not transcripts.is_file():
        if recordings:
            return Chapter([], [f"chapter {folder}: found no {transcripts.name}"], [])
        return Chapter([], [], [])
    utterances: dict[str, Utterance] = {}
    problems: list[str] = []
    lines = transcripts.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        ID, *words = line.split()
        place = f"{transcripts} line {number}"
        if not ID.startswith(f"{name}-"):
            problems.append(f"{place}: found {line!r}, expected {name}-<utterance> and words")
        elif ID in utterances:
            problems.append(f"{place}: found {ID} a second time, expected one transcript each")
        elif not words:
            problems.append(f"{place}: found no words for {ID}, expected at least one")
        elif ID not in recordings:
            problems.append(f"{place}: found no audio for {ID}, expected {folder / ID}.flac")
        wav = (relative / f"{ID}.flac").as_posix()
        utterances.setdefault(ID, Utterance(ID, 0.0, wav, speaker, " ".join(words)))
    if not utterances:
        problems.append(f"{transcripts}: found an empty file, expected transcripts")
    whole = [u for u in utterances.values() if u.ID in recordings and u.wrd]
    return Chapter(whole, problems, sorted(recordings.keys() - utterances.keys()))


def _measure(utterance: Utterance, corpus: Path, root: Path) -> Utterance | str:
    """The utterance with its duration, or what is wrong with its recording."""
    try:
        info = audio_info(corpus / Path(utterance.wav).relative_to(root))
    except AudioError as error:
        return str(error)
    return replace(utterance, duration=round(info.duration, 4))


def _in_parallel(function: Callable[[T], R], chapters: Sequence[T], title: str) -> Iterator[R]:
    """What the function makes of each chapter, in order, with a bar if it takes long."""
    pool = ThreadPoolExecutor(THREADS)
    try:
        results = pool.map(function, chapters)
        yield from tqdm(results, desc=title, total=len(chapters), unit=" chapters", delay=3)
    finally:
        pool.shutdown(cancel_futures=True)  # interrupted, stop now and not when all is read


def _is_done(path: Path, expected: list[Utterance]) -> bool:
    """Whether a manifest says the same as the corpus, durations aside."""
    try:
        return [replace(u, duration=0.0) for u in read_manifest(path)] == expected
    except ManifestError:
        return False


@click.command()
@click.option("--data_folder", required=True, help="LibriSpeech, or the folder that contains it.")
@click.option("--output", required=True, help="Folder for the manifests, <split>.csv.")
@click.option("--splits", default=",".join(ALL_SPLITS), show_default=True, help="Comma-separated.")
def main(data_folder: str, output: str, splits: str) -> None:
    """Prepare LibriSpeech: a SpeechBrain manifest for each split."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        prepare_librispeech(data_folder, output, [name.strip() for name in splits.split(",")])
    except CorpusError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
