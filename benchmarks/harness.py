"""What the benchmarks share: interleaved timing, the machine's description, table, JSON and plot.

A benchmark is a list of panels; the cases of one panel do comparable work and are timed in turn,
so that whatever else the machine does falls on all of them alike. What a call allocates is part of
its time: large fresh tensors cost page faults in real use too, and here they cost all cases alike.
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
from typing import TYPE_CHECKING, Any

import torch

import sru_asr

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Ignored by git; docs/benchmarks holds the runs that the README quotes.
RESULTS = Path(__file__).resolve().parents[1] / "results" / "benchmarks"
SAMPLE_SECONDS = 0.02  # a sample repeats short calls until it lasts about this long
LEAST, MOST = 3, 30  # samples of a case

Call = Callable[[], object]


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
    unit : str
        What table and plot count in.
    scale : float
        Of one unit, in what the samples count: 1e-3 reports seconds in milliseconds.
    quantity : str
        What the samples count.
    samples : dict of str to list of float
        Filled by `measure`.
    """

    title: str
    cases: dict[str, Call]
    settings: dict[str, Any]
    unit: str = "ms"
    scale: float = 1e-3
    quantity: str = "seconds a call"
    samples: dict[str, list[float]] = field(default_factory=dict)


def parser(description: str, seconds: float = 10) -> argparse.ArgumentParser:
    """Options that all benchmarks have.

    Parameters
    ----------
    description : str
        What the command does.
    seconds : float
        Default of ``--seconds``.

    Returns
    -------
    argparse.ArgumentParser
    """
    p = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    p.add_argument("--device", default="cpu", help="cpu or cuda")
    # One by default: times are then a core's, and hold on a machine that does other work too.
    # nn.LSTM's threads meet at every step, where each waits for one that is not running.
    p.add_argument("--threads", type=int, default=1, help="CPU threads; several: if all are free")
    p.add_argument("--seconds", type=float, default=seconds, help="time for each panel, about")
    p.add_argument("--tf32", action="store_true", help="let fp32 products on a GPU be TF32")
    p.add_argument("--quick", action="store_true", help="tiny shapes, few samples: does it run?")
    p.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    return p


@contextmanager
def settings(args: argparse.Namespace) -> Iterator[None]:
    """Run with the options' CPU threads and precision.

    PyTorch lets cuDNN's LSTM and convolutions, but not `F.linear`, round fp32 to TF32; here it is
    all of them or none.
    """
    backends = torch.backends.cuda.matmul, torch.backends.cudnn
    before = torch.get_num_threads(), [backend.allow_tf32 for backend in backends]
    torch.set_num_threads(args.threads)
    for backend in backends:
        backend.allow_tf32 = args.tf32
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        for backend, allowed in zip(backends, before[1], strict=True):
            backend.allow_tf32 = allowed


def measure(panel: Panel, args: argparse.Namespace) -> None:
    """Time all cases in turn, about ``args.seconds`` long, and let go of the calls.

    Every case gets 3 samples at least and 30 at most, after a first call that is not counted. Only
    a case whose first call outlasts the whole panel's time has that one counted, is called twice
    more, and leaves the time to the others.

    Parameters
    ----------
    panel : Panel
        Its samples are filled, in seconds a call, and its cases emptied, which frees their memory.
    args : argparse.Namespace
        Options of `parser`.
    """
    clock = _cuda_seconds if args.device.startswith("cuda") else _cpu_seconds
    least, most = (2, 2) if args.quick else (LEAST, MOST)
    calls = {}
    for name, call in panel.cases.items():
        once = clock(call, 1)  # allocates, plans, compiles
        slow = once > args.seconds
        if once < SAMPLE_SECONDS:
            once = clock(call, 1)
        calls[name] = 1 if args.quick else max(1, round(SAMPLE_SECONDS / once))
        panel.samples[name] = [once] if slow else []
    slow_cases = {name for name, samples in panel.samples.items() if samples}
    spent = 0.0
    for done in range(most):
        if done >= least and spent > args.seconds:
            break
        for name, call in panel.cases.items():
            if name in slow_cases and len(panel.samples[name]) >= least:
                continue
            sample = clock(call, calls[name])
            panel.samples[name].append(sample)
            if name not in slow_cases:
                spent += sample * calls[name]
    panel.cases.clear()


def _cpu_seconds(call: Call, number: int) -> float:
    start = time.perf_counter()
    for _ in range(number):
        call()
    return (time.perf_counter() - start) / number


