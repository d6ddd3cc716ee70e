"""A folder of transcripts: a file for each recording and format, and one of all for scoring.

Several processes may write to one folder, and any of them may be killed: files are written whole,
under a lock, and what a killed process left is removed by the next.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from sru_asr.files import exclusively, write_atomically
from sru_asr.formats import FORMATS, render
from sru_asr.recordings import Recording
from sru_asr.segments import Transcript
from sru_asr.transcripts import TranscriptError, read_transcripts, write_transcripts

HYPOTHESES = "hypotheses.csv"
LOCK = ".lock"
# Results wait no longer than so many seconds to be written; together they are written faster.
DELAY = 2.0
_LEFT = re.compile(rf"\.\d+\.(.*\.({'|'.join(FORMATS)})|{re.escape(HYPOTHESES)})")


class OutputError(OSError):
    """Transcripts cannot be written; the message says what was found and what was expected."""


class TranscriptFolder:
    """Writes transcripts; a context, at whose end everything is written.

    ``hypotheses.csv`` has the text of each recording that has a file in the folder.

    Parameters
    ----------
    folder : str or path
        Made if it is not there.
    kinds : sequence of str
        Formats, of `sru_asr.formats.FORMATS`.
    max_line_width, max_line_count : int, optional
        See `sru_asr.formats.render`.

    Raises
    ------
    OutputError
        If nothing can be written there, also later: the disk may be full.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with TranscriptFolder(folder, ["txt"]) as transcripts:
    ...     transcripts.add(Recording("a.wav", "a"), Transcript("a.wav", "GO", 1.0))
    >>> sorted(path.name for path in folder.iterdir())
    ['a.txt', 'hypotheses.csv']
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        kinds: Sequence[str],
        max_line_width: int | None = None,
        max_line_count: int | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.kinds = tuple(kinds)
        self._width, self._count = max_line_width, max_line_count
        self._waiting: list[tuple[Recording, str, dict[str, str]]] = []
        self._written = time.monotonic()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with exclusively(self.folder / LOCK):
                self._tidy()
                self._texts = self._read()
        except OSError as error:
            raise OutputError(
                f"output folder {self.folder}: found that nothing can be written there "
                f"({error.strerror or error}), expected a writable folder"
            ) from None

    def __enter__(self) -> TranscriptFolder:
        """Nothing more to prepare."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Write what waits, also when the work was interrupted."""
        self.flush()

    def has(self, recording: Recording) -> bool:
        """Whether all files of a recording were there from the beginning."""
        files = (self.folder / f"{recording.stem}.{kind}" for kind in self.kinds)
        return recording.id in self._texts and all(file.is_file() for file in files)

    def add(self, recording: Recording, transcript: Transcript) -> None:
        """Write a transcript now, or soon.

        Raises
        ------
        FormatError
            If a format has no way to say what was recognised; then nothing of it is written.
        """
        contents = {
            f"{recording.stem}.{kind}": render(
                kind, recording.id, transcript, self._width, self._count
            )
            for kind in self.kinds
        }
        self._waiting.append((recording, " ".join(transcript.text.split()), contents))
        if time.monotonic() - self._written > DELAY:
            self.flush()

    def flush(self) -> None:
        """Write everything that waits."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        name = HYPOTHESES
        try:
            with exclusively(self.folder / LOCK):
                self._tidy()
                # First, so that a killed process leaves no file without its text in the table.
                texts = self._read() | {recording.id: text for recording, text, _ in waiting}
                write_transcripts(self.folder / name, texts, "csv")
                for _, _, contents in waiting:
                    for name, content in contents.items():
                        write_atomically(self.folder / name, content)
        except OSError as error:
            raise OutputError(
                f"{self.folder / name}: found that it cannot be written "
                f"({error.strerror or error}), expected a writable folder and space on the disk; "
                "the files that are there are whole, and --skip-existing goes on from them"
            ) from None
        self._written = time.monotonic()

    def _tidy(self) -> None:
        """Remove what killed processes were writing; the living ones wait for the lock."""
        for entry in os.scandir(self.folder):
            if _LEFT.fullmatch(entry.name):
                os.unlink(entry.path)

    def _read(self) -> dict[str, str]:
        """The table's texts of recordings that have a file."""
        table = self.folder / HYPOTHESES
        if not table.is_file():
            return {}
        try:
            texts = read_transcripts(table).texts
        except TranscriptError as error:
            raise OutputError(f"{error}; remove it, or choose another folder") from None
        there = {entry.name for entry in os.scandir(self.folder)}
        return {
            ID: text
            for ID, text in texts.items()
            if any(f"{Recording('', ID).stem}.{kind}" in there for kind in FORMATS)
        }
