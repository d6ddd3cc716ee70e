"""Resampling utterances: the draws behind every interval and every p value of a score."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def resample_sums(columns: npt.ArrayLike, resamples: int, seed: int = 0) -> npt.NDArray[np.float64]:
    """Sum columns over utterances that are drawn with replacement, as many as there are.

    One draw serves all columns, so quantities that belong to the same utterance (its words, the
    errors of several systems) stay together.

    Parameters
    ----------
    columns : array, shape (utterances, columns)
        What is counted of each utterance, for example its words and its errors.
    resamples : int
        Number of draws of the whole set.
    seed : int
        Seed of the draws.

    Returns
    -------
    array, shape (resamples, columns)
        Exact where the columns hold integers.

    Examples
    --------
    >>> resample_sums([[5, 1], [5, 1], [5, 1]], resamples=2)
    array([[15.,  3.],
           [15.,  3.]])
    """
    columns = np.asarray(columns, dtype=np.float64)
    count = len(columns)
    block = max(1, 2**20 // count)  # bounds the memory
    generator = np.random.default_rng(seed)
    sums = [np.empty((0, columns.shape[1]))]
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        drawn = generator.integers(count, size=(rows, count))
        drawn += count * np.arange(rows)[:, None]
        # How often each utterance was drawn, then one matrix product for all columns.
        times = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count)
        sums.append(times @ columns)
    return np.concatenate(sums)
