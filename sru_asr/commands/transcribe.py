"""``sru-asr transcribe``: recordings to text with a model folder."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from sru_asr.commands import BadInput
from sru_asr.formats import FORMATS, FormatError, render

if TYPE_CHECKING:
    from sru_asr.recordings import Recording
    from sru_asr.segments import Transcript

# Of several recordings, these can follow each other in one stream.
IN_A_ROW = ("txt", "json", "ctm", "trn")


@click.command()
@click.argument("audio", nargs=-1, required=True, metavar="AUDIO...")
@click.option("--model", metavar="DIR", required=True, help="Model folder that training left.")
@click.option(
    "--format",
    "kind",
    type=click.Choice([*FORMATS, "all"]),
    default="txt",
    show_default=True,
    help="Printed, txt is path, tab and text on a line, and json an object on a line.",
)
@click.option(
    "--output-dir",
    metavar="DIR",
    help="Instead of printing, write a file for each recording, and hypotheses.csv for scoring.",
)
@click.option(
    "--skip-existing",
    is_flag=True,
    help="Leave out recordings whose files are in the output folder.",
)
@click.option(
    "--recursive/--no-recursive",
    default=True,
    show_default=True,
    help="Search folders in folders.",
)
@click.option("--data-root", metavar="DIR", help="What {data_root} stands for in manifests.")
@click.option("--word-timestamps", is_flag=True, help="Give each word its times (json, srt, vtt).")
@click.option("--confidence", is_flag=True, help="Give each segment a confidence (json).")
@click.option(
    "--nbest", metavar="N", type=click.IntRange(0), default=0, help="Give N best texts (json)."
)
@click.option(
    "--max-line-width", metavar="N", type=click.IntRange(1), help="Characters in a subtitle's line."
)
@click.option("--max-line-count", metavar="N", type=click.IntRange(1), help="Lines in a subtitle.")
@click.option(
    "--decoder",
    type=click.Choice(["greedy", "ctc-beam", "joint"]),
    help="Instead of the model folder's own.",
)
@click.option("--beam-size", metavar="N", type=int, help="Hypotheses that a search follows.")
@click.option("--lm", metavar="PATH", help="Language model: an ARPA file or a model's folder.")
@click.option(
    "--device", metavar="NAME", default="auto", show_default=True, help="auto, cpu or cuda[:N]."
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16", "fp16"]),
    default="fp32",
    show_default=True,
    help="Of matrix products.",
)
@click.option("--threads", metavar="N", type=click.IntRange(1), help="CPU threads.")
@click.option(
    "--batch-size",
    metavar="SECONDS",
    type=float,
    help="Audio in a batch; changes memory and speed, not the text.  [default: 40, on a GPU 120]",
)
@click.option(
    "--window",
    metavar="SECONDS",
    type=float,
    default=30.0,
    show_default=True,
    help="Longer recordings are cut at pauses.",
)
@click.option(
    "--trust-model", is_flag=True, help="Let the model folder's YAML run code of its own."
)
@click.option("--quiet", is_flag=True, help="Print transcripts and errors alone.")
@click.option(
    "--progress/--no-progress", default=None, help="A bar; by default on a terminal only."
)
def transcribe(
    audio: tuple[str, ...],
    model: str,
    kind: str,
    output_dir: str | None,
    skip_existing: bool,
    recursive: bool,
    data_root: str | None,
    word_timestamps: bool,
    confidence: bool,
    nbest: int,
    max_line_width: int | None,
    max_line_count: int | None,
    threads: int | None,
    batch_size: float | None,
    window: float,
    trust_model: bool,
    quiet: bool,
    progress: bool | None,
    **settings: Any,
) -> None:
    """Transcribe AUDIO: recordings of any format, sample rate and length.

    Files, folders of them, patterns, lists (a file on each line of a .txt) and manifests (.csv,
    .json). A broken file is named and the others go on; the exit code is then 1.
    """
    _check(kind, output_dir, skip_existing, confidence, nbest, max_line_width, max_line_count)
    # Here and not above, so that --help and a wrong option need not wait for PyTorch.
    from sru_asr.recordings import RecordingsError, find_recordings
    from sru_asr.transcript_folder import OutputError, TranscriptFolder
    from sru_asr.transcripts import TranscriptError

    kinds = FORMATS if kind == "all" else (kind,)
    started = time.perf_counter()
    try:
        with contextlib.ExitStack() as stack:
            recordings = find_recordings(audio, recursive, data_root)
            if output_dir is None:
                write = _Printer(kind, len(recordings), max_line_width, max_line_count).add
                wanted = recordings
            else:
                folder = TranscriptFolder(output_dir, kinds, max_line_width, max_line_count)
                write = stack.enter_context(folder).add
                skip = {one.id for one in recordings if skip_existing and folder.has(one)}
                wanted = [one for one in recordings if one.id not in skip]
            failed, seconds = [], 0.0
            if wanted:
                from sru_asr.model_folder import ModelFolderError
                from sru_asr.transcribe import Options, Transcriber, TranscriptionError

                try:
                    if threads is not None:
                        import torch

                        torch.set_num_threads(threads)
                    transcriber = Transcriber(
                        model,
                        batch_seconds=batch_size,
                        window_seconds=window,
                        trust=trust_model,
                        **settings,
                    )
                    options = Options(word_timestamps or "ctm" in kinds, confidence, nbest)
                    loaded = time.perf_counter()
                    bar = stack.enter_context(_bar(wanted, False if quiet else progress))
                    paths = [one.path for one in wanted]
                    found = transcriber.stream(paths, options, bar.update)
                    for recording, transcript in zip(wanted, found, strict=True):
                        error = transcript.error
                        if error is None:
                            seconds += transcript.duration
                            try:
                                write(recording, transcript)
                            except FormatError as format_error:
                                error = f"audio file {recording.path}: {format_error}"
                        if error is not None:
                            failed.append(recording)
                            bar.write(f"Error: {error}", file=sys.stderr)
                except (ModelFolderError, TranscriptionError) as error:
                    raise BadInput(str(error)) from None
    except (RecordingsError, OutputError, TranscriptError) as error:
        raise BadInput(str(error)) from None
    except OSError as error:
        raise BadInput(f"{error.filename}: {error.strerror}") from None
    if not quiet:
        done = len(wanted) - len(failed)
        summary = f"{done} of {len(recordings)} recordings"
        if len(wanted) < len(recordings):
            summary += f" ({len(recordings) - len(wanted)} were there)"
        if wanted:
            elapsed = time.perf_counter() - loaded
            summary += f", {seconds:.1f} s of audio, {elapsed:.1f} s"
            summary += f" after {loaded - started:.1f} s to load"
        if seconds:
            summary += f" (real-time factor {elapsed / seconds:.3f})"
        click.echo(summary, err=True)
    if failed:
        names = ", ".join(recording.path for recording in failed)
        click.echo(f"failed: {len(failed)} of {len(recordings)}: {names}", err=True)
        raise SystemExit(1)


class _Printer:
    """Writes transcripts to the standard output."""

    def __init__(self, kind: str, count: int, width: int | None, lines: int | None) -> None:
        if count > 1 and kind not in IN_A_ROW:
            raise BadInput(
                f"--format {kind}: found {count} recordings to print, expected one, or --output-dir"
            )
        self._kind, self._width, self._lines = kind, width, lines

    def add(self, recording: Recording, transcript: Transcript) -> None:
        """Print one transcript."""
        if self._kind == "txt":
            click.echo(f"{recording.path}\t{' '.join(transcript.text.split())}")
            return
        content = render(self._kind, recording.id, transcript, self._width, self._lines)
        if self._kind == "json":
            content = json.dumps(json.loads(content), ensure_ascii=False) + "\n"
        click.echo(content, nl=False)


def _check(
    kind: str,
    output_dir: str | None,
    skip_existing: bool,
    confidence: bool,
    nbest: int,
    width: int | None,
    count: int | None,
) -> None:
    """Find options that do not go together."""
    if output_dir is None:
        for name, given in (("--format all", kind == "all"), ("--skip-existing", skip_existing)):
            if given:
                raise BadInput(f"{name}: found no --output-dir, which it needs")
    for name, asked in (("--nbest", nbest), ("--confidence", confidence)):
        if asked and kind not in ("json", "all"):
            raise BadInput(f"{name}: found --format {kind}, expected json or all, which have it")
    if count is not None and width is None:
        raise BadInput("--max-line-count: found no --max-line-width, which it needs")
    if width is not None and kind not in ("srt", "vtt", "all"):
        raise BadInput(f"--max-line-width: found --format {kind}, expected srt, vtt or all")


def _bar(recordings: list[Recording], shown: bool | None) -> Any:
    """A bar of the seconds of audio; None: on a terminal only, not in log files."""
    from tqdm import tqdm

    from sru_asr.audio import AudioError, audio_info

    if shown is None:
        shown = sys.stderr.isatty()
    seconds = 0.0
    for recording in recordings if shown else []:
        with contextlib.suppress(AudioError):  # it will be named when it is read
            seconds += audio_info(recording.path).duration
    return tqdm(total=round(seconds) or None, unit="s", unit_scale=True, disable=not shown)
