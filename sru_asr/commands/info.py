"""``sru-asr info``: what a model folder holds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from sru_asr.commands import BadInput

UNKNOWN = "unknown"


@click.command()
@click.option("--model", metavar="DIR", required=True, help="Model folder that training left.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def info(model: str, as_json: bool) -> None:
    """Describe a model folder without loading it: safe for folders of unknown origin.

    What is wrong with it is named on stderr; the exit code is then 1.
    """
    from sru_asr.model_info import describe
    from sru_asr.model_yaml import ModelFolderError

    try:
        found = describe(Path(model))
    except ModelFolderError as error:
        raise BadInput(str(error)) from None
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        rows = [(printable(name), printable(value)) for name, value in _rows(found)]
        width = max(len(name) for name, _ in rows) + 2
        for name, value in rows:
            click.echo(f"{name:{width}}{value}")
    for warning in _warnings(found):
        click.echo(f"warning: {printable(warning)}", err=True)
    for problem in found["problems"]:
        click.echo(f"problem: {printable(problem)}", err=True)
    if found["problems"]:
        raise SystemExit(1)


def _rows(info: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    card = info["card"]
    yield "model", info["folder"]
    yield "interface", str(info["interface"] or UNKNOWN)
    yield "sample rate", f"{info['sample_rate']} Hz" if info["sample_rate"] else UNKNOWN
    for part, settings in (info["parts"] or {"encoder": {"kind": UNKNOWN}}).items():
        listed = ", ".join(f"{k} {v}" for k, v in settings.items() if k != "kind")
        yield part.replace("_", " "), f"{settings['kind']}{': ' if listed else ''}{listed}"
    tokens = info["tokens"] or {"first": []}
    more = " ..." if len(tokens["first"]) < tokens.get("count", 0) else ""
    listed = " ".join(tokens["first"]) + more
    yield "tokens", f"{tokens['count']} {tokens['kind']}: {listed}" if listed else UNKNOWN
    if info["parameters"]:
        yield "parameters", f"{info['parameters']['total']:,}"
        for part, count in info["parameters"]["parts"].items():
            yield "", f"{count:>11,}  {part}"
    else:
        yield "parameters", UNKNOWN
    run = [f"{name} {card[name]}" for name in ("experiment", "seed", "created") if name in card]
    yield "training", ", ".join(run) or UNKNOWN
    data = card.get("training", {})
    if data:
        yield "training data", ", ".join(f"{value} {name}" for name, value in data.items())
    for name, score in card.get("scores", {}).items() or [("", {})]:
        yield f"score {name}".strip(), _score(score)
    versions = {name: both["trained"] for name, both in info["versions"].items() if both["trained"]}
    yield "trained with", ", ".join(f"{k} {v}" for k, v in versions.items()) or UNKNOWN
    yield "files", ", ".join(f"{name} {_size(size)}" for name, size in info["files"].items())
    loads = {True: "without --trust-model", False: "only with --trust-model", None: UNKNOWN}
    yield "loads", loads[info["trusted"]]


def _score(score: Any) -> str:
    numbers = score if isinstance(score, Mapping) else {}
    try:
        if "word_perplexity" in numbers:
            return f"perplexity {numbers['word_perplexity']:.2f} a word"
        low, high = numbers["ci95"]
        return (
            f"WER {numbers['wer']:.2f} % [{low:.2f}, {high:.2f}], {numbers['words']} words, "
            f"{numbers.get('decoder') or 'unknown search'}"
        )
    except (KeyError, TypeError, ValueError):
        return UNKNOWN


def _warnings(info: Mapping[str, Any]) -> Iterator[str]:
    for name, both in info["versions"].items():
        if both["installed"] is None:
            yield f"{name} is not installed"
        elif both["trained"] and both["trained"] != both["installed"]:
            yield f"trained with {name} {both['trained']}, installed is {both['installed']}"


def _size(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"


def printable(text: str) -> str:
    """Leave out what would move a terminal's cursor: the text may be anybody's.

    Examples
    --------
    >>> printable("a\\x1b[2Jb")
    'a?[2Jb'
    """
    return "".join(c if c.isprintable() else "?" for c in text)
