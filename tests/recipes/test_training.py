"""Recipes end to end on very small corpora."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from recipe_runs import ENVIRONMENT, ROOT, SMALL_COMMANDS, recipe, run

from sru_asr.plot import read_train_log

AN4 = ROOT.parent / "shared/data/an4"

SMALL_AN4 = {
    "number_of_epochs": 1,
    "channels": "[8, 8]",
    "d_model": 32,
    "encoder_size": 32,
    "projection_size": 16,
    "num_encoder_layers": 2,
    "num_decoder_layers": 1,
}


def test_training_leaves_what_the_interface_promises(trained: Path) -> None:
    results = trained / "results/demo"
    for split, count in (("valid", 8), ("test", 8)):
        score = json.loads((results / f"score_{split}.json").read_text())
        assert list(score) == [
            "wer", "words", "substitutions", "deletions", "insertions", "ci95", "cer",
            "utterances", "decoder", "seed", "parameters",
        ]  # fmt: skip
        assert score["utterances"] == count
        assert score["decoder"] == "greedy CTC"
        assert score["seed"] == 1
        state = torch.load(results / "model" / "model.ckpt", weights_only=True)
        buffers = sum(v.numel() for k, v in state.items() if "features" in k)
        assert score["parameters"] == sum(v.numel() for v in state.values()) - buffers
        assert (results / f"wer_{split}.txt").read_text().strip()
    assert (results / "training.png").read_bytes().startswith(b"\x89PNG")
    assert read_train_log(results / "train_log.txt")["epoch"] == [1, 2]


def test_loss_falls(trained: Path) -> None:
    log = read_train_log(trained / "results/demo" / "train_log.txt")
    assert log["train loss"][1] < log["train loss"][0]


def test_speechbrain_and_the_command_line_read_the_model_folder_alike(trained: Path) -> None:
    wavs = sorted((trained / "data/commands/test").glob("*.wav"))
    script = """
import sys
from speechbrain.inference.ASR import EncoderASR
model = EncoderASR.from_hparams(source=sys.argv[1], savedir=sys.argv[2])
for wav in sys.argv[3:]:
    print("TEXT", model.transcribe_file(wav))
"""
    theirs = run(
        [sys.executable, "-c", script, trained / "results/demo/model", trained / "cache", *wavs],
        trained,
    )
    assert theirs.returncode == 0, theirs.stderr
    texts = [line[5:] for line in theirs.stdout.splitlines() if line.startswith("TEXT")]
    out = trained / "transcripts"
    ours = run(
        [sys.executable, "-m", "sru_asr.cli", "transcribe", *wavs]
        + ["--model", trained / "results/demo/model", "--output-dir", out],
        trained,
    )
    assert ours.returncode == 0, ours.stderr
    assert [(out / f"{wav.stem}.txt").read_text().strip() for wav in wavs] == [
        text.strip() for text in texts
    ]


def test_finished_training_is_not_repeated(trained: Path) -> None:
    log = trained / "results/demo/train_log.txt"
    before = log.read_text()
    done = run(recipe("Commands", "commands/srupp_ctc.yaml", SMALL_COMMANDS), trained)
    assert done.returncode == 0, done.stderr
    after = log.read_text()
    assert after.startswith(before)
    assert "epoch: " not in after[len(before) :]


def test_another_runs_folder_is_refused(trained: Path) -> None:
    settings = {**SMALL_COMMANDS, "hidden_size": 48, "seed": 2}
    done = run(recipe("Commands", "commands/srupp_ctc.yaml", settings), trained)
    assert done.returncode == 2
    expected = "results/demo holds a run with hidden_size 32 (now 48), seed 1 (now 2)"
    assert expected in done.stderr


def test_each_epoch_has_new_batches_and_the_rate_rises_from_the_first_step(tmp_path: Path) -> None:
    pytest.importorskip("espeakng_loader")
    watch = """
import runpy, sys
import torch
from speechbrain.dataio.sampler import DynamicBatchSampler

batches, step = DynamicBatchSampler.__iter__, torch.optim.Adam.step
def watched_batches(self):
    drawn = list(batches(self))
    print("BATCHES", sorted(map(sorted, drawn)), flush=True)
    return iter(drawn)
def watched_step(self, *args, **kwargs):
    print("RATE", self.param_groups[0]["lr"], flush=True)
    return step(self, *args, **kwargs)
