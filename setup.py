"""Builds the kernels: two plain shared libraries that PyTorch loads, without Python symbols.

They use LibTorch's stable ABI alone, so one build serves every later PyTorch and every Python. An
installation never fails for want of a compiler: what could not be built, and why, is written to
``sru_asr/_build.json``, from where warnings and ``build_info()`` take it.

Environment
-----------
CXX
    The C++ compiler; otherwise the first of c++, g++ and clang++ on the path.
SRU_ASR_CUDA
    0: leave CUDA out. 1: fail when its part cannot be built. Unset: build it where nvcc and a CUDA
    build of PyTorch are found.
SRU_ASR_CUDA_ARCHS
    Architectures from 8.0 on, "8.0;9.0+PTX" for example.
CUDA_HOME
    The CUDA toolkit; otherwise the one nvcc on the path belongs to, or /usr/local/cuda.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020a000000000000"  # 2.10, the oldest with all we call
CXX_FLAGS = [
    "-O3",
    "-std=c++17",
    "-fPIC",
    "-shared",
    "-fvisibility=hidden",
    "-fopenmp-simd",  # the pragmas alone; no OpenMP library
    # Neither changes a result: nothing here reads errno or traps, and both keep loops scalar.
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-thread-jumps",  # or a clamp becomes three paths, and every one of them masked
    STABLE_ABI,
]
# A build takes the newest version of each symbol that its own C library has. These two alone would
# ask for a glibc newer than PyTorch does: exp since 2.29 no longer reports errors, which we never
# ask for, and a flag of 2.32 tells shared pointers that no thread was ever started.
OLD_GLIBC = """\
#if defined(__x86_64__) && __has_include(<gnu/libc-version.h>)
#if !defined(__CUDACC__)
__asm__(".symver exp, exp@GLIBC_2.2.5");
#endif
extern "C" {
__attribute__((weak, visibility("hidden"))) char __libc_single_threaded = 0;
}
#endif
"""
CUDA_ARCHITECTURES = "8.0;8.6;8.9;9.0;10.0;12.0+PTX"
LIBRARIES = {"cpu": "_C.abi3.so", "cuda": "_C_cuda.abi3.so"}


class NotBuilt(Exception):
    """Why a library was not built."""


class BuildKernels(build_ext):
    """Runs the compilers directly, and records what came of it."""

    def run(self) -> None:
        self.record: dict[str, dict[str, object]] = {}
        super().run()
        folder = (ROOT if self.inplace else Path(self.build_lib)) / "sru_asr"
        folder.mkdir(parents=True, exist_ok=True)
        for part, library in LIBRARIES.items():
            if not self.record[part]["built"]:  # an older one does not fit the Python around it
                (folder / library).unlink(missing_ok=True)
        (folder / "_build.json").write_text(json.dumps(self.record, indent=2) + "\n")

    def build_extension(self, ext: Extension) -> None:
        part = "cuda" if ext.name.endswith("_cuda") else "cpu"
        output = Path(self.get_ext_fullpath(ext.name))
        output.parent.mkdir(parents=True, exist_ok=True)
        output.unlink(missing_ok=True)
        prefix = Path(self.build_temp).resolve() / "old_glibc.h"
        prefix.parent.mkdir(parents=True, exist_ok=True)
        prefix.write_text(OLD_GLIBC)
        command = cuda_command if part == "cuda" else cpu_command
        start = time.perf_counter()
        try:
            arguments, details = command(["-include", str(prefix), *ext.sources], output)
            run(arguments)
        except NotBuilt as reason:
            if part == "cuda" and os.environ.get("SRU_ASR_CUDA") == "1":
                raise SystemExit(
                    f"SRU_ASR_CUDA=1, but its kernels were not built: {reason}"
                ) from None
            self.record[part] = {"built": False, "reason": str(reason)}
            say(f"The {part} kernels were not built: {reason}. sru_asr will run without them.")
        else:
            seconds = round(time.perf_counter() - start, 1)
            self.record[part] = {"built": True, "seconds": seconds, **details}
            say(f"The {part} kernels were built in {seconds} s.")


def cpu_command(sources: list[str], output: Path) -> tuple[list[str], dict[str, object]]:
    compiler = cxx_compiler()
    include, lib, _ = torch_paths()
    command = [
        *compiler,
        *CXX_FLAGS,
        without_folder(include),
        "-isystem",
        include,
        *sources,
        "-o",
        str(output),
        f"-L{lib}",
        "-ltorch_cpu",
        "-ltorch",
    ]
    return command, {"compiler": version_of(compiler)}


def cuda_command(sources: list[str], output: Path) -> tuple[list[str], dict[str, object]]:
    if os.environ.get("SRU_ASR_CUDA") == "0":
        raise NotBuilt("SRU_ASR_CUDA was 0 during the build")
    include, lib, torch_cuda = torch_paths()
    # Whether this machine has a GPU says nothing about where the library will run.
    if torch_cuda is None:
        raise NotBuilt("PyTorch was built without CUDA")
    home = cuda_home()
    nvcc = str(home / "bin" / "nvcc")
    toolkit = version_of([nvcc])
    release = re.search(r"release (\d+)", toolkit)
    if release is None or release[1] != torch_cuda.split(".")[0]:
        raise NotBuilt(f"PyTorch was built for CUDA {torch_cuda}, but nvcc is of: {toolkit}")
    architectures = os.environ.get("SRU_ASR_CUDA_ARCHS", CUDA_ARCHITECTURES)
    command = [
        nvcc,
        "-O3",
        "-std=c++17",
        "-shared",
        "--cudart=shared",
        "--threads=0",
        "--fmad=false",  # csrc/recurrence_math.h says where to contract
        "--no-device-link",  # no kernel calls into another file, and the step records folders
        # nvcc hands this to a shell
        f"-Xcompiler=-fPIC,-fvisibility=hidden,{shlex.quote(without_folder(include))}",
        "-DUSE_CUDA",
        STABLE_ABI,
        *gencode(architectures),
        "-isystem",
        include,
        *sources,
        "-o",
        str(output),
        f"-L{home / 'lib64'}",
        f"-L{lib}",
        "-ltorch_cpu",
        "-ltorch_cuda",
        "-ltorch",
    ]
    return command, {"compiler": toolkit, "architectures": architectures.split(";")}


def without_folder(include: str) -> str:
    """Keep the place of PyTorch's headers, which error messages name, out of the libraries."""
    return f"-fmacro-prefix-map={include}/="


