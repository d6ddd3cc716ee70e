"""Cost of training: the models of several recipes on the same batches, step by step in turn.

    python benchmarks/training.py hparams/an4/*.yaml --data_folder=DIR --steps 40 --threads 2
    python benchmarks/training.py hparams/an4/*.yaml --lengths 10 20 [--device cuda]

Batches hold AN4's utterances or, where there is no corpus, noise with random transcripts, and are
made up as the compared-with recipe makes them. A step is a recipe's own: forward, loss, backward,
gradient clipping, optimiser. What recipes do to waveforms (speed, noise, joining) is left out: data
loaders do it. The encoder is timed again alone, forward and backward, on the same features.
Options of the recipes can be overridden as on their command line: --max_batch_seconds=200.
"""

from __future__ import annotations

import argparse
import itertools
import re
import runpy
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from harness import RESULTS, Panel, report, settings, spread
from peak import in_fresh_process, peak_memory
from speechbrain.core import Stage
from speechbrain.dataio.batch import PaddedBatch
from torch import Tensor
from tqdm import tqdm

from sru_asr.audio import AudioError, read_audio
from sru_asr.brain import SpeechRecognitionBrain
from sru_asr.files import write_atomically
from sru_asr.manifest import Utterance, read_manifest
from sru_asr.model import encode
from sru_asr.tokenizer import BOS, EOS, train_tokenizer
from sru_asr.training import RecipeError, load_hparams

PREPARE_AN4 = Path(__file__).resolve().parents[1] / "recipes" / "AN4" / "prepare.py"
LENGTHS = (1.0, 6.0)  # seconds; about AN4's
POOL = 1000  # utterances of noise to choose batches from
TOKENS_PER_SECOND = {"char": 10}  # of random transcripts, between AN4's 7 and LibriSpeech's 14
PIECES_PER_SECOND = 3  # where tokens are longer
PEER = "conformer"


@dataclass(frozen=True)
class Recipe:
    """A YAML and what of the overrides it takes."""

    path: str
    overrides: str

    @property
    def name(self) -> str:
        return Path(self.path).stem


class LettersAsPhones:
    """In a lexicon's place: a phone for each letter, about as many as there would be.

    Parameters
    ----------
    size : int
        The phones and the blank.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def encode(self, text: str) -> list[int]:
        """Phones of a text; no two that follow each other are alike."""
        phones = [1 + (ord(c) + i) % (self.size - 1) for i, c in enumerate(text.replace(" ", ""))]
        return [a for a, b in itertools.pairwise([*phones, 0]) if a != b]


class Training:
    """A recipe's model with all that a training step takes.

    Parameters
    ----------
    recipe : Recipe
    folder : Path
        Takes what the recipe writes, its tokenizer for one.
    utterances : list of Utterance
        Those without ``wav`` are noise with random transcripts.
    args : argparse.Namespace
    """

    def __init__(
        self, recipe: Recipe, folder: Path, utterances: list[Utterance], args: argparse.Namespace
    ) -> None:
        self.utterances = utterances
        # Which keys only the corpus preparation reads is the recipe's business: here all are fine.
        text = Path(recipe.path).read_text(encoding="utf-8")
        keys = re.findall(r"^([a-z]\w*):", text, re.MULTILINE)
        places = {"data_folder": args.data_folder or folder, "output_folder": folder / recipe.name}
        overrides = recipe.overrides + "".join(f"{k}: {v}\n" for k, v in places.items())
        self.hparams = hparams = load_hparams(recipe.path, overrides, keys)
        if utterances[0].wav:
            hparams["tokenizer"] = train_tokenizer(
                folder / f"{recipe.name}.tokenizer",
                [utterance.wrd for utterance in utterances],
                hparams["output_neurons"],
                hparams["token_type"],
            )
        if hparams.get("lexicon") is not None:
            hparams["lexicon"] = LettersAsPhones(hparams["num_phones"])
        self.brain = SpeechRecognitionBrain(
            hparams["modules"],
            hparams["opt_class"],
            hparams,
            {"device": args.device, "precision": args.precision, "noprogressbar": True},
            hparams["checkpointer"],
        )
        self.brain.on_fit_start()
        self.brain.on_stage_start(Stage.TRAIN, epoch=1)
        self.brain.modules.train()
        self.model = hparams["model"]

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())

    def batches(self, number: int) -> list[list[int]]:
        """Make up so many batches, as indices of utterances, epoch by epoch."""
        lengths = [utterance.duration for utterance in self.utterances]
        sampler = self.hparams["train_sampler"](self.utterances, lengths_list=lengths)

        def epochs() -> Iterator[list[int]]:
            for epoch in itertools.count(1):
                sampler.set_epoch(epoch)
                yield from sampler

        return list(itertools.islice(epochs(), number))

    def batch(self, indices: list[int]) -> PaddedBatch:
        """Collate a batch on the device."""
        examples = [self._example(index) for index in indices]
        return PaddedBatch(examples).to(self.brain.device)

    def _example(self, index: int) -> dict[str, Any]:
        utterance, rate = self.utterances[index], self.hparams["sample_rate"]
        if utterance.wav:
            signal = read_audio(utterance.wav, rate)
            tokens = self.hparams["tokenizer"].encode(utterance.wrd)
        else:
            # The same noise in every model and process.
            generator = torch.Generator().manual_seed(index)
            signal = 0.1 * torch.randn(round(utterance.duration * rate), generator=generator)
            pieces = TOKENS_PER_SECOND.get(self.hparams["token_type"], PIECES_PER_SECOND)
            size = (max(1, round(utterance.duration * pieces)),)
            vocabulary = self.hparams["output_neurons"]
            tokens = torch.randint(EOS + 1, vocabulary, size, generator=generator).tolist()
        return {
            "id": utterance.ID,
            "sig": signal,
            "wrd": utterance.wrd or "A" * len(tokens),
            "tokens_bos": torch.LongTensor([BOS, *tokens]),
            "tokens_eos": torch.LongTensor([*tokens, EOS]),
            "tokens": torch.LongTensor(tokens),
        }

    def step(self, batch: PaddedBatch) -> None:
        """Train on a batch."""
        self.brain.fit_batch(batch)

    def encoder_step(self, batch: PaddedBatch) -> Callable[[], None]:
        """Compute features of a batch, and return the encoder's forward and backward pass."""
        training = self.model.training
        self.model.eval()  # so that no statistics of the features are gathered
        with torch.no_grad():
            src, lengths = self.model.encoder.subsampled_features(*batch.sig)
        self.model.train(training)
        src.requires_grad_()
        outer: Tensor | None = None

        def run() -> None:
            nonlocal outer
            with self.brain.training_ctx:
                encoded, _ = encode(self.model.encoder.encoder, src, lengths)
            outer = torch.randn_like(encoded) if outer is None else outer
            encoded.backward(outer)

        return run


