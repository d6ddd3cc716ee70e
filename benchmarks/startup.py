"""Start-up of the command line, from the shell's call to the end of the process.

    python benchmarks/startup.py [--model results/demo/model]

Goals: ``sru-asr --help`` within 0.5 s, ``sru-asr score`` within 2 s, on an idle core. What a core
was busy with, the second panel, is what it takes there once the files are in memory, whatever
else the machine does.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from harness import Panel, measure, parser, report, settings

UTTERANCES = 100
COMMAND = [sys.executable, "-m", "sru_asr.cli"]


def commands(folder: Path, model: Path | None) -> dict[str, list[str]]:
    """What a user waits for.

    Parameters
    ----------
    folder : Path
        Receives the transcripts that are scored.
    model : Path or None
        A model folder for ``sru-asr info``.

    Returns
    -------
    dict of str to list of str
    """
    files = [str(folder / "ref.txt"), str(folder / "hyp.txt")]
    for file in files:
        Path(file).write_text("go north and stop\n" * UTTERANCES)
    found = {
        "python": [sys.executable, "-c", "pass"],
        "sru-asr --help": [*COMMAND, "--help"],
        "sru-asr score": [*COMMAND, "score", *files],
        "import torch": [sys.executable, "-c", "import torch"],
    }
    return (
        found
        if model is None
        else {**found, "sru-asr info": [*COMMAND, "info", f"--model={model}"]}
    )


def cpu_seconds(command: list[str]) -> float:
    """Run a command; user and system time of all its threads."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return usage.ru_utime + usage.ru_stime


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser("Time the command line's start.", seconds=20)
    options.add_argument("--model", type=Path, help="a model folder, for sru-asr info")
    args = options.parse_args(arguments)
    with settings(args), tempfile.TemporaryDirectory() as folder:
        timed = commands(Path(folder), args.model)
        described = {"utterances": UTTERANCES}
        title = f"start to end of a process, {UTTERANCES} utterances scored"
        calls = {name: partial(cpu_seconds, command) for name, command in timed.items()}
        elapsed = Panel(title, dict(calls), described, "s", 1.0)
        measure(elapsed, args)
        busy = Panel(f"{title}: a core's time", {}, described, "s", 1.0, "CPU seconds")
        for _ in range(2 if args.quick else 5):
            for name, call in calls.items():
                busy.samples.setdefault(name, []).append(call())
        report("startup", [elapsed, busy], args)


if __name__ == "__main__":
    main()
