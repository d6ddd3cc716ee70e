"""Peak memory and time of the encoder over an hour of audio, its attention limited to a window.

    python benchmarks/long_audio.py [--minutes 10 60] [--window 250]

The encoder is that of hparams/an4/srupp_ctc_attention.yaml, with random weights; it reads what
subsampling gives, 25 frames a second. Memory is what the call needs beyond that input, the encoded
frames included, measured as `peak` says, in a fresh process. "In blocks" is how inference runs;
"at once" is the same pass over the whole sequence, whose output it must equal.
"""

from __future__ import annotations

import ctypes
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from harness import Panel, parser, report, settings
from memory import M_MMAP_THRESHOLD
from peak import CLEAR_REFS, in_fresh_process, peak_memory

from sru_asr import SRUTransformerASR, attention, blocks, encoder

FRAMES = 25  # a second
GOAL = 500e6  # bytes, for an hour
WARM_UP = 500  # frames
FEATURES = 640  # of a subsampled frame: 32 channels of 20
SIZES = {
    "d_model": 144,
    "encoder_size": 256,
    "projection_size": 96,
    "encoder_d_ffn": 576,
    "num_encoder_layers": 6,
    "num_heads": 4,
    "attention_every": 2,
}
QUICK = {**SIZES, "d_model": 32, "encoder_size": 64, "projection_size": 16, "encoder_d_ffn": 64}


def make(sizes: dict[str, int], window: int) -> SRUTransformerASR:
    torch.manual_seed(0)
    model = SRUTransformerASR(
        30, FEATURES, nhead=4, num_decoder_layers=0, attention_window=window, **sizes
    )
    return model.eval()


def run_at_once() -> None:
    """Make no blocks of anything from now on."""
    attention.PART_ROWS = encoder.PART_ROWS = 2**40
    blocks.WHOLE_BYTES = 2**60


@torch.no_grad()
def encode(
    case: str, sizes: dict[str, int], window: int, frames: int, threads: int, output: Path
) -> tuple[int, float]:
    """Encode noise, in a fresh process, and write the result.

    Returns
    -------
    peak : int
        Bytes beyond the input and the model.
    seconds : float
    """
    torch.set_num_threads(threads)
    # Freed tensors go back to the kernel at once, so that what is resident is what is in use.
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**16)
    if case == "at once":
        run_at_once()
    model = make(sizes, window)
    features = torch.randn(1, frames, FEATURES)
    model.encode(features[:, :WARM_UP].clone())
    with peak_memory("cpu") as memory:
        start = time.perf_counter()
        encoded = model.encode(features)
        seconds = time.perf_counter() - start
    torch.save(encoded, output)
    return memory.added, seconds


def compare(folder: Path, cases: Sequence[str]) -> dict[str, float]:
    """The largest difference between two outputs, and the largest number in them."""
    first, second = (torch.load(folder / f"{case}.pt", mmap=True) for case in cases)
    return {
        "difference": (first - second).abs().max().item(),
        "largest": first.abs().max().item(),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    p = parser("Measure the encoder over long audio.")
    p.add_argument("--minutes", type=float, nargs="+", default=[10, 60], help="lengths of audio")
    p.add_argument("--window", type=int, default=250, help="frames that attention sees, each side")
    p.add_argument("--only-blocks", action="store_true", help="leave out the pass at once")
    args = p.parse_args(arguments)
    if min(args.minutes) <= 0 or args.window < 1:
        p.error("--minutes and --window must be positive")
    if not CLEAR_REFS.exists():
        print("long_audio: left out, it needs Linux's /proc")
        return
    cases = ["SRU++ in blocks"] if args.only_blocks else ["SRU++ in blocks", "at once"]
    sizes, minutes = (QUICK, [10]) if args.quick else (SIZES, args.minutes)
    panels, found = [], []
    with settings(args), tempfile.TemporaryDirectory() as folder:
        for length in minutes:
            frames = round(length * 60 * FRAMES)
            about: dict[str, Any] = {
                **sizes, "minutes": length, "frames": frames, "window": args.window
            }  # fmt: skip
            title = f"{length:g} minutes, window {args.window}"
            memory = Panel(f"peak memory, {title}", {}, about, "MB", 1e6, "bytes")
            seconds = Panel(f"time, {title}", {}, about, "s", 1.0, "seconds")
            for case in cases:
                memory.samples[case], seconds.samples[case] = (
                    [number]
                    for number in in_fresh_process(
                        "cpu", encode, case, sizes, args.window, frames, args.threads,
                        Path(folder, f"{case}.pt"),
                    )
                )  # fmt: skip
            peak = memory.samples[cases[0]][0]
            found.append(f"{title}: {peak / 1e6:.0f} MB beyond the input (goal for an hour: 500)")
            if not args.only_blocks:
                about.update(compare(Path(folder), cases))
                found[-1] += f"; largest difference {about['difference']:.1e}"
            panels += [memory, seconds]
        report("long_audio", panels, args)
    print("\n".join(found))


if __name__ == "__main__":
    main()
