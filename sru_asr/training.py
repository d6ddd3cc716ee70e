"""From a YAML and a corpus preparation to scores, plots and a model folder: what recipes call."""

from __future__ import annotations

import json
import logging
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from difflib import get_close_matches
from functools import partial
from itertools import pairwise
from os.path import abspath
from pathlib import Path
from typing import Any

import sentencepiece
import speechbrain as sb
import torch
from hyperpyyaml import load_hyperpyyaml, resolve_references
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode
from speechbrain.utils.distributed import (
    ddp_init_group,
    if_main_process,
    is_distributed_initialized,
    run_on_main,
)

from sru_asr.audio import AudioError
from sru_asr.brain import NonFiniteLoss, SpeechRecognitionBrain
from sru_asr.data import make_dataset
from sru_asr.export import check_inference, export_model
from sru_asr.files import atomically, write_atomically
from sru_asr.manifest import (
    ManifestError,
    Utterance,
    check_manifest,
    compare_splits,
    hold_out,
    read_manifest,
    write_manifest,
)
from sru_asr.model_card import collect_scores, write_card
from sru_asr.plot import plot_training
from sru_asr.pretrained import find_model, load_pretrained
from sru_asr.score import Score
from sru_asr.text import PRESETS, Normalization
from sru_asr.tokenizer import train_tokenizer, unspellable
from sru_asr.transcripts import enumerate_some

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
OPTIONAL = {
    "test_csv",  # one manifest, or names of test sets and their manifests
    "text_normalization",  # of all transcripts: see NORMALIZATIONS
    "finish",  # settings of a second training, which starts from the model of the first
    "pretrained",  # a model folder whose weights training starts from
    "pretrained_tokenizer",  # old: that folder's; new, the default: made from the transcripts
    "ctc_weight",
    "label_smoothing",
    "intermediate_ctc_weight",
    "phone_ctc_weight",
    "consistency_weight",  # of views that fea_augment makes of each utterance
    "lexicon",  # intermediate CTC and phone_output learn the phones of the words
    "lexicon_file",
    "speed_perturb",
    "wav_augment",
    "fea_augment",
    "concatenation",  # a collate function
    "averaged_checkpoints",
    "ngram",  # order, path: estimated from the training transcripts, and of text_file if given
    "search",  # of the scores: score_<split>.json
    "searches",  # further ones: score_<split>_<name>.json
}
# Settings that may change while a run is under way.
FREE = {"number_of_epochs", "total_steps", "download", "trust_pretrained"}
# Of transcripts, before they are learnt and scored.
NORMALIZATIONS = {
    **PRESETS,
    "lower": Normalization(lower_case=True),
    "upper": Normalization(upper_case=True),
}
# A character that is rarer than this is hardly learnt.
RARE = 5
# Splits that a model is fitted to or chosen by; the others are test sets.
LEARNT = ("train", "valid")


class RecipeError(ValueError):
    """A recipe cannot start; the message names file or key, what was found and what it needs."""


def run_recipe(
    arguments: list[str],
    prepare: Callable[[dict[str, Any]], None],
    corpus_options: Collection[str] = (),
    settings: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
) -> dict[str, Score]:
    """Prepare a corpus, train, evaluate and export, as far as it has not been done already.

    Killed at any moment and called again with the same arguments, it goes on from the last
    checkpoint.

    A YAML may have settings of a second training in ``finish``, such as stronger augmentation and a
    smaller learning rate: numbers, texts and lists. It starts from the model of the first, which is
    trained without them and is in ``<output_folder>/first`` with scores of its own; once the second
    has begun, the first is not prolonged any more. ``--finish=null`` leaves the second out.

    Parameters
    ----------
    arguments : list of str
        Command line: the YAML, then SpeechBrain's options and ``--key=value`` overrides.
    prepare : callable
        Given the hyperparameters, writes the manifests they name; called on one process.
    corpus_options : collection of str
        YAML keys that only ``prepare`` and ``settings`` read.
    settings : callable, optional
        Given the YAML with overrides and references in place, but nothing built, returns settings
        for it: those that depend on the data. Called on every process.

    Returns
    -------
    dict of str to Score
        For each evaluated split. On processes other than the first, what that process saw.

    Raises
    ------
    RecipeError
        When YAML, data folder or manifests do not fit, before training starts; later, when a
        recording turns out to be damaged or the loss not to be finite.
    """
    hparams_file, run_opts, text = sb.parse_arguments(arguments)
    overrides = complete_overrides(hparams_file, text, corpus_options, settings)
    first, last = split_finish(hparams_file, overrides)
    # What is wrong with the second shows before the first takes its hours.
    hparams = load_hparams(hparams_file, last, corpus_options)
    ddp_init_group(run_opts)
    run_on_main(check_folder, [hparams, name_of(hparams_file)])
    begun = bool(hparams["checkpointer"].list_checkpoints())
    # Once the second has begun, the folder of the first may go.
    if first is not None and (not begun or Path(first["output_folder"]).is_dir()):
        earlier = load_hparams(hparams_file, first, corpus_options)
        run_on_main(check_folder, [earlier, name_of(hparams_file)])
        if not begun:
            train(hparams_file, first, earlier, run_opts, prepare)
            # Seeded as for a training by itself.
            hparams = load_hparams(hparams_file, last, corpus_options)
        del earlier  # a model, and on a GPU its memory
    return train(hparams_file, last, hparams, run_opts, prepare)


