"""Latency of one step (T = 1) with the state passed in and out, as streaming needs it.

    python benchmarks/step.py [--device cuda]

Four unidirectional layers of 512 without gradients.
"""

from __future__ import annotations

from collections.abc import Sequence

import peers
import torch
from harness import Call, Panel, measure, parser, report, settings
from torch import Tensor, nn

import sru_asr

LAYERS, WIDTH, BATCHES = 4, 512, (1, 8)


def panel(batch: int, width: int, device: str) -> Panel:
    """One step of each network.

    Parameters
    ----------
    batch : int
        Sequences.
    width : int
        Of the input and of each layer.
    device : str

    Returns
    -------
    Panel
    """
    kinds = {"SRU": sru_asr.SRU, "nn.LSTM": nn.LSTM, "nn.GRU": nn.GRU}
    if peers.available([peers.OLD_SRU], device):
        kinds[peers.OLD_SRU] = peers.old_sru().SRU
    return Panel(
        f"one step B{batch}, {LAYERS} layers of {width}",
        {
            name: _step(kind(width, width, LAYERS).to(device).eval(), batch, width, device)
            for name, kind in kinds.items()
        },
        {"T": 1, "B": batch, "width": width, "layers": LAYERS, "bidirectional": False},
        unit="µs",
        scale=1e-6,
    )


def _step(network: nn.Module, batch: int, width: int, device: str) -> Call:
    """Return a call that goes on from the state that the call before it left."""
    x = torch.randn(1, batch, width, device=device)
    state: Tensor | tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def run() -> None:
        nonlocal state
        _, state = network(x, state)

    return run


def main(arguments: Sequence[str] | None = None) -> None:
    args = parser("Time one step with the state in and out.", seconds=4).parse_args(arguments)
    with settings(args):
        measured = []
        for batch in BATCHES:
            measured.append(panel(batch, 16 if args.quick else WIDTH, args.device))
            measure(measured[-1], args)
        report("step", measured, args)


if __name__ == "__main__":
    main()