def seconds(call: Callable[[], object], device: str) -> float:
    """Time one call, until the device is done with it."""
    on_gpu = device.startswith("cuda")
    if on_gpu:
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(
    trainings: dict[str, Training], batches: list[list[int]], device: str
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Train all models on all batches, in turn.

    Parameters
    ----------
    trainings : dict of str to Training
        By name.
    batches : list of list of int
        The first one warms up and is not counted.
    device : str

    Returns
    -------
    steps, encoder_steps : dict of str to list of float
        Seconds of each step, by name.
    """
    steps: dict[str, list[float]] = {name: [] for name in trainings}
    encoder_steps: dict[str, list[float]] = {name: [] for name in trainings}
    names = list(trainings)
    for number, indices in enumerate(tqdm(batches, desc="training", unit=" steps")):
        first = number % len(names)  # so that none always follows the same one
        for name in names[first:] + names[:first]:
            training = trainings[name]
            batch = training.batch(indices)
            torch.manual_seed(number)  # equal augmentations, as far as recipes have the same
            step = seconds(partial(training.step, batch), device)
            encoder_step = seconds(training.encoder_step(batch), device)
            training.brain.zero_grad()
            if number:
                steps[name].append(step)
                encoder_steps[name].append(encoder_step)
    return steps, encoder_steps


def memory(
    recipe: Recipe,
    folder: Path,
    utterances: list[Utterance],
    indices: list[int],
    args: argparse.Namespace,
) -> tuple[int, int]:
    """Measure the peak memory of training on a batch; in a fresh process.

    Returns
    -------
    training : int
        Bytes of parameters, gradients, optimiser states and all that a step needs.
    encoder : int
        Bytes that an encoder step needs beyond parameters and optimiser states.
    """
    with settings(args):
        with peak_memory(args.device) as whole:
            training = Training(recipe, folder, utterances, args)
            batch = training.batch(indices)
            for _ in range(2):  # the first one makes the optimiser's states
                training.step(batch)
        run = training.encoder_step(batch)
        run()  # makes the outer gradient
        training.brain.zero_grad()
        with peak_memory(args.device) as encoder:
            run()
    return whole.added, encoder.added


def panels(
    trainings: dict[str, Training],
    batches: list[list[int]],
    measured: tuple[dict[str, list[float]], dict[str, list[float]]],
    bytes_needed: dict[str, tuple[int, int]],
    args: argparse.Namespace,
) -> list[Panel]:
    """Put the samples in order; the first model is what the others are compared with."""
    peer, *_ = trainings
    utterances = trainings[peer].utterances
    described = {
        "data": args.data,
        "precision": args.precision,
        "against": peer,
        "utterances": [len(batch) for batch in batches[1:]],  # of each step
        "seconds": [round(sum(utterances[i].duration for i in batch), 2) for batch in batches[1:]],
        "parameters": {name: training.parameters for name, training in trainings.items()},
    }
    steps, encoder_steps = measured
    total = sum(described["utterances"])
    throughput = {name: [total / sum(samples)] for name, samples in steps.items()}
    whole, encoder = (
        {name: [float(needed[part])] for name, needed in bytes_needed.items()} for part in (0, 1)
    )
    each = {"unit": "ms", "scale": 1e-3, "quantity": "seconds a step"}
    times = {"unit": "times", "scale": 1, "quantity": "quotient of a batch's seconds"}
    rate = {"unit": "utterances/s", "scale": 1, "quantity": "utterances a second"}
    size = {"unit": "MiB", "scale": 2**20, "quantity": "bytes"}
    kinds: list[tuple[str, dict[str, Any], dict[str, list[float]]]] = [
        ("training step", each, steps),
        ("encoder step", each, encoder_steps),
        ("training step, times as fast", times, _quotients(steps, peer)),
        ("encoder step, times as fast", times, _quotients(encoder_steps, peer)),
        ("throughput of training", rate, throughput),
        ("peak memory of training", size, whole),
        ("peak memory of an encoder step", size, encoder),
    ]
    return [Panel(title, {}, described, **kind, samples=samples) for title, kind, samples in kinds]


def _quotients(samples: dict[str, list[float]], peer: str) -> dict[str, list[float]]:
    """Batch by batch: what one has in common with the next, its size and the load, cancels."""
    return {
        name: [theirs / ours for theirs, ours in zip(samples[peer], own, strict=True)]
        for name, own in samples.items()
    }


def overview(measured: list[Panel]) -> str:
    """Lay the medians out as a Markdown table, a row for each model."""
    step, encoder, faster, encoder_faster, throughput, whole, encoder_memory = measured
    peer, *_ = step.samples
    described = step.settings

    def median(panel: Panel, name: str) -> float:
        return statistics.median(panel.samples[name]) / panel.scale

    def timed(panel: Panel, name: str) -> str:
        s = {key: value / panel.scale for key, value in spread(panel.samples[name]).items()}
        return f"{s['median']:.0f} ({s['q1']:.0f}–{s['q3']:.0f})"

    def needed(panel: Panel, name: str) -> str:
        own = median(panel, name)
        return f"{own:.0f} | {own / median(panel, peer):.2f}"

    heads = ["step, ms (quartiles) | faster", "memory, MiB | share"]
    heads = [head for kind in heads for head in (kind, f"encoder's {kind}")]
    rows = [
        f"{described['data']}, {len(described['utterances'])} steps of "
        f"{statistics.median(described['utterances']):g} utterances and "
        f"{statistics.median(described['seconds']):.0f} s (medians), {described['precision']}. "
        f"Faster: {peer}'s time over the model's, batch by batch; share: the model's memory over "
        f"{peer}'s.",
        "",
        f"| | parameters | utterances/s | {' | '.join(heads)} |",
        "|---|" + "---:|" * 10,
    ]
    for name in step.samples:
        cells = [
            name,
            f"{described['parameters'][name] / 1e6:.2f} M",
            f"{median(throughput, name):.2f}",
            timed(step, name),
            f"{median(faster, name):.2f}",
            timed(encoder, name),
            f"{median(encoder_faster, name):.2f}",
            needed(whole, name),
            needed(encoder_memory, name),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def recipes(paths: Sequence[str], overrides: dict[str, str], against: str | None) -> list[Recipe]:
    """Find the recognisers' recipes, the compared-with one first.

    An override goes to the recipes that have its key.

    Raises
    ------
    RecipeError
        When a file is missing, a name is there twice, or an override fits none.
    """
    found: dict[str, Recipe] = {}
    unused = set(overrides)
    for path in paths:
        if not Path(path).is_file():
            raise RecipeError(f"{path}: no such file; expected a recipe's YAML under hparams/")
        text = Path(path).read_text(encoding="utf-8")
        keys = set(re.findall(r"^(\w+):", text, re.MULTILINE))
        if "model" not in keys:
            print(f"left out {path}: it has no `model`, as a recogniser's recipe does")
            continue
        own = "".join(f"{key}: {value}\n" for key, value in overrides.items() if key in keys)
        recipe = Recipe(path, own)
        if recipe.name in found:
            raise RecipeError(f"{path}: {found[recipe.name].path} has the same name")
        found[recipe.name] = recipe
        unused -= keys
    if unused:
        raise RecipeError(f"no recipe has the option {', '.join(sorted(unused))} to override")
    if not found:
        raise RecipeError(f"found no recogniser's recipe among {', '.join(paths)}")
    if against is not None and against not in found:
        raise RecipeError(f"--against: found {against!r}, expected one of {', '.join(found)}")
    peer = against or next((name for name in found if name.startswith(PEER)), next(iter(found)))
    return sorted(found.values(), key=lambda recipe: recipe.name != peer)


def noise(low: float, high: float) -> list[Utterance]:
    """List utterances whose durations in seconds are spread evenly."""
    durations = torch.empty(POOL).uniform_(low, high, generator=torch.Generator().manual_seed(0))
    return [Utterance(f"noise-{i}", d, "", "", "") for i, d in enumerate(durations.tolist())]


def an4(data_folder: str, folder: Path) -> list[Utterance]:
    """List the training utterances of AN4, prepared as its recipe does.

    Raises
    ------
    RecipeError
        When the corpus is not there or not whole.
    """
    prepare = runpy.run_path(str(PREPARE_AN4))["prepare_an4"]
    try:
        prepare(data_folder, folder)
    except ValueError as error:  # the module's own CorpusError
        raise RecipeError(str(error)) from error
    return read_manifest(folder / "train.csv", data_folder)


def _parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, dict[str, str]]:
    p = argparse.ArgumentParser(
        description="Train recipes' models on the same batches in turn, and compare the cost.",
        epilog="Other options, --key=value, override those of the recipes that have such a key.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    p.add_argument("recipes", nargs="+", metavar="YAML", help="of recognisers")
    source = p.add_mutually_exclusive_group()
    source.add_argument("--data_folder", help="AN4, whose training part gives the batches")
    source.add_argument(
        "--lengths",
        nargs=2,
        type=float,
        metavar=("LOW", "HIGH"),
        default=LENGTHS,
        help="seconds of the utterances of noise that take its place",
    )
    p.add_argument("--steps", type=int, default=40, help="of each model, after one to warm up")
    p.add_argument("--against", metavar="NAME", help=f"compare with it; {PEER}* by default")
    p.add_argument("--device", default="cpu", help="cpu or cuda")
    p.add_argument("--precision", default="fp32", choices=("fp32", "bf16"), help="by autocast")
    p.add_argument("--threads", type=int, default=1, help="CPU threads; several: if all are free")
    p.add_argument("--tf32", action="store_true", help="let fp32 products on a GPU be TF32")
    p.add_argument("--quick", action="store_true", help="two tiny steps: does it run?")
    p.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    args, rest = p.parse_known_args(arguments)
    overrides = {}
    for word in rest:
        match = re.fullmatch(r"--(\w+)=(.*)", word)
        if match is None:
            p.error(f"unrecognized argument {word}; options of recipes are written --key=value")
        overrides[match[1]] = match[2]
    low, high = args.lengths = (0.3, 0.6) if args.quick else args.lengths
    if not 0 < low <= high:
        p.error(f"--lengths: found {low:g} {high:g}, expected 0 < LOW <= HIGH")
    if args.steps < 1:
        p.error(f"--steps: found {args.steps}, expected at least 1")
    args.steps = 2 if args.quick else args.steps
    args.data = "an4" if args.data_folder else f"{low:g}-{high:g}s".replace(".", "_")
    return args, overrides


def run(args: argparse.Namespace, overrides: dict[str, str], folder: Path) -> None:
    """Measure, and write the results."""
    chosen = recipes(args.recipes, overrides, args.against)
    utterances = an4(args.data_folder, folder) if args.data_folder else noise(*args.lengths)
    with settings(args):
        trainings = {recipe.name: Training(recipe, folder, utterances, args) for recipe in chosen}
        batches = trainings[chosen[0].name].batches(args.steps + 1)
        measured = measure(trainings, batches, args.device)
        largest = max(
            batches, key=lambda batch: len(batch) * max(utterances[i].duration for i in batch)
        )
        needed = {
            recipe.name: in_fresh_process(
                args.device, memory, recipe, folder, utterances, largest, args
            )
            for recipe in tqdm(chosen, desc="memory", unit=" models")
        }
        results = panels(trainings, batches, measured, needed, args)
        name = f"training_{args.data}" + ("" if args.precision == "fp32" else f"_{args.precision}")
        report(name, results, args)
    text = overview(results)
    print(text)
    write_atomically(args.output / f"{name}_{args.device.partition(':')[0]}.md", text)


def main(arguments: Sequence[str] | None = None) -> None:
    args, overrides = _parse(arguments)
    with tempfile.TemporaryDirectory() as folder:
        try:
            run(args, overrides, Path(folder))
        except (RecipeError, AudioError) as error:
            raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