def split_finish(
    path: str, overrides: Mapping[str, Any]
) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """Make overrides of two trainings where a YAML has ``finish``.

    Parameters
    ----------
    path : str
        The YAML.
    overrides : mapping

    Returns
    -------
    first : dict or None
        Overrides of the training that comes before, None without one.
    last : dict
        Those of the last, or only, training.

    Raises
    ------
    RecipeError
        When ``finish`` has other than plain settings, or says where the training starts or writes.
    """
    text = Path(path).read_text(encoding="utf-8")
    with _naming(path, text):
        tree = YAML().load(resolve_references(text, dict(overrides), overrides_must_match=True))
    folders = ("output_folder", "save_folder")
    if not tree.keys() >= {"finish", *folders}:
        return None, dict(overrides)  # what is missing, load_hparams says
    finish = tree["finish"]
    if finish is None:
        return None, dict(overrides)
    if not isinstance(finish, Mapping):
        raise RecipeError(
            f"{path}: finish: found {finish}, expected settings of a second training, or null"
        )
    for key, value in finish.items():
        if key in {"finish", "pretrained", "seed", *folders}:
            raise RecipeError(
                f"{path}: finish: found {key}, expected settings that differ between the trainings"
            )
        if not _is_plain(value) and value is not None:
            # It would be merged into the object of that name.
            raise RecipeError(
                f"{path}: finish: found an object for {key}, expected a number, a text or a list"
            )
    if "pretrained" not in tree:
        raise RecipeError(f"{path}: finish needs the option pretrained, such as pretrained: null")
    folder, save = (str(tree[key]) for key in folders)
    if not save.startswith(f"{folder}/"):
        raise RecipeError(
            f"save_folder: found {save}, expected a folder in output_folder {folder}: the two "
            "trainings keep their checkpoints apart; --finish=null makes it one training"
        )
    # As text: check_same_run knows by it what lies in the run's own folder.
    first = {**overrides, "finish": None, "output_folder": f"{folder}/first"}
    return first, {**overrides, **finish, "finish": None, "pretrained": f"{folder}/first/model"}


