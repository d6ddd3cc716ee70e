"""What a model folder tells of its training: ``model_card.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from sru_asr.files import write_atomically
from sru_asr.versions import version_of

NAME = "model_card.json"
# What a model's numbers depend on.
PACKAGES = ("sru-asr", "torch", "torchaudio", "speechbrain", "sentencepiece")
MOST_BYTES = 1_000_000


def write_card(folder: Path, **facts: Any) -> None:
    """Write a model folder's card, with the time and the versions of what trained it.

    Parameters
    ----------
    folder : Path
        The model folder.
    **facts
        What `sru_asr.model_info` shows: ``experiment`` (the YAML), ``seed``, ``parameters``,
        ``token_type``, ``training`` and ``scores``. They go into JSON.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> write_card(folder, seed=1)
    >>> card = read_card(folder)
    >>> card["seed"], sorted(card)
    (1, ['created', 'seed', 'versions'])
    """
    card = {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **facts,
        "versions": {package: version_of(package) for package in PACKAGES},
    }
    write_atomically(folder / NAME, json.dumps(card, indent=2, ensure_ascii=False) + "\n")


def read_card(folder: Path) -> dict[str, Any]:
    """Read a model folder's card; empty where it has none, as folders of earlier versions.

    Raises
    ------
    ValueError
        When it is no card.
    OSError
        When it cannot be read.
    """
    path = folder / NAME
    if not path.exists():
        return {}
    try:
        with open(path, encoding="utf-8") as file:
            card = json.loads(file.read(MOST_BYTES))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path}: found no JSON ({error}), expected what training writes"
        ) from None
    if not isinstance(card, dict):
        raise ValueError(f"{path}: found no keys and values, expected what training writes")
    return card


def collect_scores(folder: Path, pattern: str = "score_*.json") -> dict[str, Any]:
    """Read what a run has scored, by split and search ("valid", "valid_greedy").

    Parameters
    ----------
    folder : Path
        The run's folder.
    pattern : str
        Names of the files; what stands before the first "_" is left out of the names of scores.

    Raises
    ------
    ValueError, OSError
        When a file is damaged.
    """
    return {
        path.stem.partition("_")[2]: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(folder.glob(pattern))
    }


def wrong_kinds(card: Mapping[str, Any]) -> list[str]:
    """Name the entries that are not of the kind that training writes: a card is anybody's text."""
    kinds: dict[str, type] = {"scores": dict, "training": dict, "versions": dict, "parameters": int}
    return [name for name, kind in kinds.items() if not isinstance(card.get(name, kind()), kind)]
