"""The recurrence alone, beside a memory copy that moves the same bytes.

    python benchmarks/recurrence.py [--device cuda] [--dtype bfloat16] [-T 500 -B 16 -D 512]

An element is one (t, b, d). It reads u's three lanes and x and writes h, which makes 20 bytes in
fp32; training also writes c; the backward pass reads u, x, c and the gradient of h and writes those
of u and x. With recompute=True only every 32nd c is written and read, which is not counted. No
implementation can move less, so the copy is the floor while memory is the limit.
"""

from __future__ import annotations

from collections.abc import Sequence

import peers
import torch
from harness import Call, Panel, measure, parser, report, settings
from torch import Tensor

import sru_asr

CPU_SHAPE = (500, 16, 512)
CUDA_SHAPE = (1000, 32, 1024)  # 32k columns, enough to fill a GPU
QUICK = (40, 2, 32)


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

    def forward(recompute: bool) -> Call:
        return lambda: sru_asr.ops.sru_recurrence(
            u, v, b, x, bidirectional=bidirectional, recompute=recompute
        )[0]

    def backward(recompute: bool) -> Call:
        h = forward(recompute)()
        return lambda: torch.autograd.grad(h, (u, v, b, x), grad_h, retain_graph=True)

    size = u.element_size()
    state = max(4, size)  # c is kept in the precision it is computed in
    elements = steps * batch * width
    name = str(dtype).removeprefix("torch.")
    made = []
    for mode, recompute, call, bytes_ in (
        ("inference", False, torch.no_grad()(forward(False)), 5 * size),
        ("forward", False, forward(False), 5 * size + state),
        ("backward", False, backward(False), 9 * size + state),
        ("forward", True, forward(True), 5 * size),
        ("backward", True, backward(True), 9 * size),
    ):
        cases = {"sru_recurrence": call, "memory copy": _copy(elements * bytes_, device)}
        if mode == "inference" and dtype == torch.float32 and device == "cpu":
            cases |= _old_sru(steps, batch, width, bidirectional)
        made.append(
            Panel(
                f"{mode}{', recompute' * recompute} {name}: {bytes_} bytes an element",
                cases,
                {
                    "mode": mode,
                    "recompute": recompute,
                    "T": steps,
                    "B": batch,
                    "D": width,
                    "bidirectional": bidirectional,
                    "dtype": name,
                    "bytes": elements * bytes_,
                },
                unit="ns an element",
                scale=elements * 1e-9,
            )
        )
    return made


def _copy(moved: int, device: str) -> Call:
    """Return a call that reads ``moved / 2`` bytes and writes as many."""
    source = torch.ones(moved // 2, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return lambda: target.copy_(source)


def _old_sru(steps: int, batch: int, width: int, bidirectional: bool) -> dict[str, Call]:
    """Return the old package's forward operator, which has its lanes last; it has no backward."""
    if peers.old_sru() is None:
        return {}
    operator = torch.ops.sru_cpu.cpu_bi_forward if bidirectional else torch.ops.sru_cpu.cpu_forward
    hidden = width // 2 if bidirectional else width
    tensors: list[Tensor] = [
        torch.randn(steps, batch, width * 3),
        torch.randn(steps, batch, width),
        torch.randn(2 * width) * 0.5**0.5,
        torch.zeros(2 * width),
        torch.zeros(batch, width),
    ]
    # No padding; 3 lanes; identity as activation; with the highway, times 1; one v for all steps.
    rest = (None, steps, batch, hidden, 3, 0, True, 1.0, False)
    return {peers.OLD_SRU: lambda: operator(*tensors, *rest)}


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser("Time the recurrence, in ns for each element, beside a memory copy.", 4)
    options.add_argument("-T", type=int, help="steps (500; on a GPU 1000)")
    options.add_argument("-B", type=int, help="sequences (16; 32)")
    options.add_argument("-D", type=int, help="width, of both directions together (512; 1024)")
    options.add_argument("--unidirectional", action="store_true")
    options.add_argument(
        "--dtype",
        nargs="+",
        default=["float32", "bfloat16"],
        help="of float32, bfloat16, float16, float64",
    )
    args = options.parse_args(arguments)
    usual = QUICK if args.quick else CPU_SHAPE if args.device == "cpu" else CUDA_SHAPE
    shape = args.T or usual[0], args.B or usual[1], args.D or usual[2]
    with settings(args):
        measured = []
        for dtype in args.dtype:
            for panel in panels(
                *shape, not args.unidirectional, getattr(torch, dtype), args.device
            ):
                measure(panel, args)
                measured.append(panel)
        report("recurrence", measured, args)


if __name__ == "__main__":
    main()