def train(
    hparams_file: str,
    overrides: dict[str, Any],
    hparams: dict[str, Any],
    run_opts: dict[str, Any],
    prepare: Callable[[dict[str, Any]], None],
) -> dict[str, Score]:
    """Run one training of a recipe; see `run_recipe`.

    Parameters
    ----------
    hparams_file : str
        The YAML.
    overrides : dict
        What it is loaded with.
    hparams : dict
        What that gave.
    run_opts : dict
        SpeechBrain's options of the command line.
    prepare : callable
        See `run_recipe`.

    Returns
    -------
    dict of str to Score

    Raises
    ------
    RecipeError
        See `run_recipe`.
    """
    folder, save = Path(hparams["output_folder"]), Path(hparams["save_folder"])
    tokenizer_file = save / "tokenizer.model"
    try:
        check_inference(hparams["inference"])
        run_on_main(forget_failed_start, [save])
        sb.create_experiment_directory(str(folder), hparams_file, overrides)
        run_on_main(prepare, [hparams])
        old_tokenizer = find_old_tokenizer(hparams)
        utterances = read_splits(hparams, old_tokenizer or tokenizer_file)
        if old_tokenizer is not None:
            run_on_main(copy_tokenizer, [old_tokenizer, tokenizer_file])
        load_tokenizer(hparams, tokenizer_file, utterances)
        read_lexicon(hparams, utterances["train"])
        utterances["train"] = alignable(hparams, utterances["train"])
        if hparams.get("ngram"):
            texts = [utterance.wrd for utterance in utterances["train"]]
            run_on_main(estimate_ngram, [texts], hparams["ngram"])
        if hparams.get("pretrained") and not hparams["checkpointer"].list_checkpoints():
            load_pretrained(hparams["model"], hparams["pretrained"], hparams["tokenizer"])
        brain = SpeechRecognitionBrain(
            modules=hparams["modules"],
            opt_class=hparams["opt_class"],
            hparams=hparams,
            run_opts=run_opts,
            checkpointer=hparams["checkpointer"],
        )
        loaders = make_loaders(brain, hparams, utterances)
        batches = len(loaders["train"]) // brain.grad_accumulation_factor
        run_on_main(check_schedule, [hparams, batches])
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
        scores = {
            split: brain.evaluate_split(split, loaders[split], folder)
            for split in loaders
            if split != "train"
        }
        run_on_main(note_training, [hparams, name_of(hparams_file), utterances["train"], scores])
        return scores
    except NonFiniteLoss as error:
        raise RecipeError(str(error)) from error
    except AudioError as error:
        # From a loader's process it comes with that process's traceback around it.
        reason = str(error).strip().splitlines()[-1].split("AudioError: ")[-1]
        raise RecipeError(f"{reason}; run again to go on from the last checkpoint") from error


def name_of(hparams_file: str) -> str:
    """Name an experiment: its YAML and the folder that is in."""
    return "/".join(Path(hparams_file).absolute().parts[-2:])


def check_folder(hparams: dict[str, Any], experiment: str) -> None:
    """Refuse another run's output folder, before anything in it is changed.

    Raises
    ------
    RecipeError
        See `check_same_run`.
    """
    try:
        check_same_run(hparams, Path(hparams["save_folder"], "settings.json"), experiment)
    except (ValueError, OSError) as error:
        raise RecipeError(str(error)) from error


def check_same_run(hparams: dict[str, Any], path: Path, experiment: str = "") -> None:
    """Refuse to go on in the folder of a run with other settings; note those of a new run.

    Its checkpoints would not fit, or, worse, its finished model would pass for the new one's. A run
    may be prolonged, and folders may move. Where nothing has been trained yet, settings may change,
    but the experiment may not.

    Parameters
    ----------
    hparams : dict
        The settings.
    path : Path
        ``settings.json`` in the run's save folder.
    experiment : str
        The YAML's name and its folder's; "" for no matter which.

    Raises
    ------
    ValueError
        Naming the settings that differ.
    """
    settings = {
        key: value
        for key, value in hparams.items()
        if _is_plain(value)
        and key not in FREE
        and not key.startswith("__")
        and not key.endswith(("_folder", "_csv"))
        # What lies in the run's own folder moves with it.
        and not (isinstance(value, str) and value.startswith(f"{hparams['output_folder']}/"))
    }
    if path.exists():
        old = json.loads(path.read_text(encoding="utf-8"))
        old_experiment = old.pop("experiment", "")
        differing = []
        if old_experiment and experiment and old_experiment != experiment:
            differing = [f"{old_experiment} (now {experiment})"]
        elif any(path.parent.glob("CKPT*")):
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
    content = {"experiment": experiment, **settings}
    write_atomically(path, json.dumps(content, indent=2) + "\n")


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(_is_plain(item) for item in value)
    return isinstance(value, (bool, int, float, str))


def forget_failed_start(save: Path) -> None:
    """Remove what was made of the transcripts for a training that never began.

    They may have been corrected since.
    """
    if (save / "settings.json").exists() and not any(save.glob("CKPT*")):
        (save / "tokenizer.model").unlink(missing_ok=True)
        (save / "ngram.arpa").unlink(missing_ok=True)


