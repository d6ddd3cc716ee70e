"""Versions of what is installed."""

from __future__ import annotations


def version_of(package: str) -> str | None:
    """Version of an installed package; None where it is not installed.

    Examples
    --------
    >>> version_of("no-such-package") is None
    True
    """
    from importlib import metadata  # which takes as long as all else that `sru-asr --help` needs

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
