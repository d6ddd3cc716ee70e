"""A training with a finish: a second one that starts from the first one's model."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from recipe_runs import ROOT, SMALL_COMMANDS, recipe, run

from sru_asr.plot import read_train_log
from sru_asr.training import RecipeError, check_same_run, split_finish

# With a learning rate of 0 a model stays what it started from.
FINISH = "pretrained: null\nfinish:\n    lr: 0.0\n    number_of_epochs: 1\n"


def write_yaml(folder: Path, more: str = FINISH) -> Path:
    text = (ROOT / "hparams/commands/srupp_ctc.yaml").read_text(encoding="utf-8")
    path = folder / "finished.yaml"
    path.write_text(f"{text}\n{more}", encoding="utf-8")
    return path


def train(trained: Path, folder: Path, **more: object) -> subprocess.CompletedProcess[str]:
    settings = {**SMALL_COMMANDS, "data_folder": trained / "data/commands", **more}
    return run(recipe("Commands", folder / "finished.yaml", settings), folder)


@pytest.fixture(scope="module")
def finished(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    write_yaml(folder)
    done = train(trained, folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_finish_starts_from_the_first_ones_model(finished: Path) -> None:
    results = finished / "results/demo"
    assert read_train_log(results / "first/train_log.txt")["epoch"] == [1, 2]
    assert read_train_log(results / "train_log.txt")["epoch"] == [1]
    first, last = (
        torch.load(folder / "model/model.ckpt", weights_only=True)
        for folder in (results / "first", results)
    )
    assert first.keys() == last.keys()
    assert all(first[name].equal(last[name]) for name in first)
    scores = [(folder / "score_valid.json").read_text() for folder in (results / "first", results)]
    assert scores[0] == scores[1]
    # What the results are of is theirs alone.
    settings = (results / "hyperparams.yaml").read_text()
    assert re.search(r"^lr: 0.0$", settings, re.MULTILINE)
    assert re.search(r"^lr: 0.002$", (results / "first/hyperparams.yaml").read_text(), re.MULTILINE)


def test_a_first_training_that_is_done_is_not_repeated(trained: Path, finished: Path) -> None:
    results = finished / "results/demo"
    # As if it had been killed between the two.
    logs = (results / "first/train_log.txt").read_text()
    for path in results.iterdir():
        if path.name != "first":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    done = train(trained, finished)
    assert done.returncode == 0, done.stdout + done.stderr
    again = (results / "first/train_log.txt").read_text()
    assert again.startswith(logs) and "epoch: " not in again[len(logs) :]
    assert read_train_log(results / "train_log.txt")["epoch"] == [1]


def test_settings_of_the_first_may_not_change_under_the_finish(
    trained: Path, finished: Path
) -> None:
    done = train(trained, finished, lr=0.003)
    assert done.returncode == 2
    assert "results/demo/first holds a run with lr 0.002 (now 0.003)" in done.stderr


def test_another_runs_folder_is_refused_before_the_first_training(
    trained: Path, tmp_path: Path
) -> None:
    write_yaml(tmp_path)
    shutil.copytree(trained / "results", tmp_path / "results")
    done = train(trained, tmp_path)
    assert done.returncode == 2
    assert re.search(r"results/demo holds a run with commands/srupp_ctc.yaml \(now ", done.stderr)
    assert not (tmp_path / "results/demo/first").exists()


@pytest.mark.slow
def test_the_finish_needs_the_first_ones_folder_only_to_start(
    trained: Path, finished: Path, tmp_path: Path
) -> None:
    first = finished / "results/demo/first"
    first.rename(tmp_path / "first")
    done = train(trained, finished)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not first.exists()
    (tmp_path / "first").rename(first)


@pytest.mark.slow
def test_two_processes_finish_together(trained: Path, tmp_path: Path) -> None:
    settings = {**SMALL_COMMANDS, "data_folder": trained / "data/commands"}
    arguments = recipe("Commands", write_yaml(tmp_path), settings, "--distributed_backend=gloo")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = run([*launcher, "--nproc_per_node=2", *arguments[1:]], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    results = tmp_path / "results/demo"
    assert read_train_log(results / "first/train_log.txt")["epoch"] == [1, 2]
    assert read_train_log(results / "train_log.txt")["epoch"] == [1]


def test_without_a_finish_there_is_one_training(tmp_path: Path) -> None:
    path = str(write_yaml(tmp_path))
    given = {"lr": 0.1, "finish": None}
    assert split_finish(path, given) == (None, given)
    given = {"lr": 0.1}
    assert split_finish(str(write_yaml(tmp_path, "")), given) == (None, given)


def test_overrides_reach_the_first_training_and_those_of_the_finish_the_second(
    tmp_path: Path,
) -> None:
    path = str(write_yaml(tmp_path))
    given = {"lr": 0.1, "seed": 3, "output_folder": "out", "finish": {"lr": 0.2}}
    first, last = split_finish(path, given)
    assert first == {"lr": 0.1, "seed": 3, "finish": None, "output_folder": "out/first"}
    assert last == {
        "lr": 0.2,
        "number_of_epochs": 1,
        "seed": 3,
        "finish": None,
        "output_folder": "out",
        "pretrained": "out/first/model",
    }


@pytest.mark.parametrize(
    ("more", "found"),
    [
        (
            "pretrained: null\nfinish: now\n",
            "finish: found now, expected settings of a second training",
        ),
        (
            "pretrained: null\nfinish: {seed: 2}\n",
            "finish: found seed, expected settings that differ",
        ),
        ("pretrained: null\nfinish: {model: !new:int {}}\n", "finish: found an object for model"),
        ("finish: {lr: 0.1}\n", "finish needs the option pretrained"),
    ],
)
def test_a_finish_that_cannot_be(tmp_path: Path, more: str, found: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(found)):
        split_finish(str(write_yaml(tmp_path, more)), {})


def test_checkpoints_of_the_two_are_kept_apart(tmp_path: Path) -> None:
    path = str(write_yaml(tmp_path))
    with pytest.raises(RecipeError, match="save_folder: found elsewhere, expected a folder in out"):
        split_finish(path, {"save_folder": "elsewhere"})


@pytest.mark.parametrize("folder", ["out/", "./out"])
def test_the_first_ones_folder_is_the_runs_own_however_it_is_spelt(
    tmp_path: Path, folder: str
) -> None:
    _, last = split_finish(str(write_yaml(tmp_path)), {"output_folder": folder})
    settings = {"output_folder": folder, "pretrained": last["pretrained"]}
    check_same_run(settings, tmp_path / "settings.json")
    assert "pretrained" not in (tmp_path / "settings.json").read_text()


def test_what_else_is_wrong_with_a_yaml_is_for_others_to_say(tmp_path: Path) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text("finish: {lr: 0.1}\n")
    assert split_finish(str(path), {}) == (None, {})


def test_an_unknown_setting_of_the_finish_shows_before_the_first_training(
    trained: Path, tmp_path: Path
) -> None:
    write_yaml(tmp_path, FINISH.replace("number_of_epochs", "number_of_epoch"))
    done = train(trained, tmp_path)
    assert done.returncode == 2
    assert "no option 'number_of_epoch' to override; did you mean 'number_of_epochs'" in done.stderr
    assert not (tmp_path / "results").exists()


def test_results_of_both_have_a_card(finished: Path) -> None:
    results = finished / "results/demo"
    for folder in (results, results / "first"):
        card = json.loads((folder / "model/model_card.json").read_text())
        assert card["experiment"].endswith("/finished.yaml")
