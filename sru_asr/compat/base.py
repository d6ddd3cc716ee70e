"""What the cells and stacks of the old package's two generations have in common.

TorchScript compiles these modules, as it did the old ones, and reads annotations as they stand:
hence no ``from __future__ import annotations`` here. Attributes are the old ones, so that whole
modules pickled by the old package come to life as ours.
"""

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from sru_asr import ops
from sru_asr.padding import padding_mask
from sru_asr.product import linear


class Cell(nn.Module):
    """One layer without its product: options, dropout, padding, recurrence, layer norm.

    A subclass says how (T, B, input_size) becomes lanes. Parameters are those of
    `sru_asr.compat.SRUCell`.
    """

    scale_x: Tensor

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        dropout: float,
        rnn_dropout: float,
        bidirectional: bool,
        use_tanh: bool,
        highway_bias: float,
        has_skip_term: bool,
        rescale: bool,
        v1: bool,
        amp_recurrence_fp16: bool,
        normalize_after: bool,
        weight_c_init: float | None,
    ) -> None:
        super().__init__()
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.output_size = hidden_size * 2 if bidirectional else hidden_size
        self.rnn_dropout = float(rnn_dropout)
        self.dropout = float(dropout)
        self.bidirectional = bidirectional
        self.has_skip_term = has_skip_term
        self.highway_bias = highway_bias
        self.v1 = v1
        self.rescale = rescale
        self.activation_type = 1 if use_tanh else 0
        self.activation = "tanh" if use_tanh else "none"
        self.amp_recurrence_fp16 = amp_recurrence_fp16
        self.normalize_after = normalize_after
        self.weight_c_init = weight_c_init
        self.num_matrices = 4 if has_skip_term and input_size != self.output_size else 3

    def add_gates(self, layer_norm: bool) -> None:
        """Add what follows the product, which comes first: optimizers go by parameters' order."""
        size = 2 * self.output_size
        self.weight_c = nn.Parameter(torch.empty(size), requires_grad=not self.v1)
        self.bias = nn.Parameter(torch.empty(size))
        self.register_buffer("scale_x", torch.ones(1))
        self.layer_norm: nn.Module | None = None
        if layer_norm:
            features = self.output_size if self.normalize_after else self.input_size
            self.layer_norm = nn.LayerNorm(features)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set the gates' biases and the highway's scale to initial values, and draw weight_c."""
        self.bias[: self.output_size].zero_()
        self.bias[self.output_size :].fill_(self.highway_bias)
        self.scale_x.fill_(self.scale() if self.rescale and self.has_skip_term else 1.0)
        if self.v1:
            self.weight_c.zero_()
        elif self.weight_c_init is None:
            self.weight_c.uniform_(-(3.0**0.5), 3.0**0.5).mul_(0.5**0.5)
        else:
            self.weight_c.uniform_(-self.weight_c_init, self.weight_c_init)

    def scale(self) -> float:
        """Return the highway's scale under ``rescale``."""
        return math.sqrt(1 + 2 * math.exp(self.highway_bias))

    def product_input(self, x: Tensor) -> Tensor:
        """Normalise and drop out what the product takes, (T, B, input_size)."""
        layer_norm = self.layer_norm
        if layer_norm is not None and not self.normalize_after:
            x = layer_norm(x)
        if self.training and self.rnn_dropout > 0:
            x = x * self.dropout_mask(x.size(1), x.size(2), self.rnn_dropout).to(x.dtype)
        return x

    def recur(
        self, u: Tensor, x: Tensor, c0: Tensor | None, padded: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Run the recurrence and what follows it.

        Parameters
        ----------
        u : Tensor, shape (T, B, k, D)
            Projected input in lanes.
        x : Tensor, shape (T, B, input_size)
            The cell's raw input, for the highway.
        c0 : Tensor, shape (B, D), optional
        padded : Tensor of bool, shape (T, B), optional

        Returns
        -------
        h : Tensor, shape (T, B, D)
        c_n : Tensor, shape (B, D)
        """
        if c0 is not None and (c0.dim() != 2 or c0.size(0) != u.size(1) or c0.size(1) != u.size(3)):
            raise ValueError(
                f"c0 must have shape (batch, output_size) = ({u.size(1)}, {u.size(3)}), "
                f"got {list(c0.shape)}"
            )
        highway: Tensor | None = None
        if self.has_skip_term and self.num_matrices == 3:
            highway = x * self.scale_x if self.rescale else x
        mask: Tensor | None = None
        if self.training and self.dropout > 0:
            mask = self.dropout_mask(u.size(1), u.size(3), self.dropout)
        if padded is not None:
            u = carry(u, padded)
        v, b = self.weight_c.view(2, -1), self.bias.view(2, -1)
        activation = "tanh" if self.activation == "tanh" else "identity"
        if torch.jit.is_scripting():
            h, c_n = ops.scripted_recurrence(
                u, v, b, highway, c0, mask, self.bidirectional, activation
            )
        else:
            if not self.amp_recurrence_fp16 and torch.is_autocast_enabled(u.device.type):
                u = u.to(torch.promote_types(u.dtype, torch.float32))
            h, c_n = ops.sru_recurrence(
                u,
                v,
                b,
                None if highway is None else highway.to(u.dtype),
                c0,
                bidirectional=self.bidirectional,
                activation=activation,
                mask=mask,
            )
        if padded is not None:
            h = h.masked_fill(padded[:, :, None], 0.0)
        layer_norm = self.layer_norm
        if layer_norm is not None and self.normalize_after:
            h = layer_norm(h)
        return h, c_n

    def dropout_mask(self, batch: int, features: int, p: float) -> Tensor:
        """Draw a mask (batch, features) that all time steps share."""
        # Not in 16 bits, where 1 / (1 - p) is far from itself.
        dtype = torch.promote_types(self.bias.dtype, torch.float32)
        mask = torch.empty([batch, features], dtype=dtype, device=self.bias.device)
        return mask.bernoulli_(1 - p) / max(1 - p, 1e-30)

    def extra_repr(self) -> str:
        return describe(self, "projection_size", "dropout", "rnn_dropout", "highway_bias")


class Stack(nn.Module):
    """Layers one after the other. A subclass fills ``rnn_lst``.

    Parameters are those of `sru_asr.compat.SRU`.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        dropout: float,
        bidirectional: bool,
        layer_norm: bool,
        nn_rnn_compatible_return: bool,
        proj_input_to_hidden_first: bool,
    ) -> None:
        super().__init__()
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.output_size = hidden_size * 2 if bidirectional else hidden_size
        self.num_layers = num_layers
        self.dropout = dropout
        self.bidirectional = bidirectional
        self.use_layer_norm = layer_norm
        self.num_directions = 2 if bidirectional else 1
        self.nn_rnn_compatible_return = nn_rnn_compatible_return
        self.input_to_hidden: nn.Linear | None = None
        if proj_input_to_hidden_first and input_size != self.output_size:
            self.input_to_hidden = nn.Linear(input_size, self.output_size, bias=False)
        self.rnn_lst = nn.ModuleList()

    def reset_parameters(self) -> None:
        """Draw all initial values anew."""
        for cell in self.rnn_lst:
            assert isinstance(cell, Cell)
            cell.reset_parameters()
        if self.input_to_hidden is not None:
            self.input_to_hidden.reset_parameters()

    def first_input(self, input: Tensor) -> Tensor:
        """Check the input and return the first layer's."""
        if input.dim() != 3 or input.size(2) != self.input_size:
            raise ValueError(
                f"input must have shape (length, batch, input_size = {self.input_size}), "
                f"got {list(input.shape)}"
            )
        input_to_hidden = self.input_to_hidden
        return input if input_to_hidden is None else input_to_hidden(input)

    def states(self, c0: Tensor | None, batch: int) -> list[Tensor | None]:
        """Split initial states (num_layers, B, D) into each layer's own."""
        if c0 is not None and list(c0.shape) != [self.num_layers, batch, self.output_size]:
            raise ValueError(
                f"c0 must have shape (num_layers, batch, output_size) = ({self.num_layers}, "
                f"{batch}, {self.output_size}), got {list(c0.shape)}; output_size is hidden_size "
                f"times directions, forward first, even with nn_rnn_compatible_return"
            )
        states: list[Tensor | None] = []
        for i in range(self.num_layers):
            states.append(None if c0 is None else c0[i])
        return states

    def finals(self, states: list[Tensor]) -> Tensor:
        """Stack each layer's final state (B, D) as the caller wants it."""
        c = torch.stack(states)
        if self.nn_rnn_compatible_return:
            c = c.unflatten(-1, [self.num_directions, self.hidden_size])
            c = c.transpose(1, 2).flatten(0, 1)
        return c

    def extra_repr(self) -> str:
        return describe(self, "num_layers", "projection_size", "dropout", "rnn_dropout")


