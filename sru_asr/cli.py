"""The command line, ``sru-asr``. What a command needs beyond this is imported when it runs."""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import TYPE_CHECKING, Any

import click

from sru_asr import __version__
from sru_asr.files import write_atomically
from sru_asr.text import PRESETS
from sru_asr.transcripts import (
    FORMATS,
    TranscriptError,
    pair,
    read_pair,
    write_transcripts,
)

if TYPE_CHECKING:
    from sru_asr.transcribe import Transcript

PACKAGES = ("torch", "torchaudio", "speechbrain", "sentencepiece", "jiwer", "soundfile", "numpy")


class BadInput(click.ClickException):
    """One sentence on stderr instead of a traceback."""

    exit_code = 2


def version_of(package: str) -> str:
    """Version of an installed package.

    Examples
    --------
    >>> version_of("no-such-package")
    'not installed'
    """
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="sru-asr", message="%(prog)s %(version)s")
def main() -> None:
    """Speech recognition with the Simple Recurrent Unit."""


@main.command()
@click.argument("reference", metavar="REF")
@click.argument("hypothesis", metavar="HYP")
@click.option("--ref-format", type=click.Choice(FORMATS), help="Format of REF.")
@click.option("--hyp-format", type=click.Choice(FORMATS), help="Format of HYP.")
@click.option(
    "--normalize",
    type=click.Choice(list(PRESETS)),
    default="none",
    show_default=True,
    help="Change both sides first. none: single spaces only; basic: also lower case, composed "
    "Unicode and no punctuation.",
)
@click.option("--json", "json_file", metavar="FILE", help="Write the score as JSON.")
@click.option("--details", metavar="FILE", help="Write the alignment of every error.")
@click.option(
    "--bootstrap",
    type=click.IntRange(min=100),
    default=2000,
    show_default=True,
    help="Resamples for the 95 % interval.",
)
@click.option(
    "--allow-empty-reference",
    is_flag=True,
    help="Count the words against an empty reference as insertions instead of refusing it.",
)
def score(
    reference: str,
    hypothesis: str,
    ref_format: str | None,
    hyp_format: str | None,
    normalize: str,
    json_file: str | None,
    details: str | None,
    bootstrap: int,
    allow_empty_reference: bool,
) -> None:
    """Score the transcripts HYP against REF by word error rate.

    Each is Kaldi text, trn, CSV (ID, wrd), JSON (id, text) or plain text with one utterance a
    line. Utterances are matched by id, plain text by line. The format follows from the file's
    name and content; the options override it.
    """
    from sru_asr.score import WordErrorRate

    try:
        ref, hyp = read_pair(reference, hypothesis, ref_format, hyp_format)
        ids, references, hypotheses = zip(*pair(ref, hyp), strict=True)
        metric = WordErrorRate(normalize, bootstrap, allow_empty_reference)
        metric.append(ids, hypotheses, references)
        result = metric.summarize()
        if json_file:
            result.to_json(json_file)
        if details:
            metric.write_stats(details)
    except TranscriptError as error:
        raise BadInput(str(error)) from None
    except OSError as error:
        raise BadInput(f"{error.filename}: {error.strerror}") from None
    low, high = result.ci95
    rows = {
        "WER": f"{result.wer:.2f} %",
        "95 % interval": f"{low:.2f} to {high:.2f} %",
        "substitutions": result.substitutions,
        "deletions": result.deletions,
        "insertions": result.insertions,
        "words": result.words,
        "CER": f"{result.cer:.2f} %",
        "utterances": result.utterances,
        "normalisation": f"{normalize} ({metric.normalization})",
        "matched by": "line" if ref.ids is None else f"id ({ref.format}, {hyp.format})",
    }
    for name, value in rows.items():
        click.echo(f"{name:<14} {value}")


@main.command()
@click.argument("audio", nargs=-1, required=True, metavar="AUDIO...")
@click.option("--model", metavar="DIR", required=True, help="Model folder that training left.")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["txt", "json"]),
    default="txt",
    show_default=True,
    help="Of each line: path, tab and text, or an object with id, path, text and duration. A txt "
    "file has the text alone.",
)
@click.option(
    "--output-dir",
    metavar="DIR",
    help="Instead of printing, write a file for each recording, and hypotheses.csv for scoring.",
)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option(
    "--batch-seconds",
    metavar="S",
    type=float,
    default=120.0,
    show_default=True,
    help="Seconds of audio in a batch.",
)
def transcribe(
    audio: tuple[str, ...],
    model: str,
    kind: str,
    output_dir: str | None,
    device: str,
    batch_seconds: float,
) -> None:
    """Transcribe AUDIO: files of any sample rate and channel count, and folders of them.

    A broken file is named and the others go on; the exit code is then 1.
    """
    from tqdm import tqdm

    from sru_asr.transcribe import Transcriber, TranscriptionError, find_audio, recording_ids

    found: dict[int, Transcript] = {}
    try:
        paths = find_audio(audio)
        ids = recording_ids(paths)
        if output_dir is not None:
            _check_writable(output_dir)
        transcriber = Transcriber(model, device, batch_seconds)
        started = time.perf_counter()
        # disable=None: a bar on a terminal only, not in log files
        with tqdm(total=len(paths), unit="file", disable=None) as bar:
            for index, transcript in transcriber.stream(paths):
                found[index] = transcript
                if transcript.error is not None:
                    bar.write(f"Error: {transcript.error}", file=sys.stderr)
                elif output_dir is not None:
                    name = ids[index]
                    content = _as_json(name, transcript) if kind == "json" else transcript.text
                    write_atomically(f"{output_dir}/{name}.{kind}", f"{content}\n")
                bar.update()
        elapsed = time.perf_counter() - started
        done = [(ids[index], found[index]) for index in sorted(found) if not found[index].error]
        if output_dir is not None:
            texts = {name: transcript.text for name, transcript in done}
            write_transcripts(f"{output_dir}/hypotheses.csv", texts, "csv")
    except (TranscriptionError, TranscriptError) as error:
        raise BadInput(str(error)) from None
    except OSError as error:
        raise BadInput(f"{error.filename}: {error.strerror}") from None
    if output_dir is None:
        for name, transcript in done:
            line = f"{transcript.path}\t{transcript.text}"
            click.echo(_as_json(name, transcript) if kind == "json" else line)
    seconds = sum(transcript.duration for _, transcript in done)
    summary = f"{len(done)} of {len(paths)} recordings, {seconds:.1f} s of audio, {elapsed:.1f} s"
    if seconds:
        summary += f" (real-time factor {elapsed / seconds:.3f})"
    click.echo(summary, err=True)
    failed = [path for index, path in enumerate(paths) if found[index].error]
    if failed:
        click.echo(f"failed: {', '.join(failed)}", err=True)
        raise SystemExit(1)


def _as_json(name: str, transcript: Transcript) -> str:
    record = {
        "id": name,
        "path": transcript.path,
        "text": transcript.text,
        "duration": round(transcript.duration, 3),
    }
    return json.dumps(record, ensure_ascii=False)


def _check_writable(folder: str) -> None:
    """Find out before the work rather than after it."""
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise BadInput(
            f"output folder {folder}: found that nothing can be written there "
            f"({error.strerror}), expected a writable folder"
        ) from None


@main.command()
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
        "packages": {package: version_of(package) for package in PACKAGES},
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


if __name__ == "__main__":
    main(prog_name="sru-asr")
