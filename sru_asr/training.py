"""From a YAML and a corpus preparation to scores, plots and a model folder: what recipes call."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Callable, Collection
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import speechbrain as sb
from hyperpyyaml import load_hyperpyyaml
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from speechbrain.utils.distributed import ddp_init_group, run_on_main

from sru_asr.audio import AudioError
from sru_asr.brain import SpeechRecognitionBrain
from sru_asr.data import make_dataset
from sru_asr.export import export_model
from sru_asr.manifest import Utterance, check_manifest
from sru_asr.plot import plot_training
from sru_asr.score import Score
from sru_asr.tokenizer import BLANK, train_tokenizer
from sru_asr.transcripts import write_atomically

logger = logging.getLogger(__name__)

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
    folder = Path(hparams["output_folder"])
    tokenizer_file = Path(hparams["save_folder"], "tokenizer.model")
    try:
        sb.create_experiment_directory(str(folder), hparams_file, overrides)
        run_on_main(check_same_run, [hparams, Path(hparams["save_folder"], "settings.json")])
        run_on_main(prepare, [hparams])
        utterances = read_splits(hparams)
        load_tokenizer(hparams, tokenizer_file, utterances)
        brain = SpeechRecognitionBrain(
            modules=hparams["modules"],
            opt_class=hparams["opt_class"],
            hparams=hparams,
            run_opts=run_opts,
            checkpointer=hparams["checkpointer"],
        )
        loaders = make_loaders(brain, hparams, utterances)
    except (ValueError, TypeError, OSError, ModuleNotFoundError) as error:
        raise RecipeError(str(error)) from error
    try:
        brain.fit(hparams["epoch_counter"], loaders["train"], loaders["valid"])
        run_on_main(plot_training, [folder / "train_log.txt", folder / "training.png"])
        brain.load_average()
        run_on_main(
            export_model,
            [folder / "hyperparams.yaml", folder / "model", hparams["inference"], tokenizer_file],
        )
        return {
            split: brain.evaluate_split(split, loaders[split], folder)
            for split in ("valid", "test")
            if split in loaders
        }
    except AudioError as error:
        # From a loader's process it comes with that process's traceback around it.
        reason = str(error).strip().splitlines()[-1].split("AudioError: ")[-1]
        raise RecipeError(f"{reason}; run again to go on from the last checkpoint") from error


def check_same_run(hparams: dict[str, Any], path: Path) -> None:
    """Refuse to go on in the folder of a run with other settings; note those of a new run.

    Its checkpoints would not fit, or, worse, its finished model would pass for the new one's. A run
    may be prolonged, and folders may move.

    Raises
    ------
    ValueError
        Naming the settings that differ.
    """
    free = {"number_of_epochs", "total_steps", "download"}
    settings = {
        key: value
        for key, value in hparams.items()
        if isinstance(value, (bool, int, float, str, list))
        and key not in free
        and not key.startswith("__")
        and not key.endswith(("_folder", "_csv"))
    }
    if path.exists() and any(path.parent.glob("CKPT*")):
        old = json.loads(path.read_text(encoding="utf-8"))
        differing = [
            f"{key} {old.get(key)} (now {settings.get(key)})"
            for key in sorted(old.keys() | settings.keys())
            if old.get(key) != settings.get(key)
        ]
        if differing:
            raise ValueError(
                f"output_folder {hparams['output_folder']} holds a run with "
                f"{', '.join(differing)}; choose another output_folder, or delete this one"
            )
    write_atomically(path, json.dumps(settings, indent=2) + "\n")


def read_splits(hparams: dict[str, Any]) -> dict[str, list[Utterance]]:
    """Read and check the manifests of all splits; a corpus may come without its test part.

    Raises
    ------
    ManifestError
        Listing everything that is wrong with a manifest, unreadable recordings included.
    """
    manifests = {"train": hparams["train_csv"], "valid": hparams["valid_csv"]}
    test = hparams.get("test_csv")
    if test and Path(test).exists():
        manifests["test"] = test
    elif test:
        logger.warning("There is no %s: the corpus has no test part, and none is scored", test)
    return {
        split: check_manifest(path, hparams["data_folder"]) for split, path in manifests.items()
    }


def load_tokenizer(
    hparams: dict[str, Any], path: Path, utterances: dict[str, list[Utterance]]
) -> None:
    """Load the recipe's tokenizer, training it first unless it is there.

    Raises
    ------
    ValueError
        When it does not fit the vocabulary, or cannot spell a transcript it is to learn from.
    """
    options = {
        "path": path,
        "texts": [utterance.wrd for utterance in utterances["train"]],
        "vocab_size": hparams["output_neurons"],
        "model_type": hparams["token_type"],
    }
    run_on_main(train_tokenizer, kwargs=options)
    tokenizer = hparams["tokenizer"]
    tokenizer.load(str(path))
    for utterance in utterances["train"] + utterances["valid"]:
        # The unknown piece is CTC's blank as well: such a target would be learnt as silence.
        if BLANK in tokenizer.encode(utterance.wrd):
            raise ValueError(
                f"the tokenizer {path} cannot spell {utterance.wrd!r} of {utterance.ID}; it was "
                "made for other transcripts: choose another output_folder, or delete it"
            )


def make_loaders(
    brain: SpeechRecognitionBrain,
    hparams: dict[str, Any],
    utterances: dict[str, list[Utterance]],
) -> dict[str, Any]:
    """Make the data loaders of all splits, for training in batches by duration.

    Raises
    ------
    TypeError
        When the sampler or a loader has no such option.
    """
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
    sampler = hparams["train_sampler"](data["train"], lengths_list=lengths)
    options = {**hparams["train_loader_options"], "batch_sampler": sampler}
    loaders = {"train": brain.make_dataloader(data.pop("train"), sb.Stage.TRAIN, **options)}
    # SpeechBrain tells only the sampler it knows of about a new epoch, which is when there are new
    # batches. Distributed, it has put its own in place.
    brain.train_sampler = brain.train_sampler or sampler
    for split, dataset in data.items():
        stage = sb.Stage.VALID if split == "valid" else sb.Stage.TEST
        loaders[split] = brain.make_dataloader(
            dataset, stage, ckpt_prefix=None, **hparams["test_loader_options"]
        )
    return loaders


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
    text = Path(path).read_text(encoding="utf-8")
    try:
        YAML().compose(text)
    except YAMLError as error:
        raise RecipeError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    known = REQUIRED | OPTIONAL | set(corpus_options) | set(re.findall(r"!ref\s.*?<(\w+)", text))
    known |= set(re.findall(r"<(\w+)[>\[.]", text)) | {"__set_seed"}
    for key in re.findall(r"^(\w+):", text, flags=re.MULTILINE):
        if key not in known:
            raise RecipeError(f"{path}: unknown option {key!r}{_did_you_mean(key, known)}")
    try:
        hparams: dict[str, Any] = load_hyperpyyaml(text, overrides)
    except KeyError as error:
        override = re.search(r"Override '(\w+)' not found", str(error))
        if override is None:
            raise RecipeError(f"{path}: {error}") from error
        hint = _did_you_mean(override[1], re.findall(r"^(\w+):", text, flags=re.MULTILINE))
        raise RecipeError(f"{path} has no option {override[1]!r} to override{hint}") from error
    except (TypeError, ValueError, AttributeError, ImportError, OSError, YAMLError) as error:
        reason = " ".join(str(error).split())
        raise RecipeError(f"{path}: {reason}") from error
    missing = sorted((REQUIRED | set(corpus_options)) - set(hparams))
    if missing:
        raise RecipeError(f"{path}: missing options {', '.join(missing)}")
    return hparams


def _did_you_mean(key: str, known: Collection[str]) -> str:
    close = get_close_matches(key, known, 1)
    return f"; did you mean {close[0]!r}?" if close else ""


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
