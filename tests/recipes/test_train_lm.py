"""The language model's recipe end to end, on a few sentences."""

from __future__ import annotations

import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from recipe_runs import ENVIRONMENT, ROOT, run
from sentencepiece import SentencePieceProcessor

from sru_asr.decode.language_model import load
from sru_asr.decode.rescore import sentence_log_probs
from sru_asr.language_training import Perplexity, WordNoise, copy_tokenizer, read_sentences
from sru_asr.plot import read_train_log
from sru_asr.text import Normalization
from sru_asr.tokenizer import train_tokenizer

AN4 = ROOT.parent / "shared/data/an4"

SMALL: dict[str, object] = {
    "train_csv": "train.txt",
    "valid_csv": "valid.txt",
    "output_folder": "results",
    "number_of_epochs": 3,
    "total_steps": 40,
    "warmup_steps": 4,
    "lr": 0.02,
    "num_averaged_checkpoints": 2,
    "output_neurons": 17,
    "embedding_size": 12,
    "hidden_size": 16,
    "projection_size": 8,
}


def write_sentences(folder: Path, number: int = 200) -> None:
    """Commands of a small grammar, 14 distinct characters."""
    draw = random.Random(0)
    verbs, nouns = ("GO", "STOP", "TURN"), ("LEFT", "RIGHT")
    lines = [f"{draw.choice(verbs)} {draw.choice(nouns)}" for _ in range(number)]
    (folder / "train.txt").write_text("\n".join(lines[:-20]) + "\n")
    (folder / "valid.txt").write_text("\n\n".join(lines[-20:]) + "\n")  # blank lines are nothing


