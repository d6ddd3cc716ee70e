"""Train a recogniser on AN4: ``python recipes/AN4/train.py HPARAMS --data_folder=DIR``."""

from functools import partial
from pathlib import Path

from census import write_sentences
from prepare import CORPUS_OPTIONS, download_an4, prepare_an4
from pronunciations import copy_lexicon
from rare_words import choose_rare
from synthetic import prepare_synthetic

from sru_asr.manifest import Utterance, read_manifest
from sru_asr.training import main


def rare_words(folder: str | None, occurrences: int, transcripts: list[str]) -> list[Utterance]:
    """Synthetic utterances of rare words; the corpus is made first, where it is not there yet."""
    if not isinstance(occurrences, int) or occurrences < 0 or bool(folder) != bool(occurrences):
        raise ValueError(
            f"found synthetic_folder {folder} and word_occurrences {occurrences}, expected a "
            "folder and how often each word should occur in training, such as 20, or null and 0"
        )
    if not folder:
        return []
    prepare_synthetic(folder)
    folder = str(Path(folder).resolve())
    candidates = read_manifest(Path(folder, "train.csv"), data_root=folder)
    return choose_rare(candidates, transcripts, occurrences)


def prepare(hparams: dict) -> None:
    """Write what the YAML names, fetching the corpus only when asked to."""
    if hparams["download"]:
        download_an4(hparams["data_folder"])
    prepare_an4(
        hparams["data_folder"],
        hparams["save_folder"],
        valid_speakers=hparams["num_valid_speakers"],
        more=partial(rare_words, hparams["synthetic_folder"], hparams["word_occurrences"]),
    )
    copy_lexicon(hparams["save_folder"])
    write_sentences(hparams["sentences_file"], hparams["num_sentences"])


if __name__ == "__main__":
    main(prepare, CORPUS_OPTIONS)
