"""SpeechBrain's Checkpointer, made safe against being killed while it saves."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from speechbrain.utils.checkpoints import METAFNAME, Checkpoint
from speechbrain.utils.checkpoints import Checkpointer as SpeechBrainCheckpointer
from speechbrain.utils.distributed import main_process_only

PENDING = f".{METAFNAME}"


class Checkpointer(SpeechBrainCheckpointer):
    """A Checkpointer whose checkpoints appear only when they are whole.

    A folder counts as a checkpoint by its metafile, which SpeechBrain writes before the parameters:
    a run killed in between could never resume. Here the metafile gets its name last.

    Parameters are those of `speechbrain.utils.checkpoints.Checkpointer`.

    Examples
    --------
    >>> import tempfile, torch
    >>> from sru_asr.checkpointer import Checkpointer
    >>> checkpointer = Checkpointer(tempfile.mkdtemp(), {"model": torch.nn.Linear(2, 2)})
    >>> checkpoint = checkpointer.save_checkpoint()
    >>> checkpointer.recover_if_possible().path == checkpoint.path
    True
    """

    def save_checkpoint(self, *args: Any, **kwargs: Any) -> Checkpoint | None:
        """Save a checkpoint; see SpeechBrain's Checkpointer.

        Returns
        -------
        Checkpoint or None
            None on processes other than the first.
        """
        checkpoint: Checkpoint | None = super().save_checkpoint(*args, **kwargs)
        if checkpoint is not None:
            os.replace(Path(checkpoint.path, PENDING), Path(checkpoint.path, METAFNAME))
        return checkpoint

    @main_process_only
    def delete_checkpoints(self, **kwargs: Any) -> None:
        """Delete checkpoints; see SpeechBrain's Checkpointer.

        The first process decides which. In SpeechBrain each looks into the folder by itself, and
        they wait for one another forever when one of them does not see the newest checkpoint yet.
        """
        super().delete_checkpoints(**kwargs)

    def _save_checkpoint_metafile(self, fpath: Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        meta: dict[str, Any] = super()._save_checkpoint_metafile(
            fpath.with_name(PENDING), *args, **kwargs
        )
        return meta
