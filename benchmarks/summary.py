"""The figures that the project is judged by, out of the files that the other benchmarks wrote.

    python benchmarks/summary.py [--device cuda]

Each is a quotient of medians from one process. "Products" are the faster of the routines measured.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness import RESULTS
from layer import CUDA_SHAPES, SHAPES
from peers import BF16, OLD_SRU, PRODUCTS
from scaling import LENGTHS

BENCHMARKS = ("layer", "recurrence", "scaling", "memory", "step", "sweep")
MODES = ("inference", "training")

# The goals of the project: on two CPU threads, and on an H200.
PRODUCT_SHARE = {"inference": 1.15, "training": 1.25}  # a layer's time over its products'
LSTM_INFERENCE = (1.7, 2.8, 4.3)  # nn.LSTM's time over ours, for each of the shapes
NANOSECONDS = {"inference": 2, "forward": 2, "backward": 5}  # an element, on one thread
COPY_SHARE = {"inference": 90, "forward": 90, "backward": 85}  # percent of a copy's bandwidth


@dataclass
class Figure:
    """A row of the summary; ``value`` is None where there is no measurement."""

    text: str
    value: float | None
    at_most: float | None = None
    at_least: float | None = None

    def __str__(self) -> str:
        value = "not measured" if self.value is None else f"{self.value:.3g}"
        goal, met = "", True
        for sign, bound in (("≤", self.at_most), ("≥", self.at_least)):
            if bound is not None:
                goal = f"{sign} {bound:g}"
                if self.value is not None:
                    met = self.value <= bound if sign == "≤" else self.value >= bound
        verdict = "" if self.value is None or not goal else "met" if met else "missed"
        return f"  {self.text:66} {value:>12}  {goal:8} {verdict}".rstrip()


class Results:
    """Medians out of the JSON files of one device.

    Parameters
    ----------
    folder : Path
    device : str
    """

    def __init__(self, folder: Path, device: str) -> None:
        self.records: dict[str, dict[str, Any]] = {}
        for name in BENCHMARKS:
            path = folder / f"{name}_{device.partition(':')[0]}.json"
            if path.exists():
                self.records[name] = json.loads(path.read_text())

    def panels(self, benchmark: str, settings: dict[str, Any]) -> list[dict[str, Any]]:
        """Return a benchmark's panels that have these settings."""
        panels = self.records.get(benchmark, {}).get("panels", [])
        return [p for p in panels if settings.items() <= p["settings"].items()]

    def median(self, benchmark: str, *cases: str, **settings: Any) -> float | None:
        """Return the smallest median of the cases in panels of these settings, None without any."""
        return min(
            (
                panel["cases"][case]["median"]
                for panel in self.panels(benchmark, settings)
                for case in cases
                if case in panel["cases"]
            ),
            default=None,
        )

    def machines(self) -> list[str]:
        """Describe what each benchmark ran on."""
        return [
            f"  {name:10} {record['machine'].get('gpu') or record['machine']['cpu']},"
            f" {record['machine']['threads']} thread(s)"
            for name, record in self.records.items()
        ]


def ratio(over: float | None, under: float | None, times: float = 1) -> float | None:
    """Divide, unless one is missing."""
    return None if over is None or not under else times * over / under


def cpu_figures(results: Results) -> Iterator[Figure]:
    """Yield the rows for a CPU."""
    median = results.median
    batch = asdict(SHAPES[0])
    for mode in MODES:
        for shape in SHAPES:
            of = {**asdict(shape), "mode": mode}
            products = median("layer", *PRODUCTS, **of)
            value = ratio(median("layer", "SRU", **of), products)
            yield Figure(
                f"{mode} {shape}: layer / its products", value, at_most=PRODUCT_SHARE[mode]
            )
        for shape, goal in zip(SHAPES, LSTM_INFERENCE, strict=True):
            of = {**asdict(shape), "mode": mode}
            value = ratio(median("layer", "nn.LSTM", **of), median("layer", "SRU", **of))
            if mode == "training":
                goal = 1.9 if shape is SHAPES[0] else None
            yield Figure(f"{mode} {shape}: nn.LSTM / ours", value, at_least=goal)
        of = {**batch, "mode": mode}
        ours, cast = (median("layer", case, **of) for case in ("SRU", "SRU" + BF16))
        for text, case, other, goal in (
            ("nn.LSTM fp32 / ours bf16", "nn.LSTM", cast, 3.5 if mode == "inference" else None),
            ("nn.LSTM bf16 / ours bf16", "nn.LSTM" + BF16, cast, None),
            ("nn.GRU / ours", "nn.GRU", ours, None),
            ("nn.Conv1d k=3 / ours", "nn.Conv1d k=3", ours, None),
            (f"{OLD_SRU} / ours", OLD_SRU, ours, 8 if mode == "training" else None),
        ):
            value = ratio(median("layer", case, **of), other)
            yield Figure(f"{mode} {SHAPES[0]}: {text}", value, at_least=goal)

    for mode, case in (
        ("inference", "sru_recurrence"),
        ("forward", "sru_recurrence"),
        ("backward", "sru_recurrence"),
        ("inference", OLD_SRU),
    ):
        for recompute in (False, True) if mode != "inference" else (False,):
            of = {"mode": mode, "dtype": "float32", "recompute": recompute}
            value = None
            for panel in results.panels("recurrence", of):
                elements = panel["settings"]["T"] * panel["settings"]["B"] * panel["settings"]["D"]
                value = ratio(median("recurrence", case, **of), elements, 1e9)
            text = f"recurrence {mode}{', recompute' * recompute}, fp32: {case}, ns an element"
            goal = NANOSECONDS[mode] if case != OLD_SRU else None
            yield Figure(text, value, at_most=goal)

    yield from growth(results)
    for mode in MODES:
        of = {"over": "threads", "mode": mode}
        for panel in results.panels("scaling", of):
            most = max(panel["settings"]["threads"])
            for case in ("SRU", "nn.LSTM") if most > 1 else ():
                one, all_ = f"{case} 1 thread", f"{case} {most} threads"
                value = ratio(median("scaling", one, **of), median("scaling", all_, **of))
                yield Figure(f"{mode}, {case}: 1 thread / {most} threads", value)
    yield from steps(results)


