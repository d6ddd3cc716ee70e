"""Four bidirectional SRU layers beside their own matrix products and all peers.

    python benchmarks/layer.py [--device cuda] [--threads 2]

The products alone are the floor of any implementation that computes them in the same way: F.linear
is PyTorch's (MKL on a CPU), oneDNN the other library that PyTorch brings, which is the faster one
on some CPUs. The floor is the faster of the two.
"""

from __future__ import annotations

from collections.abc import Sequence

import peers
from harness import measure, parser, report, settings
from peers import BF16, OLD_SRU, PRODUCTS, Shape

SHAPES = [Shape(16, 500, 256, 256), Shape(4, 250, 256, 256), Shape(1, 2000, 512, 512)]
CUDA_SHAPES = [Shape(32, 500, 512, 512), *SHAPES]
QUICK = [Shape(2, 20, 16, 16)]

CASES = [
    "SRU",
    "SRU" + BF16,
    *PRODUCTS,
    PRODUCTS[0] + BF16,
    "nn.LSTM",
    "nn.LSTM" + BF16,
    "nn.GRU",
    "nn.Conv1d k=3",
    OLD_SRU,
]
# On a GPU everything also in bf16, and both ways to keep states for the backward pass.
CUDA_KINDS = ["SRU", PRODUCTS[0], "nn.LSTM", "nn.GRU", "nn.Conv1d k=3", "attention (SDPA)"]
CUDA_CASES = [kind + suffix for suffix in ("", BF16) for kind in CUDA_KINDS]
CUDA_TRAINING = [
    f"SRU recompute={option}{suffix}" for suffix in ("", BF16) for option in (True, False)
]
LONGEST = 1000  # steps at which the old package's loop in Python is still waited for in training


def cases(shape: Shape, device: str) -> tuple[list[str], list[str]]:
    """Return the names of the cases for inference and for training."""
    if device != "cpu":
        return CUDA_CASES, [*CUDA_CASES, *CUDA_TRAINING]
    short = shape.steps <= LONGEST
    return CASES, [name for name in CASES if short or name != OLD_SRU]


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser("Time SRU layers beside their matrix products and all peers.", seconds=8)
    args = options.parse_args(arguments)
    shapes = QUICK if args.quick else SHAPES if args.device == "cpu" else CUDA_SHAPES
    with settings(args):
        measured = []
        for shape in shapes:
            for panel in peers.panels(shape, args.device, *cases(shape, args.device)):
                measure(panel, args)
                measured.append(panel)
        measured.sort(key=lambda panel: panel.settings["mode"])  # a row of the plot for each mode
        report("layer", measured, args)


if __name__ == "__main__":
    main()
