"""Recipes end to end on very small corpora."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import soundfile
import torch
from recipe_runs import ENVIRONMENT, ROOT, SMALL_COMMANDS, recipe, run
from speechbrain.utils.epoch_loop import EpochCounter

from sru_asr import ConvSubsampling, training
from sru_asr.decode.ngram import NGram
from sru_asr.lexicon import Lexicon
from sru_asr.manifest import Utterance, read_manifest, write_manifest
from sru_asr.plot import read_train_log
from sru_asr.tokenizer import train_tokenizer

AN4 = ROOT.parent / "shared/data/an4"

SMALL_AN4 = {
    "number_of_epochs": 1,
    "channels": "[8, 8]",
    "d_model": 32,
    "encoder_size": 32,
    "projection_size": 16,
    "num_encoder_layers": 2,
    "num_decoder_layers": 1,
    "intermediate_state": -1,
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
    card = json.loads((results / "model/model_card.json").read_text())
    assert card["experiment"] == "commands/srupp_ctc.yaml"
    assert (card["seed"], card["parameters"]) == (1, score["parameters"])
    assert set(card["scores"]) == {"valid", "test"}
    assert card["scores"]["test"] == score
    assert card["training"]["utterances"] > 0
    assert torch.__version__.startswith(card["versions"]["torch"])
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


@pytest.mark.parametrize("text", ["", "- 1\n", "seed\n"])
def test_a_yaml_without_options(tmp_path: Path, text: str) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text(text)
    with pytest.raises(training.RecipeError, match=r"odd.yaml: found no options, expected"):
        training.read_yaml(str(path), ())


def test_unknown_option_in_the_yaml_is_named(tmp_path: Path) -> None:
    text = (ROOT / "hparams/commands/srupp_ctc.yaml").read_text()
    (tmp_path / "typo.yaml").write_text(text + "\nnum_averaged_checkpoint: 7\n")
    done = run(recipe("Commands", tmp_path / "typo.yaml", {}), tmp_path)
    assert done.returncode == 2
    assert "unknown option 'num_averaged_checkpoint'; did you mean 'num_averaged_checkpoints'" in (
        done.stderr
    )


class TestSameRun:
    """What a folder remembers of the run it holds."""

    @pytest.fixture
    def save(self, tmp_path: Path) -> Path:
        training.check_same_run(self.settings(tmp_path), tmp_path / "settings.json", "an4/a.yaml")
        return tmp_path

    @staticmethod
    def settings(folder: Path, **others: object) -> dict[str, object]:
        return {
            "output_folder": str(folder),
            "seed": 1,
            "sizes": [1, 2],
            "model": object(),
            "augment": [object()],
        } | others

    def check(self, save: Path, experiment: str = "an4/a.yaml", **others: object) -> None:
        training.check_same_run(self.settings(save, **others), save / "settings.json", experiment)

    def test_another_experiment_is_refused_even_before_a_checkpoint(self, save: Path) -> None:
        before = (save / "settings.json").read_bytes()
        with pytest.raises(ValueError, match=r"holds a run with an4/a.yaml \(now manifest/a.yaml"):
            self.check(save, "manifest/a.yaml")
        assert (save / "settings.json").read_bytes() == before

    def test_settings_may_change_until_there_is_a_checkpoint(self, save: Path) -> None:
        self.check(save, seed=2)
        (save / "CKPT+1").mkdir()
        self.check(save, seed=2, number_of_epochs=9, train_csv="elsewhere")
        with pytest.raises(ValueError, match=r"sizes \[1, 2\] \(now \[1, 3\]\)"):
            self.check(save, seed=2, sizes=[1, 3])

    def test_what_lies_in_the_runs_folder_moves_with_it(self, save: Path) -> None:
        self.check(save, output_folder="old", lexicon_file="old/save/lexicon.txt")
        (save / "CKPT+1").mkdir()
        self.check(save, output_folder="new", lexicon_file="new/save/lexicon.txt")
        with pytest.raises(ValueError, match="lexicon_file None .now other/lexicon.txt"):
            self.check(save, output_folder="new", lexicon_file="other/lexicon.txt")

    def test_runs_of_earlier_versions_go_on(self, save: Path) -> None:
        content = json.loads((save / "settings.json").read_text())
        del content["experiment"]
        (save / "settings.json").write_text(json.dumps(content))
        (save / "CKPT+1").mkdir()
        self.check(save)

    def test_a_failed_start_leaves_no_tokenizer_behind(self, save: Path) -> None:
        for name in ("tokenizer.model", "ngram.arpa"):
            (save / name).touch()
        (save / "CKPT+1").mkdir()
        training.forget_failed_start(save)
        assert (save / "tokenizer.model").exists()
        (save / "CKPT+1").rmdir()
        training.forget_failed_start(save)
        assert {path.name for path in save.iterdir()} == {"settings.json"}


def test_another_experiments_folder_is_left_as_it_is(trained: Path) -> None:
    settings = {"data_folder": "data", "output_folder": "results/demo", **SMALL_AN4}
    before = (trained / "results/demo/hyperparams.yaml").read_bytes()
    done = run(recipe("AN4", "an4/srupp_ctc_attention.yaml", settings), trained)
    assert done.returncode == 2
    assert "holds a run with commands/srupp_ctc.yaml (now an4/srupp_ctc_attention" in done.stderr
    assert (trained / "results/demo/hyperparams.yaml").read_bytes() == before


class TestSplits:
    """Reading all manifests, whichever there are."""

    @pytest.fixture
    def hparams(self, tmp_path: Path) -> dict[str, object]:
        soundfile.write(tmp_path / "a.wav", np.zeros(2000), 2000)
        for split in ("train", "valid", "clean", "other"):
            rows = [Utterance(f"{split}{i}", 1.0, "a.wav", f"s{i}", "YES") for i in range(30)]
            write_manifest(tmp_path / f"{split}.csv", rows)
        return {
            "train_csv": tmp_path / "train.csv",
            "valid_csv": tmp_path / "valid.csv",
            "data_folder": None,
            "save_folder": str(tmp_path / "save"),
        }

    def test_test_sets_by_name_in_their_order(self, hparams: dict, tmp_path: Path) -> None:
        names = {"test-other": tmp_path / "other.csv", "test-clean": tmp_path / "clean.csv"}
        splits = training.read_splits({**hparams, "test_csv": names}, None)
        assert list(splits) == ["train", "valid", "test-other", "test-clean"]
        assert splits["test-clean"][0].ID == "clean0"
        splits = training.read_splits({**hparams, "test_csv": tmp_path / "clean.csv"}, None)
        assert list(splits) == ["train", "valid", "test"]

    @pytest.mark.parametrize("name", ["train", "valid", "a/b", ""])
    def test_names_that_test_sets_cannot_have(self, hparams: dict, name: str) -> None:
        with pytest.raises(ValueError, match="test_csv: found the name"):
            training.read_splits({**hparams, "test_csv": {name: "x.csv"}}, None)

    def test_a_corpus_without_its_test_part(
        self, hparams: dict, caplog: pytest.LogCaptureFixture
    ) -> None:
        for test_csv in (None, {}, "gone.csv"):
            splits = training.read_splits({**hparams, "test_csv": test_csv}, None)
            assert list(splits) == ["train", "valid"]
        assert caplog.text.count("There is no gone.csv") == 1

    def test_without_validation_a_part_is_held_out(self, hparams: dict, tmp_path: Path) -> None:
        options = {**hparams, "valid_csv": None, "test_csv": tmp_path / "clean.csv"}
        splits = training.read_splits(options, None)
        assert list(splits) == ["train", "valid", "test"]
        assert [len(rows) for rows in splits.values()] == [27, 3, 30]
        assert read_manifest(tmp_path / "save/valid.csv") == splits["valid"]
        assert training.read_splits(options, None) == splits

    def test_all_manifests_are_reported_at_once(self, hparams: dict, tmp_path: Path) -> None:
        (tmp_path / "train.csv").write_text("ID,duration,wav,wrd\nu,1,gone.wav,A\nv,2,a.wav,\n")
        (tmp_path / "valid.csv").unlink()
        (tmp_path / "clean.csv").write_text("ID,duration\n")
        with pytest.raises(ValueError) as caught:
            training.read_splits({**hparams, "test_csv": tmp_path / "clean.csv"}, None)
        for found in ("train.csv: 2 problems", "gone.wav", "empty wrd", "valid.csv: does", "clean"):
            assert found in str(caught.value)


class Alignable:
    """Frames of 10 ms, a quarter of them after subsampling."""

    hop_length = 160
    subsampling = ConvSubsampling(80)


def test_utterances_too_short_for_their_transcripts_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = train_tokenizer(tmp_path / "model", ["AB"], 5)
    hparams = {
        "model": types.SimpleNamespace(encoder=Alignable()),
        "tokenizer": tokenizer,
        "sample_rate": 16000,
    }
    # 0.36 s are 37 frames, 10 after subsampling; 0.35 s one less, the edge.
    rows = [
        Utterance("fits", 0.36, "", "", "AB" * 5),
        Utterance("long", 0.36, "", "", "AB" * 5 + "A"),
        Utterance("repeats", 0.36, "", "", "AABABABAB"),
        Utterance("repeat", 0.36, "", "", "AABABABABA"),
        Utterance("short", 0.35, "", "", "AB" * 5),
    ]
    kept = training.alignable(hparams, rows)
    assert [row.ID for row in kept] == ["fits", "repeats"]
    assert "Left out: 3 of 5 training utterances are too short" in caplog.text
    assert "long (10 frames for 11 tokens), repeat (10 frames for 11 tokens), short (9" in (
        caplog.text
    )
    caplog.clear()
    assert training.alignable(hparams, kept) == kept
    assert not caplog.text
    with pytest.raises(ValueError, match="1 of 1 training utterances are too short"):
        training.alignable(hparams, rows[1:2])


@pytest.mark.parametrize(
    ("planned", "warns"),
    [(1000, False), (720, False), (1400, False), (600, True), (1800, True), (None, False)],
)
def test_a_schedule_for_another_length_of_training_is_warned_of(
    planned: int | None, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    hparams: dict = {"epoch_counter": EpochCounter(limit=10)}
    if planned is not None:
        hparams["total_steps"] = planned
    training.check_schedule(hparams, 100)
    assert ("give --total_steps=1000" in caplog.text) is warns


def test_a_lexicon_has_to_fit_model_transcripts_and_recordings(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "lexicon.txt"
    path.write_text("NO N OW\nTEN T EH N\n", encoding="utf-8")
    model = types.SimpleNamespace(
        encoder=Alignable(), intermediate_output=torch.nn.Linear(8, 5), phone_output=None
    )
    hparams = {
        "lexicon": Lexicon(),
        "lexicon_file": path,
        "model": model,
        "sample_rate": 16000,
        "tokenizer": types.SimpleNamespace(encode=lambda _: [3]),
    }
    rows = [Utterance("short", 0.05, "", "", "NO"), Utterance("shorter", 0.05, "", "", "TEN TEN")]
    training.read_lexicon(hparams, rows)
    assert [row.ID for row in training.alignable(hparams, rows)] == ["short"]
    assert "shorter (2 frames for 6 phones)" in caplog.text

    rows[1] = dataclasses.replace(rows[1], wrd="NO TWO")
    with pytest.raises(ValueError, match=r"lexicon\.txt has no pronunciation of 1 words .*: TWO"):
        training.read_lexicon(hparams, rows)
    with pytest.raises(ValueError, match="lexicon: the YAML has no lexicon_file to load"):
        training.read_lexicon({**hparams, "lexicon_file": None}, rows)
    model.intermediate_output = torch.nn.Linear(8, 7)
    with pytest.raises(ValueError, match="has 7 outputs, expected 5: the blank and the 4 phones"):
        training.read_lexicon(hparams, rows)
    model.intermediate_output = None
    with pytest.raises(ValueError, match="phone_output learns it; found neither"):
        training.read_lexicon(hparams, rows)
    training.read_lexicon({**hparams, "lexicon": None}, rows)
    model.phone_output = torch.nn.Linear(8, 6)
    with pytest.raises(ValueError, match="phone_output has 6 outputs, expected 5"):
        training.read_lexicon(hparams, rows)
    with pytest.raises(ValueError, match="the phones of a lexicon; the YAML has none"):
        training.read_lexicon({**hparams, "lexicon": None}, rows)


def test_characters_that_training_hardly_has(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    splits = {
        "train": [Utterance(f"t{i}", 1.0, "", "", "A BAD") for i in range(5)]
        + [Utterance("x", 1.0, "", "", "É")],
        "valid": [Utterance("v", 1.0, "", "", "A ?")],
        "test": [Utterance("w", 1.0, "", "", "BAD")],
    }
    hparams = {
        "output_neurons": 8,
        "token_type": "char",
        "tokenizer": sentencepiece.SentencePieceProcessor(),
    }
    training.load_tokenizer(hparams, tmp_path / "tokenizer.model", splits)
    assert "Rare characters in the training transcripts, hardly to be learnt: 'É' (1 times)" in (
        caplog.text
    )
    assert re.search(r"valid: the tokenizer .* cannot spell 1 characters: '\?' \(1", caplog.text)
    assert "test: " not in caplog.text
    splits["train"].append(Utterance("new", 1.0, "", "", "Z"))
    with pytest.raises(ValueError, match=r"cannot spell 1 characters: 'Z' \(1 times, in new\)"):
        training.load_tokenizer(hparams, tmp_path / "tokenizer.model", splits)


def test_a_mistake_in_the_inference_section_shows_before_training(tmp_path: Path) -> None:
    text = (ROOT / "hparams/commands/srupp_ctc.yaml").read_text()
    # A copy, whose weights would not be stored.
    wrong = text.replace(
        "            ctc_output: !ref <ctc_output>", "            ctc_output: !copy <ctc_output>"
    )
    assert wrong != text
    (tmp_path / "wrong.yaml").write_text(wrong)
    done = run(recipe("Commands", tmp_path / "wrong.yaml", {}), tmp_path)
    assert done.returncode == 2
    assert "modules.encoder has weights (ctc_output.w.weight, ctc_output.w.bias)" in done.stderr
    assert not (tmp_path / "data").exists()


def test_the_ngram_of_the_training_transcripts(tmp_path: Path) -> None:
    path = tmp_path / "new" / "ngram.arpa"
    training.estimate_ngram(["GO NORTH", "GO SOUTH"], 2, str(path))
    assert "ngram 2=" in path.read_text()
    before = path.stat().st_mtime_ns
    training.estimate_ngram(["STOP"], 2, str(path))
    assert path.stat().st_mtime_ns == before


def test_the_ngram_learns_from_more_texts(tmp_path: Path) -> None:
    path, more = tmp_path / "ngram.arpa", tmp_path / "more.txt"
    more.write_text("GO  WEST\n\nSTOP\n", encoding="utf-8")
    training.estimate_ngram(["GO NORTH"], 2, str(path), str(more))
    expected = NGram.estimate(["GO NORTH", "GO WEST", "STOP"], 2)
    found = NGram.read_arpa(path)
    assert found.vocabulary == expected.vocabulary
    assert found.log_prob("WEST", ["GO"]) == pytest.approx(expected.log_prob("WEST", ["GO"]))


@pytest.mark.parametrize(("content", "found"), [(None, "cannot be read"), (b" \n", "no text")])
def test_texts_that_are_none_are_named(tmp_path: Path, content: bytes | None, found: str) -> None:
    more = tmp_path / "more.txt"
    if content is not None:
        more.write_bytes(content)
    with pytest.raises(training.RecipeError, match=rf"text_file .*more\.txt.* {found}"):
        training.estimate_ngram(["GO"], 2, str(tmp_path / "ngram.arpa"), str(more))
    assert not (tmp_path / "ngram.arpa").exists()


@pytest.mark.slow
@pytest.mark.skipif(not AN4.is_dir(), reason="needs the AN4 corpus")
@pytest.mark.parametrize("options", [(), ("--precision=bf16",)])
def test_an4_runs_end_to_end_with_joint_search(tmp_path: Path, options: tuple[str, ...]) -> None:
    arguments = {"data_folder": AN4, "output_folder": "results", **SMALL_AN4, "beam_size": 2}
    arguments["finish"] = "{number_of_epochs: 1}"
    done = run(recipe("AN4", "an4/srupp_ctc_attention.yaml", arguments, *options), tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    score = json.loads((tmp_path / "results/score_valid.json").read_text())
    assert score["utterances"] == 103
    assert score["decoder"] == "JointBeamSearcher"
    assert (tmp_path / "results/model/hyperparams.yaml").is_file()
    assert (tmp_path / "results/first/score_valid_ngram.json").is_file()


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
