"""``sru-asr transcribe``: recordings to text with a model folder."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from typing import TYPE_CHECKING

import click

from sru_asr.commands import BadInput
from sru_asr.files import write_atomically
from sru_asr.transcripts import TranscriptError, write_transcripts

if TYPE_CHECKING:
    from sru_asr.segments import Transcript


@click.command()
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

    from sru_asr.model_folder import ModelFolderError
    from sru_asr.recordings import RecordingsError, find_audio, recording_ids
    from sru_asr.transcribe import Transcriber, TranscriptionError

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
    except (ModelFolderError, RecordingsError, TranscriptionError, TranscriptError) as error:
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
