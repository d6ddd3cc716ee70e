"""Train and decode with SpeechBrain's own recipes, their YAMLs changed by hparams/plug-in.

    python tests/third_party/run_recipes.py CHECKOUT [--recipe NAME] [--folder FOLDER]

CHECKOUT is SpeechBrain's repository, of the installed version; nothing in it is changed, and each
train.py runs as it is. Sizes are tiny, data are a few of SpeechBrain's samples, and what would be
downloaded is made by make_local_assets. A recipe passes when its training loss falls by a third or
more and its test has searched every utterance. Exits with 1 unless all pass.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import make_local_assets as assets
import speechbrain
import torch

PLUG_IN = Path(__file__).resolve().parents[2] / "hparams" / "plug-in"
UTTERANCES = 4


@dataclass(frozen=True)
class Recipe:
    """One upstream experiment, and what makes it tiny."""

    name: str  # of the diff under hparams/plug-in
    train: str
    hparams: str
    make: Callable[[Path, Path], dict[str, str]]  # local files; returns overrides that name them
    tiny: dict[str, str]
    search: str = "wer_train.txt"  # what the test writes


def librispeech(checkout: Path, folder: Path) -> dict[str, str]:
    utterances = assets.sample_utterances(checkout, UTTERANCES)
    train = folder / "train.csv"
    assets.write_csv(utterances, train)
    return {
        "data_folder": str(folder),
        "train_csv": str(train),
        "valid_csv": str(train),
        "test_csv": f"[{train}]",
    }


def with_characters(checkout: Path, folder: Path) -> dict[str, str]:
    texts = [entry["wrd"] for entry in assets.sample_utterances(checkout, UTTERANCES).values()]
    return {**librispeech(checkout, folder), "output_neurons": str(assets.characters(texts))}


def with_tokenizer(checkout: Path, folder: Path) -> dict[str, str]:
    texts = [entry["wrd"] for entry in assets.sample_utterances(checkout, UTTERANCES).values()]
    size = assets.train_tokenizer(texts, folder / "tokenizer.ckpt")
    return {
        **librispeech(checkout, folder),
        "pretrained_lm_tokenizer_path": str(folder),
        "output_neurons": str(size),
    }


def with_noise(checkout: Path, folder: Path) -> dict[str, str]:
    assets.copy_noise(checkout, folder / "noise")
    return {**with_tokenizer(checkout, folder), "data_folder_noise": str(folder / "noise")}


def timit(checkout: Path, folder: Path) -> dict[str, str]:
    assets.copy_noise(checkout, folder / "noise")
    annotation = folder / "train.json"
    utterances = assets.sample_utterances(checkout, UTTERANCES)
    assets.write_json(utterances, annotation)
    phones = {phone for entry in utterances.values() for phone in entry["phn"].split()}
    return {
        "data_folder": str(folder),
        "data_folder_noise": str(folder / "noise"),
        "train_annotation": str(annotation),
        "valid_annotation": str(annotation),
        "test_annotation": str(annotation),
        "output_neurons": str(1 + len(phones)),  # the blank, too
    }


TRANSFORMER = {
    "d_model": "32",
    "nhead": "2",
    "num_encoder_layers": "2",
    "d_ffn": "32",
    "CNN": "{out_channels: [4, 32]}",
    "noam_annealing": "{n_warmup_steps: 10}",
}
LM_WEIGHT = "0.01"  # it is asked, but knows nothing
RNNLM = "{rnn_layers: 1, rnn_neurons: 16, dnn_neurons: 16}"
CRDNN = {
    "cnn_channels": "(4, 8)",
    "rnn_layers": "2",
    "rnn_neurons": "32",
    "dnn_blocks": "1",
    "dnn_neurons": "32",
    "opt_class": "!name:torch.optim.Adam",  # Adadelta needs more steps than there are here
    "lr": "0.005",
    "lr_annealing": "{patient: 100}",  # error rates say nothing so early
}
RECIPES = [
    Recipe(
        "conformer_small",
        "recipes/LibriSpeech/ASR/transformer/train.py",
        "recipes/LibriSpeech/ASR/transformer/hparams/conformer_small.yaml",
        with_tokenizer,
        {
            **TRANSFORMER,
            "lr_adam": "0.01",
            "num_decoder_layers": "1",
            "lm_model": "{d_model: 16, nhead: 2, num_encoder_layers: 1, d_ffn: 16}",
            "lm_weight": LM_WEIGHT,
            "valid_beam_size": "2",
            "test_beam_size": "4",
            "number_of_epochs": "60",
            "avg_checkpoints": "2",
        },
    ),
    Recipe(
        "conformer_large",
        "recipes/LibriSpeech/ASR/CTC/train.py",
        "recipes/LibriSpeech/ASR/CTC/hparams/conformer_large.yaml",
        with_characters,
        {
            **TRANSFORMER,
            "lr_model": "0.01",
            "beam_size": "10",
            "grad_accumulation_factor": "1",
            "number_of_epochs": "80",
            "avg_checkpoints": "2",
        },
    ),
    Recipe(
        "conformer_transducer",
        "recipes/LibriSpeech/ASR/transducer/train.py",
        "recipes/LibriSpeech/ASR/transducer/hparams/conformer_transducer.yaml",
        with_tokenizer,
        {
            **TRANSFORMER,
            "joint_dim": "32",
            "dec_dim": "32",
            "lm_model": RNNLM,
            "lm_weight": LM_WEIGHT,
            "lr": "0.01",
            "precision": "fp32",  # fp16 is for GPUs
            "beam_size": "2",
            "grad_accumulation_factor": "1",
            "number_of_epochs": "60",
            "avg_checkpoints": "2",
        },
    ),
    Recipe(
        "train_BPE_1000",
        "recipes/LibriSpeech/ASR/seq2seq/train.py",
        "recipes/LibriSpeech/ASR/seq2seq/hparams/train_BPE_1000.yaml",
        with_noise,
        {
            **CRDNN,
            "emb_size": "8",
            "dec_neurons": "32",
            "dec": "{attn_dim: 16, channels: 2, kernel_size: 10}",
            "lm_model": RNNLM,
            "lm_weight": LM_WEIGHT,
            "valid_beam_size": "2",
            "test_beam_size": "4",
            "batch_size": "2",
            "number_of_epochs": "40",
        },
    ),
    Recipe(
        "timit",
        "recipes/TIMIT/ASR/CTC/train.py",
        "recipes/TIMIT/ASR/CTC/hparams/train.yaml",
        timit,
        {**CRDNN, "batch_size": "2", "number_of_epochs": "40"},
        search="wer_test.txt",
    ),
]


def run(recipe: Recipe, checkout: Path, folder: Path) -> list[str]:
    """Run one recipe; return its line of the table, which ends in its verdict."""
    folder.mkdir(parents=True)
    diff, yaml = PLUG_IN / f"{recipe.name}.diff", folder / f"{recipe.name}.yaml"
    patch = ["patch", "--silent", f"--output={yaml}", str(checkout / recipe.hparams), str(diff)]
    subprocess.run(patch, check=True)
    output = folder / "results"
    values = {**recipe.make(checkout, folder), **recipe.tiny, "output_folder": str(output)}
    values |= {"skip_prep": "True", "num_workers": "0"}
    if "pretrained_lm_tokenizer_path" in values:
        overrides = "\n".join(f"{key}: {value}" for key, value in values.items())
        assets.save_language_model(yaml, overrides, folder / "lm.ckpt")
    start = time.monotonic()
    command = [sys.executable, recipe.train, str(yaml), "--device=cpu"]
    with (folder / "output.txt").open("w", encoding="utf-8") as log:
        status = subprocess.run(
            [*command, *(f"--{key}={value}" for key, value in values.items())],
            cwd=checkout,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        ).returncode
    seconds = time.monotonic() - start
    removed, added = changed_lines(diff.read_text(encoding="utf-8"))
    line = [recipe.name, f"-{removed} +{added}"]
    if status:
        written = (folder / "output.txt").read_text(encoding="utf-8").splitlines()
        print(*written[-30:], sep="\n", file=sys.stderr)
        return [*line, "-", "-", f"{seconds:.0f}", "failed"]
    log_text = (output / "train_log.txt").read_text(encoding="utf-8")
    losses = [float(loss) for loss in re.findall(r"train loss: (\S+)", log_text)]
    scores = (output / recipe.search).read_text(encoding="utf-8")
    rate = re.search(r"%WER ([\d.]+)", scores)
    searched = re.search(r"Scored (\d+) sentences, 0 not present in hyp", scores)
    passed = (
        losses[-1] < losses[0] * 2 / 3
        and rate is not None
        and searched is not None
        and int(searched[1]) == UTTERANCES
    )
    return [
        *line,
        f"{losses[0]:.3g} -> {losses[-1]:.3g}",
        f"{searched[1] if searched else 0} of {UTTERANCES}, {rate[1] if rate else '-'} %",
        f"{seconds:.0f}",
        "passed" if passed else "failed",
    ]


def changed_lines(diff: str) -> tuple[int, int]:
    """Count the lines that a diff removes and adds, but for blank ones."""
    lines = [line[0] for line in diff.splitlines()[2:] if line[1:].strip()]
    return lines.count("-"), lines.count("+")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path)
    names = [recipe.name for recipe in RECIPES]
    parser.add_argument("--recipe", action="append", choices=names, help="only this one")
    parser.add_argument("--folder", type=Path, help="keep what is written, here")
    arguments = parser.parse_args()
    if not (arguments.checkout / RECIPES[0].train).is_file():
        parser.error(f"{arguments.checkout} is no checkout of SpeechBrain: no {RECIPES[0].train}")
    version = (arguments.checkout / "speechbrain" / "version.txt").read_text().strip()
    print(f"SpeechBrain {speechbrain.__version__}, recipes of {version}; torch {torch.__version__}")
    print("| recipe | lines | training loss | searched, errors | seconds | |")
    print("|---|---|---|---|---|---|")
    failed = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.folder or Path(temporary)).resolve()
        for recipe in RECIPES:
            if arguments.recipe is None or recipe.name in arguments.recipe:
                line = run(recipe, arguments.checkout.resolve(), folder / recipe.name)
                print("| " + " | ".join(line) + " |", flush=True)
                failed += line[-1] != "passed"
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
