"""How time grows with the number of steps and falls with the number of threads.

    python benchmarks/scaling.py [--device cuda]

Four bidirectional layers. All of a panel's lengths, or numbers of threads, are timed in turn, so
that their ratios come from the same minutes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace

import peers
import torch
from harness import Call, Panel, measure, parser, report, settings
from peers import PRODUCTS, Shape

LENGTHS = (1000, 8000)
LONG, BATCH, QUICK = Shape(1, 0, 512, 512), Shape(16, 500, 256, 256), Shape(2, 20, 16, 16)
MODES = ("inference", "training")


def lengths(shape: Shape, steps: Sequence[int], device: str) -> Iterator[Panel]:
    """Yield a panel for each mode: SRU and its products at each number of steps.

    Parameters
    ----------
    shape : Shape
        Its own number of steps does not matter.
    steps : sequence of int
    device : str

    Yields
    ------
    Panel
    """
    names = peers.available(("SRU", *PRODUCTS), device)
    for mode in MODES:
        yield Panel(
            f"{mode} B{shape.batch} {shape.features}->{shape.hidden}, steps",
            {
                f"{name} T{number}": peers.call(name, replace(shape, steps=number), device, mode)
                for name in names
                for number in steps
            },
            {"over": "steps", "mode": mode, "steps": list(steps), "batch": shape.batch},
        )


def threads(shape: Shape, numbers: Sequence[int]) -> Iterator[Panel]:
    """Yield a panel for each mode: SRU, its products and nn.LSTM with each number of threads.

    Parameters
    ----------
    shape : Shape
    numbers : sequence of int
        Of CPU threads.

    Yields
    ------
    Panel
    """
    names = peers.available(("SRU", *PRODUCTS, "nn.LSTM"), "cpu")
    for mode in MODES:
        calls = {name: peers.call(name, shape, "cpu", mode) for name in names}
        yield Panel(
            f"{mode} {shape}, threads",
            {
                f"{name} {number} thread{'s' * (number > 1)}": _with_threads(call, number)
                for name, call in calls.items()
                for number in numbers
            },
            {"over": "threads", "mode": mode, "threads": list(numbers), "steps": shape.steps},
        )


def _with_threads(call: Call, number: int) -> Call:
    def run() -> None:
        torch.set_num_threads(number)
        call()

    return run


def thread_numbers() -> list[int]:
    """Return 1, 2, 4 and so on to the number of CPU cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return sorted({2**i for i in range((cores or 1).bit_length())} | {cores or 1})


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser("Time SRU layers over numbers of steps and of threads.", seconds=6)
    args = options.parse_args(arguments)
    steps = (10, 80) if args.quick else LENGTHS
    measured = []
    with settings(args):
        for panel in lengths(QUICK if args.quick else LONG, steps, args.device):
            measure(panel, args)
            measured.append(panel)
        if args.device == "cpu":
            for panel in threads(QUICK if args.quick else BATCH, thread_numbers()):
                measure(panel, args)
                measured.append(panel)
    with settings(args):  # the calls above have changed the number of threads
        report("scaling", measured, args)


if __name__ == "__main__":
    main()