def read_splits(hparams: Mapping[str, Any], tokenizer: Path | None) -> dict[str, list[Utterance]]:
    """Read and check the manifests of all splits.

    Without ``valid_csv`` a part of the training manifest is held out. A corpus may come without its
    test part.

    Parameters
    ----------
    hparams : mapping
        The settings, as values; nothing needs to be built yet.
    tokenizer : Path, optional
        The tokenizer, where there is one already: it must spell what is to be learnt.

    Returns
    -------
    dict of str to list of Utterance
        "train", "valid" and the test sets: "test", or those that ``test_csv`` names.

    Raises
    ------
    ValueError
        Listing everything that is wrong with any manifest, unreadable recordings included.
    """
    manifests = {"train": hparams["train_csv"]}
    if hparams["valid_csv"] is not None:
        manifests["valid"] = hparams["valid_csv"]
    for name, path in _test_manifests(hparams.get("test_csv")).items():
        if Path(path).exists():
            manifests[name] = path
        else:
            logger.warning("There is no %s: the corpus has no such part, and none is scored", path)
    options: dict[str, Any] = {
        "data_root": hparams["data_folder"],
        "normalize": normalization(hparams),
    }
    check = None
    if tokenizer is not None and tokenizer.exists():
        check = partial(_spelling_problems, hparams, tokenizer)
    splits, problems = {}, []
    for split, path in manifests.items():
        try:
            # Audio is looked at by one process only.
            splits[split] = (
                check_manifest(path, **options, check=check if split in LEARNT else None)
                if if_main_process()
                else read_manifest(path, **options)
            )
        except ManifestError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("\n".join(problems))
    if "valid" not in splits:
        train, valid = hold_out(splits["train"])
        tests = {split: rows for split, rows in splits.items() if split != "train"}
        splits = {"train": train, "valid": valid, **tests}
        if if_main_process():
            for split in LEARNT:
                rows = [replace(row, wav=abspath(row.wav)) for row in splits[split]]
                write_manifest(Path(hparams["save_folder"], f"{split}.csv"), rows)
    for sentence in compare_splits(splits):
        logger.warning("%s", sentence)
    return splits


def normalization(hparams: Mapping[str, Any]) -> Normalization | None:
    """The YAML's ``text_normalization``: by its name, or an object.

    Raises
    ------
    ValueError
        When there is none of that name.
    """
    chosen = hparams.get("text_normalization")
    if not isinstance(chosen, str):
        return chosen
    if chosen not in NORMALIZATIONS:
        raise ValueError(
            f"text_normalization: found {chosen!r}, expected {', '.join(NORMALIZATIONS)}"
        )
    return NORMALIZATIONS[chosen]


def _test_manifests(test_csv: Any) -> dict[str, str]:
    manifests = test_csv if isinstance(test_csv, Mapping) else {"test": test_csv}
    manifests = {str(name): path for name, path in manifests.items() if path}
    wrong = [name for name in manifests if name in LEARNT or not re.fullmatch(r"[\w.-]+", name)]
    if wrong:
        raise ValueError(
            f"test_csv: found the name {wrong[0]!r}, expected letters, digits and -_. other than "
            "train and valid"
        )
    return manifests


def find_old_tokenizer(hparams: Mapping[str, Any]) -> Path | None:
    """The tokenizer of the pretrained model, where it is to be kept.

    Raises
    ------
    ValueError
        When ``pretrained_tokenizer`` is neither old nor new, or ``pretrained`` no model folder.
    """
    choice = hparams.get("pretrained_tokenizer", "new")
    if choice not in ("old", "new"):
        raise ValueError(f"pretrained_tokenizer: found {choice!r}, expected old or new")
    return find_model(hparams["pretrained"]) / "tokenizer.ckpt" if choice == "old" else None


def copy_tokenizer(old: Path, path: Path) -> None:
    """Take over a tokenizer, unless there is one."""
    if not path.exists():
        with atomically(path) as temporary:
            shutil.copyfile(old, temporary)


