"""Train a language model on AN4's transcripts.

    python recipes/AN4/train_lm.py HPARAMS --data_folder=DIR

or on others: ``--train_csv=FILE --valid_csv=FILE``, manifests or texts, a sentence on each line.
"""

from prepare import download_an4, prepare_an4

from sru_asr.language_training import main


def prepare(hparams: dict) -> None:
    """Write the manifests that the YAML names; without a data folder they are there already."""
    if hparams["data_folder"] is None:
        return
    if hparams["download"]:
        download_an4(hparams["data_folder"])
    prepare_an4(
        hparams["data_folder"],
        hparams["save_folder"],
        valid_speakers=hparams["num_valid_speakers"],
    )


if __name__ == "__main__":
    main(prepare, corpus_options={"data_folder", "download", "num_valid_speakers"})
