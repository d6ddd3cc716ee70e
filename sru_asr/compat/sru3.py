"""The interface of ``sru`` 3.0-dev: `SRU`, `SRUCell`, `SRUpp` and `SRUppCell`.

What was never released under the name of 3.0: other defaults, other initial values and other names
of the weights than in 2.6 (`sru_asr.compat.sru2`), and SRU++. Parameters have the old names and
layouts. TorchScript compiles the modules (see `sru_asr.compat.base`).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from sru_asr.compat.base import (
    Cell,
    SRUStack,
    Stack,
    as_padding,
    as_steps,
    lanes_of_module,
    of_layer,
    pack,
    reset_custom,
    unpack,
)

__all__ = ["SRU", "SRUCell", "SRUpp", "SRUppCell", "__version__"]
__version__ = "3.0.0.dev6"  # of the interface


class SRUCell(Cell):
    """One layer, as ``sru.SRUCell`` of version 3.0-dev.

    Parameters are those of `sru_asr.compat.SRUCell` with other defaults and names:

    Parameters
    ----------
    projection_size : int
        ``n_proj`` of 2.6, also where it is not smaller than input and output.
    transform_module : nn.Module, optional
        ``custom_m`` of 2.6.

    Examples
    --------
    >>> import torch
    >>> from sru_asr.compat import sru3
    >>> h, c = sru3.SRUCell(8, 16, projection_size=4)(torch.randn(5, 2, 8))
    >>> h.shape, c.shape
    (torch.Size([5, 2, 16]), torch.Size([2, 16]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        dropout: float = 0.0,
        rnn_dropout: float = 0.0,
        bidirectional: bool = False,
        projection_size: int = 0,
        highway_bias: float = 0.0,
        layer_norm: bool = False,
        normalize_after: bool = True,
        transform_module: nn.Module | None = None,
        rescale: bool = False,
        has_skip_term: bool = True,
        use_tanh: bool = False,
        v1: bool = False,
        amp_recurrence_fp16: bool = True,
        weight_c_init: float = 1.0,
    ) -> None:
        super().__init__(
            input_size,
            hidden_size,
            dropout,
            rnn_dropout,
            bidirectional,
            use_tanh,
            highway_bias,
            has_skip_term,
            rescale,
            v1,
            amp_recurrence_fp16,
            normalize_after,
            weight_c_init,
        )
        self.projection_size = projection_size
        if transform_module is None:
            columns = self.output_size * self.num_matrices
            if projection_size == 0:
                transform_module = nn.Linear(input_size, columns, bias=False)
            else:
                transform_module = nn.Sequential(
                    nn.Linear(input_size, projection_size, bias=False),
                    nn.Linear(projection_size, columns, bias=False),
                )
        self.transform_module = transform_module
        self.add_gates(layer_norm)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw initial values: the old package's from the same seed."""
        _reset(self.transform_module)
        super().reset_parameters()

    def forward(
        self, input: Tensor, c0: Tensor | None = None, mask_pad: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Run the layer: `sru_asr.compat.SRUCell.forward`."""
        x = as_steps(input, self.input_size)
        u = self.transform_module(self.product_input(x))
        u = lanes_of_module(u, self.output_size, self.num_matrices)
        return self.recur(u, x, c0, as_padding(mask_pad, x))


class SRU(SRUStack):
    """A stack of layers, as ``sru.SRU`` of version 3.0-dev.

    Parameters are those of `sru_asr.compat.SRU` with other defaults and names:

    Parameters
    ----------
    projection_size : int or sequence of int
        Of every layer, or each one's own; 0 for none.
    transform_module : nn.Module or a sequence of them, optional
        ``custom_m`` of 2.6.

    Examples
    --------
    >>> import torch
    >>> from sru_asr.compat import sru3
    >>> h, c = sru3.SRU(8, 16, projection_size=[0, 4])(torch.randn(5, 2, 8))
    >>> h.shape, c.shape
    (torch.Size([5, 2, 16]), torch.Size([2, 2, 16]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 2,
        dropout: float = 0.0,
        rnn_dropout: float = 0.0,
        bidirectional: bool = False,
        projection_size: int | Sequence[int] = 0,
        highway_bias: float = 0.0,
        layer_norm: bool = False,
        normalize_after: bool = False,
        transform_module: nn.Module | Sequence[nn.Module] | None = None,
        has_skip_term: bool = True,
        rescale: bool = False,
        use_tanh: bool = False,
        v1: bool = False,
        nn_rnn_compatible_return: bool = False,
        proj_input_to_hidden_first: bool = False,
        amp_recurrence_fp16: bool = True,
        weight_c_init: float = 1.0,
    ) -> None:
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            dropout,
            bidirectional,
            layer_norm,
            nn_rnn_compatible_return,
            proj_input_to_hidden_first,
        )
        self.rnn_dropout = rnn_dropout
        self.projection_size = projection_size
        self.has_skip_term = has_skip_term
        self.amp_recurrence_fp16 = amp_recurrence_fp16
        if isinstance(projection_size, int):
            projections = [projection_size] * num_layers
        elif len(projection_size) == num_layers:
            projections = list(projection_size)
        else:
            raise ValueError(
                f"projection_size must be an int or num_layers = {num_layers} of them, "
                f"got {len(projection_size)}"
            )
        if self.input_to_hidden is not None:
            input_size = self.output_size
        self.rnn_lst.extend(
            SRUCell(
                input_size if i == 0 else self.output_size,
                hidden_size,
                dropout=dropout if i + 1 < num_layers else 0.0,
                rnn_dropout=rnn_dropout,
                bidirectional=bidirectional,
                projection_size=projections[i],
                highway_bias=highway_bias,
                layer_norm=layer_norm,
                normalize_after=normalize_after,
                transform_module=of_layer(transform_module, i, num_layers, "transform_module"),
                rescale=rescale,
                has_skip_term=has_skip_term,
                use_tanh=use_tanh,
                v1=v1,
                amp_recurrence_fp16=amp_recurrence_fp16,
                weight_c_init=weight_c_init,
            )
            for i in range(num_layers)
        )

    def __getitem__(self, n: int) -> nn.Module:
        return self.rnn_lst[n]


class SRUppProjectedLinear(nn.Module):
    """The product of an SRU++ layer without attention: two matrices, layer norm between them.

    Parameters
    ----------
    in_features, out_features, proj_features : int
        Features of input, output and between the matrices.
    dropout : float
        Dropout probability before the second matrix.
    layer_norm : bool
        Normalise between the matrices.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        proj_features: int,
        dropout: float = 0.0,
        layer_norm: bool = False,
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.proj_features = proj_features
        self.dropout = nn.Dropout(dropout)
        self.linear1 = nn.Linear(in_features, proj_features, bias=False)
        self.linear2 = nn.Linear(proj_features, out_features, bias=False)
        self.layer_norm: nn.Module | None = nn.LayerNorm(proj_features) if layer_norm else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw Xavier-uniform matrices, the last one smaller by what dropout scales up."""
        nn.init.xavier_uniform_(self.linear1.weight)
        nn.init.xavier_uniform_(self.linear2.weight)
        self.linear2.weight *= (1 - self.dropout.p) ** 0.5

    def forward(
        self,
        input: Tensor,
        mask_pad: Tensor | None = None,
        attn_mask: Tensor | None = None,
        memory: Tensor | None = None,
        memory_mask_pad: Tensor | None = None,
    ) -> Tensor:
        """Project (T, B, in_features) to (T, B, out_features); the masks and memory do nothing."""
        z = self.linear1(input)
        layer_norm = self.layer_norm
        if layer_norm is not None:
            z = layer_norm(z)
        return self.linear2(self.dropout(z))


class SRUppAttention(nn.Module):
    """The product of an SRU++ layer with attention, as `sru_asr.srupp.AttentiveProjection`.

    That one has neither memory nor additive masks, and layer norm always.

    Parameters
    ----------
    in_features, out_features, proj_features : int
        Features of input, output and where attention happens.
    num_heads : int
        Attention heads; must divide ``proj_features``.
    dropout : float
        Dropout probability before the last matrix.
    attn_dropout : float
        Dropout probability of the attention weights.
    rezero_init_alpha : float
        Initial scale of what attention adds.
    layer_norm : bool
        Normalise after attention, or before it without ``normalize_after``.
    normalize_after : bool
        See ``layer_norm``.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        proj_features: int,
        num_heads: int = 1,
        dropout: float = 0.0,
        attn_dropout: float = 0.0,
        rezero_init_alpha: float = 0.0,
        layer_norm: bool = False,
        normalize_after: bool = True,
    ) -> None:
        super().__init__()
        if proj_features % num_heads:
            raise ValueError(
                f"proj_features must be a multiple of num_heads, got {proj_features} and "
                f"{num_heads}"
            )
        self.in_features = in_features
        self.out_features = out_features
        self.proj_features = proj_features
        self.num_heads = num_heads
        self.dropout = nn.Dropout(dropout)
        self.attn_dropout = float(attn_dropout)
        self.rezero_init_alpha = float(rezero_init_alpha)
        self.linear1 = nn.Linear(in_features, proj_features, bias=False)
        self.linear2 = nn.Linear(proj_features, proj_features * 2, bias=False)
        self.linear3 = nn.Linear(proj_features, out_features, bias=False)
        self.alpha = nn.Parameter(torch.empty(1))
        self.normalize_after = normalize_after
        self.layer_norm: nn.Module | None = nn.LayerNorm(proj_features) if layer_norm else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw Xavier-uniform matrices, the last one smaller by what dropout scales up."""
        for linear in (self.linear1, self.linear2, self.linear3):
            nn.init.xavier_uniform_(linear.weight)
        self.linear3.weight *= (1 - self.dropout.p) ** 0.5
        self.alpha.fill_(self.rezero_init_alpha)

    def forward(
        self,
        input: Tensor,
        mask_pad: Tensor | None = None,
        attn_mask: Tensor | None = None,
        memory: Tensor | None = None,
        memory_mask_pad: Tensor | None = None,
    ) -> Tensor:
        """Project a sequence that looks at itself and at a memory before it.

        Parameters
        ----------
        input : Tensor, shape (T, B, in_features)
        mask_pad : Tensor, shape (T, B), optional
            Nonzero at padded steps, which nothing looks at.
        attn_mask : Tensor, shape (T, M + T), optional
            Added to the attention's scores.
        memory : Tensor, shape (M, B, in_features), optional
            Earlier inputs of this layer.
        memory_mask_pad : Tensor, shape (M, B), optional
            Nonzero at padded steps of the memory.

        Returns
        -------
        Tensor, shape (T, B, out_features)
        """
        steps, batch = input.size(0), input.size(1)
        everything = input
        if memory is not None:
            if memory.dim() != 3 or list(memory.shape)[1:] != list(input.shape)[1:]:
                raise ValueError(
                    f"memory must have shape (*, {batch}, {input.size(2)}) in this layer, "
                    f"got {list(memory.shape)}"
                )
            everything = torch.cat([memory, input])
        past = everything.size(0) - steps
        residual = z = self.linear1(everything)
        layer_norm = self.layer_norm
        if layer_norm is not None and not self.normalize_after:
            z = layer_norm(z)
        k, v = self.linear2(z).chunk(2, dim=-1)
        a = F.scaled_dot_product_attention(
            self._split(z[past:]),
            self._split(k),
            self._split(v),
            attn_mask=_attention_mask(k, steps, mask_pad, attn_mask, memory_mask_pad),
            dropout_p=self.attn_dropout if self.training else 0.0,
        )
        z = residual[past:] + self.alpha * a.permute(2, 0, 1, 3).flatten(2)
        if layer_norm is not None and self.normalize_after:
            z = layer_norm(z)
        return self.linear3(self.dropout(z))

    def _split(self, z: Tensor) -> Tensor:
        """(T, B, proj_features) to (B, heads, T, head)."""
        return z.unflatten(-1, [self.num_heads, -1]).permute(1, 2, 0, 3)


class SRUppCell(SRUCell):
    """One layer of SRU++: `SRUCell` around a module that attends.

    Examples
    --------
    >>> import torch
    >>> from sru_asr.compat import sru3
    >>> cell = sru3.SRUppCell(8, 8, transform_module=sru3.SRUppAttention(8, 24, 4))
    >>> h, c = cell(torch.randn(5, 2, 8), memory=torch.randn(3, 2, 8))
    >>> h.shape, c.shape
    (torch.Size([5, 2, 8]), torch.Size([2, 8]))
    """

    def forward(
        self,
        input: Tensor,
        c0: Tensor | None = None,
        mask_pad: Tensor | None = None,
        attn_mask: Tensor | None = None,
        memory: Tensor | None = None,
        memory_mask_pad: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Run the layer: `SRUCell.forward`, and what `SRUppAttention.forward` takes."""
        x = as_steps(input, self.input_size)
        padded = as_padding(mask_pad, x)
        u = self.transform_module(
            self.product_input(x),
            mask_pad=padded,
            attn_mask=attn_mask,
            memory=memory,
            memory_mask_pad=memory_mask_pad,
        )
        return self.recur(lanes_of_module(u, self.output_size, self.num_matrices), x, c0, padded)


class SRUpp(Stack):
    """A stack of SRU++ layers, as ``sru.SRUpp`` of version 3.0-dev.

    Parameters
    ----------
    input_size, hidden_size : int
        Features of the input, and hidden dimensions of one direction.
    proj_size : int
        Features where attention happens.
    num_layers : int
        Layers of the stack.
    dropout : float
        Dropout probability before the last matrix of each product, and of each layer's output but
        the last's: there one mask for all steps of a sequence, inside the highway.
    attn_dropout : float
        Dropout probability of the attention weights.
    num_heads : int
        Attention heads; must divide ``proj_size``.
    bidirectional : bool
        Add a direction from the end to the beginning.
    layer_norm : bool
        Normalise each product's input, or with ``normalize_after`` each layer's output.
    normalize_after : bool
        See ``layer_norm``.
    attn_layer_norm : bool
        Normalise before the last matrix of each product.
    highway_bias : float
        Initial bias of the reset gate.
    attention_every_n_layers, attention_last_n_layers : int
        Attention in layer ``i`` (from 0) where ``(i + 1) % attention_every_n_layers == 0``; or, if
        not -1, in so many of the last layers.
    rescale : bool
        Scale the highway by ``sqrt(1 + 2 * exp(highway_bias))``.
    nn_rnn_compatible_return, proj_input_to_hidden_first
        As in `SRU`.
    weight_c_init : float
        Draw ``weight_c`` from U(-weight_c_init, weight_c_init).

    Raises
    ------
    ValueError
        When both kinds of choosing layers with attention are used, or ``num_heads`` does not divide
        ``proj_size``.

    Examples
    --------
    >>> import torch
    >>> from sru_asr.compat import SRUpp
    >>> srupp = SRUpp(8, 16, 4, num_layers=3)
    >>> h, c, saved = srupp(torch.randn(5, 2, 8))
    >>> h.shape, c.shape, len(saved["saved_inputs"])
    (torch.Size([5, 2, 16]), torch.Size([3, 2, 16]), 3)
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        proj_size: int,
        num_layers: int = 2,
        dropout: float = 0.0,
        attn_dropout: float = 0.0,
        num_heads: int = 1,
        bidirectional: bool = False,
        layer_norm: bool = False,
        normalize_after: bool = False,
        attn_layer_norm: bool = True,
        highway_bias: float = -2.0,
        attention_every_n_layers: int = 1,
        attention_last_n_layers: int = -1,
        rescale: bool = False,
        nn_rnn_compatible_return: bool = False,
        proj_input_to_hidden_first: bool = False,
        weight_c_init: float = 1.0,
    ) -> None:
        if attention_every_n_layers != 1 and attention_last_n_layers != -1:
            raise ValueError(
                "attention_every_n_layers and attention_last_n_layers exclude each other, got "
                f"{attention_every_n_layers} and {attention_last_n_layers}"
            )
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            dropout,
            bidirectional,
            layer_norm,
            nn_rnn_compatible_return,
            proj_input_to_hidden_first,
        )
        self.proj_size = proj_size
        self.num_heads = num_heads
        if self.input_to_hidden is not None:
            first = self.input_to_hidden
            nn.init.xavier_uniform_(first.weight)
            del self.input_to_hidden  # comes after the layers: optimizers go by parameters' order
            self.input_to_hidden = first
            input_size = self.output_size
        for i in range(num_layers):
            features = input_size if i == 0 else self.output_size
            columns = self.output_size * (3 if features == self.output_size else 4)
            if attention_last_n_layers == -1:
                attentive = (i + 1) % attention_every_n_layers == 0
            else:
                attentive = num_layers - i <= attention_last_n_layers
            product: nn.Module
            if attentive:
                product = SRUppAttention(
                    features,
                    columns,
                    proj_size,
                    num_heads=num_heads,
                    dropout=dropout,
                    attn_dropout=attn_dropout,
                    layer_norm=attn_layer_norm,
                )
            else:
                product = SRUppProjectedLinear(
                    features, columns, proj_size, dropout=dropout, layer_norm=attn_layer_norm
                )
            self.rnn_lst.append(
                SRUppCell(
                    features,
                    hidden_size,
                    dropout=dropout if i + 1 < num_layers else 0.0,
                    bidirectional=bidirectional,
                    highway_bias=highway_bias,
                    layer_norm=layer_norm,
                    normalize_after=normalize_after,
                    transform_module=product,
                    rescale=rescale,
                    weight_c_init=weight_c_init,
                )
            )

    def __getitem__(self, n: int) -> nn.Module:
        return self.rnn_lst[n]

    def reset_parameters(self) -> None:
        """Draw all initial values anew."""
        super().reset_parameters()
        if self.input_to_hidden is not None:
            nn.init.xavier_uniform_(self.input_to_hidden.weight)

    def forward(
        self,
        input: Tensor,
        c0: Tensor | None = None,
        mask_pad: Tensor | None = None,
        attn_mask: Tensor | None = None,
        memory: list[Tensor | None] | None = None,
        memory_mask_pad: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, dict[str, list[Tensor]]]:
        """Run the stack.

        Parameters
        ----------
        input, c0, mask_pad
            As in `sru_asr.compat.SRU.forward`.
        attn_mask : Tensor, shape (T, M + T), optional
            Added to the attention's scores in every layer.
        memory : list of Tensor, shape (M, B, features), or None, optional
            For each layer, inputs that it had before: ``saved_inputs`` of earlier calls.
        memory_mask_pad : Tensor, shape (M, B), optional
            Nonzero at padded steps of the memory.

        Returns
        -------
        h, c
            As in `sru_asr.compat.SRU.forward`.
        dict
            ``saved_inputs``, each layer's input (T, B, features).

        Raises
        ------
        ValueError
            When a shape does not fit; the message names the argument.
        """
        if not torch.jit.is_scripting() and isinstance(input, PackedSequence):
            padded, lengths, mask_pad = unpack(input, mask_pad)
            h, c, saved = self.forward(padded, c0, mask_pad, attn_mask, memory, memory_mask_pad)
            return pack(h, lengths), c, saved
        h = self.first_input(input)
        states = self.states(c0, h.size(1))
        if memory is not None and len(memory) != self.num_layers:
            raise ValueError(
                f"memory must have num_layers = {self.num_layers} entries, got {len(memory)}"
            )
        finals: list[Tensor] = []
        inputs: list[Tensor] = []
        for i, cell in enumerate(self.rnn_lst):
            inputs.append(h)
            h, c_n = cell(
                h,
                states[i],
                mask_pad,
                attn_mask,
                None if memory is None else memory[i],
                memory_mask_pad,
            )
            finals.append(c_n)
        return h, self.finals(finals), {"saved_inputs": inputs}


def _attention_mask(
    keys: Tensor,
    steps: int,
    mask_pad: Tensor | None,
    attn_mask: Tensor | None,
    memory_mask_pad: Tensor | None,
) -> Tensor | None:
    """Join the masks to one that is added to scores: (T, S) or (B, 1, T or 1, S)."""
    everything, batch = keys.size(0), keys.size(1)
    past = everything - steps
    mask: Tensor | None = None
    if attn_mask is not None:
        if list(attn_mask.shape) != [steps, everything]:
            raise ValueError(
                f"attn_mask must have shape (length, memory + length) = ({steps}, {everything}), "
                f"got {list(attn_mask.shape)}"
            )
        mask = attn_mask.to(keys.dtype)
    if memory_mask_pad is not None and list(memory_mask_pad.shape) != [past, batch]:
        raise ValueError(
            f"memory_mask_pad must have shape (memory, batch) = ({past}, {batch}), "
            f"got {list(memory_mask_pad.shape)}"
        )
    if mask_pad is not None or memory_mask_pad is not None:
        hidden = torch.zeros([everything, batch], dtype=torch.bool, device=keys.device)
        if memory_mask_pad is not None:
            hidden[:past] = memory_mask_pad != 0
        if mask_pad is not None:
            hidden[past:] = mask_pad != 0
        pads = torch.zeros([batch, 1, 1, everything], dtype=keys.dtype, device=keys.device)
        pads = pads.masked_fill(hidden.t()[:, None, None, :], float("-inf"))
        mask = pads if mask is None else mask + pads
    return mask


def _reset(module: nn.Module) -> None:
    """Draw Xavier-uniform matrices for nn.Linear; other modules draw for themselves."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Sequential):
        for part in module:
            _reset(part)
    else:
        reset_custom(module)
