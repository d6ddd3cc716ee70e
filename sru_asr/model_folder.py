"""Loading a model folder, as training leaves it, ready to encode and decode."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from torch import Tensor

from sru_asr.export import INTERFACES


class ModelFolderError(ValueError):
    """A folder holds no model that can be loaded; the message says what was found there."""


class _FromFrames:
    """Mixed into an interface: `transcribe_batch` takes encoded frames in place of waveforms."""

    def encode_batch(self, frames: Tensor, lengths: Tensor) -> Tensor:
        return frames


def load_model(folder: Path, device: str) -> Any:
    """Load a model folder with the interface that its YAML names.

    Parameters
    ----------
    folder : Path
        As training leaves it: ``results/.../model``.
    device : str
        "cpu", "cuda" or "cuda:N".

    Returns
    -------
    EncoderASR or EncoderDecoderASR
        SpeechBrain's, whose ``transcribe_batch`` takes encoded frames in place of waveforms.

    Raises
    ------
    ModelFolderError
        When the folder is incomplete or cannot be loaded.
    """
    interface = _checked_folder(folder)
    # Here and not above, so that what is wrong with the folder shows without the wait.
    from speechbrain.inference import ASR
    from speechbrain.utils.fetching import FetchConfig

    cls: Any = type(interface, (_FromFrames, getattr(ASR, interface)), {})
    try:
        # Without savedir, files are read where they are and no links are made.
        model = cls.from_hparams(
            source=str(folder),
            savedir=None,
            fetch_config=FetchConfig(allow_network=False),
            run_opts={"device": device},
        )
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


def _checked_folder(folder: Path) -> str:
    """Check that a model folder is complete, and give its interface."""
    yaml_file = folder / "hyperparams.yaml"
    expected = "expected a model folder as training leaves it (results/.../model)"
    if not folder.is_dir():
        found = "a file" if folder.exists() else "no such folder"
        raise ModelFolderError(f"model folder {folder}: found {found}, {expected}")
    if not yaml_file.is_file():
        raise ModelFolderError(
            f"model folder {folder}: found no hyperparams.yaml in it, {expected}"
        )
    try:
        # Read without making objects of its tags.
        with open(yaml_file, encoding="utf-8") as file:
            content = YAML().load(file)
        interface = content["interface"]
        loadables = content["pretrainer"]["loadables"]
        elsewhere = content["pretrainer"].get("paths", {})
    except (YAMLError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ModelFolderError(
            f"{yaml_file}: found no interface and pretrainer.loadables ({one_line(error)}), "
            f"{expected}"
        ) from None
    if interface not in INTERFACES:
        raise ModelFolderError(
            f"{yaml_file}: found interface {interface!r}, expected {' or '.join(INTERFACES)}"
        )
    needed = [f"{name}.ckpt" for name in loadables if name not in elsewhere]
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing:
        raise ModelFolderError(
            f"model folder {folder}: found no {' and no '.join(missing)}, "
            f"expected hyperparams.yaml, {', '.join(needed)}"
        )
    return str(interface)


def one_line(error: Exception) -> str:
    """Tell the kind of an error and what it says, on one line.

    Examples
    --------
    >>> one_line(ValueError("two\\n  lines"))
    'ValueError: two lines'
    """
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}{'...' if len(text) > 300 else ''}"
