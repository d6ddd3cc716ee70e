"""Several processes train together: shares of the data, one model, one set of results."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from mini_librispeech import make_librispeech
from recipe_runs import ENVIRONMENT, recipe

from sru_asr.plot import read_train_log

pytestmark = pytest.mark.slow

TIMEOUT = 240  # seconds
LAUNCHER = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]

# Odd numbers: neither batches nor utterances can be dealt out evenly.
SPLITS = {"train-clean-100": 31, "dev-clean": 7, "test-clean": 5, "test-other": 3}

SMALL: dict[str, object] = {
    "train_splits": "[train-clean-100]",
    "valid_splits": "[dev-clean]",
    "token_type": "char",
    "output_neurons": 19,
    "channels": "[4, 4]",
    "hidden_size": 16,
    "projection_size": 16,
    "num_heads": 2,
    "num_layers": 2,
    "max_batch_seconds": 4,
    "num_buckets": 3,
    "num_workers": 0,
    "warmup_steps": 5,
    "num_averaged_checkpoints": 2,
    "number_of_epochs": 4,
    "output_folder": "results",
    "manifest_folder": "manifests",
}

# Runs a recipe and notes, for each process: batches, parameters after each epoch, scores.
WATCHED = """
import hashlib, json, os, runpy, sys
from sru_asr.brain import SpeechRecognitionBrain as Brain

def note(*what):
    with open(f"rank{os.environ.get('RANK', 0)}.jsonl", "a") as file:
        print(json.dumps(what), file=file)

def digest(brain):
    values = b"".join(p.detach().numpy().tobytes() for p in brain.hparams.model.parameters())
    return hashlib.sha256(values).hexdigest()

start, end, evaluate = Brain.on_fit_batch_start, Brain.on_stage_end, Brain.evaluate_split
def on_fit_batch_start(self, batch, should_step):
    note("batch", self.hparams.epoch_counter.current, list(batch.id))
    return start(self, batch, should_step)
def on_stage_end(self, stage, loss, epoch=None):
    note("parameters", stage.name, digest(self))
    return end(self, stage, loss, epoch)
def evaluate_split(self, split, *args):
    score = evaluate(self, split, *args)
    note("score", split, score.utterances, score.wer)
    return score
Brain.on_fit_batch_start, Brain.on_stage_end = on_fit_batch_start, on_stage_end
Brain.evaluate_split = evaluate_split
"""
RUN = """
sys.argv = sys.argv[1:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def two_processes(folder: Path, script: str, *options: str, **settings: object) -> list[str]:
    """The command that trains in a folder with two processes, through a script."""
    (folder / "watched.py").write_text(script)
    overrides = {**SMALL, "data_folder": folder, **settings}
    command = recipe("LibriSpeech", "librispeech/srupp_ctc_m.yaml", overrides, *options)
    return [*LAUNCHER, str(folder / "watched.py"), *command[1:], "--distributed_backend=gloo"]


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder; processes that wait for one another forever fail the test."""
    with subprocess.Popen(
        command,
        cwd=folder,
        env=ENVIRONMENT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        try:
            output = process.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            kill(process)
            raise
    return subprocess.CompletedProcess(command, process.returncode, *output)


def kill(launcher: subprocess.Popen) -> None:
    """Kill a launcher and its processes, which have sessions of their own."""
    started = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    for pid in (*map(int, started), launcher.pid):
        os.kill(pid, signal.SIGKILL)


def notes(folder: Path, rank: int, kind: str) -> list[list]:
    """What a process noted of one kind."""
    lines = (folder / f"rank{rank}.jsonl").read_text().splitlines()
    return [rest for what, *rest in map(json.loads, lines) if what == kind]


def test_two_processes_share_the_data_and_make_one_model(tmp_path: Path) -> None:
    IDs = make_librispeech(tmp_path, SPLITS)
    done = run(two_processes(tmp_path, WATCHED + RUN), tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr

    # Each epoch, the two shares make up the training data, but for the batches repeated so that
    # both have equally many.
    shares = [notes(tmp_path, rank, "batch") for rank in (0, 1)]
    for epoch in range(1, 5):
        batches = [[tuple(ids) for number, ids in share if number == epoch] for share in shares]
        assert len(batches[0]) == len(batches[1]) > 1
        together = Counter(batches[0] + batches[1])
        assert sum(together.values()) - len(together) <= 1
        assert sorted(ID for batch in together for ID in batch) == sorted(IDs["train-clean-100"])

    # The same parameters in both, after every epoch and at the end; both score everything.
    parameters = [notes(tmp_path, rank, "parameters") for rank in (0, 1)]
    assert parameters[0] == parameters[1]
    assert len({digest for stage, digest in parameters[0] if stage == "VALID"}) == 4
    scores = [notes(tmp_path, rank, "score") for rank in (0, 1)]
    assert scores[0] == scores[1]
    expected = [["valid", 7], ["test-clean", 5], ["test-other", 3]]
    assert [[split, count] for split, count, _ in scores[0]] == expected

    # One set of results, said once.
    log = (tmp_path / "results/train_log.txt").read_text()
    for split, count in expected:
        score = json.loads((tmp_path / f"results/score_{split}.json").read_text())
        assert score["utterances"] == count
        assert log.count(f"evaluated: {split} ") == 1
        assert len(re.findall(rf"^{split}: WER", done.stdout, re.MULTILINE)) == 1
    assert re.findall(r"epoch: (\d)", log) == ["1", "2", "3", "4"]
    # Two by their WER, the last for resuming.
    assert 2 <= len(list(tmp_path.glob("results/save/CKPT*"))) <= 3
    assert not list(tmp_path.rglob("*.tmp"))

    # A single process scores the same model alike.
    before = {path: path.read_text() for path in tmp_path.glob("results/score_*.json")}
    command = two_processes(tmp_path, WATCHED + RUN)
    alone = run([sys.executable, *command[len(LAUNCHER) : -1]], tmp_path)
    assert alone.returncode == 0, alone.stdout + alone.stderr
    assert before == {path: path.read_text() for path in tmp_path.glob("results/score_*.json")}


def test_killed_training_resumes(tmp_path: Path) -> None:
    make_librispeech(tmp_path, SPLITS)
    command = two_processes(tmp_path, WATCHED + RUN, number_of_epochs=40)
    log = tmp_path / "results/train_log.txt"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(
        command, cwd=tmp_path, env=ENVIRONMENT, start_new_session=True, **quiet
    ) as process:
        deadline = time.monotonic() + 120
        while not log.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(0.5)
        kill(process)
    epochs = read_train_log(log)["epoch"]
    assert 1 <= len(epochs) < 40, "killed too late to test anything"
    for rank in (0, 1):
        (tmp_path / f"rank{rank}.jsonl").unlink()

    done = run(command, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert read_train_log(log)["epoch"] == list(range(1, 41))
    assert len(re.findall(r"^epoch: 1,", log.read_text(), re.MULTILINE)) == 1
    parameters = [notes(tmp_path, rank, "parameters") for rank in (0, 1)]
    assert parameters[0] == parameters[1]
    first, _ = notes(tmp_path, 1, "batch")[0]
    assert first in (len(epochs) + 1, len(epochs))  # killed while it saved, an epoch is repeated


# A process group that gives up soon, and a checkpointer in it.
GROUP = """
import datetime, os, sys, time
import torch
import torch.distributed as dist
import sru_asr.checkpointer as module
dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=30))
rank = dist.get_rank()
said = open(f"rank{rank}.txt", "w")  # printed, their lines could get mixed
checkpointer = module.Checkpointer("save", {"model": torch.nn.Linear(2, 2)})
"""

SLOW_SAVING = """
class Os:
    def __getattr__(self, name):
        return getattr(os, name)
    def replace(self, *args):
        time.sleep(0.5)
        os.replace(*args)
