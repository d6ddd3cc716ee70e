"""Another sample rate, block by block, which gives what the whole signal at once would."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import numpy.typing as npt

Signal = npt.NDArray[np.float32]

# torchaudio's filter takes this many numbers at most. Rates without a common divisor (16001 to
# 16000 Hz) would take gigabytes.
LARGEST_FILTER = 1 << 24


def resample_blocks(blocks: Iterable[Signal], old_rate: int, new_rate: int) -> Iterator[Signal]:
    """Resample a signal that comes in blocks.

    A block waits until what follows it is there, as far as the filter reaches. Blocks are cut where
    a sample of the new rate falls on one of the old, so nothing is ever rounded: there is no drift.

    Parameters
    ----------
    blocks : iterable of array, shape (N,)
        The signal, in pieces of any lengths.
    old_rate, new_rate : int
        Samples per second.

    Yields
    ------
    array, shape (M,)
        The signal at the new rate, in pieces; ``ceil(total N * new_rate / old_rate)`` samples.

    Examples
    --------
    >>> blocks = [np.zeros(5000, np.float32), np.zeros(3001, np.float32)]
    >>> sum(map(len, resample_blocks(blocks, 8000, 16000)))
    16002
    """
    divisor = math.gcd(old_rate, new_rate)
    up, down = new_rate // divisor, old_rate // divisor
    if up == down:
        yield from blocks
        return
    resample, reach = _resampler(up, down)
    context = -(-reach // down) * down  # a multiple of `down` is a whole number of new samples
    before = context * up // down
    waiting = np.zeros(context, np.float32)  # as the filter sees the signal's beginning anyway
    for block in blocks:
        waiting = np.concatenate([waiting, block])
        ready = (len(waiting) - 2 * context) // down * down
        if ready > 0:
            yield resample(waiting[: ready + 2 * context])[before : before + ready * up // down]
            waiting = waiting[ready:]
    if len(waiting) > context:
        yield resample(waiting)[before:]


def _resampler(up: int, down: int) -> tuple[Callable[[Signal], Signal], int]:
    """What resamples a signal with silence around it, and how many old samples it looks around."""
    if up * down > LARGEST_FILTER:
        from scipy.signal import resample_poly

        # scipy's filter has ten zero crossings on each side.
        return lambda signal: resample_poly(signal, up, down), 10 * max(up, down) // up + 1
    # Here and not above: audio at the model's own rate needs neither.
    import torch
    from torchaudio.transforms import Resample

    resample = Resample(down, up, dtype=torch.float32)
    return (
        lambda signal: resample(torch.from_numpy(signal)).numpy(),
        math.ceil(resample.lowpass_filter_width * down / (min(up, down) * resample.rolloff)),
    )
