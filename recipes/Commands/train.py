"""Train a recogniser on the synthetic Commands corpus, making the corpus first.

``python recipes/Commands/train.py hparams/commands/srupp_ctc.yaml``
"""

from prepare import prepare_commands

from sru_asr.training import main


def prepare(hparams: dict) -> None:
    """Make the corpus and its manifests."""
    prepare_commands(
        hparams["data_folder"],
        num_train=hparams["num_train"],
        num_valid=hparams["num_valid"],
        num_test=hparams["num_test"],
        seed=hparams["corpus_seed"],
    )


if __name__ == "__main__":
    main(prepare, corpus_options={"num_train", "num_valid", "num_test", "corpus_seed"})
