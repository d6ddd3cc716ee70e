"""Prepare the CMU Census corpus (AN4): manifests for training, validation and test.

    python recipes/AN4/prepare.py --data_folder=/data/an4 --output=results/an4 [--download]

The corpus is used in its public layout, as SPHERE, FLAC or WAV::

    an4/etc/an4_train.transcription     <s> GO FORTY </s> (an1-anna-b)
    an4/wav/an4_clstk/anna/an1-anna-b.sph
    an4/etc/an4_test.transcription      the same, the test part; may be absent
    an4/wav/an4test_clstk/...

It has no validation part: whole speakers of the training part are held out, always the same ones.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import logging
import os
import re
import tarfile
import tempfile
import urllib.error
import urllib.request
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

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

URL = "http://www.speech.cs.cmu.edu/databases/an4/an4_sphere.tar.gz"
# CMU publishes no checksum. The archive is verified by gzip's own checksum and by these numbers of
# utterances instead: that finds a damaged or a wrong download, but does not prove its origin.
UTTERANCES = {"train": 948, "test": 130}

TRANSCRIPTS = {"train": "etc/an4_train.transcription", "test": "etc/an4_test.transcription"}
RECORDINGS = {"train": "wav/an4_clstk", "test": "wav/an4test_clstk"}
# In order of preference, where a corpus has the same recording several times.
SUFFIXES = (".flac", ".wav", ".sph")

# Keys of the YAMLs that only the preparation reads, here, in census.py or in train.py.
CORPUS_OPTIONS = {
    "download",
    "num_valid_speakers",
    "num_sentences",
    "sentences_file",
    "synthetic_folder",
    "word_occurrences",
}
VALID_SPEAKERS = 8
SEED = 0


class CorpusError(ValueError):
    """A folder or an archive that is not a usable AN4; the message lists everything wrong."""


def prepare_an4(
    data_folder: str | os.PathLike[str],
    save_folder: str | os.PathLike[str],
    valid_speakers: int = VALID_SPEAKERS,
    seed: int = SEED,
    skip_prep: bool = False,
    more: Callable[[list[str]], list[Utterance]] | None = None,
) -> None:
    """Write ``train.csv``, ``valid.csv`` and, where the corpus has a test part, ``test.csv``.

    Manifests that are there already and say the same are left alone.

    Parameters
    ----------
    data_folder : str or path
        The corpus, or the folder that contains it as ``an4``.
    save_folder : str or path
        Where the manifests go; made when it is missing.
    valid_speakers : int
        How many speakers of the training part to hold out for validation.
    seed : int
        Which ones: see `choose_speakers`.
    skip_prep : bool
        Do nothing (SpeechBrain's convention).
    more : callable, optional
        Given the training transcripts, returns utterances of another source for ``train.csv``.

    Raises
    ------
    CorpusError
        If the folder is not AN4, or with all its problems at once: transcripts that cannot be
        parsed or have no audio, audio that cannot be read.

    Examples
    --------
    >>> prepare_an4("/data/an4", "results/an4")  # doctest: +SKIP
    """
    if skip_prep:
        return
    corpus = find_corpus(data_folder)
    problems: list[str] = []
    train = _read_part(corpus, "train", problems)
    has_test = _has_test(corpus)
    test = _read_part(corpus, "test", problems) if has_test else []
    if problems:
        raise CorpusError(list_problems(f"AN4 in {corpus}", problems))

    held_out = choose_speakers({u.spk_id for u in train}, valid_speakers, seed)
    splits = {
        "train": [u for u in train if u.spk_id not in held_out],
        "valid": [u for u in train if u.spk_id in held_out],
    }
    if has_test:
        splits["test"] = test

    further = more([u.wrd for u in splits["train"]]) if more else []
    splits["train"] += further

    save = Path(save_folder)
    if all(_is_done(save / f"{name}.csv", split) for name, split in splits.items()):
        logger.info("AN4: the manifests in %s are up to date", save)
    else:
        # Every recording is looked at before the first manifest is written.
        measured = {name: _measure(name, split, problems) for name, split in splits.items()}
        if problems:
            raise CorpusError(list_problems(f"AN4 in {corpus}", problems))
        for name, split in measured.items():
            write_manifest(save / f"{name}.csv", split)
    if not has_test and (save / "test.csv").exists():
        # Left there, it would be scored as if it belonged to this corpus.
        os.replace(save / "test.csv", save / "test.csv.old")
        logger.warning("AN4: no test part in %s; renamed the old test.csv to test.csv.old", corpus)
    for name, split in splits.items():
        speakers = len({u.spk_id for u in split})
        logger.info("AN4: %s.csv has %d utterances of %d speakers", name, len(split), speakers)
    if further:
        logger.info("AN4: %d of the training utterances are synthetic", len(further))
    logger.info("AN4: validation speakers: %s", " ".join(held_out))


def find_corpus(data_folder: str | os.PathLike[str]) -> Path:
    """The folder that holds ``etc`` and ``wav``: `data_folder` itself or ``an4`` in it.

    Raises
    ------
    CorpusError
        If it is neither; the message says what is there.
    """
    folder = Path(data_folder)
    for candidate in (folder, folder / "an4"):
        if _is_corpus(candidate):
            return candidate.resolve()
    if folder.is_dir():
        names = sorted(entry.name for entry in folder.iterdir())
        shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        found = f"found {shown}" if names else "found an empty folder"
    else:
        found = "found a file" if folder.exists() else "found no such folder"
    raise CorpusError(
        f"data_folder {folder}: {found}, expected the AN4 corpus "
        f"({TRANSCRIPTS['train']} and {RECORDINGS['train']}; --download fetches it)"
    )


def _is_corpus(folder: Path) -> bool:
    return (folder / TRANSCRIPTS["train"]).is_file()


def choose_speakers(speakers: set[str], number: int, seed: int = SEED) -> list[str]:
    """Choose speakers to hold out, women and men in the proportion of the whole.

    A speaker's rank is a hash of seed and name, so the choice is the same on every machine. AN4
    names start with f or m; names that differ only in a final digit (mdcs, mdcs2) may be one
    person and are never chosen.

    Parameters
    ----------
    speakers : set of str
        All names.
    number : int
        How many to choose.
    seed : int
        Another seed makes another choice.

    Returns
    -------
    list of str
        The names chosen, sorted.

    Raises
    ------
    CorpusError
        If there are not enough speakers to choose from, or none would remain.

    Examples
    --------
    >>> choose_speakers({"fann", "feve", "mbob", "mtim", "msam", "msam2"}, 2)
    ['fann', 'mbob']
    """
    initials = Counter(name.rstrip("0123456789") for name in speakers)
    ranked = sorted(
        (name for name in speakers if initials[name.rstrip("0123456789")] == 1),
        key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest(),
    )
    women = [name for name in ranked if name.startswith("f")]
    men = [name for name in ranked if not name.startswith("f")]
    if not 1 <= number <= len(ranked) or number >= len(speakers):
        raise CorpusError(
            f"valid_speakers: found {number}, expected 1 to "
            f"{min(len(ranked), len(speakers) - 1)} of the {len(speakers)} training speakers"
        )
    share = round(number * len(women) / len(ranked))
    return sorted(women[:share] + men[: number - share])


def download_an4(
    data_folder: str | os.PathLike[str],
    url: str | None = None,
    utterances: dict[str, int] | None = None,
) -> Path:
    """Fetch the public archive and unpack it as ``an4`` in `data_folder`.

    A corpus that is there already is left alone, an archive that is there already is used, and an
    interrupted download is resumed. The corpus appears under its name only when it is verified.

    Parameters
    ----------
    data_folder : str or path
        Where to put the archive and the corpus; made when it is missing.
    url : str, optional
        The archive, a ``.tar.gz`` (``http:``, ``https:`` or ``file:``); CMU's by default.
    utterances : dict, optional
        How many utterances each part must have; those of the public corpus by default.

    Returns
    -------
    Path
        The corpus.

    Raises
    ------
    CorpusError
        If the download fails or the archive is not the whole corpus.
    """
    url = URL if url is None else url
    folder = Path(data_folder)
    folder.mkdir(parents=True, exist_ok=True)
    archive, target = folder / url.rsplit("/", 1)[-1], folder / "an4"
    if _is_corpus(folder) or _is_corpus(target):
        return find_corpus(folder)
    if target.exists():
        raise CorpusError(f"{target}: found something that is not AN4, expected nothing there")
    if not archive.exists():
        _fetch(url, archive)
    with tempfile.TemporaryDirectory(prefix=".an4-", dir=folder) as unpacked:
        try:
            # To the very end: gzip's checksum stands there, where tarfile does not look.
            with gzip.open(archive) as stream:
                while stream.read(1 << 20):
                    pass
            with tarfile.open(archive) as tar:
                # "data" refuses links and paths that lead out of the folder.
                tar.extractall(unpacked, filter="data")
            corpus = find_corpus(unpacked)
            _check_counts(corpus, UTTERANCES if utterances is None else utterances)
        except (OSError, EOFError, zlib.error, tarfile.TarError, CorpusError) as error:
            raise CorpusError(
                f"archive {archive}: found {error}, expected the AN4 corpus as .tar.gz; "
                "delete the file to download it again"
            ) from error
        os.replace(corpus, target)
    return target


def _fetch(url: str, path: Path) -> None:
    """Download to a temporary name, from where the last attempt stopped, then rename."""
    partial = path.with_name(path.name + ".part")
    start = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            # Any other answer than 206 (Partial Content) starts from the first byte.
            start = start if response.status == 206 else 0
            length = response.headers.get("Content-Length")
            total = start + int(length) if length else None
            with (
                open(partial, "ab" if start else "wb") as file,
                tqdm(desc=path.name, initial=start, total=total, unit="B", unit_scale=True) as bar,
            ):
                while block := response.read(1 << 16):
                    file.write(block)
                    bar.update(len(block))
    except urllib.error.HTTPError as error:
        # 416: nothing is left to send. What is here is verified like any other archive.
        if error.code != 416 or not start:
            raise CorpusError(f"download of {url}: found {error}, expected an archive") from error
        total = start
    except (OSError, http.client.HTTPException) as error:
        raise CorpusError(
            f"download of {url}: found {error}, expected an archive; run again to resume"
        ) from error
    size = partial.stat().st_size
    if total is not None and size != total:
        raise CorpusError(
            f"download of {url}: found {size} bytes, expected {total}; run again to resume"
        )
    os.replace(partial, path)


def _check_counts(corpus: Path, utterances: dict[str, int]) -> None:
    problems: list[str] = []
    for part, expected in utterances.items():
        if not (corpus / TRANSCRIPTS[part]).is_file():
            problems.append(f"no {TRANSCRIPTS[part]}")
            continue
        found = len(_read_part(corpus, part, problems))
        if found != expected:
            problems.append(f"{found} utterances in the {part} part instead of {expected}")
    if problems:
        raise CorpusError(list_problems("an incomplete corpus", problems))


def _has_test(corpus: Path) -> bool:
    has_words = (corpus / TRANSCRIPTS["test"]).is_file()
    has_audio = (corpus / RECORDINGS["test"]).is_dir()
    if has_words != has_audio:
        found, missing = TRANSCRIPTS["test"], RECORDINGS["test"]
        if has_audio:
            found, missing = missing, found
        logger.warning("AN4: %s has %s but no %s: no test.csv", corpus, found, missing)
    return has_words and has_audio


def _read_part(corpus: Path, part: str, problems: list[str]) -> list[Utterance]:
    """The utterances of one part, in the order of its transcripts, durations still 0."""
    words = _transcripts(corpus / TRANSCRIPTS[part], problems)
    recordings = _recordings(corpus / RECORDINGS[part], problems)
    if not recordings:
        return []  # already a problem; not one more for each transcript
    utterances = []
    for ID, text in words.items():
        path = recordings.pop(ID, None)
        if path:
            utterances.append(Utterance(ID, 0.0, str(path), path.parent.name, text))
        else:
            problems.append(
                f"transcript {ID}: found no audio, expected {RECORDINGS[part]}/<speaker>/{ID} "
                f"with {', '.join(SUFFIXES)}"
            )
    if recordings:
        names = ", ".join(sorted(recordings)[:5]) + (", ..." if len(recordings) > 5 else "")
        logger.warning("AN4: left out %d recordings without words: %s", len(recordings), names)
    return utterances


def _transcripts(path: Path, problems: list[str]) -> dict[str, str]:
    words: dict[str, str] = {}
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        place = f"{path.name} line {number}"
        match = re.fullmatch(r"(.*?)\(([^()\s]+)\)\s*", line)
        if not match:
            problems.append(f"{place}: found {line!r}, expected words and (ID)")
            continue
        text, ID = _clean(match[1]), match[2]
        if ID in words:
            problems.append(f"{place}: found {ID} a second time, expected one transcript each")
        elif not text:
            problems.append(f"{place}: found no words for {ID}, expected at least one")
        words.setdefault(ID, text)
    if not lines:
        problems.append(f"{path.name}: found an empty file, expected transcripts")
    return words


def _clean(text: str) -> str:
    """Words only: no <s>, </s>, <sil>, ++NOISE++, and no number of a variant as in READ(2)."""
    words = (re.sub(r"\(\d+\)$", "", word) for word in text.upper().split())
    return " ".join(word for word in words if not re.fullmatch(r"<.*>|\+\+.*\+\+|\[.*\]", word))


def _recordings(folder: Path, problems: list[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for suffix in SUFFIXES:
        for path in sorted(folder.glob(f"*/*{suffix}")):
            other = found.setdefault(path.stem, path)
            if other.parent != path.parent:
                problems.append(f"recording {path}: found {other} too, expected one speaker")
    if not found:
        raw = sum(1 for _ in folder.glob("*/*.raw"))
        headerless = f"{raw} .raw files, which have no header" if raw else "no recordings"
        problems.append(
            f"{folder}: found {headerless}, expected <speaker>/<ID> with {', '.join(SUFFIXES)}"
            + (" (an4_sphere.tar.gz)" if raw else "")
        )
    return found


def _is_done(path: Path, expected: list[Utterance]) -> bool:
    """Whether a manifest says the same as the corpus, durations aside."""
    try:
        found = read_manifest(path)
    except ManifestError:
        return False
    return [_without_duration(u) for u in found] == [_without_duration(u) for u in expected]


def _without_duration(utterance: Utterance) -> tuple[str, ...]:
    return utterance.ID, utterance.wav, utterance.spk_id, utterance.wrd


def _measure(name: str, utterances: list[Utterance], problems: list[str]) -> list[Utterance]:
    """The utterances with their durations. Decoding all of AN4 takes about two seconds."""
    measured = []
    for u in tqdm(utterances, desc=f"AN4 {name}", unit=" utterances", delay=3):
        try:
            duration = audio_info(u.wav, decode=True).duration
        except AudioError as error:
            problems.append(str(error))
        else:
            measured.append(Utterance(u.ID, round(duration, 4), u.wav, u.spk_id, u.wrd))
    return measured


@click.command()
@click.option("--data_folder", required=True, help="The corpus, or the folder that contains an4/.")
@click.option("--output", required=True, help="Folder for train.csv, valid.csv and test.csv.")
@click.option("--download", is_flag=True, help=f"Fetch the corpus if it is missing: {URL}")
@click.option("--valid_speakers", default=VALID_SPEAKERS, show_default=True)
@click.option("--seed", default=SEED, show_default=True, help="Which speakers validation gets.")
def main(data_folder: str, output: str, download: bool, valid_speakers: int, seed: int) -> None:
    """Prepare the CMU AN4 corpus: SpeechBrain manifests of its parts."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        if download:
            download_an4(data_folder)
        prepare_an4(data_folder, output, valid_speakers, seed)
    except CorpusError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
