"""From a YAML and a corpus preparation to scores, plots and a model folder: what recipes call."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Collection
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import speechbrain as sb
from hyperpyyaml import load_hyperpyyaml
from speechbrain.utils.distributed import ddp_init_group, run_on_main

from sru_asr.brain import SpeechRecognitionBrain
from sru_asr.data import make_dataset
from sru_asr.export import export_model
from sru_asr.manifest import check_manifest
from sru_asr.plot import plot_training
from sru_asr.score import Score
from sru_asr.tokenizer import train_tokenizer

# Keys of a recipe's YAML that this module or the Brain reads.
REQUIRED = {
    "seed",
    "output_folder",
    "save_folder",
    "data_folder",
    "train_csv",
    "valid_csv",
    "sample_rate",
    "output_neurons",
    "token_type",
    "tokenizer",
    "opt_class",
    "lr_annealing",
    "epoch_counter",
    "train_logger",
    "num_averaged_checkpoints",
    "modules",
    "model",
    "checkpointer",
    "train_sampler",
    "train_loader_options",
    "test_loader_options",
    "inference",
}
OPTIONAL = {"test_csv", "ctc_weight", "label_smoothing", "speed_perturb", "fea_augment", "search"}


class RecipeError(ValueError):
    """A recipe cannot start; the message names file or key, what was found and what it needs."""


def run_recipe(
    arguments: list[str],
    prepare: Callable[[dict[str, Any]], None],
    corpus_options: Collection[str] = (),
) -> dict[str, Score]:
    """Prepare a corpus, train, evaluate and export, as far as it has not been done already.

    Killed at any moment and called again with the same arguments, it goes on from the last
    checkpoint.

    Parameters
    ----------
    arguments : list of str
        Command line: the YAML, then SpeechBrain's options and ``--key=value`` overrides.
    prepare : callable
        Given the hyperparameters, writes the manifests they name; called on one process.
    corpus_options : collection of str
        YAML keys that only ``prepare`` reads.

    Returns
    -------
    dict of str to Score
        For each evaluated split. On processes other than the first, what that process saw.

    Raises
    ------
    RecipeError
        When YAML, data folder or manifests do not fit; before training starts.
    """
    hparams_file, run_opts, overrides = sb.parse_arguments(arguments)
    hparams = load_hparams(hparams_file, overrides, corpus_options)
    ddp_init_group(run_opts)
    sb.create_experiment_directory(hparams["output_folder"], hparams_file, overrides)
    tokenizer_file = Path(hparams["save_folder"], "tokenizer.model")
    try:
        run_on_main(prepare, [hparams])
        manifests = {"train": hparams["train_csv"], "valid": hparams["valid_csv"]}
        if hparams.get("test_csv") and Path(hparams["test_csv"]).exists():
            manifests["test"] = hparams["test_csv"]
        utterances = {
            split: check_manifest(path, hparams["data_folder"]) for split, path in manifests.items()
        }
        options = {
            "path": tokenizer_file,
            "texts": [utterance.wrd for utterance in utterances["train"]],
            "vocab_size": hparams["output_neurons"],
            "model_type": hparams["token_type"],
        }
        run_on_main(train_tokenizer, kwargs=options)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        raise RecipeError(str(error)) from error
    hparams["tokenizer"].load(str(tokenizer_file))

    data = {
        split: make_dataset(
            rows,
            hparams["tokenizer"],
            hparams["sample_rate"],
            hparams.get("speed_perturb") if split == "train" else None,
        )
        for split, rows in utterances.items()
    }
    lengths = [utterance.duration for utterance in utterances["train"]]
    train_options = dict(hparams["train_loader_options"])
    train_options["batch_sampler"] = hparams["train_sampler"](data["train"], lengths_list=lengths)

    brain = SpeechRecognitionBrain(
        modules=hparams["modules"],
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
    )
    # SpeechBrain tells only the sampler it knows of about each new epoch, and thus makes new
    # batches; distributed, it puts its own in place.
    brain.train_sampler = train_options["batch_sampler"]
    brain.fit(
        hparams["epoch_counter"],
        data["train"],
        data["valid"],
        train_loader_kwargs=train_options,
        valid_loader_kwargs=hparams["test_loader_options"],
    )
    folder = Path(hparams["output_folder"])
    run_on_main(plot_training, [folder / "train_log.txt", folder / "training.png"])
    brain.load_average()
    run_on_main(
        export_model,
        [folder / "hyperparams.yaml", folder / "model", hparams["inference"], tokenizer_file],
    )
    return {
        split: brain.evaluate_split(split, data[split], folder, hparams["test_loader_options"])
        for split in ("valid", "test")
        if split in data
    }


def load_hparams(
    path: str,
    overrides: str,
    corpus_options: Collection[str] = (),
) -> dict[str, Any]:
    """Load a recipe's YAML, refusing keys that nothing reads.

    A mistyped option would otherwise leave its default in force without a word.

    Parameters
    ----------
    path : str
        The YAML.
    overrides : str
        SpeechBrain's overrides, YAML text.
    corpus_options : collection of str
        Keys that the corpus preparation reads.

    Raises
    ------
    RecipeError
        When a key is unknown or missing, or an object cannot be made of its options.
    """
    if not Path(path).is_file():
        raise RecipeError(f"{path}: no such file; expected a recipe's YAML under hparams/")
    with open(path, encoding="utf-8") as file:
        text = file.read()
    known = REQUIRED | OPTIONAL | set(corpus_options) | set(re.findall(r"!ref\s.*?<(\w+)", text))
    known |= set(re.findall(r"<(\w+)[>\[.]", text)) | {"__set_seed"}
    for key in re.findall(r"^(\w+):", text, flags=re.MULTILINE):
        if key not in known:
            close = get_close_matches(key, known, 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise RecipeError(f"{path}: unknown option {key!r}{hint}")
    try:
        hparams: dict[str, Any] = load_hyperpyyaml(text, overrides)
    except KeyError as error:
        key = str(error.args[0])
        raise RecipeError(f"{path}: {key.strip(chr(34))}") from error
    except (TypeError, ValueError, AttributeError, ImportError) as error:
        reason = " ".join(str(part) for part in error.args)
        raise RecipeError(f"{path}: {reason}") from error
    missing = sorted(REQUIRED - set(hparams))
    if missing:
        raise RecipeError(f"{path}: missing options {', '.join(missing)}")
    return hparams


def main(
    prepare: Callable[[dict[str, Any]], None],
    corpus_options: Collection[str] = (),
) -> None:
    """Run a recipe from the command line; bad input ends in one sentence and exit code 2."""
    try:
        scores = run_recipe(sys.argv[1:], prepare, corpus_options)
    except RecipeError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    for split, score in scores.items():
        print(f"{split}: {score}")
