"""What the steps around a step tell: the gated convolution inside SRU++'s projection."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from sru_asr.blocks import recorded


class GatedConvolution(nn.Module):
    """The Conformer's convolution module, which leaves zeros zero.

    ::

        y = GLU(W1 LayerNorm(z))
        y = swish(LayerNorm(conv(y)))
        output = dropout(W2 y)

    The convolution is depthwise: over time, of each dimension by itself. Gulati et al., "Conformer:
    Convolution-augmented Transformer for Speech Recognition", Interspeech 2020, section 2.2; as in
    SpeechBrain, layer norm stands for its batch norm, so that a sequence gives the same in any
    batch. Up to the convolution nothing has a bias, so what is 0 in the padding adds nothing to the
    steps before it.

    Parameters
    ----------
    size : int
        Features of input and output, d'.
    kernel_size : int
        Steps that the convolution sees, odd.
    dropout : float
        Dropout probability of the output.

    Raises
    ------
    ValueError
        When the kernel has no middle.

    Examples
    --------
    >>> import torch
    >>> from sru_asr.convolution import GatedConvolution
    >>> GatedConvolution(16, 5)(torch.randn(7, 3, 16)).shape
    torch.Size([7, 3, 16])
    """

    def __init__(self, size: int, kernel_size: int, dropout: float = 0.0) -> None:
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"conv_kernel must be odd, or 0 for none, got {kernel_size}")
        self.reach = kernel_size // 2  # steps to each side
        self.norm_in = nn.LayerNorm(size, bias=False)
        self.expand = nn.Linear(size, 2 * size, bias=False)
        self.conv = nn.Conv2d(
            size, size, (kernel_size, 1), padding=(self.reach, 0), groups=size, bias=False
        )
        self.norm_out = nn.LayerNorm(size)
        self.contract = nn.Linear(size, size, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw Xavier-uniform matrices and PyTorch's default taps."""
        self.norm_in.reset_parameters()
        nn.init.xavier_uniform_(self.expand.weight)
        self.conv.reset_parameters()
        self.norm_out.reset_parameters()
        nn.init.xavier_uniform_(self.contract.weight)

    def forward(self, z: Tensor) -> Tensor:
        """Tell each step of its neighbours.

        Parameters
        ----------
        z : Tensor, shape (T, B, size)
            Steps; 0 in the padding.

        Returns
        -------
        Tensor, shape (T, B, size)
        """
        y = F.glu(self.expand(self.norm_in(z)), -1)
        return self.dropout(self.contract(F.silu(self.norm_out(self.convolve(y)))))

    def convolve(self, y: Tensor) -> Tensor:
        """The convolution alone, of a tensor of the same shape."""
        if y.numel() == 0:  # of no step there is no convolution
            return y
        if recorded():
            # Inductor (PyTorch 2.11) cannot differentiate the below for any length; this it fuses.
            padded = F.pad(y, (0, 0, 0, 0, self.reach, self.reach))
            taps = self.conv.weight[:, 0, :, 0].T
            terms = [padded.narrow(0, i, y.shape[0]) * tap for i, tap in enumerate(taps)]
            return sum(terms[1:], terms[0])
        # As an image of T by B pixels: depthwise, over T alone, and no number is moved.
        return self.conv(y[None].permute(0, 3, 1, 2))[0].permute(1, 2, 0)
