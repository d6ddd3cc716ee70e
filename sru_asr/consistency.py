"""Consistency of a CTC output over differently masked views of the same utterances."""

from __future__ import annotations

from torch import Tensor

from sru_asr.padding import padding_mask, steps_of


def consistency_loss(log_probs: Tensor, lengths: Tensor, views: int) -> Tensor:
    r"""Tell how far apart the frames of an utterance are in its views.

    Each view learns from the posteriors of another, which get no gradient from it (CR-CTC, Yao et
    al., ICLR 2025, equation 3): what is masked in one is seen in the other. Posteriors become
    smoother in time, and a recogniser that has little data depends less on chance.

    .. math::
        \frac{1}{B V} \sum_{b, v} \sum_t \mathrm{KL}(\mathrm{sg}(p_{b, v+1, t}) \,\|\, p_{b, v, t})

    Parameters
    ----------
    log_probs : Tensor, shape (V * B, T, C)
        Log posteriors of all utterances in their first view, in their second, and so on, as
        `sru_asr.augment.Views` orders them.
    lengths : Tensor, shape (V * B,)
        Relative lengths, 0 to 1.
    views : int
        V, at least 2.

    Returns
    -------
    Tensor, shape ()
        Nats: summed over an utterance's frames, averaged over utterances and views.

    Raises
    ------
    ValueError
        When there are fewer than two views, or the batch is no multiple of them.

    Examples
    --------
    >>> import torch
    >>> from sru_asr.consistency import consistency_loss
    >>> same = torch.randn(2, 5, 4).log_softmax(-1).repeat(2, 1, 1)
    >>> float(consistency_loss(same, torch.ones(4), views=2))
    0.0
    """
    if views < 2 or len(log_probs) % views:
        raise ValueError(
            f"views: found {views} in a batch of {len(log_probs)}, expected at least 2 and a "
            "batch that is a multiple of them"
        )
    batch, frames, _ = log_probs.shape
    steps = steps_of(lengths, batch, frames)
    assert steps is not None
    log_probs = log_probs.masked_fill(padding_mask(steps, frames)[:, :, None], 0)
    other = log_probs.detach().roll(batch // views, 0)
    return (other.exp() * (other - log_probs)).sum() / max(batch, 1)