def gencode(architectures: str) -> list[str]:
    flags = []
    for name in architectures.split(";"):
        number = name.strip().removesuffix("+PTX").replace(".", "")
        if not number.isdigit() or int(number) < 80:
            raise NotBuilt(f"the CUDA kernels need architectures from 8.0 on, got {name.strip()!r}")
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if name.strip().endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def torch_paths() -> tuple[str, str, str | None]:
    """PyTorch's headers and libraries, and the CUDA version it was built for."""
    try:
        import torch
    except ImportError as error:
        raise NotBuilt(
            f"PyTorch could not be imported during the build ({error}); "
            "install it first and pass --no-build-isolation"
        ) from None
    home = Path(torch.__file__).parent
    return str(home / "include"), str(home / "lib"), torch.version.cuda


def cxx_compiler() -> list[str]:
    if os.environ.get("CXX"):
        return shlex.split(os.environ["CXX"])
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name):
            return [name]
    raise NotBuilt("no C++ compiler was found (c++, g++, clang++, or the variable CXX)")


def cuda_home() -> Path:
    named, on_path = os.environ.get("CUDA_HOME"), shutil.which("nvcc")
    if named:
        candidates = [Path(named)]
    else:
        candidates = [Path(on_path).resolve().parent.parent] if on_path else []
        candidates.append(Path("/usr/local/cuda"))
    for candidate in candidates:
        if (candidate / "bin" / "nvcc").is_file():
            return candidate
    where = "in CUDA_HOME" if named else "(set CUDA_HOME to the CUDA toolkit)"
    raise NotBuilt(f"nvcc was not found {where}")


def version_of(compiler: list[str]) -> str:
    lines = [line for line in run([*compiler, "--version"]).splitlines() if line.strip()]
    release = [line for line in lines if "release" in line]
    return (release or lines or ["unknown"])[0].strip()


def run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    except OSError as error:
        raise NotBuilt(f"{command[0]} does not run ({error.strerror})") from None
    except subprocess.CalledProcessError as error:
        print(shlex.join(command), error.stdout, error.stderr, sep="\n", file=sys.stderr)
        wrong = [line for line in error.stderr.splitlines() if "error" in line]
        first = wrong[0].strip() if wrong else f"exit status {error.returncode}"
        raise NotBuilt(f"{command[0]} failed ({first})") from None
    return done.stdout


def say(message: str) -> None:
    print(f"sru-asr: {message}", file=sys.stderr, flush=True)


HEADERS = [str(path.relative_to(ROOT)) for path in sorted((ROOT / "csrc").glob("*.*h"))]

setup(
    ext_modules=[
        Extension(
            "sru_asr._C",
            ["csrc/ops.cpp", "csrc/recurrence_cpu.cpp"],
            depends=HEADERS,
            py_limited_api=True,
            optional=True,
        ),
        Extension(
            "sru_asr._C_cuda",
            ["csrc/recurrence_cuda.cu"],
            depends=HEADERS,
            py_limited_api=True,
            optional=True,
        ),
    ],
    cmdclass={"build_ext": BuildKernels},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
