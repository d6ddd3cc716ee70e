"""Train a recogniser on AN4: ``python recipes/AN4/train.py HPARAMS --data_folder=DIR``."""

from prepare import prepare_an4

from sru_asr.training import main


def prepare(hparams: dict) -> None:
    """Write the manifests that the YAML names."""
    prepare_an4(
        hparams["data_folder"],
        hparams["save_folder"],
        valid_speakers=hparams["num_valid_speakers"],
    )


if __name__ == "__main__":
    main(prepare, corpus_options={"num_valid_speakers"})