module.os = Os()
for epoch in range(4):
    meta = {"WER": float(-epoch)}
    checkpointer.save_and_keep_only(meta=meta, min_keys=["WER"], num_to_keep=2)
    dist.barrier()
said.write(str(sorted(found.meta["WER"] for found in checkpointer.list_checkpoints())))
dist.destroy_process_group()
"""

NOT_A_NUMBER = """
from sru_asr.brain import NonFiniteLoss, SpeechRecognitionBrain
brain = object.__new__(SpeechRecognitionBrain)
brain.checkpointer, brain.batch_ids = checkpointer, [f"u{rank}", f"v{rank}"]
for loss in (1.0, float("nan") if rank == 1 else 1.0):
    try:
        brain.check_loss_isfinite(torch.tensor(loss, requires_grad=True))
    except NonFiniteLoss as error:
        said.write(str(error))
        break
    dist.all_reduce(torch.zeros(8))  # as gradients are
dist.destroy_process_group()
"""


def test_processes_agree_on_which_checkpoints_to_delete(tmp_path: Path) -> None:
    # While the first still saves, the others do not see that checkpoint yet.
    (tmp_path / "script.py").write_text(GROUP + SLOW_SAVING)
    done = run([*LAUNCHER, "script.py"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert [path.read_text() for path in tmp_path.glob("rank*.txt")] == ["[-3.0, -2.0]"] * 2


def test_a_loss_that_is_no_number_on_one_process_stops_all(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(GROUP + NOT_A_NUMBER)
    done = run([*LAUNCHER, "script.py"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "loss became nan on the batch of u1, v1" in (tmp_path / "rank1.txt").read_text()
    assert "loss of another process's batch" in (tmp_path / "rank0.txt").read_text()
    assert len(list(tmp_path.glob("save/CKPT*/CKPT.yaml"))) == 1


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        (
            {"max_batch_seconds": 9999, "num_buckets": 99},
            "makes 1 batches, expected more than the 2",
        ),
        ({"data_folder": "nowhere"}, "data_folder nowhere: found no such folder"),
    ],
)
def test_bad_input_stops_all_processes(
    tmp_path: Path, settings: dict[str, object], found: str
) -> None:
    make_librispeech(tmp_path, SPLITS)
    done = run(two_processes(tmp_path, WATCHED + RUN, **settings), tmp_path)
    assert done.returncode != 0
    assert found in done.stderr
    assert "Going into epoch" not in done.stderr + done.stdout
