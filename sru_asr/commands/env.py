"""``sru-asr env``: what is installed and how it was built."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping
from typing import Any

import click

from sru_asr import __version__
from sru_asr.versions import version_of

PACKAGES = ("torch", "torchaudio", "speechbrain", "sentencepiece", "jiwer", "soundfile", "numpy")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def env(as_json: bool) -> None:
    """Print what is installed and how sru-asr was built."""
    build: Mapping[str, Any]
    try:
        from sru_asr.native import build_info

        build = build_info()
    except Exception as error:  # a broken installation is what this command is there for
        build = {"error": f"{type(error).__name__}: {error}"}
    found = {
        "sru-asr": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {package: version_of(package) or "not installed" for package in PACKAGES},
        "build": build,
    }
    if as_json:
        click.echo(json.dumps(found, indent=2, default=str))
    else:
        for name, value in _flatten(found):
            click.echo(f"{name}: {value}")


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        elif isinstance(value, list | tuple | set):
            yield prefix + name, ", ".join(map(str, value)) or "none"
        else:
            yield prefix + name, str(value)
