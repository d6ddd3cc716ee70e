"""Tests a wheel where it has to work: without a compiler, and on other versions of PyTorch.

    .venv/bin/python .ci/test_wheel.py dist/sru_asr-*.whl 2.13.0 newest

The file is inspected first. Then each version of PyTorch gets a throw-away environment, in which
the tests of the layers run from a copy outside the working tree. The versions come from where pip
is set up to look; a CUDA build takes several GB.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from fnmatch import fnmatch
from io import BytesIO
from pathlib import Path

from elftools.elf.elffile import ELFFile

ROOT = Path(__file__).resolve().parent.parent
LIBRARIES = {"cpu": "sru_asr/_C.abi3.so", "cuda": "sru_asr/_C_cuda.abi3.so"}
PAGE = {f"sru_asr/report/page.{kind}" for kind in ("html", "css", "js")}
# PyTorch brings the first three, and every Linux the others.
NEEDED = ["libtorch*.so", "libc10*.so", "libcudart.so.*"]
NEEDED += ["libstdc++.so.6", "libgcc_s.so.1", "libm.so.6", "libc.so.6", "ld-linux-x86-64.so.2"]
GLIBC = 28  # 2.28 is what PyTorch's own wheels ask for
PATH_IN_TEXT = re.compile(rb"""[\0 ,="'(](?:/[\w.+-]{2,}){2,}""")

# Those that need neither SpeechBrain nor torchaudio.
TESTS = ["ops", "blocks", "product", "transforms", "sru", "srupp", "encoder", "subsampling"]
TESTS += ["padding", "checkpoint", "native"]
CHECK = """
import json, pathlib, sys, warnings
import torch
warnings.simplefilter("error")  # the reference says so when it runs in the kernels' place
import sru_asr
assert pathlib.Path(sru_asr.__file__).is_relative_to(sys.prefix), sru_asr.__file__
output, _ = sru_asr.SRU(3, 4, bidirectional=True)(torch.randn(5, 2, 3))
output.sum().backward()
print(json.dumps([torch.version.cuda, sru_asr.build_info()]))
"""


def inspect(wheel: Path) -> dict[str, bool]:
    """Check what is in the file; the parts that it was built with."""
    assert re.search(r"-cp310-abi3-(manylinux\w+\.?)+_x86_64\.whl$", wheel.name), wheel.name
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        text = archive.read("sru_asr/_build.json")
        record = json.loads(text)
        built = {part: record[part]["built"] for part in LIBRARIES}
        contents = {name: archive.read(name) for name in LIBRARIES.values() if name in names}
    for part, library in LIBRARIES.items():
        told = record[part]["compiler"] if built[part] else record[part]["reason"]
        print(f"  {library}: {told}")
        assert built[part] or (part == "cuda" and " failed (" not in told), "the build went wrong"
    assert {"sru_asr/py.typed", *PAGE} <= names
    assert set(contents) == {LIBRARIES[part] for part in LIBRARIES if built[part]}
    for name, data in {"sru_asr/_build.json": text, **contents}.items():
        found = PATH_IN_TEXT.findall(data)
        assert not found, f"{name} names folders of the machine it was built on: {found[:3]}"
    for name, data in contents.items():
        for tag in ELFFile(BytesIO(data)).get_section_by_name(".dynamic").iter_tags():
            assert tag.entry.d_tag not in ("DT_RPATH", "DT_RUNPATH"), f"{name} has {tag}"
            if tag.entry.d_tag == "DT_NEEDED":
                assert any(fnmatch(tag.needed, known) for known in NEEDED), f"{name}: {tag.needed}"
        glibc = max(int(minor) for minor in re.findall(rb"GLIBC_2\.(\d+)", data))
        assert glibc <= GLIBC, f"{name} asks for glibc 2.{glibc}; PyTorch for 2.{GLIBC}"
    return built


def run(*command: str, folder: Path, **options: str) -> str:
    """Run a command of the environment; only its own programs are on the path: no compiler."""
    ours = ("SRU_ASR_", "PYTHON", "CUDA_HOME", "CXX")
    variables = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
    variables |= {"PATH": str(folder / "bin"), **options}
    done = subprocess.run(command, cwd=folder, env=variables, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{done.stdout}\nfailed: {' '.join(command)}")
    return done.stdout


def test(wheel: Path, version: str, built: dict[str, bool]) -> None:
    """Install a version of PyTorch and the wheel, and run the tests there."""
    with tempfile.TemporaryDirectory(prefix="sru-asr-") as name:
        folder = Path(name)
        subprocess.run([sys.executable, "-m", "venv", name], check=True)
        python = str(folder / "bin" / "python")
        install = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        torch = "torch" if version == "newest" else f"torch=={version}"
        run(*install, torch, "numpy", "pytest", "hypothesis", folder=folder)
        run(*install, "--no-deps", str(wheel), folder=folder)

        cuda, info = json.loads(run(python, "-c", CHECK, folder=folder))
        print("PyTorch {torch}, CUDA {}, Python {python}".format(cuda, **info["versions"]))
        assert info["cpu"]["loaded"], info["cpu"]["missing"]
        assert info["cuda"]["loaded"] == (built["cuda"] and cuda is not None), info["cuda"]
        print(f"  CUDA kernels: {info['cuda']['missing'] or 'loaded'}")

        (folder / "tests").mkdir()
        for path in ["pyproject.toml", "tests/conftest.py", *(f"tests/test_{t}.py" for t in TESTS)]:
            shutil.copy(ROOT / path, folder / path)
        print(run(python, "-m", "pytest", "-q", "-m", "not slow", folder=folder).strip())


def main(wheel: str, *versions: str) -> None:
    path = Path(wheel).resolve()
    print(f"{path.name}, {path.stat().st_size / 2**20:.1f} MiB", flush=True)
    built = inspect(path)
    for version in versions:
        test(path, version, built)


if __name__ == "__main__":
    main(*sys.argv[1:])
