"""How models' errors, memory and time grow with the length of a recording.

    python benchmarks/long_recordings.py MODEL_DIR [MODEL_DIR ...] --csv test.csv \\
        [--data_root DIR] [--label NAME ...] [--factors 1 2 5 10 20] \\
        [--decoder greedy | --ctc_weight 0.7]

Utterances of a test set are joined, k to a recording, for each factor k: the words stay the same,
every one counts once, and only the length changes. Each model and factor has a process of its own,
so that its peak memory is that of these recordings. Recordings are transcribed one at a time, by
the model's own decoder, its joint search with another weight of CTC or, to compare encoders alone,
greedy CTC.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from harness import RESULTS, build, machine, settings
from peak import in_fresh_process, peak_memory
from tqdm import tqdm

from sru_asr.audio import AudioError, read_audio
from sru_asr.decode.choice import DecoderError, make_searcher
from sru_asr.files import atomically, write_atomically
from sru_asr.manifest import ManifestError, Utterance, check_manifest
from sru_asr.model_folder import ModelFolderError
from sru_asr.score import Score, WordErrorRate
from sru_asr.transcribe import Transcriber

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FACTORS = (1, 2, 5, 10, 20)
MIB = 2**20
SETTINGS = ("factors", "gap", "seed", "decoder", "ctc_weight")


@dataclass(frozen=True)
class Run:
    """A model on the recordings of one factor.

    Attributes
    ----------
    loaded : int
        Bytes in use once the model is loaded and has transcribed one utterance.
    peak : int
        The most bytes in use while it transcribed.
    recordings : list of dict
        Of each recording ``id``, ``seconds`` of audio and to transcribe it (``took``),
        ``reference``, ``hypothesis`` and, where there was one, ``error``.
    """

    loaded: int
    peak: int
    recordings: list[dict[str, Any]]

    @property
    def longest(self) -> float:
        """Seconds of the longest recording."""
        return max(recording["seconds"] for recording in self.recordings)

    @property
    def real_time_factor(self) -> float:
        """Seconds to transcribe one second of audio."""
        took, audio = (sum(r[key] for r in self.recordings) for key in ("took", "seconds"))
        return took / audio

    @property
    def failed(self) -> int:
        """Recordings that could not be transcribed; their words count as deleted."""
        return sum(recording["error"] is not None for recording in self.recordings)

    def score(self) -> Score:
        """Word errors, with an interval from resampling the recordings."""
        metric = WordErrorRate()
        columns = ("id", "hypothesis", "reference")
        metric.append(*([recording[key] for recording in self.recordings] for key in columns))
        return metric.summarize()


def line_up(utterances: Sequence[Utterance], seed: int) -> list[Utterance]:
    """Shuffle speakers, and utterances within each speaker, who stays in one piece.

    Parameters
    ----------
    utterances : sequence of Utterance
    seed : int
        The same one gives the same order on every machine, whatever the manifest's.

    Returns
    -------
    list of Utterance

    Examples
    --------
    >>> utterances = [Utterance(f"{s}{i}", 1, "", s, "") for i in range(3) for s in "ab"]
    >>> [utterance.ID for utterance in line_up(utterances, 0)]
    ['a2', 'a0', 'a1', 'b0', 'b2', 'b1']
    """
    generator = random.Random(seed)
    speakers: dict[str, list[Utterance]] = {}
    for utterance in sorted(utterances, key=lambda utterance: utterance.ID):
        speakers.setdefault(utterance.spk_id, []).append(utterance)
    names = sorted(speakers)
    generator.shuffle(names)
    for name in names:
        generator.shuffle(speakers[name])
    return [utterance for name in names for utterance in speakers[name]]


def group(utterances: Sequence[Utterance], factor: int) -> list[list[Utterance]]:
    """Cut into runs of so many utterances; the last one holds what remains.

    Examples
    --------
    >>> utterances = line_up([Utterance(str(i), 1, "", "", "") for i in range(5)], 0)
    >>> [len(run) for run in group(utterances, 2)]
    [2, 2, 1]
    """
    return [list(utterances[i : i + factor]) for i in range(0, len(utterances), factor)]


def load(folder: str, args: argparse.Namespace) -> Transcriber:
    """Load a model folder with the decoder that was chosen.

    Raises
    ------
    ModelFolderError
        When it is no model folder, or has no CTC output to decode greedily.
    DecoderError
        When a weight of CTC is given and it has no joint search, or takes no such weight.
    """
    # Whole, however long: it is the model that is measured here.
    transcriber = Transcriber(folder, args.device, window_seconds=math.inf)
    model = transcriber.model
    if args.decoder == "greedy":
        _decode_greedily(transcriber, folder)
    elif args.ctc_weight is not None:
        try:
            searcher = make_searcher(model, "joint", ctc_weight=args.ctc_weight)
        except DecoderError as error:
            raise DecoderError(f"model folder {folder}: {error}") from None
        model.mods["decoder"] = searcher.to(model.device).eval()
    return transcriber


def _decode_greedily(transcriber: Transcriber, folder: str) -> None:
    from speechbrain.decoders.ctc import ctc_greedy_decode

    model = transcriber.model
    # Encoders of folders without an attention decoder give posteriors already.
    attention = hasattr(model.mods, "decoder")
    if attention and not hasattr(model.mods, "ctc_output"):
        raise ModelFolderError(
            f"model folder {folder}: found no modules.ctc_output, expected it for greedy decoding"
        )

    def transcribe_batch(frames: torch.Tensor, lengths: torch.Tensor) -> tuple[list[str], Any]:
        if attention:
            frames = model.mods.ctc_output(frames).float().log_softmax(-1)
        tokens = ctc_greedy_decode(frames, lengths.to(frames.device), blank_id=0)
        return [model.tokenizer.decode_ids(ids) for ids in tokens], tokens

    model.transcribe_batch = transcribe_batch


def describe(folder: str, args: argparse.Namespace) -> dict[str, Any]:
    """Load a model once, before hours of others, and say what it is."""
    model = load(folder, args).model
    if args.decoder == "greedy":
        decoder = "greedy CTC"
    elif hasattr(model.mods, "decoder"):
        decoder = type(model.mods.decoder).__name__
    else:
        # A function, a partial one, or a searcher.
        function = model.decoding_function
        function = getattr(function, "func", function)
        decoder = getattr(function, "__name__", type(function).__name__)
    # Each once: modules of a folder may share them.
    return {"decoder": decoder, "parameters": sum(p.numel() for p in model.mods.parameters())}


def transcribe(
    folder: str, title: str, groups: list[list[Utterance]], args: argparse.Namespace
) -> Run:
    """Transcribe the recordings that groups of utterances make; in a fresh process.

    Parameters
    ----------
    folder : str
        Of the model.
    title : str
        For the progress bar.
    groups : list of list of Utterance
        Those of one recording each.
    args : argparse.Namespace

    Returns
    -------
    Run
    """
    with settings(args):
        transcriber = load(folder, args)
        rate = transcriber.sample_rate
        pause = torch.zeros(round(args.gap * rate))
        transcriber.transcribe([read_audio(groups[0][0].wav, rate)])
        recordings = []
        with peak_memory(args.device) as memory:
            for utterances in tqdm(groups, desc=title, unit=" recordings", leave=False):
                parts = [part for u in utterances for part in (pause, read_audio(u.wav, rate))]
                signal = torch.cat(parts[1:])
                start = time.perf_counter()
                (transcript,) = transcriber.transcribe([signal])
                took = time.perf_counter() - start
                recordings.append(
                    {
                        "id": "+".join(utterance.ID for utterance in utterances),
                        "seconds": transcript.duration,
                        "took": took,
                        "reference": " ".join(utterance.wrd for utterance in utterances),
                        "hypothesis": transcript.text,
                        "error": transcript.error,
                    }
                )
    return Run(memory.before, memory.peak, recordings)


Runs = dict[str, dict[int, Run]]  # by label and factor


def table(runs: Runs) -> str:
    """Lay the runs out as text, a block for each model."""
    width = len("factor")
    lines = []
    for label, by_factor in runs.items():
        lines += [
            "",
            label,
            f"  {'factor':>{width}} {'records':>7} {'longest s':>9} {'WER %':>6} "
            f"{'95 % interval':>15} {'/ first':>7} {'S':>5} {'D':>5} {'I':>5} {'failed':>6} "
            f"{'real time':>9} {'loaded MiB':>10} {'added MiB':>9}",
        ]
        first = None
        for factor, run in by_factor.items():
            score = run.score()
            first = score.wer if first is None else first
            low, high = score.ci95
            quotient = f"{score.wer / first:7.2f}" if first else f"{'':7}"
            lines.append(
                f"  {f'x{factor}':>{width}} {len(run.recordings):7} {run.longest:9.1f} "
                f"{score.wer:6.2f} {f'{low:.2f}–{high:.2f}':>15} {quotient} "
                f"{score.substitutions:5} {score.deletions:5} {score.insertions:5} "
                f"{run.failed:6} {run.real_time_factor:9.4f} "
                f"{run.loaded / MIB:10.1f} {(run.peak - run.loaded) / MIB:9.1f}"
            )
    return "\n".join(lines)


def draw(runs: Runs) -> Figure:
    """Plot word error rate over factor, and memory and time over length, a line for each model."""
    from matplotlib import pyplot

    figure, (errors, memory, speed) = pyplot.subplots(1, 3, figsize=(13, 4), layout="constrained")
    factors = [factor for by_factor in runs.values() for factor in by_factor]
    for i, (label, by_factor) in enumerate(runs.items()):
        scores = [run.score() for run in by_factor.values()]
        bars = [
            [max(0, score.wer - score.ci95[0]) for score in scores],
            [max(0, score.ci95[1] - score.wer) for score in scores],
        ]
        at = [factor * 1.04**i for factor in by_factor]  # so that whiskers stand side by side
        errors.errorbar(
            at, [score.wer for score in scores], bars, marker="o", capsize=2, lw=1.5, label=label
        )
        lengths = [run.longest for run in by_factor.values()]
        added = [(run.peak - run.loaded) / MIB for run in by_factor.values()]
        memory.plot(lengths, added, marker="o", label=label)
        every = [recording for run in by_factor.values() for recording in run.recordings]
        means = [
            fmean(recording["seconds"] for recording in run.recordings)
            for run in by_factor.values()
        ]
        (line,) = speed.plot(
            means, [run.real_time_factor for run in by_factor.values()], marker="o", label=label
        )
        speed.scatter(
            [recording["seconds"] for recording in every],
            [recording["took"] / recording["seconds"] for recording in every],
            s=3,
            alpha=0.25,
            color=line.get_color(),
        )
    errors.set(xscale="log", xlabel="utterances in a recording", ylabel="WER [%], 95 % interval")
    errors.set_xticks(sorted(set(factors)), [str(factor) for factor in sorted(set(factors))])
    errors.minorticks_off()
    memory.set(xlabel="longest recording [s]", ylabel="peak memory beyond the model [MiB]")
    speed.set(xscale="log", xlabel="recording [s]", ylabel="real-time factor")
    for axes in (errors, memory, speed):
        axes.grid(alpha=0.3)
        axes.set_ylim(0, None)
    errors.legend(fontsize=8)
    return figure


def report(runs: Runs, models: dict[str, dict[str, Any]], args: argparse.Namespace) -> None:
    """Print the table; write it, the JSON and the plot to ``args.output``."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    host = machine(args.device)
    record = {
        "benchmark": "long_recordings",
        "device": args.device,
        "machine": host,
        "build": build(),
        "tf32": args.tf32,
        "manifest": args.csv.name,
        "settings": {name: getattr(args, name) for name in SETTINGS},
        "models": models,
        "runs": [
            {
                "model": label,
                "factor": factor,
                "score": asdict(run.score()),
                "longest": run.longest,
                "real_time_factor": run.real_time_factor,
                "failed": run.failed,
                "loaded_bytes": run.loaded,
                "peak_bytes": run.peak,
                "recordings": run.recordings,
            }
            for label, by_factor in runs.items()
            for factor, run in by_factor.items()
        ],
    }
    where = host.get("gpu") or f"{host['cpu']}, {host['threads']} thread(s)"
    weight = "" if args.ctc_weight is None else f", CTC weight {args.ctc_weight:g}"
    text = f"long_recordings: {where}, PyTorch {torch.__version__}{weight}\n"
    text += "".join(
        f"  {label}: {m['parameters'] / 1e6:.2f} M parameters, {m['decoder']}\n"
        for label, m in models.items()
    )
    text += table(runs)
    print(text)
    stem = args.output / f"long_recordings_{args.device.partition(':')[0]}"
    write_atomically(stem.with_suffix(".json"), json.dumps(record, indent=1) + "\n")
    write_atomically(stem.with_suffix(".txt"), text + "\n")
    figure = draw(runs)
    with atomically(stem.with_suffix(".png")) as temporary:
        figure.savefig(temporary, dpi=110)
    pyplot.close(figure)
    print(f"\nwritten: {stem}.json, .txt, .png\n")


