"""The Simple Recurrent Unit as a layer and as a stack with torch.nn.GRU's contract."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from sru_asr.padding import padding_mask
from sru_asr.product import linear
from sru_asr.recurrence import Recurrence

# Keys of other architectures' state_dicts, and what to do with one.
_FOREIGN = {
    "rnn_lst.0.weight_c": (
        "weights of the old sru package; sru_asr.load_sru_checkpoint makes an SRU of them"
    ),
    "weight_ih_l0": (
        "weights of torch.nn.GRU, LSTM or RNN, which compute something else; train the SRU anew"
    ),
}


class SRULayer(nn.Module):
    """One layer: a matrix product over the whole sequence, then the recurrence.

    ``u`` comes out of the product lane by lane (rows of ``weight`` are ordered u0, uf, ur[, u3],
    each lane holding all hidden dimensions, forward direction first), which gives the recurrence
    unit-stride reads of every lane.

    Parameters are those of `SRU`; ``dropout`` acts on this layer's own output.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        bias: bool = True,
        dropout: float = 0.0,
        bidirectional: bool = False,
        projection_size: int | None = None,
        layer_norm: str | None = None,
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
        self.input_size = input_size
        self.output_size = hidden_size * (2 if bidirectional else 1)
        lanes = 4 if highway and input_size != self.output_size else 3
        self.recurrence = Recurrence(
            hidden_size,
            lanes,
            bias=bias,
            bidirectional=bidirectional,
            dropout=dropout,
            highway=highway,
            highway_bias=highway_bias,
            rescale=rescale,
            recurrent_gates=recurrent_gates,
            activation=activation,
            recompute=recompute,
            device=device,
            dtype=dtype,
        )
        inner = input_size if projection_size is None else projection_size
        self.weight = nn.Parameter(
            torch.empty(lanes * self.output_size, inner, device=device, dtype=dtype)
        )
        if projection_size is None:
            self.register_parameter("projection", None)
        else:
            self.projection = nn.Parameter(
                torch.empty(projection_size, input_size, device=device, dtype=dtype)
            )
        self.layer_norm = layer_norm
        if layer_norm is not None:
            normalized = input_size if layer_norm == "pre" else self.output_size
            self.norm = nn.LayerNorm(normalized, device=device, dtype=dtype)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw initial values: uniform, variance 1/fan_in, scaled as the SRU paper's code does."""
        self.recurrence.reset_parameters()
        if self.layer_norm is not None:
            self.norm.reset_parameters()
        for matrix in (self.weight, self.projection):
            if matrix is not None:
                bound = math.sqrt(3 / max(1, matrix.shape[1]))
                matrix.uniform_(-bound, bound)
        lanes = self.weight.view(self.recurrence.num_lanes, self.output_size, -1)
        lanes[0] *= math.sqrt(1 - self.recurrence.dropout)
        if self.recurrence.v is not None:
            lanes[1:3] *= math.sqrt(0.5)  # the gates' other half of the variance is v's
        if self.layer_norm is not None:
            lanes *= 0.1
        if self.recurrence.num_lanes == 4:
            lanes[3] *= self.recurrence.alpha

    def forward(
        self, x: Tensor, c0: Tensor | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Run the layer.

        Parameters
        ----------
        x : Tensor, shape (T, B, input_size)
            Input; padded steps must be finite (`SRU` zeroes them).
        c0 : Tensor, shape (B, output_size), optional
            State before the first step.
        lengths : integer Tensor, shape (B,), optional
            Real steps of each sequence.

        Returns
        -------
        h : Tensor, shape (T, B, output_size)
        c_n : Tensor, shape (B, output_size)
        """
        z = self.norm(x) if self.layer_norm == "pre" else x
        if self.projection is not None:
            z = linear(z, self.projection)
        h, c_n = self.recurrence.project(z, self.weight, x, c0, lengths)
        if self.layer_norm == "post":
            h = self.norm(h)
            if lengths is not None:
                h = h.masked_fill(padding_mask(lengths, h.shape[0]).T[:, :, None], 0)
        return h, c_n


class SRU(nn.Module):
    """A stack of Simple Recurrent Unit layers with the contract of `torch.nn.GRU`.

    All matrix products of a layer are done for the whole sequence at once; only an elementwise
    recurrence, independent for each hidden dimension, runs over time (`sru_asr.ops`)::

        f = sigmoid(W_f x + v_f * c_prev + b_f)      r = sigmoid(W_r x + v_r * c_prev + b_r)
        c = f * c_prev + (1 - f) * W x               h = r * c + (1 - r) * alpha * x

    Lei et al., "Simple Recurrent Units for Highly Parallelizable Recurrence", EMNLP 2018,
    equations 3 to 7.

    Parameters
    ----------
    input_size : int
        Features of the input, F.
    hidden_size : int
        Hidden dimensions of one direction, H.
    num_layers : int
        Layers of the stack.
    bias : bool
        Learn the gate biases; otherwise the forget bias is 0 and the reset bias ``highway_bias``.
    batch_first : bool
        Input and output are (B, T, ...) instead of (T, B, ...).
    dropout : float
        Dropout probability on each layer's output but the last's: one mask for a whole sequence,
        inside the highway.
    bidirectional : bool
        Add a direction that runs from each sequence's end to its beginning.
    projection_size : int, optional
        Factorise each layer's product through this many dimensions (not nn.LSTM's ``proj_size``).
    layer_norm : {None, "pre", "post"}
        Normalise the input of each product, or each layer's output.
    highway : bool
        Mix each layer's input into its output.
    highway_bias : float
        Initial bias of the reset gate; about -2 suits deep stacks.
    rescale : bool
        Scale the highway by ``alpha = sqrt(1 + 2 * exp(highway_bias))``.
    recurrent_gates : bool
        Let the gates see the previous state; otherwise the recurrence is linear.
    activation : {"identity", "tanh"}
        Activation of the state.
    recompute : {"auto", True, False}
        Whether the backward pass recomputes most states instead of keeping all of them. It saves
        memory for a tensor of the output's shape in each layer; "auto" does where it costs no time.
    device, dtype
        As in any PyTorch module.

    Raises
    ------
    ValueError
        When an option's value is not one of the above.

    Examples
    --------
    >>> import torch, sru_asr
    >>> sru = sru_asr.SRU(80, 128, num_layers=2, batch_first=True, bidirectional=True)
    >>> x = torch.randn(4, 50, 80)
    >>> output, c_n = sru(x, lengths=torch.tensor([50, 7, 0, 31]))
    >>> output.shape, c_n.shape
    (torch.Size([4, 50, 256]), torch.Size([4, 4, 128]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        projection_size: int | None = None,
        layer_norm: str | None = None,
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
        for name, size in (
            ("input_size", input_size),
            ("hidden_size", hidden_size),
            ("num_layers", num_layers),
            ("projection_size", projection_size),
        ):
            if size is not None and size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        check_dropout(dropout)
        if layer_norm not in (None, "pre", "post"):
            raise ValueError(f"layer_norm must be None, 'pre' or 'post', got {layer_norm!r}")
        if activation not in ("identity", "tanh"):
            raise ValueError(f"activation must be 'identity' or 'tanh', got {activation!r}")
        if dropout and num_layers == 1:
            warnings.warn(
                "dropout acts on every layer but the last, so with num_layers=1 it does nothing",
                stacklevel=2,
            )
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = dropout
        self.bidirectional = bidirectional
        self.output_size = hidden_size * (2 if bidirectional else 1)
        self.layers = nn.ModuleList(
            SRULayer(
                input_size if i == 0 else self.output_size,
                hidden_size,
                bias=bias,
                dropout=dropout if i < num_layers - 1 else 0.0,
                bidirectional=bidirectional,
                projection_size=projection_size,
                layer_norm=layer_norm,
                highway=highway,
                highway_bias=highway_bias,
                rescale=rescale,
                recurrent_gates=recurrent_gates,
                activation=activation,
                recompute=recompute,
                device=device,
                dtype=dtype,
            )
            for i in range(num_layers)
        )

    def reset_parameters(self) -> None:
        """Draw all initial values anew."""
        for module in self.modules():
            if isinstance(module, SRULayer):
                module.reset_parameters()

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load weights, as any module does; say what others are, which have other keys.

        Raises
        ------
        RuntimeError
            When keys or shapes do not fit, unless not ``strict``.
        """
        for key, advice in _FOREIGN.items():
            if strict and key in state_dict:
                raise RuntimeError(f"unexpected key {key!r} in state_dict: {advice}")
        return super().load_state_dict(state_dict, strict, assign)

    def flatten_parameters(self) -> None:
        """Do nothing: there is no fused buffer to rebuild. Kept for nn.GRU's users."""

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        """Run the stack.

        Parameters
        ----------
        input : Tensor or PackedSequence
            (T, B, F), (B, T, F) with ``batch_first``, (T, F) unbatched, or packed.
        hx : Tensor, shape (num_layers * dirs, B, H), optional
            Initial states; (num_layers * dirs, H) for unbatched input. Zeros by default.
        lengths : integer Tensor, shape (B,), optional
            Real steps of each sequence, in any order. Whatever stands in the padding has no effect.

        Returns
        -------
        output : Tensor or PackedSequence
            (T, B, dirs * H) or as the input; padded steps exactly 0.
        c_n : Tensor, shape (num_layers * dirs, B, H)
            Final states, also the ``hx`` of a continuation; layer by layer, forward first.

        Raises
        ------
        ValueError, TypeError
            When an argument's shape or type does not fit; the message names it.
        """
        if hx is not None and not isinstance(hx, Tensor):
            raise TypeError(
                f"hx must be a Tensor, got {type(hx).__name__}: there is one state, not nn.LSTM's "
                "pair; pass the c_n that an earlier call returned"
            )
        if isinstance(input, PackedSequence):
            if lengths is not None:
                raise ValueError("lengths must be None for a PackedSequence, which has its own")
            padded, packed_lengths = pad_packed_sequence(input)
            output, c_n = self._run(padded, hx, packed_lengths.to(padded.device))
            order = input.sorted_indices
            if order is not None:
                output, packed_lengths = output[:, order], packed_lengths[order.cpu()]
            data = pack_padded_sequence(output, packed_lengths).data
            return (
                PackedSequence(data, input.batch_sizes, order, input.unsorted_indices),
                c_n,
            )
        if input.dim() == 2:
            if lengths is not None:
                raise ValueError("lengths must be None for unbatched (T, F) input")
            if hx is not None and hx.dim() != 2:
                raise ValueError(f"hx of unbatched input must be 2-D, got {tuple(hx.shape)}")
            output, c_n = self._run(input[:, None], None if hx is None else hx[:, None], None)
            return output[:, 0], c_n[:, 0]
        if input.dim() != 3:
            raise ValueError(
                f"input must be (T, F) or have three dimensions, got {tuple(input.shape)}"
            )
        if self.batch_first:
            output, c_n = self._run(input.transpose(0, 1), hx, lengths)
            return output.transpose(0, 1), c_n
        return self._run(input, hx, lengths)

    def _run(self, x: Tensor, hx: Tensor | None, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        steps, batch, features = x.shape
        if features != self.input_size:
            raise ValueError(
                f"input must have {self.input_size} features (input_size), got {features}"
            )
        directions = self.output_size // self.hidden_size
        states: list[Tensor | None] = [None] * self.num_layers
        if hx is not None:
            expected = (self.num_layers * directions, batch, self.hidden_size)
            if tuple(hx.shape) != expected:
                raise ValueError(
                    f"hx must have shape (num_layers * directions, batch, hidden_size) = {expected}"
                    f", got {tuple(hx.shape)}{self._advice(hx, batch)}"
                )
            # (layers, dirs, B, H) -> per layer (B, dirs * H)
            by_layer = hx.unflatten(0, (self.num_layers, directions)).transpose(1, 2).flatten(2)
            states = list(by_layer.unbind(0))
        if lengths is not None:
            check_lengths(lengths, batch)
            lengths = lengths.to(x.device)  # nn.GRU's users keep them on the CPU
            # Cleared before the first product: 0 * NaN would reach the weights' gradient.
            x = x.masked_fill(padding_mask(lengths, steps).T[:, :, None], 0)
        finals = []
        for layer, c0 in zip(self.layers, states, strict=True):
            x, c_n = layer(x, c0, lengths)
            finals.append(c_n)
        c_n = torch.stack(finals).unflatten(-1, (directions, self.hidden_size))
        return x, c_n.transpose(1, 2).flatten(0, 1)

    def _advice(self, hx: Tensor, batch: int) -> str:
        if tuple(hx.shape) == (self.num_layers, batch, self.output_size):
            return (
                ", the old sru package's layout: "
                "hx.unflatten(-1, (2, -1)).transpose(1, 2).flatten(0, 1) turns it into this one"
            )
        return "; c_n of a stack with the same num_layers and bidirectional has that shape"

    def extra_repr(self) -> str:
        text = f"{self.input_size}, {self.hidden_size}, num_layers={self.num_layers}"
        return text + (", bidirectional=True" if self.bidirectional else "")


def check_dropout(dropout: float, name: str = "dropout") -> None:
    """Raise a ValueError that names the argument unless ``dropout`` is a probability."""
    if not 0 <= dropout <= 1:
        raise ValueError(f"{name} must be a probability between 0 and 1, got {dropout}")


def check_lengths(lengths: Tensor, batch: int) -> None:
    """Raise a TypeError or ValueError unless ``lengths`` are integer steps, one a sequence."""
    if not isinstance(lengths, Tensor) or lengths.is_floating_point():
        found = lengths.dtype if isinstance(lengths, Tensor) else type(lengths).__name__
        raise TypeError(f"lengths must be an integer tensor of steps, got {found}")
    if tuple(lengths.shape) != (batch,):
        raise ValueError(f"lengths must have shape {(batch,)}, got {tuple(lengths.shape)}")