class SRUStack(Stack):
    """A stack of cells that know nothing but input, state and padding."""

    def forward(
        self, input: Tensor, c0: Tensor | None = None, mask_pad: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Run the stack.

        Parameters
        ----------
        input : Tensor, shape (T, B, input_size), or PackedSequence
        c0 : Tensor, shape (num_layers, B, output_size), optional
            Initial states, forward direction first; zeros by default.
        mask_pad : Tensor, shape (T, B), optional
            As in `sru_asr.compat.SRUCell.forward`; not for a PackedSequence.

        Returns
        -------
        h : Tensor, shape (T, B, output_size), or PackedSequence
        c : Tensor, shape (num_layers, B, output_size)
            Final states; (num_layers * directions, B, hidden_size) with
            ``nn_rnn_compatible_return``.

        Raises
        ------
        ValueError, NotImplementedError
            As `sru_asr.compat.SRUCell.forward`.
        """
        if not torch.jit.is_scripting() and isinstance(input, PackedSequence):
            padded, lengths, mask_pad = unpack(input, mask_pad)
            h, c = self.forward(padded, c0, mask_pad)
            return pack(h, lengths), c
        h = self.first_input(input)
        states = self.states(c0, h.size(1))
        finals: list[Tensor] = []
        for i, cell in enumerate(self.rnn_lst):
            h, c_n = cell(h, states[i], mask_pad)
            finals.append(c_n)
        return h, self.finals(finals)


def as_steps(input: Tensor, input_size: int) -> Tensor:
    """Return a cell's input as (T, B, input_size): a single step may come without T."""
    if input.dim() != 2 and input.dim() != 3:
        raise ValueError(
            f"input must be (length, batch, input_size) or (batch, input_size), "
            f"got {list(input.shape)}"
        )
    if input.size(-1) != input_size:
        raise ValueError(f"input must have {input_size} features, got {input.size(-1)}")
    return input.unsqueeze(0) if input.dim() == 2 else input


def as_padding(mask_pad: Tensor | None, x: Tensor) -> Tensor | None:
    """Return ``mask_pad``, nonzero at padded steps, as a bool mask (T, B)."""
    if mask_pad is None:
        return None
    if mask_pad.dim() == 1 and x.size(0) == 1:
        mask_pad = mask_pad.unsqueeze(0)
    if mask_pad.dim() != 2 or mask_pad.size(0) != x.size(0) or mask_pad.size(1) != x.size(1):
        raise ValueError(
            f"mask_pad must have shape (length, batch) = ({x.size(0)}, {x.size(1)}), "
            f"got {list(mask_pad.shape)}"
        )
    return mask_pad != 0


def carry(u: Tensor, padded: Tensor) -> Tensor:
    """Open the forget gate of padded steps, wherever they stand, so that they carry the state."""
    lanes = torch.zeros([u.size(2), 1], dtype=u.dtype, device=u.device)
    lanes[1] = float("inf")
    return torch.where(padded[:, :, None, None], lanes, u)


def lanes_of_module(u: Tensor, output_size: int, num_matrices: int) -> Tensor:
    """View what a custom module returned, (T, B, D * k), lanes fastest, as lanes (T, B, k, D)."""
    if not torch.jit.is_scripting() and not isinstance(u, Tensor):
        raise NotImplementedError(
            "the module in place of the product must return one tensor: a second, recurrent "
            "weights of each step's own, is what the kernels do not compute; let what depends on "
            "the input enter the first"
        )
    if u.size(-1) != output_size * num_matrices:
        raise ValueError(
            f"the module in place of the product must return output_size * num_matrices = "
            f"{output_size} * {num_matrices} features, got {u.size(-1)}"
        )
    return u.unflatten(-1, [output_size, num_matrices]).transpose(-1, -2)


def lane_major(weight: Tensor, num_matrices: int) -> Tensor:
    """Order rows (D * k, features), lanes fastest, by lane: (k * D, features)."""
    return weight.unflatten(0, [-1, num_matrices]).transpose(0, 1).flatten(0, 1)


def multiply(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply every step by a matrix (rows, features)."""
    return F.linear(x, weight) if torch.jit.is_scripting() else linear(x, weight)


def unpack(packed: PackedSequence, mask_pad: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Pad a packed batch.

    Returns
    -------
    padded : Tensor, shape (T, B, F)
    lengths : integer Tensor, shape (B,), on the CPU
    mask_pad : Tensor of bool, shape (T, B)
    """
    if mask_pad is not None:
        raise ValueError("mask_pad must be None for a PackedSequence, which has its own lengths")
    padded, lengths = pad_packed_sequence(packed)
    return padded, lengths, padding_mask(lengths.to(padded.device), len(padded)).T


def pack(h: Tensor, lengths: Tensor) -> PackedSequence:
    """Pack a padded output again."""
    return pack_padded_sequence(h, lengths, enforce_sorted=False)


def of_layer(
    given: nn.Module | Sequence[nn.Module] | None, layer: int, num_layers: int, name: str
) -> nn.Module | None:
    """Return one layer's custom module: its own of a sequence, or a copy of the only one."""
    if given is None:
        return None
    if isinstance(given, nn.Module) and not isinstance(given, nn.ModuleList):
        return copy.deepcopy(given)
    modules = list(given)
    if len(modules) != num_layers:
        raise ValueError(f"{name} must have num_layers = {num_layers} modules, got {len(modules)}")
    return modules[layer]


def reset_custom(module: nn.Module) -> None:
    """Let a custom module draw its initial values anew, if it knows how to."""
    reset = getattr(module, "reset_parameters", None)
    if callable(reset):
        reset()


def complete(state: dict[str, Any], **defaults: Any) -> dict[str, Any]:
    """Add what a pickled module's ``__dict__`` lacks, having come from an older release."""
    known = {name for group in ("_parameters", "_buffers", "_modules") for name in state[group]}
    return {name: value for name, value in defaults.items() if name not in known} | state


def describe(module: nn.Module, *names: str) -> str:
    """Say a module's sizes, and those of its options that are set."""
    parts = [f"{module.input_size}, {module.hidden_size}"]
    for name in (*names, "bidirectional", "v1", "rescale"):
        value = getattr(module, name, None)
        if value:
            parts.append(f"{name}={value}")
    return ", ".join(parts)
