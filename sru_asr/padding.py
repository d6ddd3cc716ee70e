"""Padding masks and lengths, in the one convention of this package.

``lengths`` are integer steps inside the layers (as in PyTorch's packing) and relative, 0 to 1, in
everything that SpeechBrain calls. A padding mask is True at padded steps.
"""

from __future__ import annotations

import torch
from torch import Tensor


def padding_mask(lengths: Tensor, steps: int) -> Tensor:
    """Mark the padded steps of each sequence.

    Parameters
    ----------
    lengths : integer Tensor, shape (B,)
        Real steps of each sequence.
    steps : int
        Steps of the padded batch, T.

    Returns
    -------
    Tensor of bool, shape (B, T)
        True where a step is padding.

    Examples
    --------
    >>> import torch
    >>> from sru_asr.padding import padding_mask
    >>> padding_mask(torch.tensor([1, 3]), 3).int().tolist()
    [[0, 1, 1], [0, 0, 0]]
    """
    return torch.arange(steps, device=lengths.device) >= lengths[:, None]


def steps_of(
    lengths: Tensor | None, batch: int, steps: int, name: str = "lengths"
) -> Tensor | None:
    """Turn relative lengths into integer steps, ``round(lengths * T)``, as SpeechBrain does.

    Parameters
    ----------
    lengths : floating-point Tensor, shape (B,), or None
        Relative lengths, 0 to 1.
    batch, steps : int
        Size of the batch, B, and steps of the padded batch, T.
    name : str
        What the error messages call the argument.

    Returns
    -------
    integer Tensor, shape (B,), or None
        None where ``lengths`` is.

    Raises
    ------
    TypeError, ValueError
        When lengths are not relative, or not one for each sequence.

    Examples
    --------
    >>> import torch
    >>> from sru_asr.padding import steps_of
    >>> steps_of(torch.tensor([0.5, 1.0]), 2, 5).tolist()
    [2, 5]
    """
    if lengths is None:
        return None
    if not lengths.is_floating_point():
        raise TypeError(
            f"{name} must be relative (floating point, 0 to 1) as everywhere in SpeechBrain, "
            f"got {lengths.dtype}; divide steps by the padded length"
        )
    if tuple(lengths.shape) != (batch,):
        raise ValueError(f"{name} must have shape {(batch,)}, got {tuple(lengths.shape)}")
    # A value check would stall a GPU on every call; there the kernel clamps.
    if lengths.device.type == "cpu" and not torch.compiler.is_compiling() and lengths.numel():
        low, high = lengths.min().item(), lengths.max().item()
        if not (low >= 0 and high <= 1 + 1e-4):
            raise ValueError(
                f"{name} must be relative, between 0 and 1, got values from {low:g} to {high:g}; "
                "divide steps by the padded length"
            )
    return torch.round(lengths.double() * steps).long().clamp_(0, steps)