def _cuda_seconds(call: Call, number: int) -> float:
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
    if len(samples) == 1:
        return dict.fromkeys(("median", "min", "q1", "q3"), samples[0])
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


def build() -> dict[str, Any]:
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


def report(
    name: str,
    panels: list[Panel],
    args: argparse.Namespace,
    draw: Callable[[list[Panel]], Figure] | None = None,
) -> None:
    """Print the table; write it, the JSON and the plot to ``args.output``.

    Parameters
    ----------
    name : str
        Of the benchmark; the files are ``<name>_<device>.json``, ``.txt`` and ``.png``.
    panels : list of Panel
        Measured.
    args : argparse.Namespace
        Options of `parser`.
    draw : callable, optional
        Makes the figure; `bars` by default.
    """
    import matplotlib

    matplotlib.use("Agg")
    host = machine(args.device)
    record = {
        "benchmark": name,
        "device": args.device,
        "machine": host,
        "build": build(),
        "tf32": args.tf32,
        "panels": [
            {
                "title": panel.title,
                "settings": panel.settings,
                "quantity": panel.quantity,
                "cases": {
                    case: {**spread(samples), "samples": samples}
                    for case, samples in panel.samples.items()
                },
            }
            for panel in panels
        ],
    }
    where = host.get("gpu") or f"{host['cpu']}, {host['threads']} thread(s)"
    text = f"{name}: {where}, PyTorch {torch.__version__}\n" + table(panels)
    print(text)
    args.output.mkdir(parents=True, exist_ok=True)
    stem = args.output / f"{name}_{args.device.partition(':')[0]}"
    stem.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    stem.with_suffix(".txt").write_text(text + "\n")
    figure = (draw or bars)(panels)
    figure.suptitle(f"{name}: {where}", fontsize=9)
    figure.savefig(stem.with_suffix(".png"), dpi=110)
    print(f"\nwritten: {stem}.json, .txt, .png\n")


def table(panels: list[Panel]) -> str:
    """Lay the panels out as text: spread in units, and each median over the first case's."""
    lines = []
    for panel in panels:
        width = max(map(len, panel.samples))
        heads = f"{'median':>9} {'min':>9} {'q1':>9} {'q3':>9}  ratio"
        lines += ["", f"{panel.title} ({panel.unit})", f"  {'':{width}} {heads}"]
        first = None
        for case, samples in panel.samples.items():
            s = spread(samples)
            first = first or s["median"]
            numbers = " ".join(
                f"{s[key] / panel.scale:9.3f}" for key in ("median", "min", "q1", "q3")
            )
            lines.append(f"  {case:{width}} {numbers} {s['median'] / first:6.2f}")
    return "\n".join(lines)


def bars(panels: list[Panel]) -> Figure:
    """One row of bars for each case: medians, with whiskers from quartile to quartile."""
    from matplotlib import pyplot as plt

    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    most = max(len(panel.samples) for panel in panels)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(4.6 * columns, rows * (0.9 + 0.28 * most) + 0.4),
        squeeze=False,
        layout="constrained",
    )
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    for axis, panel in zip(axes.flat, panels, strict=False):
        spreads = [spread(samples) for samples in panel.samples.values()]
        medians = [s["median"] / panel.scale for s in spreads]
        axis.barh(
            list(panel.samples),
            medians,
            xerr=[
                [(s["median"] - s["q1"]) / panel.scale for s in spreads],
                [(s["q3"] - s["median"]) / panel.scale for s in spreads],
            ],
            color=["#3465a4" if _is_ours(case) else "#b8bec6" for case in panel.samples],
            error_kw={"elinewidth": 1, "ecolor": "#444444"},
        )
        # A case far slower than all others would leave nothing to see of them: its bar is cut off.
        edge = min(max(s["q3"] / panel.scale for s in spreads), 6 * statistics.median(medians))
        for row, (median, s) in enumerate(zip(medians, spreads, strict=True)):
            text = f"  {median:,.0f}" if median >= 100 else f"  {median:.3g}"
            text += " »" if median > edge else ""
            axis.text(min(s["q3"] / panel.scale, edge), row, text, va="center", fontsize=8)
        axis.invert_yaxis()
        axis.set_xlim(0, 1.25 * edge)
        axis.set_title(panel.title, fontsize=9)
        axis.set_xlabel(panel.unit, fontsize=8)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def _is_ours(case: str) -> bool:
    return case.lower().startswith("sru") or case == "JointBeamSearcher"
