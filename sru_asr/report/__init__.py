"""A page that shows an evaluation: one HTML file with everything in it, for any browser.

The page works from the disk and asks nothing of any network. Words and ids are in it as JSON and
become text nodes, never markup; its content security policy lets no script run but its own.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import mimetypes
import os
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sru_asr import __version__
from sru_asr.evaluation import Evaluation, Group
from sru_asr.files import write_atomically
from sru_asr.score import UtteranceScore


def write_html(
    path: str | os.PathLike[str],
    evaluation: Evaluation,
    recordings: Mapping[str, Path] | None = None,
    embed: bool = False,
) -> None:
    """Write the page, all or nothing.

    Parameters
    ----------
    path : path
        The HTML file.
    evaluation : Evaluation
        What to show.
    recordings : mapping of str to Path, optional
        Audio files by id, which get a player. They are linked relative to the page.
    embed : bool
        Put the audio itself into the page, which grows by four thirds of its size.

    Examples
    --------
    >>> import tempfile
    >>> from sru_asr.evaluation import evaluate
    >>> rows = [UtteranceScore("utt-1", "go on", "go", "=D", 5, 3)]
    >>> file = Path(tempfile.mkdtemp()) / "report.html"
    >>> write_html(file, evaluate({"mine": rows}, "ref.txt", "single spaces"))
    >>> "utt-1" in file.read_text()
    True
    """
    folder = Path(path).resolve().parent
    link = _embedded if embed else lambda file: _relative(file, folder)
    audio = {name: link(Path(file)) for name, file in (recordings or {}).items()}
    data = json.dumps(_page_data(evaluation, audio), ensure_ascii=False, separators=(",", ":"))
    script = _part("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    parts = {
        "@HASH@": f"sha256-{digest}",
        "@TITLE@": html.escape(_title(evaluation)),
        "@STYLE@": _part("page.css"),
        # In JSON a "<" stands in strings alone; escaped, nothing in them can end the element.
        "@DATA@": data.replace("<", "\\u003c"),
        "@SCRIPT@": script,
    }
    page = _part("page.html")
    pieces = []
    for name, content in parts.items():  # in the order of the page, so that no content is searched
        before, page = page.split(name)
        pieces += [before, content]
    write_atomically(path, "".join([*pieces, page]))


def _part(name: str) -> str:
    return resources.files(__name__).joinpath(name).read_text(encoding="utf-8")


def _title(evaluation: Evaluation) -> str:
    names = [system.name for system in evaluation.systems]
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f"Word error rates: {shown}"


def _page_data(evaluation: Evaluation, audio: Mapping[str, str]) -> dict[str, Any]:
    """What ``page.js`` reads; repeated texts are left out to keep the page small."""
    found = evaluation.as_dict()
    first = evaluation.systems[0].utterances
    place = {utterance.id: number for number, utterance in enumerate(first)}
    lines = zip(*(system.utterances for system in evaluation.systems), strict=True)
    return {
        "title": _title(evaluation),
        "version": __version__,
        "reference": evaluation.reference,
        "normalization": evaluation.normalization,
        "resamples": evaluation.resamples,
        "systems": found["systems"],
        "comparisons": [
            {"pair": pair, **record}
            for pair, record in zip(evaluation.comparisons, found["comparisons"], strict=True)
        ],
        "breakdowns": [
            {"name": one.name, "groups": [_group(group, place, first) for group in one.groups]}
            for one in evaluation.breakdowns
        ],
        "utterances": [
            [
                line[0].id,
                line[0].reference,
                [one.hypothesis if one.errors else 0 for one in line],
                [one.operations if one.errors else 0 for one in line],
                audio.get(line[0].id, 0),
            ]
            for line in lines
        ],
    }


def _group(
    group: Group, place: Mapping[str, int], utterances: list[UtteranceScore]
) -> dict[str, Any]:
    members = [place[name] for name in group.ids]
    return {
        "label": group.label,
        "utterances": len(members),
        "words": sum(utterances[member].words for member in members),
        "scores": [score and {"wer": score.wer, "ci95": score.ci95} for score in group.scores],
        "members": members,
    }


def _relative(file: Path, folder: Path) -> str:
    # Quoted as a path of a link; "./" keeps a name with a colon from being taken for a scheme.
    return "./" + quote(os.path.relpath(file.resolve(), folder).replace(os.sep, "/"))


def _embedded(file: Path) -> str:
    kind = mimetypes.guess_type(file.name)[0] or "audio/wav"
    return f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"
