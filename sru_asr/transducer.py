"""The transducer loss under SpeechBrain's calling convention, on the CPU as well as on a GPU."""

from __future__ import annotations

import torch
from torch import Tensor
from torchaudio.functional import rnnt_loss

from sru_asr.padding import steps_of


def transducer_loss(
    logits: Tensor,
    targets: Tensor,
    input_lens: Tensor,
    target_lens: Tensor,
    blank_index: int,
    reduction: str = "mean",
) -> Tensor:
    """Compute the transducer loss (Graves, 2012).

    Takes the place of ``speechbrain.nnet.losses.transducer_loss``, which needs numba and a CUDA
    device: in a YAML, ``transducer_cost: !name:sru_asr.transducer.transducer_loss``. The sums are
    `torchaudio.functional.rnnt_loss`'s, in float32.

    Parameters
    ----------
    logits : Tensor, shape (B, T, U + 1, V)
        Output of the joint network; need not be normalised.
    targets : integer Tensor, shape (B, U)
        Tokens without blanks.
    input_lens, target_lens : Tensor, shape (B,)
        Relative lengths of frames and tokens, 0 to 1.
    blank_index : int
        The blank among the V tokens.
    reduction : {"mean", "sum", "none"}
        Over sequences, as SpeechBrain's: "mean" divides by B only.

    Returns
    -------
    Tensor, shape () or (B,)
        Negative log-likelihood, in nats.

    Raises
    ------
    ValueError, TypeError
        When shapes do not fit, lengths are not relative or a sequence has no frames.

    Examples
    --------
    >>> import torch
    >>> from sru_asr.transducer import transducer_loss
    >>> logits, targets = torch.zeros(2, 3, 2, 4), torch.tensor([[1], [2]])
    >>> loss = transducer_loss(logits, targets, torch.ones(2), torch.ones(2), blank_index=0)
    >>> round(loss.item(), 4)  # three ways of four steps, each step 1/4
    4.4466
    """
    if logits.dim() != 4 or targets.dim() != 2:
        raise ValueError(
            "logits must have shape (B, T, U + 1, V) and targets (B, U), got "
            f"{tuple(logits.shape)} and {tuple(targets.shape)}"
        )
    batch, frames, positions, _ = logits.shape
    if tuple(targets.shape) != (batch, positions - 1):
        raise ValueError(
            f"logits of shape {tuple(logits.shape)} belong to targets of shape "
            f"{(batch, positions - 1)}, got {tuple(targets.shape)}"
        )
    steps = steps_of(input_lens, batch, frames, "input_lens")
    tokens = steps_of(target_lens, batch, positions - 1, "target_lens")
    assert steps is not None and tokens is not None
    if not steps.all():
        raise ValueError(f"input_lens must leave every sequence a frame of {frames}: {input_lens}")
    # torchaudio insists that the longest sequence fills the tensors.
    longest, most = int(steps.max()), int(tokens.max())
    return rnnt_loss(
        logits[:, :longest, : most + 1].float().contiguous(),
        targets[:, :most].to(torch.int32).contiguous(),
        steps.to(torch.int32),
        tokens.to(torch.int32),
        blank=blank_index,
        reduction=reduction,
    )