def recipe(overrides: dict[str, object], hparams: str | Path = "an4/sru_lm.yaml") -> list[str]:
    pairs = [f"--{key}={value}" for key, value in overrides.items()]
    script = ROOT / "recipes/AN4/train_lm.py"
    options = ["--device=cpu", "--noprogressbar"]
    return [sys.executable, str(script), str(ROOT / "hparams" / hparams), *options, *pairs]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lm")
    write_sentences(folder)
    done = run(recipe(SMALL), folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^valid: perplexity \d+\.\d\d a token", done.stdout, re.MULTILINE)
    return folder


def test_it_leaves_model_perplexity_and_curve(trained: Path) -> None:
    results = trained / "results"
    model, tokenizer = load(results / "model"), SentencePieceProcessor()
    tokenizer.load(str(results / "model/tokenizer.ckpt"))
    assert not model.training
    assert model.vocab_size == tokenizer.vocab_size() == 17
    found = json.loads((results / "perplexity_valid.json").read_text())
    sentences = [line for line in (trained / "valid.txt").read_text().splitlines() if line]
    tokens = [tokenizer.encode(sentence) for sentence in sentences]
    log_prob = sentence_log_probs(model, tokens).sum().item()
    assert found == {
        "token_perplexity": pytest.approx(math.exp(-log_prob / (sum(map(len, tokens)) + 20)), 1e-5),
        "word_perplexity": pytest.approx(math.exp(-log_prob / 60), rel=1e-5),
        "tokens": sum(map(len, tokens)),
        "words": 40,
        "sentences": 20,
        "seed": 1,
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    assert found["word_perplexity"] < 50  # an untrained one has thousands
    assert (results / "training.png").read_bytes().startswith(b"\x89PNG")
    log = read_train_log(results / "train_log.txt", "perplexity")
    assert log["epoch"] == [1, 2, 3]
    assert log["train loss"][2] < log["train loss"][0]


def test_speechbrains_pretrainer_loads_the_folder(trained: Path) -> None:
    from hyperpyyaml import load_hyperpyyaml

    folder = trained / "results/model"
    hparams = load_hyperpyyaml((folder / "hyperparams.yaml").read_text())
    hparams["pretrainer"].collect_files(default_source=str(folder))
    hparams["pretrainer"].load_collected()
    ours, theirs = load(folder), hparams["language_model"].eval()
    tokens = torch.tensor([[1, 5, 7]])
    assert torch.equal(ours(tokens), theirs(tokens))
    assert hparams["tokenizer"].encode("GO")


def test_the_folder_remembers_its_pieces(trained: Path, tmp_path: Path) -> None:
    folder = trained / "results/model"
    load(folder, SentencePieceProcessor(model_file=str(folder / "tokenizer.ckpt")))
    # As many pieces, of the same characters: only their order differs.
    other = train_tokenizer(tmp_path / "other.model", ["STOP " * 9, "GO LEFT TURN RIGHT"], 17)
    with pytest.raises(ValueError, match=r"other pieces than the recogniser's"):
        load(folder, other)
    with pytest.raises(ValueError, match=r"found no .*hyperparams.yaml and no .*language_model"):
        load(tmp_path)


@pytest.mark.slow
def test_finished_training_is_not_repeated_and_another_run_is_refused(trained: Path) -> None:
    log = trained / "results/train_log.txt"
    before = log.read_text()
    done = run(recipe(SMALL), trained)
    assert done.returncode == 0, done.stderr
    assert "epoch: " not in log.read_text()[len(before) :]
    done = run(recipe({**SMALL, "hidden_size": 24}), trained)
    assert done.returncode == 2
    assert "hidden_size 16 (now 24)" in done.stderr


@pytest.mark.slow
def test_an_existing_models_tokenizer(trained: Path, tmp_path: Path) -> None:
    """Even one whose pieces these sentences alone would not give."""
    write_sentences(tmp_path, 60)
    train_tokenizer(tmp_path / "other.model", ["STOP " * 9, "GO LEFT TURN RIGHT", "XYZ"], 20)
    settings = {**SMALL, "number_of_epochs": 1, "output_neurons": 20}
    done = run(recipe({**settings, "tokenizer_file": "other.model"}), tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    load(tmp_path / "results/model", tmp_path / "other.model")


@pytest.mark.parametrize(
    ("overrides", "found"),
    [
        ({"output_neurons": 30}, r"output_neurons: 17"),
        ({"embedding_sise": 3}, r"did you mean 'embedding_size'"),
        pytest.param({"data_folder": "nowhere"}, r"data_folder nowhere", marks=pytest.mark.slow),
        pytest.param({"num_layers": 0}, r"num_layers must be at", marks=pytest.mark.slow),
        pytest.param(
            {"valid_csv": "other.txt"}, r"has no piece for, 'A'; 'A' in 2", marks=pytest.mark.slow
        ),
    ],
)
def test_bad_input_is_one_sentence(
    tmp_path: Path, overrides: dict[str, object], found: str
) -> None:
    write_sentences(tmp_path)
    (tmp_path / "other.txt").write_text("GO LEFT\nGO A\n")
    done = run(recipe({**SMALL, **overrides}), tmp_path)
    assert done.returncode == 2, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert re.search(found, errors[0])
    assert "Traceback" not in done.stderr


def test_text_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere.txt: found no such file, .* data_folder"):
        read_sentences("nowhere.txt")
    (tmp_path / "blank.txt").write_text("\n\n")
    with pytest.raises(ValueError, match=r"blank.txt: found no words"):
        read_sentences(tmp_path / "blank.txt")


def test_a_tokenizer_is_taken_once(tmp_path: Path) -> None:
    one, two, taken = tmp_path / "one", tmp_path / "two", tmp_path / "save/tokenizer.model"
    with pytest.raises(ValueError, match=r"tokenizer_file .*one: found no such file"):
        copy_tokenizer(one, taken)
    one.write_bytes(b"1")
    two.write_bytes(b"2")
    copy_tokenizer(one, taken)
    copy_tokenizer(one, taken)
    assert taken.read_bytes() == b"1"
    with pytest.raises(ValueError, match=r"two: the run in this output_folder has another"):
        copy_tokenizer(two, taken)


def test_sentences_of_a_manifest(tmp_path: Path) -> None:
    manifest = tmp_path / "train.csv"
    manifest.write_text(
        "ID,duration,wav,spk_id,wrd\na-1,1.0,none.wav,a,GO LEFT\nb-1,2.0,x,b,STOP\n"
    )
    assert read_sentences(manifest) == {"a-1": "GO LEFT", "b-1": "STOP"}
    lower = read_sentences(manifest, Normalization(lower_case=True))
    assert lower == {"a-1": "go left", "b-1": "stop"}


def test_noise_draws_words_that_were_seen_there() -> None:
    sentences = ["GO LEFT", "GO LEFT", "GO RIGHT", "TURN LEFT NOW", "STOP"]
    noise = WordNoise(sentences, 1.0)
    drawn = Counter(noise("GO LEFT") for _ in range(600))
    # After the beginning GO, TURN or STOP, after GO (of the sentence as it was) LEFT or RIGHT.
    assert len(drawn) == 6
    assert all(60 < count < 140 for count in drawn.values())
    assert noise("TURN LEFT NOW").split()[1:] == ["LEFT", "NOW"]
    assert WordNoise(sentences, 0.0)("GO RIGHT") == "GO RIGHT"
    kept = sum(WordNoise(sentences, 0.3)("STOP") == "STOP" for _ in range(600))
    assert 420 < kept < 540  # 0.7 + 0.3 / 3
    with pytest.raises(ValueError, match="word_noise must be a probability, 0 to 1, got 1.5"):
        WordNoise(sentences, 1.5)


def test_perplexity_counts_the_ends_of_sentences() -> None:
    perplexity = Perplexity.of(-12 * math.log(3), tokens=10, words=4, sentences=2)
    assert perplexity.token_perplexity == pytest.approx(3)
    assert perplexity.word_perplexity == pytest.approx(9)


@pytest.mark.slow
def test_killed_training_goes_on(tmp_path: Path) -> None:
    write_sentences(tmp_path)
    arguments = recipe({**SMALL, "number_of_epochs": 30})
    log, save = tmp_path / "results/train_log.txt", tmp_path / "results/save"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(
        arguments, cwd=tmp_path, env=ENVIRONMENT, start_new_session=True, **quiet
    ) as process:
        deadline = time.monotonic() + 120
        while not any(save.glob("CKPT*/CKPT.yaml")) and time.monotonic() < deadline:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
    epochs = read_train_log(log, "perplexity")["epoch"]
    assert 1 <= len(epochs) < 30, "killed too late to test anything"
    done = run(arguments, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert read_train_log(log, "perplexity")["epoch"] == list(range(1, 31))
    assert len(re.findall(r"^epoch: 1,", log.read_text(), re.MULTILINE)) == 1


@pytest.mark.slow
@pytest.mark.skipif(not AN4.is_dir(), reason="needs the AN4 corpus")
def test_an4(tmp_path: Path) -> None:
    small = {"hidden_size": 32, "number_of_epochs": 1, "output_folder": "results"}
    done = run(recipe({**small, "data_folder": AN4}), tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "results/perplexity_valid.json").read_text())
    assert (found["sentences"], found["words"], found["tokens"]) == (103, 563, 1838)
