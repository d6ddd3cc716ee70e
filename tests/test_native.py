"""The build: what it makes, what it records, and what is left when it cannot run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sru_asr import native, product

ROOT = Path(__file__).resolve().parent.parent
NVCC = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
needs_nvcc = pytest.mark.skipif(
    NVCC is None or torch.version.cuda is None, reason="needs nvcc and a CUDA build of PyTorch"
)


def test_build_info() -> None:
    info = native.build_info()
    assert info.keys() == {"versions", "cpu", "cuda", "build"}
    assert info["versions"]["torch"] == torch.__version__
    assert info["versions"]["python"] == sys.version.split()[0]
    for part in ("cpu", "cuda"):
        assert info[part]["loaded"] == (info[part]["missing"] is None)
    if info["cpu"]["loaded"]:
        assert info["cpu"]["path"] in ("avx512", "avx2", "portable")
    assert info["cpu"]["product"]["routine"] in product.ROUTINES
    assert info["cpu"]["product"]["reason"]
    if info["cuda"]["loaded"]:
        assert info["cuda"]["architectures"]
    json.dumps(info)


def test_why_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_missing", {"cuda": "nvcc was not found"})
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert native.why_missing("cpu") is None
    assert native.why_missing("meta") is None
    reason = native.why_missing("cuda")
    assert reason is not None and reason.startswith("nvcc was not found. ")
    assert "SRU_ASR_CUDA=1 pip install --no-build-isolation" in reason
    assert "no kernels for devices of type 'mps'" in str(native.why_missing("mps"))


def test_kernels_need_more_than_a_build_where_pytorch_has_no_cuda(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(native, "_missing", {"cuda": "this PyTorch is built without CUDA"})
    monkeypatch.setattr(torch.version, "cuda", None)
    assert native.why_missing("cuda") == (
        "this PyTorch is built without CUDA. Install a PyTorch that is built for CUDA"
    )


def test_library_that_does_not_load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "_C_cuda.abi3.so"
    broken.write_text("not a library")
    monkeypatch.setattr(native, "_missing", {})
    monkeypatch.setitem(native.LIBRARIES, "cuda", broken)
    native._load("cuda")
    assert "_C_cuda.abi3.so does not load" in str(native.why_missing("cuda"))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    if not (ROOT / "setup.py").is_file():
        pytest.skip("needs a source tree")
    ignored = shutil.ignore_patterns("*.so", "_build.json", "__pycache__")
    for folder in ("csrc", "sru_asr"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignored)
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, tmp_path)
    return tmp_path


def build(source: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "setup.py", "-q", "build", "--build-lib", "built"],
        cwd=source,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
    )


def test_installs_without_a_compiler(source: Path) -> None:
    done = build(source, CXX="/nonexistent", SRU_ASR_CUDA="0")
    assert done.returncode == 0, done.stderr
    assert "The cpu kernels were not built: /nonexistent does not run" in done.stderr
    record = json.loads((source / "built" / "sru_asr" / "_build.json").read_text())
    assert not record["cpu"]["built"] and "/nonexistent" in record["cpu"]["reason"]
    assert record["cuda"]["reason"] == "SRU_ASR_CUDA was 0 during the build"
    code = (
        "import warnings, torch\n"
        "from sru_asr import native, ops\n"
        "assert '/nonexistent does not run' in native.build_info()['cpu']['missing']\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    for _ in range(2):\n"
        "        ops.sru_recurrence(torch.zeros(3, 2, 3, 4), None, torch.zeros(2, 4))\n"
        "assert ['/nonexistent' in str(w.message) for w in caught] == [True]\n"
    )
    path = str(source / "built")
    subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        cwd=path,
        env={**os.environ, "PYTHONPATH": path},
    )


@pytest.mark.slow
def test_builds_with_a_compiler(source: Path) -> None:
    done = build(source, SRU_ASR_CUDA="0")
    assert done.returncode == 0, done.stderr
    record = json.loads((source / "built" / "sru_asr" / "_build.json").read_text())
    assert record["cpu"]["built"] and record["cpu"]["seconds"] < 60
    library = (source / "built" / "sru_asr" / "_C.abi3.so").read_bytes()
    assert b"torch/csrc/stable/" in library  # where messages name PyTorch's headers
    assert str(Path(torch.__file__).parent).encode() not in library


@pytest.mark.skipif(torch.version.cuda is None, reason="needs a CUDA build of PyTorch")
def test_cuda_is_left_out_without_nvcc(source: Path) -> None:
    done = build(source, CXX="/nonexistent", SRU_ASR_CUDA="", CUDA_HOME=str(source))
    assert done.returncode == 0, done.stderr
    record = json.loads((source / "built" / "sru_asr" / "_build.json").read_text())
    assert record["cuda"] == {"built": False, "reason": "nvcc was not found in CUDA_HOME"}


@needs_nvcc
def test_cuda_on_demand_fails_loudly(source: Path) -> None:
    done = build(source, CXX="/nonexistent", SRU_ASR_CUDA="1", SRU_ASR_CUDA_ARCHS="1.0")
    assert done.returncode != 0
    assert "SRU_ASR_CUDA=1, but its kernels were not built" in done.stderr
