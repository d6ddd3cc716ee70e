"""Normalisation of features that short recordings can rely on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sru_asr.padding import padding_mask, steps_of


class FeatureNormalization(nn.Module):
    """Mean 0 and variance 1 of each feature, by the recording and what training data was like.

    By a second of speech alone, a feature's mean tells what was said as much as who said it, and in
    which room. So a recording counts as if ``prior_frames`` frames with the training data's mean
    and variance came with it: ::

        mean = (n m + k m0) / (n + k)
        variance = (n (s^2 + (m - mean)^2) + k (s0^2 + (m0 - mean)^2)) / (n + k)

    where a recording of n frames has mean m and standard deviation s, the training data m0 and s0,
    and k is ``prior_frames``: the estimate that a normal-inverse-gamma prior gives. With long
    recordings this becomes `speechbrain.processing.features.InputNormalization` by sentence.

    The training data's statistics are gathered in the first epochs of training, from the batches as
    they are heard, and are part of the state that checkpoints and model folders keep. Before any
    are there, and with ``prior_frames`` 0, a recording's own are all there is.

    Parameters
    ----------
    num_features : int
        Features of a frame, F.
    prior_frames : float
        Weight of the training data, in frames.
    update_until_epoch : int
        The last epoch in which the training data's statistics are gathered.

    Attributes
    ----------
    mean, variance : Tensor, shape (F,)
        The training data's.
    count : Tensor
        Frames that these were gathered from.

    Raises
    ------
    ValueError
        When ``num_features`` is not positive or ``prior_frames`` is negative.

    Examples
    --------
    >>> import torch
    >>> from sru_asr import FeatureNormalization
    >>> normalize = FeatureNormalization(80, prior_frames=200)
    >>> _ = normalize(torch.randn(8, 300, 80) + 5, torch.ones(8), epoch=1)
    >>> short = normalize.eval()(torch.full((1, 1, 80), 5.0), torch.ones(1))
    >>> bool(short.abs().max() < 0.1)  # one frame alone says nothing
    True
    """

    mean: Tensor
    variance: Tensor
    count: Tensor

    def __init__(
        self, num_features: int, prior_frames: float = 200, update_until_epoch: int = 1
    ) -> None:
        super().__init__()
        if num_features < 1:
            raise ValueError(f"num_features must be at least 1, got {num_features}")
        if prior_frames < 0:
            raise ValueError(f"prior_frames must be 0 or more, got {prior_frames}")
        self.prior_frames = prior_frames
        self.update_until_epoch = update_until_epoch
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("variance", torch.ones(num_features))
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor, lengths: Tensor | None = None, epoch: int | None = None) -> Tensor:
        """Normalise a padded batch; the contract of InputNormalization.

        Parameters
        ----------
        x : Tensor, shape (B, T, F)
            Features; what stands in the padding has no effect.
        lengths : Tensor, shape (B,), optional
            Relative lengths, 0 to 1.
        epoch : int, optional
            Current epoch, from 1.

        Returns
        -------
        Tensor, shape (B, T, F)
            Padded frames are 0.

        Raises
        ------
        ValueError, TypeError
            When the input has the wrong shape, or lengths are not relative.
        """
        if x.dim() != 3 or x.shape[2] != len(self.mean):
            raise ValueError(
                f"x must have shape (B, T, {len(self.mean)}), num_features being "
                f"{len(self.mean)}; got {tuple(x.shape)}"
            )
        frames = steps_of(lengths, x.shape[0], x.shape[1])
        padded = None
        if frames is None:
            frames = torch.full((len(x),), x.shape[1], device=x.device)
        else:
            padded = padding_mask(frames, x.shape[1])[:, :, None]
            x = x.masked_fill(padded, 0)
        n = frames[:, None].to(x.dtype)
        mean = x.sum(1) / n.clamp(min=1)
        centred = x - mean[:, None]
        if padded is not None:
            centred = centred.masked_fill(padded, 0)
        variance = centred.square().sum(1) / n.clamp(min=1)
        if self.training and (epoch is None or epoch <= self.update_until_epoch):
            self._gather(n, mean, variance)
        k = self.prior_frames * (self.count > 0)
        total = (n + k).clamp(min=1)
        shrunk = (n * mean + k * self.mean) / total
        spread = (
            n * (variance + (mean - shrunk).square())
            + k * (self.variance + (self.mean - shrunk).square())
        ) / total
        x = (x - shrunk[:, None]) / spread.clamp(min=1e-10).sqrt()[:, None]
        return x if padded is None else x.masked_fill(padded, 0)

    @torch.no_grad()
    def _gather(self, n: Tensor, mean: Tensor, variance: Tensor) -> None:
        """Take a batch's recordings, of n frames each, into the training data's statistics."""
        # One that is not finite stops the run, but not the one that goes on from its checkpoint.
        finite = variance.isfinite().all(1, keepdim=True)
        n = torch.cat([self.count.view(1, 1), n.detach() * finite])
        mean = torch.cat([self.mean[None], mean.detach().where(finite, 0)])
        variance = torch.cat([self.variance[None], variance.detach().where(finite, 0)])
        total = n.sum()
        share = n / total.clamp(min=1)
        pooled = (share * mean).sum(0)
        spread = (share * (variance + (mean - pooled).square())).sum(0)
        self.mean.copy_(torch.where(total > 0, pooled, self.mean))
        self.variance.copy_(torch.where(total > 0, spread, self.variance))
        self.count.copy_(total)

    def extra_repr(self) -> str:
        return (
            f"{len(self.mean)}, prior_frames={self.prior_frames}, "
            f"update_until_epoch={self.update_until_epoch}"
        )
