"""The commands of ``sru-asr``, one in each module; a command imports what it needs when it runs."""

import click


class BadInput(click.ClickException):
    """One sentence on stderr instead of a traceback."""

    exit_code = 2
