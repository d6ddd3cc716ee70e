"""Train on LibriSpeech: ``python recipes/LibriSpeech/train.py HPARAMS --data_folder=DIR``."""

from prepare import CorpusError, join_splits, prepare_librispeech

from sru_asr.training import main


def prepare(hparams: dict) -> None:
    """Write the manifests that the YAML names: one for each split, then those of this run."""
    train, valid, test = (hparams[f"{name}_splits"] for name in ("train", "valid", "test"))
    paths = hparams["test_csv"]
    unscored = sorted(set(test) - set(paths))
    if unscored:
        raise CorpusError(
            f"test_splits: found {', '.join(unscored)}, for which test_csv has no path; expected "
            f"some of {', '.join(paths)}"
        )
    manifests = hparams["manifest_folder"]
    prepare_librispeech(hparams["data_folder"], manifests, [*train, *valid, *test])
    join_splits(manifests, train, hparams["train_csv"])
    join_splits(manifests, valid, hparams["valid_csv"])
    for split in test:
        join_splits(manifests, [split], paths[split])


if __name__ == "__main__":
    main(
        prepare,
        corpus_options={"manifest_folder", "train_splits", "valid_splits", "test_splits"},
    )
