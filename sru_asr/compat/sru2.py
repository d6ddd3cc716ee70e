"""The interface of ``sru`` 2.6: `SRU` and `SRUCell`, computed by this package's kernels.

Parameters have the old names and layouts, so ``load_state_dict`` takes what the old package saved,
an optimizer's state included. TorchScript compiles the modules (see `sru_asr.compat.base`).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sru_asr.compat.base import (
    Cell,
    SRUStack,
    as_padding,
    as_steps,
    complete,
    lane_major,
    lanes_of_module,
    multiply,
    of_layer,
    reset_custom,
)

__all__ = ["SRU", "SRUCell", "__version__"]
__version__ = "2.6.0"  # of the interface


class SRUCell(Cell):
    """One layer, as ``sru.SRUCell`` of version 2.6.

    Parameters
    ----------
    input_size, hidden_size : int
        Features of the input, and hidden dimensions of one direction.
    dropout : float
        Dropout probability of the output: one mask for all steps of a sequence, inside the highway.
    rnn_dropout : float
        Dropout probability of the product's input: one mask for all steps of a sequence.
    bidirectional : bool
        Add a direction from the end to the beginning.
    n_proj : int
        Factorise the product through so many dimensions, where input and output are both wider.
    use_tanh : bool
        Apply tanh to the state on its way to the output.
    highway_bias : float
        Initial bias of the reset gate.
    has_skip_term : bool
        Mix the input into the output.
    layer_norm : bool
        Normalise the product's input, or with ``normalize_after`` the output.
    rescale : bool
        Scale the highway by ``sqrt(1 + 2 * exp(highway_bias))``.
    v1 : bool
        Keep ``weight_c`` at 0: the gates do not see the state.
    custom_m : nn.Module, optional
        Computes (T, B, output_size * num_matrices), matrices fastest, from (T, B, input_size) in
        place of the product.
    amp_recurrence_fp16 : bool
        Let the recurrence read and write 16 bits under autocast; it computes in 32 in any case.
    normalize_after : bool
        See ``layer_norm``.
    weight_c_init : float, optional
        Draw ``weight_c`` from U(-weight_c_init, weight_c_init), instead of with variance 1/2.

    Examples
    --------
    >>> import torch
    >>> from sru_asr.compat import SRUCell
    >>> h, c = SRUCell(8, 16)(torch.randn(5, 2, 8))
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
        n_proj: int = 0,
        use_tanh: bool = False,
        highway_bias: float = 0.0,
        has_skip_term: bool = True,
        layer_norm: bool = False,
        rescale: bool = True,
        v1: bool = False,
        custom_m: nn.Module | None = None,
        amp_recurrence_fp16: bool = False,
        normalize_after: bool = False,
        weight_c_init: float | None = None,
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
        self.projection_size = n_proj if 0 < n_proj < min(input_size, self.output_size) else 0
        self.custom_m = custom_m
        if custom_m is None:
            columns = self.output_size * self.num_matrices
            if self.projection_size:
                self.weight_proj = nn.Parameter(torch.empty(input_size, self.projection_size))
            else:
                self.register_parameter("weight_proj", None)
            self.weight = nn.Parameter(torch.empty(self.projection_size or input_size, columns))
        self.add_gates(layer_norm)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw initial values: the old package's from the same seed."""
        if self.custom_m is not None:
            reset_custom(self.custom_m)
        else:
            for matrix in (self.weight, self.weight_proj):
                if matrix is not None:
                    bound = (3.0 / matrix.shape[0]) ** 0.5
                    matrix.uniform_(-bound, bound)
            lanes = self.weight.unflatten(1, (self.output_size, self.num_matrices))
            if self.dropout > 0:
                lanes[:, :, 0] *= (1 - self.dropout) ** 0.5
            if self.rnn_dropout > 0:
                lanes *= (1 - self.rnn_dropout) ** 0.5
            if self.layer_norm is not None:
                lanes *= 0.1
            if self.rescale and self.num_matrices == 4:
                lanes[:, :, 3] *= self.scale()
            if not self.v1:
                lanes[:, :, 1:3] *= 0.5**0.5
        super().reset_parameters()

    def forward(
        self, input: Tensor, c0: Tensor | None = None, mask_pad: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Run the layer.

        Parameters
        ----------
        input : Tensor, shape (T, B, input_size) or (B, input_size)
        c0 : Tensor, shape (B, output_size), optional
            State before the first step, forward direction first; zeros by default.
        mask_pad : Tensor, shape (T, B), optional
            Nonzero at padded steps, wherever they stand: they carry the state and output 0 (with
            ``normalize_after``, what layer norm makes of 0). Their input must be finite.

        Returns
        -------
        h : Tensor, shape (T, B, output_size)
        c : Tensor, shape (B, output_size)

        Raises
        ------
        ValueError
            When a shape does not fit; the message names the argument.
        NotImplementedError
            When ``custom_m`` returns a second tensor.
        """
        x = as_steps(input, self.input_size)
        return self.recur(self.project(self.product_input(x)), x, c0, as_padding(mask_pad, x))

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Options that releases before 2.6 did not have.
        later: dict[str, Any] = {"custom_m": None, "weight_proj": None, "layer_norm": None}
        later |= {"normalize_after": False, "weight_c_init": None, "amp_recurrence_fp16": False}
        super().__setstate__(complete(state, **later, v1=False))

    def project(self, z: Tensor) -> Tensor:
        """Multiply (T, B, input_size) by the layer's matrices: lanes (T, B, k, D)."""
        custom_m = self.custom_m
        if custom_m is not None:
            u = lanes_of_module(custom_m(z), self.output_size, self.num_matrices)
        else:
            weight_proj = self.weight_proj
            if weight_proj is not None:
                z = multiply(z, weight_proj.t())
            u = multiply(z, lane_major(self.weight.t(), self.num_matrices))
            u = u.unflatten(-1, [self.num_matrices, -1])
        return u


class SRU(SRUStack):
    """A stack of layers, as ``sru.SRU`` of version 2.6.

    Parameters are those of `SRUCell` and:

    Parameters
    ----------
    num_layers : int
        Layers of the stack. The last has no ``dropout``.
    projection_size : int
        ``n_proj`` of every layer.
    rescale : bool
        As in `SRUCell`, but False by default.
    nn_rnn_compatible_return : bool
        Return final states as (num_layers * directions, B, hidden_size); ``c0`` keeps its shape.
    custom_m : nn.Module or a sequence of them, optional
        One that every layer gets a copy of, or one for each layer.
    proj_input_to_hidden_first : bool
        Multiply the input by a matrix to output_size features first, unless it has so many.

    Examples
    --------
    >>> import torch
    >>> from sru_asr.compat import SRU
    >>> h, c = SRU(8, 16, num_layers=3, bidirectional=True)(torch.randn(5, 2, 8))
    >>> h.shape, c.shape
    (torch.Size([5, 2, 32]), torch.Size([3, 2, 32]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 2,
        dropout: float = 0.0,
        rnn_dropout: float = 0.0,
        bidirectional: bool = False,
        projection_size: int = 0,
        use_tanh: bool = False,
        layer_norm: bool = False,
        highway_bias: float = 0.0,
        has_skip_term: bool = True,
        rescale: bool = False,
        v1: bool = False,
        nn_rnn_compatible_return: bool = False,
        custom_m: nn.Module | Sequence[nn.Module] | None = None,
        proj_input_to_hidden_first: bool = False,
        amp_recurrence_fp16: bool = False,
        normalize_after: bool = False,
        weight_c_init: float | None = None,
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
        if self.input_to_hidden is not None:
            input_size = self.output_size
        self.rnn_lst.extend(
            SRUCell(
                input_size if i == 0 else self.output_size,
                hidden_size,
                dropout=dropout if i + 1 < num_layers else 0.0,
                rnn_dropout=rnn_dropout,
                bidirectional=bidirectional,
                n_proj=projection_size,
                use_tanh=use_tanh,
                highway_bias=highway_bias,
                has_skip_term=has_skip_term,
                layer_norm=layer_norm,
                rescale=rescale,
                v1=v1,
                custom_m=of_layer(custom_m, i, num_layers, "custom_m"),
                amp_recurrence_fp16=amp_recurrence_fp16,
                normalize_after=normalize_after,
                weight_c_init=weight_c_init,
            )
            for i in range(num_layers)
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "n_in" in state:
            raise NotImplementedError(
                "a whole module that sru 2.1.7 or before pickled cannot be revived: load its "
                "state_dict() with sru_asr.load_sru_checkpoint"
            )
        super().__setstate__(complete(state, input_to_hidden=None, nn_rnn_compatible_return=False))

    def make_backward_compatible(self) -> None:
        """Do nothing: what an older release's pickled module lacks, unpickling adds."""
