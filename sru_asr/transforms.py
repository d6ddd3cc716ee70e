"""Whether PyTorch is transforming a computation in a way that only plain operations follow."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad


def transformed(*tensors: Tensor | None) -> bool:
    """Say whether `torch.func` or forward-mode differentiation is at work on one of the tensors.

    Compiled operators would refuse some of these transformations, and take a tangent for zero.

    Parameters
    ----------
    *tensors : Tensor or None

    Returns
    -------
    bool

    Examples
    --------
    >>> import torch
    >>> from sru_asr.transforms import transformed
    >>> transformed(torch.ones(2))
    False
    >>> torch.func.vmap(lambda x: x + transformed(x))(torch.zeros(2))
    tensor([1., 1.])
    """
    if torch.compiler.is_compiling():
        return _level() is not None  # a graph holds no transformation: the compiler breaks it here
    return any(t is not None and (_wrapped(t) or _dual(t)) for t in tensors)


def _dual(tensor: Tensor) -> bool:
    return forward_ad.unpack_dual(tensor).tangent is not None


# There is no public way to ask; tests of the transformations notice when these go.
try:
    from torch._C._functorch import is_functorch_wrapped_tensor as _wrapped
    from torch._C._functorch import maybe_current_level as _level
except ImportError:

    def _wrapped(tensor: Tensor) -> bool:
        return False

    def _level() -> int | None:
        return None
