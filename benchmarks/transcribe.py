"""Transcribing as a user does it: speed, memory over hours, and what cutting costs in errors.

    python benchmarks/transcribe.py MODEL_DIR --csv test.csv [--hours 1 3] [--peer FILES]

Of a trained joint CTC/attention model and a manifest of its language:

- real-time factor over all recordings of the manifest, by greedy and by joint search;
- with ``--peer``, files per second beside a loop over SpeechBrain's ``transcribe_file``, one call
  for each file: with the same folder, whose search is ours, same texts; and with SpeechBrain's own
  search in the same model, same beam and CTC weight, which ranks by means over tokens;
- long recordings, the manifest's with pauses between them, transcribed whole (cut at pauses) and as
  the recordings themselves: word errors of both. Pauses are digital silence, noise with the
  spectrum of each recording's own background, or white noise. A model's errors depend on where its
  frames begin, by as much as on the cutting, so both are means of several draws, of the pauses and
  of up to 30 ms that recordings begin later;
- peak memory, in a fresh process, while an hour and three hours of the same are transcribed from
  disk, beyond what the loaded model needs.

CPU seconds are reported beside seconds: on a machine that does other work they are the steadier.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import soundfile
import torch
from harness import build, machine, parser, settings
from peak import in_fresh_process, peak_memory

from sru_asr.audio import read_audio
from sru_asr.files import write_atomically
from sru_asr.manifest import Utterance, check_manifest
from sru_asr.score import WordErrorRate
from sru_asr.transcribe import Transcriber

MIB = 2**20
PAUSE = (0.5, 1.5)  # seconds between utterances, drawn evenly
PAUSES = ("silence", "background", "white noise")
LATER = 0.03  # seconds that recordings begin later, at most
DECODERS = {"greedy": {"decoder": "greedy"}, "joint beam 10": {"decoder": "joint", "beam_size": 10}}


@dataclass(frozen=True)
class Row:
    """One figure, and what is to be reached."""

    name: str
    value: float
    goal: str
    met: bool

    def line(self) -> str:
        """As it stands in the table."""
        return (
            f"{self.name:76} {self.value:10.4g}  {self.goal:>8}  {'met' if self.met else 'missed'}"
        )


def at_most(name: str, value: float, goal: float) -> Row:
    """A figure that should be small."""
    return Row(name, value, f"<= {goal:g}", value <= goal)


def at_least(name: str, value: float, goal: float) -> Row:
    """A figure that should be large."""
    return Row(name, value, f">= {goal:g}", value >= goal)


def timed(call: Callable[[], object], repeats: int) -> dict[str, list[float]]:
    """Seconds and CPU seconds of calls, after one that is not counted."""
    call()
    samples: dict[str, list[float]] = {"seconds": [], "cpu_seconds": []}
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        call()
        samples["cpu_seconds"].append(time.process_time() - cpu)
        samples["seconds"].append(time.perf_counter() - wall)
    return samples


def pause(kind: str, signal: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """So many samples of what may stand between two recordings, as quiet as the first's pauses."""
    if kind == "silence":
        return np.zeros(count, np.float32)
    frames = signal[: len(signal) // 160 * 160].reshape(-1, 160)
    power = np.square(frames).mean(1)
    noise = generator.standard_normal(count)
    if kind == "background":
        quiet = frames[power <= np.percentile(power, 20)] * np.hanning(160)
        spectrum = np.sqrt(np.square(np.abs(np.fft.rfft(quiet))).mean(0))
        frequencies = np.linspace(0, 1, count // 2 + 1)
        gains = np.interp(frequencies, np.linspace(0, 1, len(spectrum)), spectrum)
        noise = np.fft.irfft(np.fft.rfft(noise) * gains, count)
        noise /= np.sqrt(np.square(noise).mean())
    return (noise * np.sqrt(np.percentile(power, 10))).astype(np.float32)


def joined(
    utterances: Sequence[Utterance],
    rate: int,
    kind: str = "silence",
    draw: int = 0,
    seconds: float | None = None,
) -> Iterator[np.ndarray]:
    """The utterances with a pause after each, once or until there are so many seconds."""
    generator = np.random.default_rng(draw)
    count, end = 0, None if seconds is None else round(seconds * rate)
    while True:
        for utterance in utterances:
            signal = read_audio(utterance.wav, rate).numpy()
            length = round(generator.uniform(*PAUSE) * rate)
            part = np.concatenate([signal, pause(kind, signal, length, generator)])
            part = part[: None if end is None else end - count]
            yield part
            count += len(part)
            if end is not None and count >= end:
                return
        if end is None:
            return


def speed(
    utterances: Sequence[Utterance], args: argparse.Namespace
) -> tuple[list[Row], dict[str, Any]]:
    """Real-time factors over the manifest, and files per second beside SpeechBrain's loop."""
    paths = [utterance.wav for utterance in utterances]
    seconds = sum(utterance.duration for utterance in utterances)
    found: dict[str, Any] = {"audio_seconds": seconds, "files": len(paths)}
    rows = []
    for name, goal in (("greedy", 0.01), ("joint beam 10", 0.15)):
        transcriber = Transcriber(args.model, args.device, **DECODERS[name])
        samples = timed(lambda t=transcriber: t.transcribe(paths), args.repeats)
        found[name] = samples
        title = f"real-time factor, {name}, {args.threads} thread(s)"
        for kind, unit in (("cpu_seconds", "CPU seconds"), ("seconds", "seconds")):
            rows.append(at_most(f"{title}, {unit}", median(samples[kind]) / seconds, goal))
    if args.peer:
        own = Transcriber(args.model, args.device)
        files = paths[: args.peer]
        texts = [transcript.text for transcript in own.transcribe(files)]
        ours = timed(lambda: own.transcribe(files), args.repeats)
        found["peer"] = {"files": len(files), "sru_asr": ours}
        for name, own_search in (("same folder", False), ("its own search", True)):
            peer = _speechbrain(args, own_search)
            theirs = [peer(path) for path in files]
            others = sum(a != b for a, b in zip(texts, theirs, strict=True))
            if others and not own_search:
                raise RuntimeError(f"texts differ: {texts} and {theirs}")
            loop = timed(
                lambda p=peer: [p(path) for path in files], 1 if own_search else args.repeats
            )
            found["peer"][name] = {"other texts": others, **loop}
            for kind in ("cpu_seconds", "seconds"):
                quotient = median(loop[kind]) / median(ours[kind])
                title = f"files a second / transcribe_file loop, {name}, by {kind}"
                rows.append(at_least(title, quotient, 5))
    return rows, found


def _speechbrain(args: argparse.Namespace, own_search: bool) -> Callable[[str], str]:
    """SpeechBrain's ``transcribe_file``, with the folder's search or one of its own like it."""
    from speechbrain.decoders import S2STransformerBeamSearcher
    from speechbrain.decoders.scorer import CTCScorer, ScorerBuilder
    from speechbrain.inference.ASR import EncoderDecoderASR

    model: Any = EncoderDecoderASR.from_hparams(
        source=str(args.model), savedir=None, run_opts={"device": args.device}
    )
    if own_search:
        search = model.mods.decoder
        scorer = CTCScorer(ctc_fc=search.ctc_output, blank_index=0, eos_index=2)
        model.mods["decoder"] = S2STransformerBeamSearcher(
            modules=[search.transformer, search.attention_output],
            bos_index=1,
            eos_index=2,
            min_decode_ratio=0.0,
            max_decode_ratio=1.0,
            beam_size=search.beam_size,
            using_eos_threshold=False,
            length_normalization=True,
            scorer=ScorerBuilder(full_scorers=[scorer], weights={"ctc": search.ctc_weight}),
        ).eval()
    return lambda path: str(model.transcribe_file(path))


def errors(
    utterances: Sequence[Utterance], args: argparse.Namespace
) -> tuple[list[Row], dict[str, Any]]:
    """Word errors of long recordings and of what they were made of."""
    rows: list[Row] = []
    found: dict[str, Any] = {}
    references = [utterance.wrd for utterance in utterances]
    for name, options in DECODERS.items():
        transcriber = Transcriber(args.model, args.device, **options)
        rate = transcriber.sample_rate
        signals = [read_audio(utterance.wav, rate).numpy() for utterance in utterances]
        by_hand = []
        for draw in range(args.draws):
            later = np.random.default_rng(draw).integers(0, round(LATER * rate), len(signals))
            cut = [signal[first:] for signal, first in zip(signals, later, strict=True)]
            texts = [one.text for one in transcriber.transcribe(cut)]
            by_hand.append(asdict(_score(texts, references)))
        found[name] = {"cut by hand": by_hand}
        for kind in PAUSES:
            long = []
            for draw in range(args.draws):
                signal = np.concatenate(list(joined(utterances, rate, kind, draw)))
                whole = transcriber.transcribe(signal)
                score = asdict(_score([whole.text], [" ".join(references)]))
                long.append({"windows": len(whole.segments), **score})
            found[name][kind] = long
            wer = fmean(each["wer"] for each in long)
            difference = wer - fmean(each["wer"] for each in by_hand)
            title = f"WER of long recordings - cut by hand, {kind}, {name} ({wer:.2f} %)"
            rows.append(at_most(title, difference, 0.5))
    return rows, found


def _score(hypotheses: list[str], references: list[str]) -> Any:
    metric = WordErrorRate()
    metric.append([str(i) for i in range(len(references))], hypotheses, references)
    return metric.summarize()


def memory(path: str, args: argparse.Namespace) -> dict[str, float]:
    """Transcribe a file; in a fresh process."""
    with settings(args):
        transcriber = Transcriber(args.model, args.device, **DECODERS["greedy"])
        noise = np.random.default_rng(0).standard_normal(transcriber.sample_rate)
        transcriber.transcribe(0.1 * noise)
        with peak_memory(args.device) as used:
            start = time.perf_counter()
            transcript = transcriber.transcribe(path)
            took = time.perf_counter() - start
    if transcript.error is not None:
        raise RuntimeError(transcript.error)
    return {
        "audio_seconds": transcript.duration,
        "seconds": took,
        "windows": len(transcript.segments),
        "loaded_bytes": used.before,
        "peak_bytes": used.peak,
    }


def hours(
    utterances: Sequence[Utterance], args: argparse.Namespace
) -> tuple[list[Row], dict[str, Any]]:
    """Peak memory over recordings of hours."""
    rows, found = [], {}
    with tempfile.TemporaryDirectory() as folder:
        for length in args.hours:
            path = f"{folder}/{length:g}h.flac"
            with soundfile.SoundFile(path, "w", 16000, 1) as file:
                for part in joined(utterances, 16000, seconds=3600 * length):
                    file.write(part)
            used = in_fresh_process(args.device, memory, path, args)
            found[f"{length:g} h"] = used
            added = (used["peak_bytes"] - used["loaded_bytes"]) / MIB
            rows.append(at_most(f"peak memory beyond the model, {length:g} h, MiB", added, 300))
    return rows, found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table and write it."""
    p = parser(__doc__.split("\n\n")[0])
    p.add_argument("model", type=Path, metavar="MODEL_DIR", help="results/.../model")
    p.add_argument("--csv", type=Path, required=True, help="manifest of recordings")
    p.add_argument("--data_root", help="what {data_root} in the manifest stands for")
    p.add_argument("--hours", type=float, nargs="*", default=[1, 3], help="long recordings")
    p.add_argument("--peer", type=int, default=0, help="files for SpeechBrain's loop")
    p.add_argument("--repeats", type=int, default=3, help="samples of each time")
    p.add_argument("--draws", type=int, default=4, help="of pauses in long recordings")
    args = p.parse_args(arguments)
    if args.quick:
        args.repeats, args.draws, args.hours = 1, 1, [0.02]
    utterances = check_manifest(args.csv, args.data_root)
    rows: list[Row] = []
    found: dict[str, Any] = {}
    with settings(args):
        host = machine(args.device)
        for name, part in (("speed", speed), ("errors", errors), ("hours", hours)):
            more, found[name] = part(utterances, args)
            rows += more
    record = {
        "benchmark": "transcribe",
        "device": args.device,
        "machine": host,
        "build": build(),
        "manifest": args.csv.name,
        "figures": [asdict(row) for row in rows],
        **found,
    }
    where = host.get("gpu") or f"{host['cpu']}, {host['threads']} thread(s)"
    text = f"transcribe: {where}, load {host['load']:.1f}, PyTorch {torch.__version__}\n\n"
    text += "\n".join(row.line() for row in rows) + "\n"
    print(text)
    stem = args.output / f"transcribe_{args.device.partition(':')[0]}"
    write_atomically(stem.with_suffix(".json"), json.dumps(record, indent=1) + "\n")
    write_atomically(stem.with_suffix(".txt"), text)
    print(f"written: {stem}.json, .txt")


if __name__ == "__main__":
    main()
