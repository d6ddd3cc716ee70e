"""Writing files and folders whole: under a temporary name beside, then renamed."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)


@contextmanager
def atomically(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a name to write a file or a folder under, which replaces ``path`` when it is whole.

    A reader finds the old content or the new, nothing in between, and an exception in the block
    leaves the old. Missing parent folders are made. A link keeps pointing where it did. What is
    neither a regular file nor a folder, a pipe for example, is written directly.

    Parameters
    ----------
    path : path
        The file or folder to make or replace.

    Yields
    ------
    Path
        A name beside ``path`` with the same suffix, where there is nothing yet.

    Raises
    ------
    IsADirectoryError
        When a file was written in place of a folder.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with atomically(folder / "results" / "model") as temporary:
    ...     temporary.mkdir()
    ...     _ = (temporary / "weights").write_text("1 2 3")
    >>> [file.name for file in (folder / "results" / "model").iterdir()]
    ['weights']
    """
    path = Path(path)
    if path.exists() and not path.is_file() and not path.is_dir():
        yield path
        return
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    _remove(temporary)  # of a killed process that had the same number
    try:
        yield temporary
        if path.is_dir():
            _replace_folder(path, temporary)
        else:
            os.replace(temporary, path)
    finally:
        _remove(temporary)


def write_atomically(path: str | os.PathLike[str], content: str) -> None:
    """Write a UTF-8 text file so that a reader finds the old content or the new; see `atomically`.

    Examples
    --------
    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "results" / "score.txt"
    >>> write_atomically(file, "done")
    >>> file.read_text()
    'done'
    """
    with atomically(path) as temporary:
        temporary.write_text(content, encoding="utf-8", newline="")


@contextmanager
def exclusively(lock: str | os.PathLike[str]) -> Iterator[None]:
    """Wait until no other process is in such a block, and keep others out until it ends.

    The lock goes with its process, killed or not; the file goes with the last block.

    Parameters
    ----------
    lock : path
        A file that is nothing but the lock, in a folder that is there.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with exclusively(folder / ".lock"):
    ...     print(len(list(folder.iterdir())))
    1
    >>> list(folder.iterdir())
    []
    """
    while True:
        file = open(lock, "w")  # noqa: SIM115, held over the whole block
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                logger.info("waiting for the process that holds %s", lock)
                fcntl.flock(file, fcntl.LOCK_EX)
            try:
                # Who had it may have removed it since it was opened here: a lock on nothing.
                current = os.path.samestat(os.fstat(file.fileno()), os.stat(lock))
            except FileNotFoundError:
                current = False
            if current:
                try:
                    yield
                finally:
                    os.unlink(lock)
                return
        finally:
            file.close()


def _replace_folder(path: Path, new: Path) -> None:
    # A folder with content cannot be replaced in one step.
    if not new.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    old = path.with_name(f".old.{path.name}")
    _remove(old)
    os.replace(path, old)
    os.replace(new, path)
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
