"""Making the self-contained model folder that SpeechBrain and `sru-asr transcribe` load."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from ruamel.yaml import YAML


def export_model(
    hyperparams: str | Path, folder: str | Path, inference: dict[str, Any], tokenizer: str | Path
) -> None:
    """Write a model folder: ``hyperparams.yaml``, ``tokenizer.ckpt`` and one file a loadable.

    The YAML's ``inference`` section becomes the folder's ``hyperparams.yaml``, together with
    everything it refers to, so a recipe says in one place what its model consists of.

    Parameters
    ----------
    hyperparams : str or Path
        The experiment's resolved YAML.
    folder : str or Path
        The model folder, made or replaced.
    inference : dict
        The loaded ``inference`` section; its ``pretrainer`` names the modules to store.
    tokenizer : str or Path
        The sentencepiece model.
    """
    folder = Path(folder)
    temporary, old = (folder.with_name(f".{folder.name}.{name}") for name in ("new", "old"))
    for leftover in (temporary, old):  # of a run that was killed here
        shutil.rmtree(leftover, ignore_errors=True)
    temporary.mkdir(parents=True)
    yaml = YAML()
    yaml.width = 100
    with open(hyperparams, encoding="utf-8") as file:
        section = yaml.load(file)["inference"]
    with open(temporary / "hyperparams.yaml", "w", encoding="utf-8") as file:
        # The dumper writes each shared object out where it is first met and refers to it after.
        yaml.dump(section, file)
    for name, loadable in inference["pretrainer"].loadables.items():
        if name == "tokenizer":
            shutil.copyfile(tokenizer, temporary / "tokenizer.ckpt")
        else:
            torch.save(loadable.state_dict(), temporary / f"{name}.ckpt")
    if folder.exists():
        os.replace(folder, old)
    os.replace(temporary, folder)
    shutil.rmtree(old, ignore_errors=True)
