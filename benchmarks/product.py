"""The two routines of a layer's matrix product: `sru_asr.product` chooses by what is seen here.

    python benchmarks/product.py [--threads 2]

float32 on the CPU, without gradients and with both (of input and matrix).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from harness import Call, Panel, measure, parser, report, settings
from torch import Tensor

from sru_asr.product import convolution

# Rows, features, outputs: modules of the AN4 encoder on a batch of 40 s, and a wide layer on ten.
SHAPES = ((1000, 144, 576), (1000, 576, 144), (1000, 96, 1024), (8000, 512, 1536))
ROUTINES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "linear": F.linear,
    "convolution": convolution,
}


def panels(rows: int, features: int, outputs: int) -> list[Panel]:
    """Both routines on one shape, without gradients and with them.

    Parameters
    ----------
    rows, features, outputs : int
        (rows, features) by (features, outputs).

    Returns
    -------
    list of Panel
    """
    x = torch.randn(rows, features, requires_grad=True)
    weight = torch.randn(outputs, features, requires_grad=True)
    grad = torch.randn(rows, outputs)

    def forward(routine: Callable[[Tensor, Tensor], Tensor]) -> Call:
        return torch.no_grad()(lambda: routine(x, weight))

    def training(routine: Callable[[Tensor, Tensor], Tensor]) -> Call:
        return lambda: torch.autograd.grad(routine(x, weight), [x, weight], grad)

    shape = {"rows": rows, "features": features, "outputs": outputs}
    return [
        Panel(
            f"{title}, {rows} rows, {features} to {outputs}",
            {name: make(routine) for name, routine in ROUTINES.items()},
            shape,
        )
        for title, make in (("forward", forward), ("forward and backward", training))
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    args = parser("Time the routines of matrix products.", seconds=3).parse_args(arguments)
    if args.device != "cpu":
        raise SystemExit(f"error: --device must be cpu, got {args.device}: there is one routine")
    with settings(args):
        measured = []
        for shape in SHAPES:
            for panel in panels(*(size // 8 for size in shape) if args.quick else shape):
                measure(panel, args)
                measured.append(panel)
        report("product", measured, args)


if __name__ == "__main__":
    main()