DynamicBatchSampler.__iter__, torch.optim.Adam.step = watched_batches, watched_step
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv[0].rsplit("/", 1)[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""
    settings = {**SMALL_COMMANDS, "num_buckets": 3, "train_loader_options": "{num_workers: 0}"}
    interpreter, *arguments = recipe("Commands", "commands/srupp_ctc.yaml", settings)
    done = run([interpreter, "-c", watch, *arguments], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    drawn = [line for line in lines if line.startswith("BATCHES")]
    assert len(drawn) == 2
    assert drawn[0] != drawn[1]
    rates = [float(line.split()[1]) for line in lines if line.startswith("RATE")]
    assert len(rates) > 3
    assert rates == sorted(rates)
    assert rates[-1] < 0.002


def test_damaged_recordings_are_named_before_training(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "data", tmp_path / "data")
    for name in ("train-00005", "train-00007"):
        wav = tmp_path / "data/commands/train" / f"{name}.wav"
        wav.write_bytes(wav.read_bytes()[:3000])
    done = run(recipe("Commands", "commands/srupp_ctc.yaml", SMALL_COMMANDS), tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "Going into epoch" not in done.stderr
    for name in ("train-00005", "train-00007"):
        assert re.search(rf"{name}.*truncated", done.stderr)


@pytest.mark.parametrize(
    ("overrides", "found"),
    [
        ({"data_folder": "nowhere"}, r"nowhere"),
        ({"d_modle": 3}, r"no option 'd_modle' to override; did you mean 'd_model'"),
        ({"output_folder": "/proc/x"}, r"/proc/x"),
        ({"train_loader_options": "{num_wrkers: 1}"}, r"num_wrkers"),
        ({"output_neurons": 29}, r"output_neurons: 30"),
        ({"encoder_size": 31}, r"encoder_size must be even .* got 31"),
    ],
)
def test_bad_input_is_one_sentence_before_training(
    tmp_path: Path, overrides: dict[str, object], found: str
) -> None:
    reaches_data = {"output_neurons", "train_loader_options"}
    if reaches_data & set(overrides) and not AN4.is_dir():
        pytest.skip("needs the AN4 corpus")
    arguments = {"data_folder": AN4, "output_folder": "results", **SMALL_AN4, **overrides}
    done = run(recipe("AN4", "an4/srupp_ctc_attention.yaml", arguments), tmp_path)
    assert done.returncode == 2, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert re.search(found, errors[0])
    assert "Traceback" not in done.stderr
    assert "Going into epoch" not in done.stderr + done.stdout


def test_a_file_that_is_not_yaml(tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("a: [1, 2\n")
    done = run(recipe("Commands", tmp_path / "broken.yaml", {}), tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert re.search(r"broken.yaml: not YAML: .*line 2", done.stderr)


def test_unknown_option_in_the_yaml_is_named(tmp_path: Path) -> None:
    text = (ROOT / "hparams/commands/srupp_ctc.yaml").read_text()
    (tmp_path / "typo.yaml").write_text(text + "\nnum_averaged_checkpoint: 7\n")
    done = run(recipe("Commands", tmp_path / "typo.yaml", {}), tmp_path)
    assert done.returncode == 2
    assert "unknown option 'num_averaged_checkpoint'; did you mean 'num_averaged_checkpoints'" in (
        done.stderr
    )


@pytest.mark.slow
@pytest.mark.skipif(not AN4.is_dir(), reason="needs the AN4 corpus")
@pytest.mark.parametrize("options", [(), ("--precision=bf16",)])
def test_an4_runs_end_to_end_with_joint_search(tmp_path: Path, options: tuple[str, ...]) -> None:
    arguments = {"data_folder": AN4, "output_folder": "results", **SMALL_AN4}
    # An untrained decoder never ends a hypothesis by itself.
    text = (ROOT / "hparams/an4/srupp_ctc_attention.yaml").read_text()
    short = tmp_path / "short.yaml"
    short.write_text(text.replace("max_decode_ratio: 1.0", "max_decode_ratio: 0.05"))
    done = run(recipe("AN4", short, arguments, *options), tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    score = json.loads((tmp_path / "results/score_valid.json").read_text())
    assert score["utterances"] == 103
    assert score["decoder"] == "joint CTC/attention beam"
    assert (tmp_path / "results/model/hyperparams.yaml").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.0, 1.3, 4.0])
def test_killed_training_resumes_and_reaches_the_same_epoch(tmp_path: Path, seconds: float) -> None:
    settings = {**SMALL_COMMANDS, "number_of_epochs": 20}
    arguments = recipe("Commands", "commands/srupp_ctc.yaml", settings)
    log = tmp_path / "results/demo/train_log.txt"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(
        arguments, cwd=tmp_path, env=ENVIRONMENT, start_new_session=True, **quiet
    ) as process:
        deadline = time.monotonic() + 120
        while not log.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(seconds)
        os.killpg(process.pid, signal.SIGKILL)
    epochs = read_train_log(log)["epoch"]
    assert 1 <= len(epochs) < 20, "killed too late to test anything"
    done = run(arguments, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert read_train_log(log)["epoch"] == list(range(1, 21))
    lines = log.read_text().splitlines()
    repeated = [line for line in lines if re.match(r"epoch: 1,", line)]
    assert len(repeated) == 1, "started again from the first epoch"


@pytest.mark.slow
def test_two_processes_train_together(tmp_path: Path) -> None:
    arguments = recipe(
        "Commands", "commands/srupp_ctc.yaml", SMALL_COMMANDS, "--distributed_backend=gloo"
    )
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = run([*launcher, "--nproc_per_node=2", *arguments[1:]], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert read_train_log(tmp_path / "results/demo/train_log.txt")["epoch"] == [1, 2]
    assert json.loads((tmp_path / "results/demo/score_test.json").read_text())["utterances"] == 8
