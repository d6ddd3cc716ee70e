"""Peak memory that one call adds to what its network, input and outer gradient occupy.

    python benchmarks/memory.py [--device cuda]

Measured as `peak` says; on a CPU in a fresh process. A shorter call comes before, for what is
allocated once, whatever the length: threads, compiled kernels, packed blocks.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial

import peers
import torch
from harness import Panel, parser, report, settings
from peak import CLEAR_REFS, in_fresh_process, peak_memory
from peers import PRODUCTS, Shape
from scaling import LENGTHS

SHAPE, QUICK = Shape(1, 0, 512, 512), Shape(4, 0, 256, 256)
NETWORKS = ("nn.LSTM", "nn.Conv1d k=3")
CASES = {
    "inference": ("SRU", *PRODUCTS, *NETWORKS),
    "training": (
        "SRU",
        "SRU recompute=True",
        "SRU recompute=False",
        *PRODUCTS,
        *NETWORKS,
    ),
}
M_MMAP_THRESHOLD = -3  # malloc.h
REPEATS, WARM_UP_STEPS = 2, 250


def peak(name: str, shape: Shape, device: str, mode: str, number_of_threads: int) -> int:
    """Return the bytes that a call needs beyond its network, input and outer gradient.

    Parameters
    ----------
    name : str
        Of a case in `peers`.
    shape : Shape
    device : str
        For "cpu" the process should be a fresh one.
    mode : {"inference", "training"}
    number_of_threads : int

    Returns
    -------
    int
    """
    torch.set_num_threads(number_of_threads)
    if device == "cpu":
        # Freed tensors go back to the kernel at once, so that what is resident is what is in use.
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**16)
    peers.call(name, replace(shape, steps=min(shape.steps, WARM_UP_STEPS)), device, mode)()
    call = peers.call(name, shape, device, mode)
    with peak_memory(device) as memory:
        call()
    return memory.added


def main(arguments: Sequence[str] | None = None) -> None:
    args = parser("Measure the peak memory of a call.").parse_args(arguments)
    shape, steps = (QUICK, (500, 1000)) if args.quick else (SHAPE, LENGTHS)
    if args.device == "cpu" and not CLEAR_REFS.exists():
        print("memory: left out, it needs Linux's /proc")
        return
    measure = partial(in_fresh_process, "cpu", peak) if args.device == "cpu" else peak
    panels = []
    with settings(args):
        for mode, names in CASES.items():
            for number in steps:
                at = replace(shape, steps=number)
                panel = Panel(
                    f"{mode} {at}",
                    {},
                    {**asdict(at), "bidirectional": True, "mode": mode},
                    unit="MiB",
                    scale=2**20,
                    quantity="bytes",
                )
                for name in peers.available(names[:1] if args.quick else names, args.device):
                    panel.samples[name] = [
                        measure(name, at, args.device, mode, args.threads)
                        for _ in range(1 if args.quick else REPEATS)
                    ]
                panels.append(panel)
        report("memory", panels, args)


if __name__ == "__main__":
    main()
