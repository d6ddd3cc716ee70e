"""The layer with SpeechBrain's recurrent-network contract."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

import sru_asr.sru
from sru_asr.padding import steps_of


class SRU(nn.Module):
    """A Simple Recurrent Unit stack with the contract of `speechbrain.nnet.RNN`.

    Takes the place of ``speechbrain.nnet.RNN.LSTM`` and its kin wherever a YAML names a class, for
    instance ``rnn_class: !name:sru_asr.nnet.SRU`` in a CRDNN.

    Parameters
    ----------
    hidden_size : int
        Hidden dimensions of one direction, H.
    input_shape : sequence of int, optional
        Shape of an example input, (B, T, F) or (B, T, F1, F2).
    input_size : int, optional
        Features of the input; one of ``input_shape`` and ``input_size`` is needed.
    num_layers, bias, dropout, bidirectional
        As in `sru_asr.SRU`.
    re_init : bool
        Accepted for the contract's sake: SRU has one initialisation, its own, used either way.
    **options
        The other options of `sru_asr.SRU`: ``layer_norm``, ``highway_bias`` and so on.

    Raises
    ------
    ValueError
        When neither ``input_shape`` nor ``input_size`` is given.

    Examples
    --------
    >>> import torch
    >>> from sru_asr.nnet import SRU
    >>> x = torch.rand(4, 10, 20)
    >>> output, c_n = SRU(hidden_size=5, input_shape=x.shape, bidirectional=True)(x)
    >>> output.shape, c_n.shape
    (torch.Size([4, 10, 10]), torch.Size([2, 4, 5]))
    """

    def __init__(
        self,
        hidden_size: int,
        input_shape: Sequence[int | None] | None = None,
        input_size: int | None = None,
        num_layers: int = 1,
        bias: bool = True,
        dropout: float = 0.0,
        re_init: bool = True,
        bidirectional: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        if input_size is None:
            if input_shape is None:
                raise ValueError("one of input_shape and input_size must be given")
            input_size = math.prod(size or 1 for size in input_shape[2:])
        self.rnn = sru_asr.sru.SRU(
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first=True,
            dropout=dropout,
            bidirectional=bidirectional,
            **options,
        )

    def forward(
        self, x: Tensor, hx: Tensor | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Run the stack.

        Parameters
        ----------
        x : Tensor, shape (B, T, F) or (B, T, F1, F2)
            Input.
        hx : Tensor, shape (num_layers * dirs, B, H), optional
            Initial states.
        lengths : Tensor, shape (B,), optional
            Relative lengths, 0 to 1; ``round(lengths * T)`` steps are real.

        Returns
        -------
        output : Tensor, shape (B, T, dirs * H)
            As many steps as x has; padded steps exactly 0.
        c_n : Tensor, shape (num_layers * dirs, B, H)

        Raises
        ------
        ValueError, TypeError
            When an argument does not fit; the message names it.
        """
        if x.dim() == 4:
            x = x.flatten(2)
        if x.dim() != 3:
            raise ValueError(f"x must have shape (B, T, F) or (B, T, F1, F2), got {tuple(x.shape)}")
        return self.rnn(x, hx, steps_of(lengths, x.shape[0], x.shape[1]))
