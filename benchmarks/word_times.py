"""How far the times of words are off, and whether confidence tells right words from wrong ones.

    python benchmarks/word_times.py results/demo/model [--utterances 300] [--csv valid.csv ...]

Commands are synthesised that nobody has heard, spoken by the voices of the corpus's test split in
scenes of their own, and the synthesiser says when each word begins and ends (from its first phoneme
to the end of its last). The model transcribes them; words that it gets right are compared. With
``--csv``, confidence is measured on a manifest's recordings, too, which need no times.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jiwer
import numpy as np
import torch
from harness import RESULTS, build, machine, settings
from scipy.stats import mannwhitneyu
from tqdm import tqdm

from sru_asr.alignment import AlignmentError, WordAligner
from sru_asr.audio import AudioError, read_audio
from sru_asr.files import atomically, write_atomically
from sru_asr.manifest import ManifestError, Utterance, check_manifest
from sru_asr.model_folder import ModelFolderError, load_model
from sru_asr.segments import Word
from sru_asr.synthetic.corpus import make_corpus

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "Commands"
GOAL = 0.04  # seconds: the median of all boundaries' errors
Spans = dict[int, tuple[float, float]]


@dataclass
class Found:
    """What was measured on a set of recordings.

    Attributes
    ----------
    starts, ends : list of float
        Seconds by which the words that are right begin and end too late.
    first_starts : list of float
        Of the starts, those of the first words of their recordings.
    right, wrong : list of float
        The confidence of words that are in the reference, and of others.
    """

    starts: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)
    first_starts: list[float] = field(default_factory=list)
    right: list[float] = field(default_factory=list)
    wrong: list[float] = field(default_factory=list)

    def add(self, reference: str, words: Sequence[Word], spans: Spans) -> None:
        """Compare what was recognised with what was said, words with spans at their places."""
        pairs = dict(_equal(reference, " ".join(word.text for word in words)))
        for place, word in enumerate(words):
            (self.right if place in pairs else self.wrong).append(word.confidence)
            if place in pairs and pairs[place] in spans:
                start, end = spans[pairs[place]]
                self.starts.append(word.start - start)
                self.ends.append(word.end - end)
                if pairs[place] == 0:
                    self.first_starts.append(word.start - start)

    @property
    def median(self) -> float:
        """Of all boundaries' absolute errors, in seconds."""
        return float(np.median(np.abs(self.starts + self.ends)))

    @property
    def auc(self) -> float:
        """The probability that a right word has more confidence than a wrong one."""
        u = mannwhitneyu(self.right, self.wrong).statistic
        return float(u / (len(self.right) * len(self.wrong)))


def _equal(reference: str, hypothesis: str) -> Iterator[tuple[int, int]]:
    """Places in the hypothesis, and in the reference, of the words that are right."""
    if not hypothesis:
        return
    for chunk in jiwer.process_words(reference, hypothesis).alignments[0]:
        if chunk.type == "equal":
            yield from zip(
                range(chunk.hyp_start_idx, chunk.hyp_end_idx),
                range(chunk.ref_start_idx, chunk.ref_end_idx),
                strict=True,
            )


