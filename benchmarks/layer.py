"""Four bidirectional SRU layers beside their own matrix products, nn.LSTM and nn.GRU.

    python benchmarks/layer.py [--device cuda] [--threads 2]

The products alone are the floor of any implementation that computes them with F.linear: the same
weights, and the inputs that each layer really gets. For training they include both gradients, the
weight's and the input's, as the networks do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from harness import Panel, measure, parser, report, threads
from torch import Tensor, nn

import sru_asr

LAYERS = 4
SHAPES = [(16, 500, 256, 256), (4, 250, 256, 256), (1, 2000, 512, 512)]  # B, T, input, hidden
QUICK = [(2, 20, 16, 16)]


def panels(batch: int, steps: int, features: int, hidden: int, device: str) -> list[Panel]:
    """Inference, and training (forward and backward), for one shape.

    Parameters
    ----------
    batch, steps, features, hidden : int
        Shape of the input, and units of one direction.
    device : str

    Returns
    -------
    list of Panel
    """
    torch.manual_seed(0)
    sru, lstm, gru = (
        kind(features, hidden, LAYERS, bidirectional=True).to(device)
        for kind in (sru_asr.SRU, nn.LSTM, nn.GRU)
    )
    x = torch.randn(steps, batch, features, device=device, requires_grad=True)
    grad = torch.randn(steps, batch, 2 * hidden, device=device)
    infer, train = {}, {}
    infer["SRU"], train["SRU"] = _network(sru, x, grad)
    infer["its products"], train["its products"] = _products(sru, x)
    infer["nn.LSTM"], train["nn.LSTM"] = _network(lstm, x, grad)
    infer["nn.GRU"], train["nn.GRU"] = _network(gru, x, grad)
    title = f"B{batch} T{steps} {features}->{hidden}"
    settings = {"B": batch, "T": steps, "input": features, "hidden": hidden, "layers": LAYERS}
    return [
        Panel(f"inference {title}", infer, {**settings, "mode": "inference"}),
        Panel(f"training {title}", train, {**settings, "mode": "training"}),
    ]


Call = Callable[[], object]


def _network(network: nn.Module, x: Tensor, grad: Tensor) -> tuple[Call, Call]:
    """Return the calls for inference and for forward and backward."""
    inputs = [x, *network.parameters()]

    @torch.no_grad()
    def infer() -> Tensor:
        return network(x)[0]

    def train() -> tuple[Tensor, ...]:
        return torch.autograd.grad(network(x)[0], inputs, grad)

    return infer, train


def _products(sru: nn.Module, x: Tensor) -> tuple[Call, Call]:
    """Return the same calls for the products alone, layer for layer as the stack does them."""
    inputs: list[Tensor] = []
    hooks = [
        layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0].detach()))
        for layer in sru.layers
    ]
    with torch.no_grad():
        sru(x)
    for hook in hooks:
        hook.remove()
    for layer_input in inputs:
        layer_input.requires_grad_()
    weights = [layer.weight for layer in sru.layers]
    grads = [torch.randn_like(u) for u in _linear(inputs, weights)]

    @torch.no_grad()
    def infer() -> None:
        for z, weight in zip(inputs, weights, strict=True):
            F.linear(z, weight)

    def train() -> tuple[Tensor, ...]:
        return torch.autograd.grad(_linear(inputs, weights), [*inputs, *weights], grads)

    return infer, train


def _linear(inputs: list[Tensor], weights: list[Tensor]) -> list[Tensor]:
    return [F.linear(z, weight) for z, weight in zip(inputs, weights, strict=True)]


def main(arguments: Sequence[str] | None = None) -> None:
    args = parser("Time SRU layers beside their matrix products, nn.LSTM and nn.GRU.").parse_args(
        arguments
    )
    with threads(args.threads):
        measured = []
        for shape in QUICK if args.quick else SHAPES:
            for panel in panels(*shape, device=args.device):
                measure(panel, args.device, args.seconds, args.quick)
                panel.cases = dict.fromkeys(panel.cases, _released)  # frees their memory
                measured.append(panel)
        measured.sort(key=lambda panel: panel.settings["mode"])  # a row of the plot for each mode
        report("layer", measured, args.device, "ms", args.output)


def _released() -> None:
    raise RuntimeError("this case was measured and released")


if __name__ == "__main__":
    main()