def load_tokenizer(
    hparams: dict[str, Any], path: Path, utterances: dict[str, list[Utterance]]
) -> None:
    """Load the recipe's tokenizer, training it first unless it is there.

    Raises
    ------
    ValueError
        When it does not fit the vocabulary, or cannot spell what it is to be learnt.
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
    counts = Counter("".join(utterance.wrd for utterance in utterances["train"]))
    rare = {character: count for character, count in counts.items() if count < RARE}
    if rare:
        logger.warning(
            "Rare characters in the training transcripts, hardly to be learnt: %s",
            enumerate_some([f"{c!r} ({rare[c]} times)" for c in sorted(rare)], 30),
        )
    for split, rows in utterances.items():
        for problem in _list_unspellable(path, rows):
            if split == "train":
                raise ValueError(problem)
            logger.warning("%s: %s; they always count as errors", split, problem)


def _spelling_problems(
    hparams: Mapping[str, Any], path: Path, utterances: Sequence[Utterance]
) -> list[str]:
    remedy = "delete it, or choose another output_folder"
    if find_old_tokenizer(hparams) is not None:
        remedy = "--tokenizer=new makes one of these transcripts"
        if "text_normalization" in hparams:
            remedy += f", --text_normalization={'|'.join(NORMALIZATIONS)} changes the transcripts"
    return [f"{problem}; {remedy}" for problem in _list_unspellable(path, utterances)]


def _list_unspellable(path: Path, utterances: Sequence[Utterance]) -> list[str]:
    """One problem for all characters, or none."""
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(path))
    unknown = unspellable(tokenizer, {row.ID: row.wrd for row in utterances})
    if not unknown:
        return []
    listed = [
        f"{character!r} ({len(IDs)} times, in {enumerate_some(dict.fromkeys(IDs), 2)})"
        for character, IDs in unknown.items()
    ]
    other_case = [c for c in unknown if not unspellable(tokenizer, {"": c.swapcase()})]
    problem = f"the tokenizer {path} cannot spell {len(unknown)} characters"
    if 2 * len(other_case) > len(unknown):
        problem += f", {len(other_case)} of which it knows in the other case"
    return [f"{problem}: {enumerate_some(listed, 12)}"]


def read_lexicon(hparams: Mapping[str, Any], utterances: Iterable[Utterance]) -> None:
    """Load the lexicon, which has to fit the model and to have every word that is to be learnt.

    Raises
    ------
    OSError, ValueError
        When it cannot be read, or does not fit.
    """
    lexicon, path = hparams.get("lexicon"), hparams.get("lexicon_file")
    names = "intermediate_output", "phone_output"
    layers = {name: getattr(hparams["model"], name) for name in names}
    layers = {name: layer for name, layer in layers.items() if layer is not None}
    if lexicon is None:
        if "phone_output" in layers:
            raise ValueError("phone_output learns the phones of a lexicon; the YAML has none")
        return
    if not path:
        raise ValueError("lexicon: the YAML has no lexicon_file to load")
    if not layers:
        raise ValueError(f"lexicon: the model's {' or '.join(names)} learns it; found neither")
    lexicon.load(path)
    for name, layer in layers.items():
        outputs = getattr(layer, "w", layer).out_features
        if outputs != lexicon.size:
            raise ValueError(
                f"{name} has {outputs} outputs, expected {lexicon.size}: the blank and the "
                f"{lexicon.size - 1} phones of {path}"
            )
    lexicon.check(utterance.wrd for utterance in utterances)


def alignable(hparams: dict[str, Any], utterances: Sequence[Utterance]) -> list[Utterance]:
    """Leave out utterances that are too short for their transcripts, with a warning.

    CTC needs a frame for each token (or phone, where there is a lexicon) and one more between two
    that are alike; the loss of less would be infinite.

    Raises
    ------
    ValueError
        When no utterance is long enough.
    """
    encoder, tokenizer = hparams["model"].encoder, hparams["tokenizer"]
    samples = torch.tensor([row.duration * hparams["sample_rate"] for row in utterances]).long()
    frames = encoder.subsampling.steps_after(samples // encoder.hop_length + 1).tolist()
    spellings = {"tokens": tokenizer.encode}
    if hparams.get("lexicon") is not None:
        spellings["phones"] = hparams["lexicon"].encode
    kept, short = [], []
    for row, found in zip(utterances, frames, strict=True):
        for kind, spell in spellings.items():
            tokens = spell(row.wrd)
            needed = len(tokens) + sum(a == b for a, b in pairwise(tokens))
            if found < needed:
                short.append(f"{row.ID} ({found} frames for {needed} {kind})")
                break
        else:
            kept.append(row)
    if short:
        message = (
            f"{len(short)} of {len(utterances)} training utterances are too short for their "
            f"transcripts: {enumerate_some(short)}"
        )
        if not kept:
            raise ValueError(message)
        logger.warning("Left out: %s", message)
    return kept


def estimate_ngram(texts: list[str], order: int, path: str, text_file: str | None = None) -> None:
    """Estimate a word n-gram, unless it is there.

    Parameters
    ----------
    texts : list of str
        The training transcripts.
    order : int
        Words that an n-gram counts.
    path : str
        The ARPA file.
    text_file : str, optional
        More texts of the kind, a sentence on each line.

    Raises
    ------
    RecipeError
        When ``text_file`` cannot be read, or has no text.
    """
    from sru_asr.decode.ngram import NGram

    if Path(path).exists():
        return
    if text_file is not None:
        try:
            lines = Path(text_file).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"ngram: text_file {text_file} cannot be read: {error}") from None
        more = [" ".join(line.split()) for line in lines if line.strip()]
        if not more:
            raise RecipeError(
                f"ngram: text_file {text_file}: found no text, expected a sentence on each line"
            )
        texts = [*texts, *more]
    NGram.estimate(texts, order).write_arpa(path)


def note_training(
    hparams: Mapping[str, Any],
    experiment: str,
    utterances: Sequence[Utterance],
    splits: Collection[str],
) -> None:
    """Write the card of the model folder: what `sru-asr info` tells of a training.

    Parameters
    ----------
    hparams : mapping
        The settings.
    experiment : str
        The YAML's name and its folder's.
    utterances : sequence of Utterance
        The training data.
    splits : collection of str
        What has been scored, with each search.
    """
    folder = Path(hparams["output_folder"])
    seconds = sum(utterance.duration for utterance in utterances)
    write_card(
        folder / "model",
        experiment=experiment,
        seed=hparams["seed"],
        parameters=sum(p.numel() for p in hparams["model"].parameters()),
        token_type=hparams["token_type"],
        training={"utterances": len(utterances), "hours": round(seconds / 3600, 3)},
        scores={
            name: score
            for name, score in collect_scores(folder).items()
            if any(name == split or name.startswith(f"{split}_") for split in splits)
        },
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
            (hparams.get("wav_augment") or ()) if split == "train" else (),
        )
        for split, rows in utterances.items()
    }
    lengths = [utterance.duration for utterance in utterances["train"]]
    sampler = hparams["train_sampler"](data["train"], lengths_list=lengths)
    processes = torch.distributed.get_world_size() if is_distributed_initialized() else 1
    # A single batch for each is more than SpeechBrain can deal out.
    if processes > 1 and len(sampler) <= processes:
        raise ValueError(
            f"the training data makes {len(sampler)} batches, expected more than the {processes} "
            "processes that share them: lower max_batch_seconds, or start fewer processes"
        )
    options = {**hparams["train_loader_options"], "batch_sampler": sampler}
    if hparams.get("concatenation") is not None:
        options["collate_fn"] = hparams["concatenation"]
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


def check_schedule(hparams: Mapping[str, Any], batches: int) -> None:
    """Warn of a learning rate that would not have come to its end when the training has.

    Parameters
    ----------
    hparams : mapping
        With ``total_steps``, where the YAML has a schedule of so many.
    batches : int
        Optimiser steps of an epoch.
    """
    planned, epochs = hparams.get("total_steps"), hparams["epoch_counter"].limit
    if isinstance(planned, int) and not 0.7 <= planned / max(1, batches * epochs) <= 1.4:
        logger.warning(
            "total_steps is %d, but %d epochs of %d steps are %d: the learning rate is made for "
            "another length of training; give --total_steps=%d",
            *(planned, epochs, batches, batches * epochs, batches * epochs),
        )


def complete_overrides(
    path: str,
    overrides: str,
    corpus_options: Collection[str] = (),
    settings: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Add to the overrides of a YAML the settings that a recipe works out by itself.

    Parameters
    ----------
    path, overrides, corpus_options
        As in `load_hparams`.
    settings : callable, optional
        See `run_recipe`.

    Raises
    ------
    RecipeError
        When the YAML, an override or what ``settings`` looks at is wrong.
    """
    text = read_yaml(path, {*REQUIRED, *OPTIONAL, *corpus_options})
    with _naming(path, text):
        given: dict[str, Any] = YAML().load(overrides) or {}
        if settings is None:
            return given
        tree = YAML().load(resolve_references(text, overrides, overrides_must_match=True))
    try:
        return given | settings(tree)
    except (ValueError, OSError) as error:
        raise RecipeError(str(error)) from error


