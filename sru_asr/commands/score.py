"""``sru-asr score``: word error rates of transcripts against a reference."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sru_asr.commands import BadInput
from sru_asr.text import PRESET_NAMES
from sru_asr.transcripts import FORMATS, TranscriptError, Transcripts, pair, read_pair

if TYPE_CHECKING:
    from sru_asr.evaluation import Evaluation
    from sru_asr.score import Score, WordErrorRate


@click.command()
@click.argument("reference", metavar="REF")
@click.argument("hypotheses", metavar="HYP [HYP ...]", nargs=-1, required=True)
@click.option("--ref-format", type=click.Choice(FORMATS), help="Format of REF.")
@click.option("--hyp-format", type=click.Choice(FORMATS), help="Format of each HYP.")
@click.option(
    "--name",
    "names",
    metavar="NAME",
    multiple=True,
    help="What to call a system; once for each HYP, in their order. Or write HYP as NAME=FILE.",
)
@click.option(
    "--normalize",
    type=click.Choice(PRESET_NAMES),
    default="none",
    show_default=True,
    help="Change both sides first. none: single spaces only; basic: also lower case, composed "
    "Unicode and no punctuation; english: as Whisper's paper does (pip install "
    "'sru-asr[english]').",
)
@click.option(
    "--by",
    metavar="WHAT",
    multiple=True,
    help="Score parts, too: by speaker, by length (words of the reference) or by a column of the "
    "manifest. May be repeated.",
)
@click.option("--manifest", metavar="FILE", help="CSV or JSON with an ID and columns for --by.")
@click.option(
    "--speaker-pattern",
    metavar="REGEX",
    help="Finds the speaker in an id: what its first group matches, e.g. '^([^-]+)-'.",
)
@click.option("--json", "json_file", metavar="FILE", help="Write the scores as JSON.")
@click.option("--csv", "csv_file", metavar="FILE", help="Write a row for each utterance.")
@click.option("--by-csv", metavar="FILE", help="Write a row for each part of --by.")
@click.option("--details", metavar="FILE", help="Write the alignment of every error.")
@click.option("--html", "html_file", metavar="FILE", help="Write a page that shows all of it.")
@click.option(
    "--audio-root",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Where the recordings are (<id>.wav, or the manifest's wav): the page gets players.",
)
@click.option("--embed-audio", is_flag=True, help="Put the recordings into the page itself.")
@click.option(
    "--bootstrap",
    type=click.IntRange(min=100),
    default=2000,
    show_default=True,
    help="Resamples for the 95 % intervals and p values.",
)
@click.option(
    "--allow-empty-reference",
    is_flag=True,
    help="Count the words against an empty reference as insertions instead of refusing it.",
)
def score(
    reference: str,
    hypotheses: tuple[str, ...],
    ref_format: str | None,
    hyp_format: str | None,
    names: tuple[str, ...],
    normalize: str,
    by: tuple[str, ...],
    manifest: str | None,
    speaker_pattern: str | None,
    json_file: str | None,
    csv_file: str | None,
    by_csv: str | None,
    details: str | None,
    html_file: str | None,
    audio_root: Path | None,
    embed_audio: bool,
    bootstrap: int,
    allow_empty_reference: bool,
) -> None:
    """Score the transcripts HYP against REF by word error rate.

    Each is Kaldi text, trn, CSV (ID, wrd), JSON (id, text), ctm, stm or plain text with one
    utterance a line. Utterances are matched by id, plain text by line. The format follows from the
    file's name and content; the options override it. Of several systems, a paired bootstrap tells
    which differ.
    """
    files = _named_files(hypotheses, names)
    outputs = [json_file, csv_file, by_csv, details, html_file]
    _check_files([reference, *files.values(), *([manifest] if manifest else [])], outputs)
    if by_csv and not by:
        raise BadInput("--by-csv: expected --by, which says what the parts are")
    if (audio_root or embed_audio) and not html_file:
        raise BadInput("--audio-root and --embed-audio are for the page; expected --html")
    if embed_audio and not (audio_root or manifest):
        raise BadInput("--embed-audio: expected --audio-root or --manifest, which name recordings")

    from sru_asr.breakdown import BreakdownError, divide, names_by_value, values_by
    from sru_asr.evaluation import evaluate
    from sru_asr.score import WordErrorRate
    from sru_asr.text import preset

    try:
        normalizer = preset(normalize)
    except ModuleNotFoundError as error:
        raise BadInput(f"--normalize {normalize}: {error}") from None
    bad_input: tuple[type[Exception], ...] = (TranscriptError, BreakdownError)
    rows = None
    try:
        if manifest:
            from sru_asr.manifest import ManifestError, read_table  # needs soundfile

            bad_input += (ManifestError,)
            rows = read_table(manifest, audio_root)
        systems: dict[str, WordErrorRate] = {}
        formats: dict[str, tuple[Transcripts, Transcripts]] = {}
        for name, file in files.items():
            formats[name] = read_pair(reference, file, ref_format, hyp_format)
            ids, references, texts = zip(*pair(*formats[name]), strict=True)
            systems[name] = WordErrorRate(normalizer, bootstrap, allow_empty_reference)
            systems[name].append(ids, texts, references)
        _check_one_reference(formats)
        utterances = {name: metric.utterances() for name, metric in systems.items()}
        words = {one.id: one.words for one in next(iter(utterances.values()))}
        parts = {
            what: divide(values_by(what, words, rows, speaker_pattern), names_by_value(what))
            for what in by
        }
        normalization = f"{normalize} ({normalizer})"
        evaluation = evaluate(utterances, _readable(reference), normalization, parts, bootstrap)
        if html_file:
            from sru_asr.report import write_html
            from sru_asr.report.players import find_recordings

            table = rows[1] if rows else {}
            wavs = {one: row["wav"] for one, row in table.items() if row.get("wav")}
            recordings = find_recordings(words, audio_root, wavs)
            write_html(html_file, evaluation, recordings, embed_audio)
        if json_file:
            _write_json(json_file, evaluation)
        if csv_file:
            evaluation.write_csv(csv_file)
        if by_csv:
            evaluation.write_breakdowns(by_csv)
        if details:
            _write_details(details, systems)
    except bad_input as error:
        raise BadInput(str(error)) from None
    except OSError as error:
        raise BadInput(f"{error.filename}: {error.strerror}") from None
    _print(evaluation, formats)
    if html_file:
        players = f", {len(recordings)} with a player" if recordings else ""
        click.echo(f"\n{html_file}: {len(words)} utterances{players}")


def _named_files(arguments: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """The files of the systems by their names."""
    if names and len(names) != len(arguments):
        raise BadInput(f"--name: found {len(names)} for {len(arguments)} files, expected each")
    if names:
        named = list(zip(names, arguments, strict=True))
    else:
        split = [_split_name(argument) for argument in arguments]
        short = _short_names([file for name, file in split if name is None])
        named = [(short[file] if name is None else name, file) for name, file in split]
    files = [file for _, file in named]
    for what, times in (
        ("file", Counter(os.path.relpath(os.path.realpath(file)) for file in files)),
        ("name", Counter(name for name, _ in named)),
    ):
        twice = [one for one, count in times.items() if count > 1]
        if twice:
            raise BadInput(f"HYP: the {what} {twice[0]} is given twice, expected different systems")
    empty = [file for name, file in named if not name.strip()]
    if empty:
        raise BadInput(f"HYP: the name of {empty[0]} is empty")
    return {_readable(name): file for name, file in named}


def _readable(name: str) -> str:
    """A name of a file that is not UTF-8 cannot be written to one that is."""
    return os.fsencode(name).decode(errors="replace")


def _split_name(argument: str) -> tuple[str | None, str]:
    """NAME=FILE, unless there is a file that is called so."""
    name, equals, file = argument.partition("=")
    if not equals or os.path.exists(argument):
        return None, argument
    if not os.path.exists(file):
        raise BadInput(
            f"{argument}: No such file, nor is there {file or 'a file after the ='} to be called "
            f"{name}"
        )
    return name, file


def _short_names(files: Sequence[str]) -> dict[str, str]:
    """As much of the end of each path as tells the files apart."""
    paths = [Path(os.path.abspath(file)).with_suffix("") for file in files]
    deepest = max((len(path.parts) for path in paths), default=1)
    for depth in range(1, deepest + 1):
        ends = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(ends)) == len(ends):
            # What all paths end in says nothing: a/hyp and b/hyp are a and b.
            if depth > 1 and len({path.name for path in paths}) == 1:
                ends = [end.rpartition("/")[0] for end in ends]
            return dict(zip(files, ends, strict=True))
    return dict(zip(files, files, strict=True))


def _check_files(inputs: Sequence[str], outputs: Sequence[str | None]) -> None:
    """No file may be written over another one, or over what was read."""
    seen = {os.path.realpath(file) for file in inputs}
    for file in filter(None, outputs):
        if os.path.realpath(file) in seen and not os.path.isdir(file):
            raise BadInput(f"{file}: is read or written already, expected another file to write")
        seen.add(os.path.realpath(file))


def _check_one_reference(formats: Mapping[str, tuple[Transcripts, Transcripts]]) -> None:
    read_as = {name: ref.format for name, (ref, _) in formats.items()}
    if len(set(read_as.values())) > 1:
        found = ", ".join(f"{format} for {name}" for name, format in read_as.items())
        raise TranscriptError(f"REF was read as {found}; state --ref-format and --hyp-format")


def _write_json(path: str, evaluation: Evaluation) -> None:
    """One system as a training run writes it, several as `Evaluation.as_dict`."""
    import json

    from sru_asr.files import write_atomically

    found = evaluation.as_dict()
    if len(evaluation.systems) == 1:
        extra = {"breakdowns": found["breakdowns"]} if evaluation.breakdowns else {}
        evaluation.systems[0].score.to_json(path, **extra)
    else:
        write_atomically(path, json.dumps(found, indent=2) + "\n")


def _write_details(path: str, systems: Mapping[str, WordErrorRate]) -> None:
    import io

    from sru_asr.files import write_atomically

    text = io.StringIO()
    for name, metric in systems.items():
        if len(systems) > 1:
            text.write(f"##### {name}\n\n")
        metric.write_stats(text)
    write_atomically(path, text.getvalue())


def _print(evaluation: Evaluation, formats: Mapping[str, tuple[Transcripts, Transcripts]]) -> None:
    if len(evaluation.systems) == 1:
        _print_rows(_result(evaluation.systems[0].score) | _origin(evaluation, formats))
    else:
        _print_systems(evaluation)
        _print_comparisons(evaluation)
        click.echo()
        first = evaluation.systems[0].score
        counts = {"words": first.words, "utterances": first.utterances}
        _print_rows(counts | _origin(evaluation, formats))
    _print_breakdowns(evaluation)


def _result(found: Score) -> dict[str, object]:
    low, high = found.ci95
    return {
        "WER": f"{found.wer:.2f} %",
        "95 % interval": f"{low:.2f} to {high:.2f} %",
        "substitutions": found.substitutions,
        "deletions": found.deletions,
        "insertions": found.insertions,
        "words": found.words,
        "CER": f"{found.cer:.2f} %",
        "utterances": found.utterances,
    }


def _origin(
    evaluation: Evaluation, formats: Mapping[str, tuple[Transcripts, Transcripts]]
) -> dict[str, object]:
    ref, _ = next(iter(formats.values()))
    read = ", ".join([ref.format, *(hyp.format for _, hyp in formats.values())])
    rows: dict[str, object] = {
        "normalisation": evaluation.normalization,
        "matched by": "line" if ref.ids is None else f"id ({read})",
    }
    for name, (_, hyp) in formats.items():
        absent = len(ref.texts.keys() - hyp.texts.keys())
        if absent:  # of CTM alone, as `pair` has made sure
            of = f" of {name}" if len(formats) > 1 else ""
            rows[f"without words{of}"] = f"{absent} recordings that are not in the CTM file"
    return rows


def _print_rows(rows: Mapping[str, object]) -> None:
    for name, value in rows.items():
        click.echo(f"{name:<14} {value}")


def _print_systems(evaluation: Evaluation) -> None:
    rows = [["system", "WER", "95 % interval", "S", "D", "I", "CER", "SER"]]
    for system in evaluation.systems:
        found = system.score
        low, high = found.ci95
        errors = [found.substitutions, found.deletions, found.insertions]
        rows.append(
            [system.name, f"{found.wer:.2f} %", f"{low:.2f} to {high:.2f}"]
            + [*map(str, errors), f"{found.cer:.2f} %", f"{system.ser:.2f} %"]
        )
    _print_table(rows)


def _print_comparisons(evaluation: Evaluation) -> None:
    names = [system.name for system in evaluation.systems]
    rows = [["difference of WER", "", "95 % interval", "p"]]
    for (first, second), found in evaluation.comparisons.items():
        low, high = found.ci95
        smallest = "<= " if found.p_value <= 2 / evaluation.resamples else ""
        rows.append(
            [f"{names[first]} - {names[second]}", f"{found.difference:+.2f}"]
            + [f"{low:+.2f} to {high:+.2f}", f"{smallest}{found.p_value:.4f}"]
        )
    click.echo()
    _print_table(rows)
    click.echo(
        f"paired bootstrap over utterances, {evaluation.resamples} resamples; p two-sided, of each "
        "pair alone"
    )


def _print_breakdowns(evaluation: Evaluation) -> None:
    names = [system.name for system in evaluation.systems]
    labels = [f"WER of {name}" for name in names] if len(names) > 1 else ["WER"]
    for breakdown in evaluation.breakdowns:
        heads = [part for label in labels for part in (label, "95 % interval")]
        rows = [[f"by {breakdown.name}", "utterances", "words", *heads]]
        for group in breakdown.groups:
            words = group.scores[0].words if group.scores[0] else 0
            row = [group.label, str(len(group.ids)), str(words)]
            for found in group.scores:
                low, high = found.ci95 if found else (0.0, 0.0)
                row += [f"{found.wer:.2f} %", f"{low:.2f} to {high:.2f}"] if found else ["-", "-"]
            rows.append(row)
        click.echo()
        _print_table(rows)


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    """The first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        click.echo("  ".join(cells).rstrip())