def cuda_figures(results: Results) -> Iterator[Figure]:
    """Yield the rows for a GPU."""
    median = results.median
    shape = CUDA_SHAPES[0]
    for suffix in ("", BF16):
        for mode in MODES:
            of = {**asdict(shape), "mode": mode}
            ours = median("layer", "SRU" + suffix, **of)
            start = f"{mode}{suffix or ' fp32'} {shape}:"
            products = median("layer", PRODUCTS[0] + suffix, **of)
            yield Figure(f"{start} layer / its products", ratio(ours, products))
            for peer in ("nn.LSTM", "nn.GRU", "nn.Conv1d k=3", "attention (SDPA)"):
                value = ratio(median("layer", peer + suffix, **of), ours)
                goal = {"nn.LSTM": 8, "nn.Conv1d k=3": 1}.get(peer) if mode == "training" else None
                yield Figure(f"{start} {peer} / ours", value, at_least=goal)
        again, kept = (
            median("layer", f"SRU recompute={option}{suffix}", **asdict(shape), mode="training")
            for option in (True, False)
        )
        yield Figure(f"training{suffix or ' fp32'} {shape}: recompute / kept", ratio(again, kept))
    for dtype in ("float32", "bfloat16"):
        for mode in ("inference", "forward", "backward"):
            for recompute in (False, True) if mode != "inference" else (False,):
                of = {"mode": mode, "dtype": dtype, "recompute": recompute}
                copy, ours = (
                    median("recurrence", case, **of) for case in ("memory copy", "sru_recurrence")
                )
                text = f"recurrence {mode}{', recompute' * recompute}, {dtype}: % of the copy"
                yield Figure(text, ratio(copy, ours, 100), at_least=COPY_SHARE[mode])
    yield from growth(results)
    yield from steps(results)


def growth(results: Results) -> Iterator[Figure]:
    """Yield how time and memory grow with T, over how the products' do."""
    short, long = LENGTHS
    for mode in MODES:
        of = {"over": "steps", "mode": mode}
        grown = [
            ratio(
                *(
                    results.median("scaling", *(f"{case} T{t}" for case in cases), **of)
                    for t in (long, short)
                )
            )
            for cases in (("SRU",), PRODUCTS)
        ]
        yield Figure(
            f"{mode}: time T{long} / T{short}, over the products'", ratio(*grown), at_most=1.1
        )
    for mode in MODES:
        grown = [
            ratio(*(results.median("memory", *cases, mode=mode, steps=t) for t in (long, short)))
            for cases in (("SRU",), PRODUCTS)
        ]
        yield Figure(
            f"{mode}: memory T{long} / T{short}, over the products'", ratio(*grown), at_most=1.1
        )


def steps(results: Results) -> Iterator[Figure]:
    """Yield the latencies of one step."""
    ours = results.median("step", "SRU", B=1)
    for peer in ("nn.LSTM", "nn.GRU", OLD_SRU):
        value = ratio(results.median("step", peer, B=1), ours)
        goal = 1.5 if peer == "nn.LSTM" else None
        yield Figure(f"one step, B1, 4 layers of 512: {peer} / ours", value, at_least=goal)


def main(arguments: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(description="Sum up what the other benchmarks wrote.")
    options.add_argument("--device", default="cpu", help="cpu or cuda")
    options.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    args = options.parse_args(arguments)
    results = Results(args.output, args.device)
    figures = cpu_figures if args.device == "cpu" else cuda_figures
    rows = [f"  {'':66} {'value':>12}  goal", *map(str, figures(results))]
    text = "\n".join(["summary", *results.machines(), "", *rows])
    print(text)
    name = f"summary_{args.device.partition(':')[0]}.txt"
    (args.output / name).write_text(text + "\n")


if __name__ == "__main__":
    main()