def load_hparams(
    path: str,
    overrides: str | dict[str, Any],
    corpus_options: Collection[str] = (),
    required: Collection[str] = REQUIRED,
    optional: Collection[str] = OPTIONAL,
) -> dict[str, Any]:
    """Load a recipe's YAML, refusing keys that nothing reads.

    Parameters
    ----------
    path : str
        The YAML.
    overrides : str or dict
        SpeechBrain's overrides, YAML text or what it says.
    corpus_options : collection of str
        Keys that the corpus preparation reads.
    required, optional : collection of str
        Keys that the training reads.

    Raises
    ------
    RecipeError
        When a key is unknown or missing, or an object cannot be made of its options.
    """
    text = read_yaml(path, {*required, *optional, *corpus_options})
    with _naming(path, text):
        hparams: dict[str, Any] = load_hyperpyyaml(text, overrides)
    missing = sorted({*required, *corpus_options} - set(hparams))
    if missing:
        raise RecipeError(f"{path}: missing options {', '.join(missing)}")
    return hparams


def read_yaml(path: str, options: Collection[str]) -> str:
    """Read a recipe's YAML as text, refusing keys that nothing reads.

    A mistyped option would otherwise leave its default in force without a word. Keys that others
    refer to need not be among the options.

    Raises
    ------
    RecipeError
        When it is not there, not YAML, or has an unknown key.
    """
    if not Path(path).is_file():
        raise RecipeError(f"{path}: no such file; expected a recipe's YAML under hparams/")
    text = Path(path).read_text(encoding="utf-8")
    try:
        node = YAML().compose(text)
    except YAMLError as error:
        raise RecipeError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(node, MappingNode):
        raise RecipeError(f"{path}: found no options, expected a recipe's YAML such as seed: 1")
    known = {*options, *re.findall(r"!ref\s.*?<(\w+)", text)}
    known |= set(re.findall(r"<(\w+)[>\[.]", text)) | {"__set_seed"}
    for key in _keys(text):
        if key not in known:
            raise RecipeError(f"{path}: unknown option {key!r}{_did_you_mean(key, known)}")
    return text


