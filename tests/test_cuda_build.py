"""What the compiler makes of the CUDA kernels: no spills, few registers, no slow paths."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
HOME = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
ARCHITECTURES = ["80", "90"]
OTHERS = [pytest.param(a, marks=pytest.mark.slow) for a in ("86", "89", "100", "120")]


def tool(name: str) -> str | None:
    """A program of the CUDA toolkit; disassemblers come with Triton, too."""
    found = shutil.which(name, path=str(HOME / "bin")) or shutil.which(name)
    triton = importlib.util.find_spec("triton")
    if found is None and triton is not None and triton.origin is not None:
        found = shutil.which(name, path=str(Path(triton.origin).parent / "backends/nvidia/bin"))
    return found


pytestmark = pytest.mark.skipif(
    tool("nvcc") is None or torch.version.cuda is None or not (ROOT / "csrc").is_dir(),
    reason="needs nvcc, a CUDA build of PyTorch and a source tree",
)


class Kernel(NamedTuple):
    """What ptxas says of one."""

    name: str  # of its function
    storage: str  # of its sequences: double, float, BFloat16 or Half
    registers: int
    shared: int  # bytes
    spills: int  # bytes


# Bytes of shared memory and, at most, registers. Through a ring go float and pairs of 16 bits; how
# much of it the backward pass that recomputes gets is decided at its launch.
SHARED = {
    ("forward_ring", 4): 16384,
    ("backward_ring", 4): 24576,
    ("backward_ring", 2): 28672,
    ("backward_registers", 2): 16384,
    ("backward_registers", 8): 32768,
    ("forward_ring", 2): 16384,
}
REGISTERS = {
    "forward_ring": 80,
    "forward_registers": 128,
    "backward_ring": 144,
    "backward_recomputing_ring": 144,
    "backward_registers": 200,
    "sum_sequences": 96,
}
BYTES = {"double": 8, "float": 4, "BFloat16": 2, "Half": 2}


def nvcc(architecture: str, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            str(tool("nvcc")),
            "-O3",
            "-std=c++17",
            "--fmad=false",
            f"-arch=sm_{architecture}",
            "-DUSE_CUDA",
            "-DTORCH_TARGET_VERSION=0x020a000000000000",
            "-isystem",
            str(Path(torch.__file__).parent / "include"),
            str(ROOT / "csrc" / "recurrence_cuda.cu"),
            *flags,
        ],
        capture_output=True,
        text=True,
    )


def described(mangled: str) -> tuple[str, str]:
    """Name and storage of a mangled kernel."""
    length, rest = re.match(r"_ZN3sru(\d+)(.*)", mangled).groups()  # type: ignore[union-attr]
    name, parameters = rest[: int(length)], rest[int(length) :]
    named = re.search(r"8BFloat16|4Half", parameters)
    if named is not None:
        return name, named[0].lstrip("84")
    letter = re.match(r"I(?:Lb[01]ELi\dE)?([df])E", parameters)
    assert letter is not None, mangled
    return name, {"d": "double", "f": "float"}[letter[1]]


REPORT = re.compile(
    r"Compiling entry function '(\w+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads"
    r".*?Used (\d+) registers([^\n]*)",
    re.DOTALL,
)


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory):
    """Compile for an architecture, once."""

    @cache
    def compiled(architecture: str) -> tuple[Path, list[Kernel]]:
        folder = tmp_path_factory.mktemp(f"sm_{architecture}")
        cubin = folder / "recurrence.cubin"
        done = nvcc(architecture, "-cubin", "-Xptxas=-v", "-o", str(cubin))
        assert done.returncode == 0, done.stderr
        assert "warning" not in done.stderr, done.stderr
        kernels = []
        for mangled, stored, loaded, registers, rest in REPORT.findall(done.stderr):
            shared = re.search(r"(\d+) bytes smem", rest)
            kernels.append(
                Kernel(
                    *described(mangled),
                    int(registers),
                    int(shared[1]) if shared else 0,
                    int(stored) + int(loaded),
                )
            )
        return cubin, kernels

    return compiled


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *OTHERS])
def test_registers_and_shared_memory(build, architecture: str) -> None:
    _, kernels = build(architecture)
    # With and without tanh: forward and backward from registers, of two kinds through a ring.
    expected = {
        "forward_registers": 2 * 4,
        "backward_registers": 2 * 3,
        "forward_ring": 2 * 3,
        "backward_ring": 2 * 3,
        "backward_recomputing_ring": 2 * 3,
        "sum_sequences": 2,
    }
    names = [kernel.name for kernel in kernels]
    assert {name: names.count(name) for name in names} == expected
    for kernel in kernels:
        assert kernel.spills == 0, kernel
        assert kernel.registers <= REGISTERS[kernel.name], kernel
        assert kernel.shared == SHARED.get((kernel.name, BYTES[kernel.storage]), 0), kernel


@pytest.mark.skipif(tool("cuobjdump") is None, reason="needs a disassembler")
@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *OTHERS])
def test_instructions(build, architecture: str) -> None:
    cubin, kernels = build(architecture)
    text = subprocess.run(
        [str(tool("cuobjdump")), "-sass", str(cubin)], capture_output=True, text=True, check=True
    ).stdout
    functions = re.split(r"\n\s*Function : ", text)[1:]
    assert len(functions) == len(kernels)
    for function in functions:
        name, storage = described(function.split(maxsplit=1)[0])
        code = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z][\w.]*)", function)
        assert code, name
        used = {instruction.split(".")[0] for instruction in code}
        assert not used & {"LDL", "STL"}, (name, storage)  # local memory
        if storage != "double":  # whose division has a slow path, a subroutine
            assert not used & {"RET", "DADD", "DMUL", "DFMA"}, (name, storage)
        if "ring" in name:
            assert "LDGSTS" in used and "LDGDEPBAR" in used, (name, storage)
            assert "BAR" not in used, (name, storage)  # no thread waits for another


def test_intermediate_code(tmp_path: Path) -> None:
    # What is compiled for architectures to come.
    path = tmp_path / "recurrence.ptx"
    done = nvcc("120", "-ptx", "-o", str(path))
    assert done.returncode == 0, done.stderr
    entries = re.split(r"\.entry ", path.read_text())[1:]
    assert len(entries) == 34
    for entry in entries:
        _, storage = described(entry.split("(", 1)[0])
        assert ".local" not in entry
        if storage != "double":
            assert not re.search(r"\bdiv\.(rn|full)|\bcall\b|\.f64\b", entry)
        # Without a rounding mode the compiler might contract, in one kernel and not in another.
        assert not re.search(r"\b(mul|add|sub|fma)\.f(32|64)\b", entry)


def test_setup_does_not_contract() -> None:
    assert '"--fmad=false"' in (ROOT / "setup.py").read_text()
