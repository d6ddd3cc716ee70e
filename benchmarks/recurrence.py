"""The recurrence alone, beside a memory copy that moves the same bytes.

    python benchmarks/recurrence.py [--device cuda] [--dtype bfloat16] [-T 500 -B 16 -D 512]

An element is one (t, b, d). It reads u's three lanes and x and writes h, which makes 20 bytes in
fp32; training also writes c; the backward pass reads u, x, c and the gradient of h and writes those
of u and x. No implementation can move less, so the copy is the floor while memory is the limit.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from harness import Panel, measure, parser, report, threads

import sru_asr


def panels(
    steps: int, batch: int, width: int, bidirectional: bool, dtype: torch.dtype, device: str
) -> list[Panel]:
    """Forward without and with gradients, and backward.

    Parameters
    ----------
    steps, batch, width : int
        T, B and D; ``bidirectional`` splits D between the directions.
    bidirectional : bool
    dtype : torch.dtype
        Of all inputs.
    device : str

    Returns
    -------
    list of Panel
    """
    torch.manual_seed(0)
    options = {"device": device, "dtype": dtype}
    # A model's numbers: standard normal u and x, v with variance 1/2.
    u = torch.randn(steps, batch, 3, width, **options).requires_grad_()
    x = torch.randn(steps, batch, width, **options).requires_grad_()
    v = torch.randn(2, width, **options).mul_(0.5**0.5).requires_grad_()
    b = torch.zeros(2, width, **options).requires_grad_()
    grad_h = torch.randn(steps, batch, width, **options)

    def forward() -> torch.Tensor:
        return sru_asr.ops.sru_recurrence(u, v, b, x, bidirectional=bidirectional)[0]

    @torch.no_grad()
    def inference() -> torch.Tensor:
        return forward()

    h = forward()

    def backward() -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(h, (u, v, b, x), grad_h, retain_graph=True)

    size = u.element_size()
    state = max(4, size)  # c is kept in the precision it is computed in
    elements = steps * batch * width
    return [
        Panel(
            f"{title}: {bytes_} bytes an element",
            {"sru_recurrence": call, "memory copy": _copy(elements * bytes_, device)},
            {
                "T": steps,
                "B": batch,
                "D": width,
                "bidirectional": bidirectional,
                "dtype": str(dtype).removeprefix("torch."),
                "bytes": elements * bytes_,
            },
            unit=elements * 1e-9,
        )
        for title, call, bytes_ in (
            ("inference", inference, 5 * size),
            ("forward", forward, 5 * size + state),
            ("backward", backward, 9 * size + state),
        )
    ]


def _copy(moved: int, device: str):
    """Return a call that reads ``moved / 2`` bytes and writes as many."""
    source = torch.ones(moved // 2, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return lambda: target.copy_(source)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser("Time the recurrence, in ns for each element, beside a memory copy.")
    options.add_argument("-T", type=int, default=500, help="steps")
    options.add_argument("-B", type=int, default=16, help="sequences")
    options.add_argument("-D", type=int, default=512, help="width, of both directions together")
    options.add_argument("--unidirectional", action="store_true")
    options.add_argument("--dtype", default="float32", help="float32, bfloat16, float16 or float64")
    args = options.parse_args(arguments)
    if args.quick:
        args.T, args.B, args.D = 40, 2, 32
    with threads(args.threads):
        measured = panels(
            args.T,
            args.B,
            args.D,
            not args.unidirectional,
            getattr(torch, args.dtype),
            args.device,
        )
        for panel in measured:
            measure(panel, args.device, args.seconds, args.quick)
        report("recurrence", measured, args.device, "ns an element", args.output)


if __name__ == "__main__":
    main()
