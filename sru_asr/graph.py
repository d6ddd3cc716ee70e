"""Layers and encoders as graphs that serve any batch size and any number of steps.

`torch.export` records what a module does with one example. The examples of the package's own
modules, and which of their axes may change, stand here, for every format that a graph becomes:
AOTInductor's packages, ONNX (`sru_asr.onnx`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from sru_asr import native, nnet
from sru_asr.encoder import SRUEncoder
from sru_asr.model import FeaturePosteriors
from sru_asr.sru import SRU

BATCH, TIME = 3, 50  # of the examples


def export_graph(module: nn.Module, *, lengths: bool = True, hx: bool = False) -> ExportedProgram:
    """Record a module as a graph, for inference.

    Parameters
    ----------
    module : Module
        A `sru_asr.SRU`, `sru_asr.nnet.SRU`, `sru_asr.SRUEncoder` or
        `sru_asr.model.FeaturePosteriors`, in evaluation mode.
    lengths : bool
        Whether the graph has an input for lengths; without, all steps are real.
    hx : bool
        Whether it has an input for initial states, as streaming in chunks needs it; SRU only.

    Returns
    -------
    ExportedProgram
        Takes the module's arguments by their names.

    Raises
    ------
    TypeError, ValueError
        When the module is of another kind, in training mode, or has no such input.
    RuntimeError
        When the compiled kernels are missing.

    Examples
    --------
    >>> import torch, sru_asr
    >>> from sru_asr.graph import export_graph
    >>> sru = sru_asr.SRU(8, 4, batch_first=True).eval()
    >>> graph = export_graph(sru, lengths=False).module()
    >>> graph(input=torch.randn(2, 70, 8))[0].shape
    torch.Size([2, 70, 4])
    """
    example = example_call(module, lengths=lengths, hx=hx)
    dynamic = {name: dict.fromkeys(axes, Dim.DYNAMIC) for name, axes in example.axes.items()}
    with torch.no_grad():
        return torch.export.export(module, (), example.inputs, dynamic_shapes=dynamic)


@dataclass
class Example:
    """One call of a module.

    Attributes
    ----------
    inputs : dict of str to Tensor
        Arguments by their names.
    axes : dict of str to dict of int to str
        For each argument, the axes that may have another size, and what they count.
    outputs : list of str
        What the module returns.
    """

    inputs: dict[str, Tensor] = field(default_factory=dict)
    axes: dict[str, dict[int, str]] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)

    def add(self, name: str, tensor: Tensor, axes: dict[int, str]) -> None:
        self.inputs[name] = tensor
        self.axes[name] = axes


def example_call(module: nn.Module, *, lengths: bool = True, hx: bool = False) -> Example:
    """Make the example; arguments and errors are those of `export_graph`."""
    missing = native.why_missing("cpu")
    if missing is not None:
        raise RuntimeError(f"exporting needs the compiled kernels: {missing}")
    if module.training:
        raise ValueError("module must be in evaluation mode: call module.eval() before exporting")
    example = Example()
    rnn = module.rnn if isinstance(module, nnet.SRU) else module
    if isinstance(rnn, SRU):
        name, features, example.outputs = "input", rnn.input_size, ["output", "c_n"]
        batch_axis = 0 if rnn.batch_first else 1
    elif isinstance(module, SRUEncoder) and not module.output_hidden_states:
        name, features, example.outputs = "x", module.input_size, ["encoded"]
        batch_axis = 0
    elif isinstance(module, FeaturePosteriors):
        name, features = "features", module.encoder.subsampling.input_size
        example.outputs = ["log_posteriors", "frame_lengths"]
        batch_axis = 0
    else:
        raise TypeError(
            "module must be a sru_asr.SRU, sru_asr.nnet.SRU, sru_asr.SRUEncoder (without "
            f"output_hidden_states) or FeaturePosteriors, got {type(module).__name__}"
        )
    if hx and not isinstance(rnn, SRU):
        raise ValueError(f"hx must be False: {type(module).__name__} takes no initial states")
    if not lengths and isinstance(module, FeaturePosteriors):
        raise ValueError("lengths must be True: FeaturePosteriors takes features with lengths")

    numbers = next(module.parameters())
    shape = (BATCH, TIME, features) if batch_axis == 0 else (TIME, BATCH, features)
    example.add(
        "x" if isinstance(module, nnet.SRU) else name,
        numbers.new_zeros(shape),
        {batch_axis: "batch", 1 - batch_axis: "time"},
    )
    if hx:
        assert isinstance(rnn, SRU)
        states = rnn.num_layers * rnn.output_size // rnn.hidden_size
        example.add("hx", numbers.new_zeros(states, BATCH, rnn.hidden_size), {1: "batch"})
    if lengths:
        steps = isinstance(module, SRU)  # the others', as SpeechBrain's, are relative
        given = torch.full((BATCH,), TIME) if steps else torch.ones(BATCH)
        example.add("lengths", given.to(numbers.device), {0: "batch"})
    return example