def labels(models: Sequence[str], given: Sequence[str] | None) -> list[str]:
    """Name the models: as given, or by the folders that training put them in.

    Examples
    --------
    >>> labels(["results/an4_sru_ctc/1/model", "results/an4_sru_ctc/2/model"], None)
    ['an4_sru_ctc/1', 'an4_sru_ctc/2']
    """
    names = list(given or [])
    for model in models if given is None else []:
        path = Path(model).resolve()
        parts = path.parts[-3:-1] if path.name == "model" else path.parts[-1:]
        names.append("/".join(parts))
    if len(names) != len(models):
        raise ValueError(f"--label: found {len(names)} names, expected one for each model")
    if len(set(names)) < len(names):
        raise ValueError(f"found two models of one name among {', '.join(names)}; give --label")
    return names


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    p = argparse.ArgumentParser(
        description="Join a test set's utterances to longer recordings, and measure errors, "
        "memory and time of models over their length.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.add_argument("models", nargs="+", metavar="MODEL_DIR", help="results/.../model")
    p.add_argument("--csv", type=Path, required=True, help="manifest of the test set")
    p.add_argument("--data_root", help="what {data_root} in the manifest stands for")
    p.add_argument("--label", nargs="+", help="names of the models; their folders' by default")
    p.add_argument("--factors", nargs="+", type=int, default=FACTORS, help="utterances joined")
    p.add_argument("--gap", type=float, default=0.0, help="seconds of silence between them")
    p.add_argument("--seed", type=int, default=0, help="of the order of speakers and utterances")
    p.add_argument(
        "--decoder", choices=("own", "greedy"), default="own", help="the model's, or greedy CTC"
    )
    p.add_argument(
        "--ctc_weight", type=float, help="of joint searches; by default that of each model folder"
    )
    p.add_argument("--device", default="cpu", help="cpu or cuda")
    p.add_argument("--threads", type=int, default=1, help="CPU threads; several: if all are free")
    p.add_argument("--tf32", action="store_true", help="let fp32 products on a GPU be TF32")
    p.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    args = p.parse_args(arguments)
    args.factors = sorted(set(args.factors))
    if args.factors[0] < 1:
        p.error(f"--factors: found {args.factors[0]}, expected 1 or more")
    if not 0 <= args.gap < float("inf"):
        p.error(f"--gap: found {args.gap:g}, expected seconds of silence")
    if args.ctc_weight is not None and args.decoder == "greedy":
        p.error(
            f"--ctc_weight: found {args.ctc_weight:g} with --decoder greedy, which has no such "
            "weight; expected one of the two options"
        )
    try:
        args.label = labels(args.models, args.label)
    except ValueError as error:
        p.error(str(error))
    return args


def run(args: argparse.Namespace) -> None:
    """Measure, and write the results."""
    utterances = line_up(check_manifest(args.csv, args.data_root), args.seed)
    folders = dict(zip(args.label, args.models, strict=True))
    models = {
        label: in_fresh_process(args.device, describe, folder, args)
        for label, folder in folders.items()
    }
    runs: Runs = {label: {} for label in folders}
    for factor in args.factors:
        groups = group(utterances, factor)
        for label, folder in folders.items():
            name = f"{label} x{factor}"
            runs[label][factor] = in_fresh_process(
                args.device, transcribe, folder, name, groups, args
            )
    with settings(args):
        report(runs, models, args)


def main(arguments: Sequence[str] | None = None) -> None:
    args = _parse(arguments)
    try:
        run(args)
    except (ManifestError, AudioError, DecoderError, ModelFolderError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
