"""Compare the runs of two experiments, all seeds pooled.

    python recipes/compare.py results/an4_srupp_ctc_attention results/an4_conformer_ctc_attention

An experiment is a folder whose subfolders are runs (seeds), or one run.
"""

from __future__ import annotations

import json
from pathlib import Path

import click

from sru_asr.comparison import compare


def find_runs(experiment: Path, name: str) -> list[Path]:
    """The ``utterances_<name>.csv`` of an experiment's runs."""
    found = sorted(experiment.glob(f"*/utterances_{name}.csv"))
    single = experiment / f"utterances_{name}.csv"
    found = [single] if single.exists() else found
    if not found:
        raise click.BadParameter(
            f"{experiment}: found no utterances_{name}.csv in it or its subfolders; expected the "
            "results of train.py"
        )
    return found


@click.command()
@click.argument("first", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("second", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--score", default="valid", show_default=True, help="Which score: valid, test, valid_ngram ..."
)
@click.option("--resamples", default=10000, show_default=True, help="Draws of the bootstrap.")
def main(first: Path, second: Path, score: str, resamples: int) -> None:
    """Tell whether FIRST has a lower word error rate than SECOND (paired bootstrap)."""
    runs = {experiment: find_runs(experiment, score) for experiment in (first, second)}
    for experiment, paths in runs.items():
        click.echo(experiment)
        for path in paths:
            result = json.loads((path.parent / f"score_{score}.json").read_text(encoding="utf-8"))
            click.echo(f"  {path.parent.name}: WER {result['wer']:.2f} %, {result['decoder']}")
    try:
        click.echo(compare(runs[first], runs[second], resamples))
    except ValueError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
