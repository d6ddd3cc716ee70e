"""Train a recogniser on synthetic speech of AN4's kind, to start from it on AN4 itself.

Any of AN4's YAMLs will do; the corpus is made first, where it is not there yet::

    python recipes/AN4/pretrain.py hparams/an4/srupp_ctc_attention.yaml \\
        --data_folder=data/an4_synthetic --output_folder=results/an4_synthetic/1 \\
        --number_of_epochs=4 --total_steps=3300
    python recipes/AN4/train.py hparams/an4/srupp_ctc_attention.yaml \\
        --data_folder=DIR --pretrained=results/an4_synthetic/1/model
"""

from pathlib import Path

from census import write_sentences
from prepare import CORPUS_OPTIONS
from pronunciations import copy_lexicon
from synthetic import prepare_synthetic

from sru_asr.manifest import read_manifest, write_manifest
from sru_asr.training import main


def prepare(hparams: dict) -> None:
    """Make the corpus, once for all runs, and the manifests that the YAML names."""
    folder = hparams["data_folder"]
    if hparams["synthetic_folder"] or hparams["word_occurrences"]:
        raise ValueError(
            "synthetic_folder and word_occurrences are options of train.py; here the synthetic "
            f"corpus is data_folder, and is {folder}"
        )
    prepare_synthetic(folder)
    for split in ("train", "valid"):
        write_manifest(hparams[f"{split}_csv"], read_manifest(Path(folder, f"{split}.csv")))
    copy_lexicon(hparams["save_folder"])
    write_sentences(hparams["sentences_file"], hparams["num_sentences"])


def without_finish(tree: dict) -> dict:
    """Leave the second training to AN4 itself."""
    return {"finish": None} if "finish" in tree else {}


if __name__ == "__main__":
    main(prepare, CORPUS_OPTIONS, without_finish)
