"""Small local files in place of what SpeechBrain's recipes would download or prepare.

Manifests of a few of SpeechBrain's own sample utterances, a tokenizer trained on their words, an
untrained language model of the size that a YAML asks for, and a folder with one noise.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from hyperpyyaml import load_hyperpyyaml


def sample_utterances(checkout: Path, count: int) -> dict[str, dict[str, Any]]:
    """Return the first utterances of SpeechBrain's samples, with absolute paths."""
    samples = checkout / "tests" / "samples"
    entries = json.loads((samples / "annotation" / "ASR_train.json").read_text(encoding="utf-8"))
    chosen = dict(list(entries.items())[:count])
    for entry in chosen.values():
        entry["wav"] = entry["wav"].format(data_root=samples / "ASR")
    return chosen


def write_csv(utterances: dict[str, dict[str, Any]], path: Path) -> None:
    """Write the manifest that LibriSpeech's preparation would."""
    columns = ["ID", "duration", "wav", "spk_id", "wrd"]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows({"ID": name, **entry} for name, entry in utterances.items())


def write_json(utterances: dict[str, dict[str, Any]], path: Path) -> None:
    """Write the annotation that TIMIT's preparation would."""
    path.write_text(json.dumps(utterances, indent=1), encoding="utf-8")


def train_tokenizer(texts: list[str], path: Path) -> int:
    """Train a unigram tokenizer, in place of a downloaded one; return its vocabulary's size."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        vocab_size=100,
        hard_vocab_limit=False,
        model_type="unigram",
        minloglevel=2,
    )
    path.write_bytes(model.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()).get_piece_size()


def characters(texts: list[str]) -> int:
    """Count what a character tokenizer of these texts will hold: <unk>, <s>, </s>, the rest."""
    return 3 + len(set("".join(texts)))  # the blank between words is a piece


def save_language_model(yaml: Path, overrides: str, path: Path) -> None:
    """Save the language model of a recipe's YAML as it is initialised, in place of a trained one.

    Random scores do: what is tested is that the search runs with a language model, not its quality.
    """
    with yaml.open(encoding="utf-8") as file:
        model = load_hyperpyyaml(file, overrides)["lm_model"]
    torch.save(model.state_dict(), path)


def copy_noise(checkout: Path, folder: Path) -> None:
    """Make a folder of noises that prepare_dataset_from_URL takes for a downloaded one."""
    folder.mkdir(parents=True)
    shutil.copy(checkout / "tests" / "samples" / "noise" / "noise2.wav", folder)
    (folder / "data.zip").touch()  # where this file is, nothing is downloaded
