"""Train a recogniser on AN4: ``python recipes/AN4/train.py HPARAMS --data_folder=DIR``."""

from census import write_sentences
from prepare import CORPUS_OPTIONS, download_an4, prepare_an4
from pronunciations import copy_lexicon

from sru_asr.training import main


def prepare(hparams: dict) -> None:
    """Write what the YAML names, fetching the corpus only when asked to."""
    if hparams["download"]:
        download_an4(hparams["data_folder"])
    prepare_an4(
        hparams["data_folder"],
        hparams["save_folder"],
        valid_speakers=hparams["num_valid_speakers"],
    )
    copy_lexicon(hparams["save_folder"])
    write_sentences(hparams["sentences_file"], hparams["num_sentences"])


if __name__ == "__main__":
    main(prepare, CORPUS_OPTIONS)
