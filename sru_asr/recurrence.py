"""The recurrence as a module: gate parameters, highway scale and dropout around the operator."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sru_asr import ops
from sru_asr.blocks import Options, run_blocks, suits_blocks
from sru_asr.product import linear


class Recurrence(nn.Module):
    """Elementwise recurrence of one layer, both directions, with its learned gate vectors.

    Turns projected input ``u`` into outputs; the projection itself belongs to the layer around it.
    With ``num_lanes = 3`` the highway carries ``alpha * x``, with 4 it carries lane ``u3``, where
    ``alpha = sqrt(1 + 2 * exp(highway_bias))`` keeps the variance of deep stacks at initialisation
    (Lei et al., EMNLP 2018, section 3.2).

    Parameters
    ----------
    hidden_size : int
        Hidden dimensions of one direction.
    num_lanes : {3, 4}
        Lanes of ``u``.
    bias : bool
        Learn the gate biases; otherwise the forget bias is 0 and the reset bias ``highway_bias``.
    bidirectional : bool
        Add a direction that runs from the end to the beginning.
    dropout : float
        Probability of dropping a hidden dimension for a whole sequence, inside the highway.
    highway : bool
        Mix the input into the output; otherwise ``h = r * g(c)``.
    highway_bias : float
        Initial bias of the reset gate; about -2 lets deep stacks start near the identity.
    rescale : bool
        Scale the highway by ``alpha``; otherwise ``alpha = 1``.
    recurrent_gates : bool
        Let the gates see the previous state through ``v``; otherwise the recurrence is linear.
    activation : {"identity", "tanh"}
        Activation of the state.
    recompute : {"auto", True, False}
        Recompute states in the backward pass instead of keeping them all (`sru_asr.ops`).

    Attributes
    ----------
    v, b : Tensor, shape (2, D)
        Recurrent weights (None without ``recurrent_gates``) and biases: forget, then reset gate.
    alpha : float
        Scale of the highway.

    Examples
    --------
    >>> import torch
    >>> from sru_asr.recurrence import Recurrence
    >>> h, c_n = Recurrence(8, 3)(torch.randn(5, 2, 3, 8), torch.randn(5, 2, 8))
    >>> h.shape, c_n.shape
    (torch.Size([5, 2, 8]), torch.Size([2, 8]))
    """

    b: Tensor

    def __init__(
        self,
        hidden_size: int,
        num_lanes: int,
        *,
        bias: bool = True,
        bidirectional: bool = False,
        dropout: float = 0.0,
        highway: bool = True,
        highway_bias: float = 0.0,
        rescale: bool = True,
        recurrent_gates: bool = True,
        activation: str = "identity",
        recompute: bool | str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if recompute not in ("auto", True, False):
            raise ValueError(f"recompute must be 'auto', True or False, got {recompute!r}")
        self.hidden_size = hidden_size
        self.num_lanes = num_lanes
        self.bidirectional = bidirectional
        self.width = hidden_size * (2 if bidirectional else 1)
        self.dropout = dropout
        self.highway = highway
        self.highway_bias = highway_bias
        self.activation = activation
        self.recompute = recompute
        self.alpha = math.sqrt(1 + 2 * math.exp(highway_bias)) if highway and rescale else 1.0
        shape = (2, self.width)
        if recurrent_gates:
            self.v = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        else:
            self.register_parameter("v", None)
        if bias:
            self.b = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        else:
            self.register_buffer("b", torch.empty(shape, device=device, dtype=dtype))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, v_range: float = math.sqrt(1.5)) -> None:
        """Draw ``v`` from U(-v_range, v_range), variance 1/2 by default, and reset the biases."""
        if self.v is not None:
            self.v.uniform_(-v_range, v_range)
        self.b[0].zero_()
        self.b[1].fill_(self.highway_bias)

    def forward(
        self,
        u: Tensor,
        x: Tensor | None,
        c0: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Run the recurrence.

        Parameters
        ----------
        u : Tensor, shape (T, B, num_lanes, D)
            Projected input.
        x : Tensor, shape (T, B, D), or None
            The layer's raw input, for the highway of three-lane layers; ignored otherwise.
        c0 : Tensor, shape (B, D), optional
            State before the first step.
        lengths : integer Tensor, shape (B,), optional
            Real steps of each sequence.

        Returns
        -------
        h : Tensor, shape (T, B, D)
        c_n : Tensor, shape (B, D)
        """
        mask = None
        if self.training and self.dropout > 0:
            keep = 1 - self.dropout
            # Not in u's precision: in bfloat16 1 / 0.9 is 1.109, and the mean would drift.
            dtype = torch.promote_types(self.b.dtype, torch.float32)
            mask = self.b.new_empty(u.shape[1], u.shape[3], dtype=dtype)
            mask = mask.bernoulli_(keep).div_(keep or 1)
        return ops.sru_recurrence(
            u,
            self.v,
            self.b,
            x if self.highway and self.num_lanes == 3 else None,
            c0,
            lengths,
            bidirectional=self.bidirectional,
            alpha=self.alpha,
            activation=self.activation,
            mask=mask,
            recompute=self.recompute,
        )

    def project(
        self,
        z: Tensor,
        weight: Tensor,
        x: Tensor | None,
        c0: Tensor | None = None,
        lengths: Tensor | None = None,
        overwrite: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Multiply by the layer's matrix, then run the recurrence.

        Parameters
        ----------
        z : Tensor, shape (T, B, features)
            What the product takes.
        weight : Tensor, shape (num_lanes * D, features)
            The matrix, lane by lane.
        x, c0, lengths
            As in `forward`.
        overwrite : bool
            As in `sru_asr.blocks.run_blocks`.

        Returns
        -------
        h : Tensor, shape (T, B, D)
        c_n : Tensor, shape (B, D)
        """
        x = x if self.highway and self.num_lanes == 3 else None
        dropped = self.training and self.dropout > 0
        if not dropped and suits_blocks(z, weight, self.v, self.b, x, c0, lengths):
            options = Options(self.num_lanes, self.bidirectional, self.alpha, self.activation)
            return run_blocks(z, weight, self.v, self.b, x, c0, lengths, options, overwrite)
        u = linear(z, weight).unflatten(-1, (self.num_lanes, -1))
        # Not wider than u: the operator would widen u, which is three or four times as large.
        return self(u, None if x is None else x.to(u.dtype), c0, lengths)

    def __prepare_scriptable__(self) -> nn.Module:
        # What torch.jit.script calls first, for a layer in any model.
        raise RuntimeError(
            "TorchScript cannot compile SRU layers (torch.jit.script, SpeechBrain's jit option): "
            "use torch.compile (SpeechBrain's compile option), or torch.jit.trace for inference"
        )

    def extra_repr(self) -> str:
        parts = [f"{self.hidden_size}", f"num_lanes={self.num_lanes}", f"alpha={self.alpha:.3g}"]
        if self.bidirectional:
            parts.append("bidirectional=True")
        if self.dropout:
            parts.append(f"dropout={self.dropout}")
        return ", ".join(parts)
