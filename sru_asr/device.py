"""The device that a user names, as it is called here."""

from __future__ import annotations

import torch


class DeviceError(ValueError):
    """There is no such device; the message says what was found and what was expected."""


def find_device(name: str) -> str:
    """Check that a device is there.

    Parameters
    ----------
    name : str
        "cpu", "cuda", "cuda:N" or another of PyTorch's; or "auto": the first CUDA device where
        there is one, else the CPU.

    Returns
    -------
    str
        The same, a CUDA device with its number.

    Raises
    ------
    DeviceError
        When there is none of that name.

    Examples
    --------
    >>> find_device("cpu")
    'cpu'
    >>> find_device("auto") in ("cpu", "cuda:0")
    True
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise DeviceError(f"device: found {name!r}, expected cpu or cuda, or auto") from None
    if device.type != "cuda":
        return name
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = device.index or 0
    if index >= count:
        raise DeviceError(
            f"device {name}: found {count} CUDA devices (PyTorch {torch.__version__}), expected "
            f"{'one' if device.index is None else f'at least {index + 1}'}; --device cpu works "
            "everywhere"
        )
    return f"cuda:{index}"  # SpeechBrain warns about "cuda" alone
