"""The training curve: losses and validation WER by epoch."""

from __future__ import annotations

import os
import re
from pathlib import Path


def read_train_log(path: str | Path) -> dict[str, list[float]]:
    """Read the epochs of a SpeechBrain train log.

    Parameters
    ----------
    path : str or Path
        Written by ``FileTrainLogger``: ``epoch: 3, lr: ... - train loss: ... - valid WER: ...``.

    Returns
    -------
    dict of str to list of float
        Columns ``epoch``, ``train loss``, ``valid loss``, ``valid WER``; of an epoch that was
        trained twice (after a crash) the later line counts.

    Examples
    --------
    >>> import tempfile
    >>> from sru_asr.plot import read_train_log
    >>> with tempfile.NamedTemporaryFile("w", suffix=".txt") as log:
    ...     print("epoch: 1 - train loss: 3.1e2 - valid loss: 2.0, valid WER: 55.0", file=log)
    ...     log.flush()
    ...     read_train_log(log.name)["valid WER"]
    [55.0]
    """
    epochs: dict[float, dict[str, float]] = {}
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        found = re.findall(r"(epoch|train loss|valid loss|valid WER): ([-+.\deinfa]+)", line)
        row = {name: float(value) for name, value in found}
        if len(row) == 4:
            epochs[row["epoch"]] = row
    rows = [epochs[epoch] for epoch in sorted(epochs)]
    names = ("epoch", "train loss", "valid loss", "valid WER")
    return {name: [row[name] for row in rows] for name in names}


def plot_training(log: str | Path, figure: str | Path) -> None:
    """Plot losses and validation WER of a train log into a PNG.

    Parameters
    ----------
    log : str or Path
        SpeechBrain's train log.
    figure : str or Path
        The PNG.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import MaxNLocator

    columns = read_train_log(log)
    fig, (losses, errors) = pyplot.subplots(1, 2, figsize=(9, 3.4), constrained_layout=True)
    losses.plot(columns["epoch"], columns["train loss"], label="train")
    losses.plot(columns["epoch"], columns["valid loss"], label="valid")
    losses.set(xlabel="epoch", ylabel="loss", ylim=(0, None))
    losses.legend()
    errors.plot(columns["epoch"], columns["valid WER"], color="tab:red")
    errors.set(xlabel="epoch", ylabel="valid WER [%]", ylim=(0, None))
    for axes in (losses, errors):
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure = Path(figure)
    temporary = figure.with_name(f".{os.getpid()}.{figure.name}")
    fig.savefig(temporary, dpi=120)
    pyplot.close(fig)
    os.replace(temporary, figure)
