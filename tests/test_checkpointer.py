"""Checkpoints that a kill cannot break."""

from __future__ import annotations

import pytest
import torch

from sru_asr.checkpointer import Checkpointer


class Killed(BaseException):
    """Stands for a signal that ends the process."""


def test_a_checkpoint_cut_short_is_not_resumed_from(tmp_path, monkeypatch):
    model = torch.nn.Linear(2, 2)
    checkpointer = Checkpointer(tmp_path, {"model": model})
    whole = checkpointer.save_checkpoint(meta={"WER": 5.0})
    kept = model.weight.detach().clone()

    def killed(*args, **kwargs):
        raise Killed

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(Killed):
        checkpointer.save_checkpoint(meta={"WER": 4.0})
    monkeypatch.undo()

    torch.nn.init.zeros_(model.weight)
    found = Checkpointer(tmp_path, {"model": model}).recover_if_possible(min_key="WER")
    assert found.path == whole.path
    assert torch.equal(model.weight, kept)


def test_only_the_best_and_the_newest_are_kept(tmp_path):
    checkpointer = Checkpointer(tmp_path, {"model": torch.nn.Linear(2, 2)})
    for rate in (3.0, 1.0, 2.0, 4.0):
        checkpointer.save_and_keep_only(meta={"WER": rate}, min_keys=["WER"], num_to_keep=2)
    rates = {checkpoint.meta["WER"] for checkpoint in checkpointer.list_checkpoints()}
    assert rates == {1.0, 2.0, 4.0}
