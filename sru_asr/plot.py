"""The training curve: losses and a validation measure by epoch."""

from __future__ import annotations

import re
from pathlib import Path

from sru_asr.files import atomically


def read_train_log(path: str | Path, measure: str = "WER") -> dict[str, list[float]]:
    """Read the epochs of a SpeechBrain train log.

    Parameters
    ----------
    path : str or Path
        Written by ``FileTrainLogger``: ``epoch: 3, lr: ... - train loss: ... - valid WER: ...``.
    measure : str
        What is measured on validation data besides the loss.

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
        found = re.findall(rf"(epoch|train loss|valid loss|valid {measure}): ([-+.\deinfa]+)", line)
        row = {name: float(value) for name, value in found}
        if len(row) == 4:
            epochs[row["epoch"]] = row
    rows = [epochs[epoch] for epoch in sorted(epochs)]
    names = ("epoch", "train loss", "valid loss", f"valid {measure}")
    return {name: [row[name] for row in rows] for name in names}


def plot_training(
    log: str | Path, figure: str | Path, measure: str = "WER", unit: str = " [%]"
) -> None:
    """Plot losses and a validation measure of a train log into a PNG.

    Parameters
    ----------
    log : str or Path
        SpeechBrain's train log.
    figure : str or Path
        The PNG.
    measure, unit : str
        What is measured on validation data besides the loss.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import MaxNLocator

    columns = read_train_log(log, measure)
    fig, (losses, errors) = pyplot.subplots(1, 2, figsize=(9, 3.4), constrained_layout=True)
    losses.plot(columns["epoch"], columns["train loss"], label="train")
    losses.plot(columns["epoch"], columns["valid loss"], label="valid")
    losses.set(xlabel="epoch", ylabel="loss", ylim=(0, None))
    losses.legend()
    errors.plot(columns["epoch"], columns[f"valid {measure}"], color="tab:red")
    errors.set(xlabel="epoch", ylabel=f"valid {measure}{unit}", ylim=(0, None))
    for axes in (losses, errors):
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    with atomically(figure) as temporary:
        fig.savefig(temporary, dpi=120)
    pyplot.close(fig)
