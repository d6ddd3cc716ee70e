"""The settings that depend on how much data there is: everything that the YAML calls auto."""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from sentencepiece import SentencePieceProcessor
from speechbrain.utils.distributed import if_main_process

from sru_asr.manifest import ManifestError, Utterance, hold_out, read_manifest
from sru_asr.tokenizer import vocabulary_size
from sru_asr.training import find_old_tokenizer, normalization, read_splits


def derive_settings(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Work out what a YAML calls auto.

    Parameters
    ----------
    tree : mapping
        The YAML with its references resolved and nothing built.

    Returns
    -------
    dict
        Values for those settings.

    Raises
    ------
    ValueError
        When the training manifest, or the model folder, cannot be read.
    """
    check_paths(tree)
    try:
        utterances = read_manifest(tree["train_csv"], tree["data_folder"], normalization(tree))
        if tree["valid_csv"] is None:
            utterances, _ = hold_out(utterances)
    except ManifestError:
        # Rows are wrong: then say all that is, the audio included.
        read_splits(tree, find_old_tokenizer(tree))
        raise
    settings = {"output_neurons": count_pieces(tree, utterances)}
    known = {key: value for key, value in tree.items() if value != "auto"}
    settings |= plan(utterances, known, fine_tuning="pretrained" in tree)
    settings = {key: value for key, value in settings.items() if tree.get(key) == "auto"}
    if settings and if_main_process():
        hours = sum(utterance.duration for utterance in utterances) / 3600
        print(f"Settings for {len(utterances)} utterances, {hours:.2f} hours, in training:")
        for key, value in settings.items():
            print(f"  {key}: {value}")
    return settings


def check_paths(tree: Mapping[str, Any]) -> None:
    """Say which file or folder that the user has named is not there.

    Raises
    ------
    ValueError
        Naming the setting.
    """
    tests = tree["test_csv"]
    for path in tests.values() if isinstance(tests, Mapping) else [tests]:
        if path and not Path(path).is_file():
            raise ValueError(f"test_csv {path}: found no such file, expected a manifest")
    if tree["data_folder"] is not None and not Path(tree["data_folder"]).is_dir():
        raise ValueError(f"data_folder {tree['data_folder']}: found no such folder")


def count_pieces(tree: Mapping[str, Any], utterances: list[Utterance]) -> int:
    """How many pieces the tokenizer has, or will have."""
    old = find_old_tokenizer(tree)
    if old is not None:
        return SentencePieceProcessor(model_file=str(old)).vocab_size()
    return vocabulary_size((utterance.wrd for utterance in utterances), tree["token_type"])


def plan(
    utterances: list[Utterance], known: Mapping[str, Any], fine_tuning: bool = False
) -> dict[str, Any]:
    """Plan a training of a model of some millions of parameters: half an hour to hundreds of hours.

    Little data is gone through more often, in smaller batches, with more dropout. Where a setting
    is known already, the others follow it.

    Parameters
    ----------
    utterances : list of Utterance
        To train on.
    known : mapping
        Settings that are given.
    fine_tuning : bool
        Start from a trained model: a third of the epochs.

    Returns
    -------
    dict
        ``number_of_epochs, max_batch_seconds, bucket_boundaries, warmup_steps, total_steps,
        dropout``.
    """
    durations = np.array([utterance.duration for utterance in utterances])
    hours = float(durations.sum()) / 3600
    epochs = _between(15, 40 * hours**-0.2, 60)
    batch = _between(30, 40 * hours**0.5, 240)
    plan: dict[str, Any] = {
        "number_of_epochs": math.ceil(epochs / 3) if fine_tuning else epochs,
        "max_batch_seconds": max(batch, math.ceil(durations.max())),
        "dropout": 0.2 if hours < 5 else 0.1,
    }
    plan |= {key: known[key] for key in plan if key in known}
    # Of equally many utterances each; some batches of every bucket, so that few are cut short.
    buckets = _between(3, durations.sum() / plan["max_batch_seconds"] / 3, 30)
    quantiles = np.quantile(durations, np.arange(1, buckets + 1) / buckets)
    plan["bucket_boundaries"] = sorted({math.ceil(second * 100) / 100 for second in quantiles})
    plan |= {key: known[key] for key in plan if key in known}
    batches = count_batches(durations, plan["bucket_boundaries"], plan["max_batch_seconds"])
    processes = int(os.environ.get("WORLD_SIZE", 1))
    plan["total_steps"] = math.ceil(batches / processes) * plan["number_of_epochs"]
    plan |= {key: known[key] for key in plan if key in known}
    plan["warmup_steps"] = _between(10, plan["total_steps"] / 7, 2000)
    return plan


def count_batches(durations: np.ndarray, boundaries: list[float], seconds: float) -> int:
    """Batches in an epoch, as SpeechBrain's DynamicBatchSampler makes them."""
    bucket = np.searchsorted(boundaries, durations)
    sizes = [max(1, int(seconds / boundary)) for boundary in boundaries] + [1]
    return sum(
        math.ceil(np.count_nonzero(bucket == number) / size) for number, size in enumerate(sizes)
    )


def _between(low: int, value: float, high: int) -> int:
    return int(min(max(round(value), low), high))
