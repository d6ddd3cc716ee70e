"""Making the self-contained model folder that SpeechBrain and `sru-asr transcribe` load."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from ruamel.yaml import YAML
from torch import nn

from sru_asr.files import atomically
from sru_asr.manifest import list_problems
from sru_asr.transcripts import enumerate_some

INTERFACES = ("EncoderASR", "EncoderDecoderASR")


def check_inference(inference: dict[str, Any]) -> None:
    """Make sure that what `export_model` writes can be loaded: before training, not after.

    Parameters
    ----------
    inference : dict
        The loaded ``inference`` section.

    Raises
    ------
    ValueError
        Listing what the interface needs and does not find, and modules whose weights would not be
        stored.
    """
    from speechbrain.inference import ASR

    name = inference.get("interface")
    if name not in INTERFACES:
        raise ValueError(f"inference: interface {name!r}, expected {' or '.join(INTERFACES)}")
    interface = getattr(ASR, name)
    modules = inference.get("modules", {})
    needed = {"sample_rate", "pretrainer", *interface.HPARAMS_NEEDED}
    missing = sorted(needed - inference.keys())
    missing += [f"modules.{name}" for name in interface.MODULES_NEEDED if name not in modules]
    problems = [f"no {name}, which {interface.__name__} needs" for name in missing]
    if not missing:
        encoder = modules["encoder"]
        if not hasattr(encoder, "encode"):
            problems.append(
                f"modules.encoder is a {type(encoder).__name__}, expected one with encode(wavs, "
                "lengths), as SpeechEncoder and CTCPosteriors"
            )
        loadables = inference["pretrainer"].loadables
        problems += [
            f"no {name} in the pretrainer's loadables"
            for name in ("model", "tokenizer")
            if name not in loadables
        ]
        if loadables.get("tokenizer") is not inference["tokenizer"]:
            problems.append("tokenizer is not the one among the pretrainer's loadables")
        stored = {
            id(parameter)
            for loadable in loadables.values()
            if isinstance(loadable, nn.Module)
            for parameter in loadable.parameters()
        }
        for name, module in modules.items():
            lost = [n for n, p in module.named_parameters() if id(p) not in stored]
            if lost:
                problems.append(
                    f"modules.{name} has weights ({enumerate_some(lost, 3)}) that belong to none "
                    "of the pretrainer's loadables: they would not be stored"
                )
    if problems:
        raise ValueError(list_problems("inference", problems))


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
        The loaded ``inference`` section; its ``pretrainer`` names what to store: weights of
        modules, and of others (`sru_asr.lexicon.Lexicon`) the file that ``path`` names.
    tokenizer : str or Path
        The sentencepiece model.
    """
    folder = Path(folder)
    for leftover in folder.parent.glob(f".*.{folder.name}"):  # of a run that was killed here
        shutil.rmtree(leftover, ignore_errors=True)
    yaml = YAML()
    yaml.width = 100
    with open(hyperparams, encoding="utf-8") as file:
        section = yaml.load(file)["inference"]
    with atomically(folder) as temporary:
        temporary.mkdir()
        with open(temporary / "hyperparams.yaml", "w", encoding="utf-8") as file:
            # The dumper writes each shared object out where it is first met and refers to it after.
            yaml.dump(section, file)
        for name, loadable in inference["pretrainer"].loadables.items():
            if isinstance(loadable, nn.Module):
                torch.save(loadable.state_dict(), temporary / f"{name}.ckpt")
            else:
                source = tokenizer if name == "tokenizer" else loadable.path
                shutil.copyfile(source, temporary / f"{name}.ckpt")
