"""Peak memory of a block of code, and fresh processes in which it means something.

On a GPU it is PyTorch's own count. On a CPU it is what the process has resident, the libraries' own
buffers included, which PyTorch's allocator never sees: the kernel's high-water mark, which is reset
when the block begins.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

CLEAR_REFS = Path("/proc/self/clear_refs")
Result = TypeVar("Result")


@dataclass
class Memory:
    """Bytes in use when a block began, and the most while it ran."""

    before: int = 0
    peak: int = 0

    @property
    def added(self) -> int:
        """What the block needed beyond what was there."""
        return self.peak - self.before


@contextmanager
def peak_memory(device: str) -> Iterator[Memory]:
    """Measure the block's peak memory.

    Parameters
    ----------
    device : str
        For "cpu" the process should be a fresh one: an older one has memory of its own to reuse.

    Yields
    ------
    Memory
        Filled when the block has ended.

    Raises
    ------
    RuntimeError
        On a CPU without Linux's /proc.
    """
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.init()  # before which there is nothing to reset
        torch.cuda.reset_peak_memory_stats(device)
        memory = Memory(before=torch.cuda.memory_allocated(device))
        yield memory
        memory.peak = torch.cuda.max_memory_allocated(device)
        return
    if not CLEAR_REFS.exists():
        raise RuntimeError(f"peak memory on a CPU needs Linux: found no {CLEAR_REFS}")
    ctypes.CDLL(None).malloc_trim(0)  # what has been freed would be there for the block to reuse
    CLEAR_REFS.write_text("5")  # the high-water mark is now what is resident
    memory = Memory(before=_resident("VmRSS"))
    yield memory
    memory.peak = _resident("VmHWM")


def _resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def in_fresh_process(device: str, call: Callable[..., Result], *arguments: object) -> Result:
    """Call in a new process, with the modules that take long to import already there.

    Parameters
    ----------
    device : str
        What it will use: where that is a GPU, the server that processes are forked from must not
        have touched it, as SpeechBrain does when it is imported.
    call : callable
        A module's function.
    *arguments
        Its arguments.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch"] if device.startswith("cuda") else ["sru_asr.brain"])
    with ProcessPoolExecutor(1, context) as pool:
        return pool.submit(call, *arguments).result()
