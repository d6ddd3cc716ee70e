"""One bidirectional layer beside its products and all peers, from T = 100 to 16000, B = 1 to 64.

    python benchmarks/sweep.py [--device cuda] [--threads 2] [--rows 32000]

``--rows`` leaves out the larger of the T x B combinations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import peers
from harness import Panel, measure, parser, report, settings, spread
from peers import BF16, OLD_SRU, PRODUCTS, Shape

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STEPS, BATCHES = (100, 500, 2000, 8000, 16000), (1, 4, 16, 64)
WIDTH = 512  # of the input and of both directions together: a layer in the middle of a stack
TRAINING = ("SRU", *PRODUCTS, "nn.LSTM", "nn.GRU", "nn.Conv1d k=3")
INFERENCE = (*TRAINING, OLD_SRU)  # which in training would be slower than all the rest together
LONGEST = 2000  # steps at which nn.GRU's loop on a CPU is still waited for in training
CUDA = ("SRU" + BF16, "nn.LSTM" + BF16, "attention (SDPA)" + BF16)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser("Time one layer over numbers of steps and of sequences.", seconds=1)
    options.add_argument("--rows", type=int, help="most T x B (32000; on a GPU 512000)")
    args = options.parse_args(arguments)
    cpu = args.device == "cpu"
    rows = args.rows or (32_000 if cpu else 512_000)
    steps, batches, width = ((10, 20), (1, 2), 16) if args.quick else (STEPS, BATCHES, WIDTH)
    measured = []
    with settings(args):
        for batch in batches:
            for number in steps:
                if batch * number > rows:
                    continue
                shape = Shape(batch, number, width, width // 2, layers=1)
                inference, training = INFERENCE, TRAINING
                if not cpu:
                    inference, training = (*INFERENCE, *CUDA), (*TRAINING, *CUDA)
                elif number > LONGEST:
                    training = tuple(name for name in TRAINING if name != "nn.GRU")
                for panel in peers.panels(shape, args.device, inference, training):
                    measure(panel, args)
                    measured.append(panel)
        report("sweep", measured, args, lines)


def lines(panels: list[Panel]) -> Figure:
    """Draw the time of a step of a sequence over T; a column for each B, a row for each mode."""
    from matplotlib import pyplot as plt

    modes = ("inference", "training")
    batches = sorted({panel.settings["batch"] for panel in panels})
    cases = list(dict.fromkeys(case for panel in panels for case in panel.samples))
    figure, axes = plt.subplots(
        len(modes),
        len(batches),
        figsize=(3.2 * len(batches), 6),
        sharex=True,
        sharey="row",
        squeeze=False,
        layout="constrained",
    )
    for row, mode in zip(axes, modes, strict=True):
        for axis, batch in zip(row, batches, strict=True):
            for number, case in enumerate(cases):
                points = [
                    (panel.settings["steps"], spread(panel.samples[case])["median"])
                    for panel in panels
                    if panel.settings["mode"] == mode
                    and panel.settings["batch"] == batch
                    and case in panel.samples
                ]
                if points:
                    axis.loglog(
                        [steps for steps, _ in points],
                        [seconds * 1e6 / steps / batch for steps, seconds in points],
                        "o-",
                        color="#3465a4" if case == "SRU" else f"C{number}",
                        linewidth=2.5 if case == "SRU" else 1,
                        markersize=3,
                        label=case,
                    )
            axis.set_title(f"{mode} B{batch}", fontsize=9)
            axis.tick_params(labelsize=8)
            axis.grid(alpha=0.3)
        row[0].set_ylabel("µs a step and sequence", fontsize=8)
    for axis in axes[-1]:
        axis.set_xlabel("T", fontsize=8)
    figure.legend(
        *axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8
    )
    return figure


if __name__ == "__main__":
    main()