@contextmanager
def _naming(path: str, text: str) -> Iterator[None]:
    """Turn whatever loading a YAML raises into a RecipeError that names it."""
    try:
        yield
    except KeyError as error:
        override = re.search(r"Override '(\w+)' not found", str(error))
        if override is None:
            raise RecipeError(f"{path}: {error}") from error
        hint = _did_you_mean(override[1], _keys(text))
        if override[1].startswith("pretrained"):
            hint = "; hparams/manifest/finetune.yaml goes on from a model folder"
        raise RecipeError(f"{path} has no option {override[1]!r} to override{hint}") from error
    except (TypeError, ValueError, AttributeError, ImportError, OSError, YAMLError) as error:
        reason = " ".join(str(error).split())
        placeholder = re.match(r"'(\w+)' is a !PLACEHOLDER", reason)
        if placeholder:
            reason = f"{placeholder[1]} has no value; give one: --{placeholder[1]}=..."
        raise RecipeError(f"{path}: {reason}") from error


def _keys(text: str) -> list[str]:
    return re.findall(r"^(\w+):", text, flags=re.MULTILINE)


def _did_you_mean(key: str, known: Collection[str]) -> str:
    close = get_close_matches(key, known, 1)
    return f"; did you mean {close[0]!r}?" if close else ""


def main(
    prepare: Callable[[dict[str, Any]], None],
    corpus_options: Collection[str] = (),
    settings: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    arguments: list[str] | None = None,
) -> None:
    """Run a recipe from the command line; bad input ends in one sentence and exit code 2.

    Parameters
    ----------
    prepare, corpus_options, settings
        See `run_recipe`.
    arguments : list of str, optional
        The command line, by default that of the process.
    """
    if arguments is None:
        arguments = sys.argv[1:]
    try:
        scores = run_recipe(arguments, prepare, corpus_options, settings)
    except RecipeError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    if if_main_process():
        for split, score in scores.items():
            print(f"{split}: {score}")
    if is_distributed_initialized():
        torch.distributed.destroy_process_group()
