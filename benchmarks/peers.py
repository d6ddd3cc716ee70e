"""Networks of one shape beside each other: SRU, its own matrix products, and what else there is.

Every case has a name. " bf16" at its end runs it under bfloat16 autocast.
"""

from __future__ import annotations

import functools
import importlib
import os
import sysconfig
import warnings
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from types import ModuleType
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from harness import Call, Panel
from torch import Tensor, nn

import sru_asr

BF16 = " bf16"
OLD_SRU = "sru 2.6.0"
PRODUCTS = ("products F.linear", "products oneDNN")


@dataclass(frozen=True)
class Shape:
    """A stack's shape: ``batch`` sequences of ``steps`` steps, ``hidden`` units a direction."""

    batch: int
    steps: int
    features: int
    hidden: int
    layers: int = 4

    @property
    def width(self) -> int:
        """Of the output: both directions."""
        return 2 * self.hidden

    def __str__(self) -> str:
        return f"B{self.batch} T{self.steps} {self.features}->{self.hidden}"


class Convolutions(nn.Module):
    """``nn.Conv1d`` with three taps in each layer's place, of the same widths."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv1d(inputs, shape.width, 3, padding=1) for inputs in _inputs(shape))
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.permute(1, 2, 0))


class Attention(nn.Module):
    """Self-attention in each layer's place: two projections around SDPA, heads of 64."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads = max(1, shape.width // 64)
        self.projections = nn.ModuleList(
            nn.Linear(inputs, 3 * shape.width) for inputs in _inputs(shape)
        )
        self.outputs = nn.ModuleList(
            nn.Linear(shape.width, shape.width) for _ in range(shape.layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1)
        for projection, output in zip(self.projections, self.outputs, strict=True):
            qkv = projection(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
            x = output(F.scaled_dot_product_attention(*qkv).transpose(1, 2).flatten(2))
        return x


def _inputs(shape: Shape) -> list[int]:
    return [shape.features] + [shape.width] * (shape.layers - 1)


def _recurrent(kind: Callable[..., nn.Module], **options: Any) -> Callable[[Shape], nn.Module]:
    def build(shape: Shape) -> nn.Module:
        return kind(shape.features, shape.hidden, shape.layers, bidirectional=True, **options)

    return build


NETWORKS: dict[str, Callable[[Shape], nn.Module]] = {
    "SRU": _recurrent(sru_asr.SRU),
    "SRU recompute=True": _recurrent(sru_asr.SRU, recompute=True),
    "SRU recompute=False": _recurrent(sru_asr.SRU, recompute=False),
    "nn.LSTM": _recurrent(nn.LSTM),
    "nn.GRU": _recurrent(nn.GRU),
    "nn.Conv1d k=3": Convolutions,
    "attention (SDPA)": Attention,
    OLD_SRU: lambda shape: _recurrent(old_sru().SRU)(shape),
}


def available(names: Iterable[str], device: str) -> tuple[str, ...]:
    """Leave out the cases that cannot run here.

    Parameters
    ----------
    names : iterable of str
        Cases.
    device : str

    Returns
    -------
    tuple of str
    """
    missing = set()
    if device != "cpu":
        missing = {OLD_SRU, "products oneDNN"}  # the old package's CUDA part does not compile
    else:
        if not (torch.backends.mkldnn.is_available() and hasattr(_onednn(), "_linear_pointwise")):
            missing.add("products oneDNN")
        if not (torch.backends.mkldnn.is_available() and _onednn()._is_mkldnn_bf16_supported()):
            missing.add("nn.LSTM" + BF16)  # oneDNN's bfloat16 needs AVX-512
        if OLD_SRU in names and old_sru() is None:
            missing.add(OLD_SRU)
    return tuple(name for name in names if name not in missing)


@functools.cache
def old_sru() -> ModuleType | None:
    """Import the old package, which compiles its CPU operator then; None, with a word, if not."""
    import torch.utils.cpp_extension  # looks for compilers, with a warning where one is missing

    compile_extension = torch.utils.cpp_extension.load

    def compile_for_cpu(name: str, sources: list[str], **options: Any) -> Any:
        # The package's CUDA part has not compiled for years: do not wait for it to fail.
        if any(source.endswith(".cu") for source in sources):
            raise RuntimeError("CUDA is not needed")
        return compile_extension(name, sources, **options)

    # The compiler driver looks for ninja on the path, where an extra's ninja is not by itself.
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
    with (
        mock.patch.object(torch.utils.cpp_extension, "load", compile_for_cpu),
        mock.patch.dict(os.environ, PATH=path),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        try:
            module = importlib.import_module("sru")
        except Exception as error:  # compilers fail in many ways
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            print(f"{OLD_SRU} is left out: it does not import here ({reason})")
            return None
    # It warns of its Python loop at every call; that loop is what is measured.
    warnings.filterwarnings("ignore", message="Running SRU on CPU")
    return module


def panels(
    shape: Shape, device: str, inference: Iterable[str] = (), training: Iterable[str] = ()
) -> list[Panel]:
    """Inference, and training (forward and backward), of the named cases.

    Parameters
    ----------
    shape : Shape
    device : str
    inference, training : iterable of str
        Names of cases; those that cannot run here are left out.

    Returns
    -------
    list of Panel
        One for each mode that has cases.
    """
    settings = {**asdict(shape), "bidirectional": True}
    return [
        Panel(
            f"{mode} {shape}",
            {name: call(name, shape, device, mode) for name in available(names, device)},
            {**settings, "mode": mode},
        )
        for mode, names in (("inference", inference), ("training", training))
        if names
    ]


def call(name: str, shape: Shape, device: str, mode: str) -> Call:
    """Build a case.

    Parameters
    ----------
    name : str
        Of the case.
    shape : Shape
    device : str
    mode : {"inference", "training"}

    Returns
    -------
    callable
        What is to be timed.
    """
    torch.manual_seed(0)
    kind = name.removesuffix(BF16)
    cast = nullcontext
    if name.endswith(BF16):
        cast = functools.partial(torch.autocast, torch.device(device).type, torch.bfloat16)
    x = torch.randn(shape.steps, shape.batch, shape.features, device=device)
    if kind in PRODUCTS:
        return _products(kind, shape, x, mode, cast)
    network = NETWORKS[kind](shape).to(device).train(mode == "training")

    def forward(x: Tensor) -> Tensor:
        with cast():
            output = network(x)
        return output[0] if isinstance(output, tuple) else output

    if mode == "inference":
        return torch.no_grad()(lambda: forward(x))
    inputs = [x.requires_grad_(), *network.parameters()]
    grad = torch.randn_like(torch.no_grad()(forward)(x))
    return lambda: torch.autograd.grad(forward(x), inputs, grad)


def _products(
    kind: str, shape: Shape, x: Tensor, mode: str, cast: Callable[[], AbstractContextManager[Any]]
) -> Call:
    """The matrix products of SRU alone, layer for layer as the stack has them.

    Nothing that computes them with the same routine can be faster. For training they include both
    gradients, the weight's and the input's.
    """
    weights = [layer.weight for layer in NETWORKS["SRU"](shape).to(x.device).layers]
    inputs = [x] + [x.new_empty(*x.shape[:2], shape.width).normal_() for _ in weights[1:]]
    if kind == "products F.linear":
        linear = F.linear
    else:
        linear = _onednn_linear if mode == "inference" else _onednn_convolution

    def forward() -> list[Tensor]:
        with cast():
            return [linear(z, weight) for z, weight in zip(inputs, weights, strict=True)]

    @torch.no_grad()
    def infer() -> None:
        with cast():
            for z, weight in zip(inputs, weights, strict=True):
                linear(z, weight)  # let go at once, as a network does

    if mode == "inference":
        return infer
    for z in inputs:
        z.requires_grad_()
    grads = [torch.randn_like(u) for u in torch.no_grad()(forward)()]
    return lambda: torch.autograd.grad(forward(), [*inputs, *weights], grads)


def _onednn() -> Any:
    return torch.ops.mkldnn


def _onednn_linear(x: Tensor, weight: Tensor) -> Tensor:
    return _onednn()._linear_pointwise(x, weight, None, "none", [], "")


def _onednn_convolution(x: Tensor, weight: Tensor) -> Tensor:
    """`F.linear` as a 1x1 convolution, which reaches oneDNN with gradients; no data is moved."""
    image = x.reshape(1, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)  # channels last
    u = F.conv2d(image, weight[:, :, None, None])
    return u.permute(0, 2, 3, 1).reshape(*x.shape[:2], -1)
