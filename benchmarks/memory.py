"""Peak memory that one call adds to what its network, input and outer gradient occupy.

    python benchmarks/memory.py [--device cuda]

On a GPU it is PyTorch's own count. On a CPU it is the resident memory of a fresh process: the
kernel's high-water mark, which is reset right before the call, less what was resident then. This
counts the libraries' own buffers too, which PyTorch's allocator never sees. A shorter call comes
before, for what is allocated once, whatever the length: threads, compiled kernels, packed blocks.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import peers
import torch
from harness import Panel, parser, report, settings
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
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark is now what is resident
    before = _resident("VmRSS")
    call()
    return _resident("VmHWM") - before


def _resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def _fresh_peak(*arguments: str | int | Shape) -> int:
    """`peak` in a new process, started from a server that has imported PyTorch and nothing more."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch"])
    with ProcessPoolExecutor(1, context) as pool:
        return pool.submit(peak, *arguments).result()


def main(arguments: Sequence[str] | None = None) -> None:
    args = parser("Measure the peak memory of a call.").parse_args(arguments)
    shape, steps = (QUICK, (500, 1000)) if args.quick else (SHAPE, LENGTHS)
    if args.device == "cpu" and not Path("/proc/self/clear_refs").exists():
        print("memory: left out, it needs Linux's /proc")
        return
    measure = _fresh_peak if args.device == "cpu" else peak
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
