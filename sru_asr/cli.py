"""The command line, ``sru-asr``."""

from __future__ import annotations

import click

from sru_asr import __version__
from sru_asr.commands.env import env
from sru_asr.commands.info import info
from sru_asr.commands.score import score
from sru_asr.commands.transcribe import transcribe


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="sru-asr", message="%(prog)s %(version)s")
def main() -> None:
    """Speech recognition with the Simple Recurrent Unit."""


for command in (transcribe, score, info, env):
    main.add_command(command)

if __name__ == "__main__":
    main(prog_name="sru-asr")
