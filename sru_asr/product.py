"""The matrix product of a layer, by the routine that is fastest on this machine.

On a CPU, `torch.nn.functional.linear` in float32 goes to Intel's MKL, which does not use all that
an AMD processor with AVX-512 has: a 1 x 1 convolution of the same numbers, which goes to oneDNN, is
up to twice as fast there, forward and backward. On an AMD processor with AVX2 alone (Zen 1) it is
as fast forward; with the backward pass it takes 1.5 to 1.6 times as long (`benchmarks/product.py`).
In 16 bits `linear` goes to oneDNN itself.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

VARIABLE = "SRU_ASR_PRODUCT"
ROUTINES = ("linear", "convolution")

# Multiply-adds from which on the convolution, which costs some 15 us more to call and reorders its
# weights, is the faster of the two.
LARGE = 30_000_000
ONEDNN = 20_480  # numbers in an image from which on PyTorch hands its convolution to oneDNN


@lru_cache(maxsize=1)
def routine() -> tuple[str, str]:
    """Return what large float32 products on the CPU use, and why.

    Returns
    -------
    str
        "linear" or "convolution".
    str
        The reason, for `sru_asr.build_info`.

    Raises
    ------
    ValueError
        When the environment variable SRU_ASR_PRODUCT has another value.
    """
    wanted = os.environ.get(VARIABLE)
    if wanted:
        if wanted not in ROUTINES:
            raise ValueError(f"{VARIABLE} must be one of {', '.join(ROUTINES)}, got {wanted!r}")
        return wanted, f"{VARIABLE} is set"
    if not torch.backends.mkldnn.is_available():
        return "linear", "this PyTorch has no oneDNN"
    if not torch.backends.mkl.is_available():
        return "linear", "this PyTorch does not multiply with MKL"
    if not _is_amd():
        return "linear", "the processor is not AMD's"
    if "AVX512" not in torch.backends.cpu.get_cpu_capability():
        return "linear", "oneDNN is slower than MKL on AMD's processors without AVX-512"
    return "convolution", "MKL is slower than oneDNN on AMD's processors with AVX-512"


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply every step by a matrix: `torch.nn.functional.linear` without a bias.

    Parameters
    ----------
    x : Tensor, shape (..., features)
    weight : Tensor, shape (rows, features)

    Returns
    -------
    Tensor, shape (..., rows)

    Examples
    --------
    >>> import torch
    >>> from sru_asr.product import linear
    >>> linear(torch.randn(5, 2, 8), torch.randn(24, 8)).shape
    torch.Size([5, 2, 24])
    """
    if x.dim() == 3 and not x.is_contiguous() and x.transpose(0, 1).is_contiguous():
        # Batch first: one product, without a copy.
        return linear(x.transpose(0, 1), weight).transpose(0, 1)
    return convolution(x, weight) if _suits_convolution(x, weight) else F.linear(x, weight)


def _suits_convolution(x: Tensor, weight: Tensor) -> bool:
    return (
        not torch.compiler.is_compiling()  # whose own choice a convolution would hide
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.numel() * weight.shape[0] >= LARGE
        and x.numel() > ONEDNN
        and not torch.is_autocast_enabled("cpu")
        and routine()[0] == "convolution"
        and bool(torch.backends.mkldnn.enabled)
    )


def convolution(x: Tensor, weight: Tensor) -> Tensor:
    """The numbers of `linear` by a 1 x 1 convolution; arguments and result as there.

    Examples
    --------
    >>> import torch
    >>> from sru_asr.product import convolution
    >>> convolution(torch.randn(5, 2, 8), torch.randn(24, 8)).shape
    torch.Size([5, 2, 24])
    """
    # (..., F) as an image of one column in channels-last order: views, without a copy.
    image = x.reshape(1, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)
    # PyTorch would not hand a single thread's to oneDNN, were it not dilated; a kernel of one
    # number has no gaps to widen.
    dilation = (1, 2 if torch.get_num_threads() == 1 else 1)
    y = F.conv2d(image, weight[:, :, None, None], dilation=dilation)
    return y.permute(0, 2, 3, 1).reshape(*x.shape[:-1], weight.shape[0])


def _is_amd() -> bool:
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:  # not Linux
        return False
    return "AuthenticAMD" in text or "HygonGenuine" in text
