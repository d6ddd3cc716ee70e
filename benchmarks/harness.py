"""What the benchmarks share: interleaved timing, the machine's description, table, JSON and plot.

A benchmark is a list of panels; the cases of one panel do comparable work and are timed in turn,
so that whatever else the machine does falls on all of them alike.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import sru_asr

# Ignored by git; docs/benchmarks holds the runs that the README quotes.
RESULTS = Path(__file__).resolve().parents[1] / "results" / "benchmarks"
SAMPLE_SECONDS = 0.02  # a sample repeats short calls until it lasts about this long


@dataclass
class Panel:
    """Cases that are compared with each other.

    Parameters
    ----------
    title : str
        What they all do.
    cases : dict of str to callable
        Name and the call to be timed; the first one is what the others are compared with.
    settings : dict
        Shapes and the like, for the JSON.
    unit : float
        Seconds of one unit of the report; 1e-3 reports milliseconds for each call.
    """

    title: str
    cases: dict[str, Callable[[], object]]
    settings: dict[str, Any]
    unit: float = 1e-3
    samples: dict[str, list[float]] = field(default_factory=dict)


def parser(description: str) -> argparse.ArgumentParser:
    """Options that all benchmarks have."""
    p = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    p.add_argument("--device", default="cpu", help="cpu or cuda")
    # One by default: times are then a core's, and hold on a machine that does other work too.
    # nn.LSTM's threads meet at every step, where each waits for one that is not running.
    p.add_argument("--threads", type=int, default=1, help="CPU threads; several: if all are free")
    p.add_argument("--seconds", type=float, default=10, help="time for each panel, about")
    p.add_argument("--quick", action="store_true", help="tiny shapes, few samples: does it run?")
    p.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    return p


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Run with ``number`` CPU threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def measure(panel: Panel, device: str, seconds: float, quick: bool = False) -> None:
    """Time all cases in turn, for about ``seconds``, into ``panel.samples`` (seconds a call).

    Every case gets three samples at least and thirty at most, after a first call that is not
    counted.
    """
    clock = _cuda_seconds if device.startswith("cuda") else _cpu_seconds
    calls = {}
    for name, call in panel.cases.items():
        once = clock(call, 1)  # allocates, plans, compiles
        if once < SAMPLE_SECONDS:
            once = clock(call, 1)
        calls[name] = 1 if quick else max(1, round(SAMPLE_SECONDS / once))
        panel.samples[name] = []
    least, most = (2, 2) if quick else (3, 30)
    end = time.perf_counter() + seconds
    for done in range(most):
        if done >= least and time.perf_counter() > end:
            break
        for name, call in panel.cases.items():
            panel.samples[name].append(clock(call, calls[name]))


def _cpu_seconds(call: Callable[[], object], number: int) -> float:
    start = time.perf_counter()
    for _ in range(number):
        call()
    return (time.perf_counter() - start) / number


def _cuda_seconds(call: Callable[[], object], number: int) -> float:
    """Between two events on the device; launches are as an ordinary program has them."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(number):
        call()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) * 1e-3 / number


def spread(samples: list[float]) -> dict[str, float]:
    """Median, minimum and quartiles."""
    low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
    return {"median": median, "min": min(samples), "q1": low, "q3": high}


def machine(device: str) -> dict[str, Any]:
    """Describe what the numbers were measured on."""
    described = {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],  # of the last minute; above `threads`, others ran too
        "platform": f"{platform.system()} {platform.machine()}",
    }
    if device.startswith("cuda"):
        described["gpu"] = torch.cuda.get_device_name(device)
    return described


def _build() -> dict[str, Any]:
    """`sru_asr.build_info` without its advice, which names folders of this machine."""
    info = sru_asr.build_info()
    for part in ("cpu", "cuda"):
        info[part].pop("missing", None)
    return info


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return (names or [platform.processor() or platform.machine()])[0]


def report(name: str, panels: list[Panel], device: str, unit: str, output: Path) -> None:
    """Print the table; write it, the JSON and the plot to ``output``.

    Parameters
    ----------
    name : str
        Of the benchmark; the files are ``<name>_<device>.json``, ``.txt`` and ``.png``.
    panels : list of Panel
        Measured.
    device : str
    unit : str
        Name of the panels' unit, such as "ms".
    output : Path
    """
    host = machine(device)
    record = {
        "benchmark": name,
        "device": device,
        "machine": host,
        "build": _build(),
        "unit": "seconds a call",
        "panels": [
            {
                "title": panel.title,
                "settings": panel.settings,
                "cases": {
                    case: {**spread(samples), "samples": samples}
                    for case, samples in panel.samples.items()
                },
            }
            for panel in panels
        ],
    }
    where = host.get("gpu") or f"{host['cpu']}, {host['threads']} thread(s)"
    text = f"{name}: {where}, PyTorch {torch.__version__}\n" + table(panels, unit)
    print(text)
    output.mkdir(parents=True, exist_ok=True)
    stem = output / f"{name}_{device.partition(':')[0]}"
    stem.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    stem.with_suffix(".txt").write_text(text + "\n")
    _plot(panels, f"{name}: {where}", unit, stem.with_suffix(".png"))
    print(f"\nwritten: {stem}.json, .txt, .png")


def table(panels: list[Panel], unit: str) -> str:
    """Lay the panels out as text: spread in units, and each median over the first case's."""
    lines = []
    for panel in panels:
        width = max(map(len, panel.cases))
        heads = f"{'median':>9} {'min':>9} {'q1':>9} {'q3':>9}  ratio"
        lines += ["", f"{panel.title} ({unit})", f"  {'':{width}} {heads}"]
        first = None
        for case, samples in panel.samples.items():
            s = spread(samples)
            first = first or s["median"]
            numbers = " ".join(
                f"{s[key] / panel.unit:9.3f}" for key in ("median", "min", "q1", "q3")
            )
            lines.append(f"  {case:{width}} {numbers} {s['median'] / first:6.2f}")
    return "\n".join(lines)


def _plot(panels: list[Panel], title: str, unit: str, path: Path) -> None:
    """One row of bars for each panel: medians, with whiskers from quartile to quartile."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    bars = max(len(panel.cases) for panel in panels)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(4.2 * columns, rows * (0.9 + 0.34 * bars) + 0.4),
        squeeze=False,
        layout="constrained",
    )
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    for axis, panel in zip(axes.flat, panels, strict=False):
        spreads = [spread(samples) for samples in panel.samples.values()]
        medians = [s["median"] / panel.unit for s in spreads]
        axis.barh(
            list(panel.samples),
            medians,
            xerr=[
                [(s["median"] - s["q1"]) / panel.unit for s in spreads],
                [(s["q3"] - s["median"]) / panel.unit for s in spreads],
            ],
            color=["#3465a4"] + ["#b8bec6"] * (len(medians) - 1),
            error_kw={"elinewidth": 1, "ecolor": "#444444"},
        )
        for row, (median, s) in enumerate(zip(medians, spreads, strict=True)):
            text = f"  {median:,.0f}" if median >= 100 else f"  {median:.3g}"
            axis.text(s["q3"] / panel.unit, row, text, va="center", fontsize=8)
        axis.invert_yaxis()
        axis.margins(x=0.18)
        axis.set_title(panel.title, fontsize=9)
        axis.set_xlabel(unit, fontsize=8)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)