def synthesise(folder: Path, count: int, seed: int) -> tuple[list[Utterance], dict[str, Spans]]:
    """Make commands, and say where each one's words are.

    Words that the synthesiser speaks as one with the next have no span.
    """
    sys.path.insert(0, str(RECIPE))
    from prepare import draw_take

    make_corpus("Commands", draw_take, {"test": count}, folder, seed=seed)
    spans: dict[str, Spans] = {}
    for line in (folder / "words.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        place, own = 0, {}
        for text, start, end in record["words"]:
            if " " not in text:
                own[place] = (start, end)
            place += len(text.split())
        spans[record["ID"]] = own
    return check_manifest(folder / "test.csv", folder), spans


@torch.inference_mode()
def measure(
    model_dir: Path, utterances: Sequence[Utterance], spans: dict[str, Spans], device: str = "cpu"
) -> Found:
    """Transcribe and align recordings, one by one.

    Parameters
    ----------
    model_dir : Path
        The model folder.
    utterances : sequence of Utterance
        What was said.
    spans : dict of str to dict of int to (float, float)
        For each utterance, when the words at some places begin and end; may be empty.
    device : str
        "cpu" or "cuda".
    """
    model = load_model(model_dir, device)
    aligner = WordAligner(model)
    found = Found()
    for utterance in tqdm(utterances, unit=" recordings", leave=False, disable=None):
        signal = read_audio(utterance.wav, int(model.hparams.sample_rate))
        whole = torch.ones(1, device=device)
        frames, _ = model.mods.encoder.encode(signal[None].to(device), whole)
        text = str(model.transcribe_batch(frames, whole)[0][0])
        seconds = len(signal) / int(model.hparams.sample_rate)
        [words] = aligner.align(frames, whole, [text], [0.0], [seconds])
        found.add(utterance.wrd, words, spans.get(utterance.ID, {}))
    return found


def summary(errors: Sequence[float]) -> dict[str, float]:
    """Statistics of signed errors in seconds: of their sizes, and the median as it is."""
    sizes = np.abs(errors)
    return {
        "count": len(errors),
        "median": float(np.median(sizes)),
        "mean": float(sizes.mean()),
        "p90": float(np.percentile(sizes, 90)),
        "bias": float(np.median(errors)),
    }


def table(found: Found, others: dict[str, Found]) -> str:
    """Lay out what was found as text."""
    lines = [f"{'error, ms':<28}{'words':>7}{'median':>8}{'mean':>8}{'90 %':>8}{'bias':>8}"]
    for name, errors in (
        ("starts", found.starts),
        ("  of a recording's first word", found.first_starts),
        ("ends", found.ends),
        ("both", found.starts + found.ends),
    ):
        of = summary(errors)
        numbers = "".join(f"{1000 * of[key]:8.1f}" for key in ("median", "mean", "p90", "bias"))
        lines.append(f"{name:<29}{of['count']:6}{numbers}")
    lines += ["", f"{'confidence':<28}{'right':>7}{'wrong':>8}{'AUC':>8}"]
    for name, each in {"commands": found, **others}.items():
        area = f"{each.auc:8.3f}" if each.wrong and each.right else f"{'-':>8}"
        lines.append(f"{name:<28}{len(each.right):7}{len(each.wrong):8}{area}")
    verdict = "reached" if found.median <= GOAL else "missed"
    lines += ["", f"median of all {1000 * found.median:.1f} ms, goal {1000 * GOAL:.0f}: {verdict}"]
    return "\n".join(lines)


def draw(found: Found) -> Figure:
    """Plot which share of the boundaries is how far off."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for name, errors in (("starts", found.starts), ("ends", found.ends)):
        sizes = np.sort(np.abs(errors)) * 1000
        axes.plot(sizes, np.arange(1, len(sizes) + 1) / len(sizes) * 100, label=name)
    axes.axvline(1000 * GOAL, color="gray", lw=1, ls="--")
    axes.axhline(50, color="gray", lw=1, ls="--")
    axes.set(xlabel="error at most [ms]", ylabel="share of the words [%]", xlim=(0, 300))
    axes.set_ylim(0, 100)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def report(found: Found, others: dict[str, Found], args: argparse.Namespace) -> None:
    """Print the table; write it, the JSON and the plot to ``args.output``."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    record: dict[str, Any] = {
        "benchmark": "word_times",
        "machine": machine(args.device),
        "build": build(),
        "model": args.label,
        "settings": {"utterances": args.utterances, "seed": args.seed},
        "head": WordAligner.head,
        "tail": WordAligner.tail,
        "errors": {name: summary(getattr(found, name)) for name in ("starts", "ends")},
        "median": found.median,
        "confidence": {
            name: {"right": each.right, "wrong": each.wrong}
            for name, each in {"commands": found, **others}.items()
        },
        "samples": {"starts": found.starts, "ends": found.ends},
    }
    text = (
        f"word_times: {args.label}, {args.utterances} commands, head {WordAligner.head} s, "
        f"tail {WordAligner.tail} s\n\n{table(found, others)}"
    )
    print(text)
    stem = args.output / f"word_times_{args.device.partition(':')[0]}"
    numbers = json.loads(json.dumps(record), parse_float=lambda digits: round(float(digits), 4))
    write_atomically(stem.with_suffix(".json"), json.dumps(numbers) + "\n")
    write_atomically(stem.with_suffix(".txt"), text + "\n")
    figure = draw(found)
    with atomically(stem.with_suffix(".png")) as temporary:
        figure.savefig(temporary, dpi=110)
    pyplot.close(figure)
    print(f"\nwritten: {stem}.json, .txt, .png\n")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    p = argparse.ArgumentParser(
        description="Measure times and confidence of words.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.add_argument("model", type=Path, metavar="MODEL_DIR", help="trained on Commands")
    p.add_argument("--utterances", type=int, default=300, help="commands to synthesise")
    p.add_argument("--seed", type=int, default=7, help="of the commands; training had 1986")
    p.add_argument("--csv", type=Path, help="manifest to measure confidence on, too")
    p.add_argument("--data_root", help="what {data_root} in the manifest stands for")
    p.add_argument("--csv_model", type=Path, help="model folder for it; MODEL_DIR by default")
    p.add_argument("--label", default="Commands", help="what to call the model")
    p.add_argument("--device", default="cpu", help="cpu or cuda")
    p.add_argument("--threads", type=int, default=1, help="CPU threads")
    p.add_argument("--tf32", action="store_true", help="let fp32 products on a GPU be TF32")
    p.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    return p.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    args = _parse(arguments)
    try:
        with settings(args), tempfile.TemporaryDirectory() as folder:
            utterances, spans = synthesise(Path(folder), args.utterances, args.seed)
            found = measure(args.model, utterances, spans, args.device)
            if not found.right:
                raise SystemExit(f"error: {args.model} recognised no word of Commands")
            others = {}
            if args.csv is not None:
                rows = check_manifest(args.csv, args.data_root)
                others[args.csv.name] = measure(args.csv_model or args.model, rows, {}, args.device)
            report(found, others, args)
    except (AlignmentError, AudioError, ManifestError, ModelFolderError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
