"""Convolutional subsampling of speech features that ignores padding."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from sru_asr.padding import padding_mask, steps_of


class ConvSubsampling(nn.Module):
    """Halve the frame rate once for each convolution block and flatten channels into features.

    Each block is a 3x3 convolution with stride 2 in time and frequency and a ReLU; the flattened
    frames are layer-normalised at the end. Padded frames are cleared before every block, so a
    sequence gives the same output alone and in any batch.

    Parameters
    ----------
    input_size : int
        Features of a frame, F (for instance 80 mel bands).
    channels : sequence of int
        Output channels of each block; two blocks reduce the frame rate by 4.
    dropout : float
        Dropout probability of the output.

    Attributes
    ----------
    output_size : int
        Features of the output: the last block's channels times ``ceil(F / 2**blocks)``.
    factor : int
        Frames of input to a frame of output.

    Examples
    --------
    >>> import torch, sru_asr
    >>> subsampling = sru_asr.ConvSubsampling(80, channels=(32, 32))
    >>> subsampling(torch.randn(2, 101, 80), torch.tensor([1.0, 0.5])).shape
    torch.Size([2, 26, 640])
    """

    def __init__(
        self,
        input_size: int,
        channels: tuple[int, ...] | list[int] = (64, 32),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.input_size = input_size
        self.factor = 2 ** len(channels)
        self.convolutions = nn.ModuleList()
        incoming, features = 1, input_size
        for outgoing in channels:
            features = (features + 1) // 2
            self.convolutions.append(nn.Conv2d(incoming, outgoing, 3, stride=2, padding=1))
            incoming = outgoing
        self.output_size = incoming * features
        self.norm = nn.LayerNorm(self.output_size)
        self.dropout = nn.Dropout(dropout)

    def steps_after(self, steps: Tensor) -> Tensor:
        """Give the number of output frames for so many input frames."""
        return (steps + self.factor - 1) // self.factor

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Subsample a padded batch.

        Parameters
        ----------
        x : Tensor, shape (B, T, F)
            Features; what stands in the padding has no effect.
        lengths : Tensor, shape (B,), optional
            Relative lengths, 0 to 1.

        Returns
        -------
        Tensor, shape (B, ceil(T / factor), output_size)

        Raises
        ------
        ValueError, TypeError
            When the input has the wrong shape, or lengths are not relative.
        """
        if x.dim() != 3 or x.shape[2] != self.input_size:
            raise ValueError(f"x must have shape (B, T, {self.input_size}), got {tuple(x.shape)}")
        steps = steps_of(lengths, x.shape[0], x.shape[1])
        if x.shape[1] == 0:  # less than Conv2d takes
            return x.new_zeros(x.shape[0], 0, self.output_size)
        x = x[:, None]
        for convolution in self.convolutions:
            x = F.relu(convolution(self._clear(x, steps)))
            steps = None if steps is None else (steps + 1) // 2
        x = self.norm(x.transpose(1, 2).flatten(2))
        if steps is not None:
            x = x.masked_fill(padding_mask(steps, x.shape[1])[:, :, None], 0)
        return self.dropout(x)

    @staticmethod
    def _clear(x: Tensor, steps: Tensor | None) -> Tensor:
        if steps is None:
            return x
        return x.masked_fill(padding_mask(steps, x.shape[2])[:, None, :, None], 0)
