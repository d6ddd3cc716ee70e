"""Loading a model folder, as training leaves it, ready to encode and decode."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ruamel.yaml.nodes import ScalarNode
from torch import Tensor, nn

from sru_asr.export import INTERFACES
from sru_asr.model_yaml import EXPECTED, ModelFolderError, ModelYAML, children, one_line


class _FromFrames:
    """Mixed into an interface: `transcribe_batch` takes encoded frames in place of waveforms."""

    def encode_batch(self, frames: Tensor, lengths: Tensor) -> Tensor:
        return frames


def load_model(folder: Path, device: str, trust: bool = False) -> Any:
    """Load a model folder with the interface that its YAML names.

    Weights are read as tensors, never as pickled objects, and the YAML may make only what the
    recipes' models consist of (`sru_asr.model_yaml`).

    Parameters
    ----------
    folder : Path
        As training leaves it: ``results/.../model``.
    device : str
        "cpu", "cuda" or "cuda:N".
    trust : bool
        Let the YAML make any object and read any file, as SpeechBrain does: it can run any code.

    Returns
    -------
    EncoderASR or EncoderDecoderASR
        SpeechBrain's, whose ``transcribe_batch`` takes encoded frames in place of waveforms.

    Raises
    ------
    ModelFolderError
        When the folder is incomplete, cannot be loaded, or is not trusted with what it asks for.
    """
    yaml, interface = _checked_folder(folder)
    if not trust:
        yaml.check()
    # Here and not above, so that what is wrong with the folder shows without the wait.
    from speechbrain.inference import ASR
    from speechbrain.utils.fetching import FetchConfig

    cls: Any = type(interface, (_FromFrames, getattr(ASR, interface)), {})
    options = {"device": device}
    try:
        if trust:
            # Without savedir, files are read where they are and no links are made.
            model = cls.from_hparams(
                source=str(folder),
                savedir=None,
                fetch_config=FetchConfig(allow_network=False),
                run_opts=options,
            )
        else:
            hparams = yaml.build()
            load_weights(hparams["pretrainer"].loadables, folder)
            model = cls(modules=hparams["modules"], hparams=hparams, run_opts=options)
    except Exception as error:  # a YAML makes any objects, which raise anything
        raise ModelFolderError(
            f"model folder {folder}: found files that cannot be loaded ({one_line(error)}), "
            "expected those of one training run"
        ) from error
    for found, name in (
        (hasattr(model.hparams, "sample_rate"), "sample_rate"),
        (hasattr(model.mods.encoder, "encode"), "modules.encoder with a method encode"),
    ):
        if not found:
            raise ModelFolderError(
                f"model folder {folder}: found a hyperparams.yaml without {name}, expected one "
                "as sru_asr.export writes it"
            )
    return model


def load_weights(loadables: Mapping[str, Any], folder: Path) -> None:
    """Load what a model folder stores for each of a pretrainer's loadables.

    Parameters
    ----------
    loadables : mapping of str to object
        Modules, and others that ``load`` a file: tokenizers, lexicons.
    folder : Path
        Has a file ``<name>.ckpt`` of each.

    Raises
    ------
    Exception
        Of several kinds, when a file holds something else.
    """
    for name, loadable in loadables.items():
        path = str(folder / f"{name}.ckpt")
        if isinstance(loadable, nn.Module):
            loadable.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        else:
            loadable.load(path)


def _checked_folder(folder: Path) -> tuple[ModelYAML, str]:
    """Check that a model folder is complete; gives its YAML and its interface."""
    yaml_file = folder / "hyperparams.yaml"
    if not folder.is_dir():
        found = "a file" if folder.exists() else "no such folder"
        raise ModelFolderError(f"model folder {folder}: found {found}, {EXPECTED}")
    if not yaml_file.is_file():
        raise ModelFolderError(
            f"model folder {folder}: found no hyperparams.yaml in it, {EXPECTED}"
        )
    yaml = ModelYAML(yaml_file)
    interface = yaml.find("interface")
    loadables = children(yaml.find("pretrainer", "loadables"))
    elsewhere = children(yaml.find("pretrainer", "paths"))
    if not isinstance(interface, ScalarNode) or not loadables:
        raise ModelFolderError(
            f"{yaml_file}: found no interface and pretrainer.loadables, {EXPECTED}"
        )
    if interface.value not in INTERFACES:
        raise ModelFolderError(
            f"{yaml_file}: found interface {interface.value!r}, expected {' or '.join(INTERFACES)}"
        )
    needed = [f"{name}.ckpt" for name in loadables if name not in elsewhere]
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing:
        raise ModelFolderError(
            f"model folder {folder}: found no {' and no '.join(missing)}, "
            f"expected hyperparams.yaml, {', '.join(needed)}"
        )
    return yaml, interface.value
