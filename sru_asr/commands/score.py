"""``sru-asr score``: word error rate of transcripts against a reference."""

from __future__ import annotations

import click

from sru_asr.commands import BadInput
from sru_asr.text import PRESETS
from sru_asr.transcripts import FORMATS, TranscriptError, pair, read_pair


@click.command()
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
