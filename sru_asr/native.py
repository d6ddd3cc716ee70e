"""Finds and loads the compiled kernels, and says why one is missing."""

from __future__ import annotations

import json
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from sru_asr import product

PACKAGE = Path(__file__).resolve().parent
LIBRARIES = {"cpu": PACKAGE / "_C.abi3.so", "cuda": PACKAGE / "_C_cuda.abi3.so"}

_missing: dict[str, str] = {}  # device type -> why it has no kernels


def why_missing(device_type: str) -> str | None:
    """Say why there are no kernels for a type of device.

    Parameters
    ----------
    device_type : str
        As in ``torch.device.type``.

    Returns
    -------
    str or None
        The reason and the remedy in one sentence each; None when the kernels are loaded.
    """
    if device_type == "meta":  # shapes only; the operators' fake kernels serve it
        device_type = "cpu"
    if device_type not in LIBRARIES:
        return f"there are no kernels for devices of type {device_type!r}"
    reason = _missing.get("cpu") or _missing.get(device_type)
    return f"{reason}. {_remedy(device_type)}" if reason else None


def build_info() -> dict[str, Any]:
    """Describe what this installation was built with and what it runs.

    Returns
    -------
    dict
        ``versions`` of sru_asr, torch and python; ``cpu`` and ``cuda``, each with ``loaded`` and
        ``missing`` (why it is not, else None); ``cpu["path"]``, the instruction set that runs
        ("avx512", "avx2" or "portable"; None without the kernels); ``cpu["product"]``, the routine
        of large float32 matrix products and the reason (`sru_asr.product`);
        ``cuda["architectures"]``, those that were compiled; ``build``, what the build recorded
        (compilers, their flags).

    Examples
    --------
    >>> from sru_asr import native
    >>> sorted(native.build_info())
    ['build', 'cpu', 'cuda', 'versions']
    """
    record = _build_record()
    cpu_loaded = "cpu" not in _missing
    return {
        "versions": {
            "sru_asr": _version(),
            "torch": str(torch.__version__),
            "python": platform.python_version(),
        },
        "cpu": {
            "loaded": cpu_loaded,
            "path": torch.ops.sru_asr.cpu_path() if cpu_loaded else None,
            "product": _product(),
            "missing": why_missing("cpu"),
        },
        "cuda": {
            "loaded": cpu_loaded and "cuda" not in _missing,
            "architectures": record.get("cuda", {}).get("architectures", []),
            "missing": why_missing("cuda"),
        },
        "build": record,
    }


def _product() -> dict[str, str | None]:
    try:
        chosen, reason = product.routine()
    except ValueError as error:
        return {"routine": None, "reason": str(error)}
    return {"routine": chosen, "reason": reason}


def _version() -> str:
    try:
        return metadata.version("sru-asr")
    except metadata.PackageNotFoundError:
        return "not installed"


def _build_record() -> dict[str, Any]:
    """What setup.py wrote beside the libraries; empty when it never ran."""
    try:
        record: dict[str, Any] = json.loads((PACKAGE / "_build.json").read_text())
    except (OSError, ValueError):
        return {}
    return record


def _remedy(device_type: str) -> str:
    if device_type == "cuda" and torch.version.cuda is None:
        return "Install a PyTorch that is built for CUDA"
    source = PACKAGE.parent
    flag = "SRU_ASR_CUDA=1 " if device_type == "cuda" else ""
    if (source / "setup.py").is_file() and (source / "csrc").is_dir():
        target = f"-e {source}"
    else:
        target = "--force-reinstall --no-deps --no-cache-dir --no-binary sru-asr sru-asr"
    return f"Build them with: {flag}pip install --no-build-isolation {target}"


def _load(device_type: str) -> None:
    library = LIBRARIES[device_type]
    recorded = _build_record().get(device_type, {}).get("reason")
    if not library.is_file():
        _missing[device_type] = recorded or f"{library.name} was not built"
        return
    try:
        torch.ops.load_library(library)
    except OSError as error:
        _missing[device_type] = f"{library.name} does not load ({error})"


_load("cpu")
if "cpu" in _missing:
    _missing["cuda"] = _missing["cpu"]
elif torch.version.cuda is None:
    _missing["cuda"] = "this PyTorch is built without CUDA"
else:
    _load("cuda")
