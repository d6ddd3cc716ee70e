"""LibriSpeech: manifests, what is reported of a damaged corpus, model sizes, a debug run."""

from __future__ import annotations

import importlib.util
import json
import logging
import re
import shlex
import shutil
from pathlib import Path

import pytest
import soundfile
from click.testing import CliRunner
from mini_librispeech import make_librispeech, write_flac
from recipe_runs import ROOT, recipe, run

from sru_asr.manifest import check_manifest, read_manifest

SCRIPT = ROOT / "recipes" / "LibriSpeech" / "prepare.py"
HPARAMS = ROOT / "hparams" / "librispeech"
REAL = ROOT.parent / "shared" / "data" / "LibriSpeech"

spec = importlib.util.spec_from_file_location("librispeech_prepare", SCRIPT)
assert spec
assert spec.loader
prepare = importlib.util.module_from_spec(spec)
spec.loader.exec_module(prepare)

SPLITS = {"train-clean-100": 10, "dev-clean": 3, "test-other": 1}

# A model that is trained in seconds, and tokens that a few transcripts can give.
SMALL = {
    "channels": "[8, 8]",
    "projection_size": 16,
    "num_heads": 2,
    "token_type": "char",
    "max_batch_seconds": 30,
    "num_workers": 0,
    "number_of_epochs": 2,
    "output_folder": "results",
    "manifest_folder": "manifests",
}
SMALL_CTC = {**SMALL, "hidden_size": 16, "num_layers": 2}
SMALL_JOINT = {
    **SMALL,
    "d_model": 32,
    "encoder_size": 32,
    "num_encoder_layers": 2,
    "num_decoder_layers": 1,
    "beam_size": 2,
}
DEBUG = {"train_splits": "[test-clean]", "valid_splits": "[test-clean]"}
DEBUG |= {"test_splits": "[test-clean]", "token_type": "char", "output_neurons": 25}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """The parent of a small ``LibriSpeech``."""
    make_librispeech(tmp_path, SPLITS)
    return tmp_path


def problems_of(data_folder: Path, splits: dict[str, int] | list[str] = SPLITS) -> str:
    with pytest.raises(prepare.CorpusError) as caught:
        prepare.prepare_librispeech(data_folder, data_folder / "manifests", list(splits))
    return str(caught.value)


# Preparation


def test_a_manifest_for_each_split(tmp_path: Path) -> None:
    IDs = make_librispeech(tmp_path, SPLITS)
    prepare.prepare_librispeech(tmp_path, tmp_path / "manifests", list(SPLITS))
    assert {path.name for path in (tmp_path / "manifests").iterdir()} == {
        f"{split}.csv" for split in SPLITS
    }
    for split, expected in IDs.items():
        utterances = check_manifest(tmp_path / "manifests" / f"{split}.csv", tmp_path)
        assert [u.ID for u in utterances] == expected
        for u in utterances:
            speaker, chapter, _ = u.ID.split("-")
            assert u.wav == f"{tmp_path}/LibriSpeech/{split}/{speaker}/{chapter}/{u.ID}.flac"
            assert u.spk_id == speaker
            assert u.duration == pytest.approx(soundfile.info(u.wav).duration, abs=1e-4)
    assert [u.wrd for u in utterances] == ["HE"]


@pytest.mark.parametrize("inside", [False, True])
def test_manifests_outlive_a_moved_corpus(corpus: Path, inside: bool) -> None:
    folder = corpus / "LibriSpeech" if inside else corpus
    prepare.prepare_librispeech(f"{folder}/", corpus / "manifests", ["dev-clean"])
    shutil.move(corpus / "LibriSpeech", corpus / "elsewhere" / "LibriSpeech")
    moved = corpus / "elsewhere" / "LibriSpeech" if inside else corpus / "elsewhere"
    assert len(check_manifest(corpus / "manifests" / "dev-clean.csv", moved)) == 3


def test_done_work_is_not_done_again(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = corpus / "manifests" / "dev-clean.csv"
    prepare.prepare_librispeech(corpus, manifest.parent, ["dev-clean"])
    before = manifest.stat()

    def refuse(path: Path) -> None:
        raise AssertionError(f"{path} was read again")

    with monkeypatch.context() as patch:
        patch.setattr(prepare, "audio_info", refuse)
        prepare.prepare_librispeech(corpus, manifest.parent, ["dev-clean", "dev-clean"])
    assert manifest.stat().st_mtime_ns == before.st_mtime_ns
    transcripts = next((corpus / "LibriSpeech" / "dev-clean").glob("*/*/*.trans.txt"))
    transcripts.write_text(transcripts.read_text().replace(" HE\n", " SHE\n"))
    prepare.prepare_librispeech(corpus, manifest.parent, ["dev-clean"])
    assert "SHE" in [u.wrd for u in read_manifest(manifest)]


def test_a_killed_preparation_leaves_no_half_manifest(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(prepare, "audio_info", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare.prepare_librispeech(corpus, corpus / "manifests", ["dev-clean"])
    assert not list(corpus.glob("manifests/*"))


def test_all_problems_at_once(corpus: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = corpus / "LibriSpeech"
    train = root / "train-clean-100"
    (train / "100/1000/100-1000-0001.flac").unlink()
    (train / "100/1001/100-1001-0000.flac").write_bytes(b"")
    (train / "100/1001/100-1001-0002.flac").write_bytes(b"not audio" * 100)
    transcripts = train / "101/1002/101-1002.trans.txt"
    transcripts.write_text("101-1002-0000\n101-1002-0001 GO\n101-1002-0001 GO\nGO ON\n")
    (train / "101/1003/101-1003.trans.txt").unlink()
    (train / "102/1004").mkdir(parents=True)  # nothing in it: no problem
    (root / "dev-clean/200/1000/200-1000.trans.txt").write_text("\n")
    shutil.rmtree(root / "test-other")
    (root / "dev-other").mkdir()
    with caplog.at_level(logging.WARNING):
        found = problems_of(corpus, [*SPLITS, "dev-other"])
    for pattern in (
        r"LibriSpeech in .*: 10 problems",
        r"100-1000.trans.txt line 2: found no audio for 100-1000-0001, expected .*0001.flac",
        r"100-1001-0000.flac: found an empty file",
        r"100-1001-0002.flac: found a file that is not audio",
        r"101-1002.trans.txt line 1: found no words for 101-1002-0000",
        r"101-1002.trans.txt line 3: found 101-1002-0001 a second time",
        r"101-1002.trans.txt line 4: found 'GO ON', expected 101-1002-<utterance> and words",
        r"chapter .*101/1003: found no 101-1003.trans.txt",
        r"200-1000.trans.txt: found an empty file, expected transcripts",
        r"split test-other: found no folder .*test-other \(there: dev-clean, dev-other, train-",
        r"split dev-other: found no transcripts in .*dev-other",
    ):
        assert re.search(pattern, found), pattern
    assert not (corpus / "manifests").exists()
    warning = "dev-clean: left out 3 recordings without words: 200-1000-0000, 200-1000-0001"
    assert warning in caplog.text


def test_whole_splits_are_written_although_others_are_not(corpus: Path) -> None:
    assert "split train-other-500: found no folder" in problems_of(
        corpus, ["train-other-500", "dev-clean"]
    )
    assert [path.name for path in (corpus / "manifests").iterdir()] == ["dev-clean.csv"]


def test_audio_without_words_is_left_out_with_a_warning(
    corpus: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_flac(corpus / "LibriSpeech/dev-clean/200/1000/200-1000-0009.flac", 0.3)
    with caplog.at_level(logging.WARNING):
        prepare.prepare_librispeech(corpus, corpus / "manifests", ["dev-clean"])
    assert "left out 1 recordings without words: 200-1000-0009" in caplog.text
    assert len(read_manifest(corpus / "manifests" / "dev-clean.csv")) == 3


@pytest.mark.parametrize("kind", ["missing", "file", "empty"])
def test_a_data_folder_that_is_none(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "data"
    if kind == "file":
        folder.write_text("")
    elif kind == "empty":
        folder.mkdir()
    expected = {
        "missing": "found no such folder, expected LibriSpeech",
        "file": "found a file, expected LibriSpeech",
        "empty": r"split dev-clean: found no folder .* \(there: no folders\)",
    }
    with pytest.raises(prepare.CorpusError, match=expected[kind]):
        prepare.prepare_librispeech(folder, tmp_path / "manifests", ["dev-clean"])


def test_splits_are_joined_in_their_order(corpus: Path) -> None:
    folder = corpus / "manifests"
    prepare.prepare_librispeech(corpus, folder, list(SPLITS))
    prepare.join_splits(folder, ["test-other", "dev-clean"], corpus / "both.csv")
    speakers = [u.spk_id for u in check_manifest(corpus / "both.csv", corpus)]
    assert speakers == ["300", "200", "200", "200"]
    for splits in ([], ["dev-clean", "dev-clean"]):
        with pytest.raises(prepare.CorpusError, match=r"both.csv: found .*, expected splits"):
            prepare.join_splits(folder, splits, corpus / "both.csv")


def test_command_line(corpus: Path) -> None:
    options = ["--data_folder", str(corpus), "--output", str(corpus / "manifests")]
    done = CliRunner().invoke(prepare.main, [*options, "--splits", "dev-clean, test-other"])
    assert done.exit_code == 0, done.output
    assert len(read_manifest(corpus / "manifests" / "test-other.csv")) == 1
    done = CliRunner().invoke(prepare.main, options)
    assert done.exit_code == 1
    assert "Error: LibriSpeech in" in done.output
    assert "4 problems" in done.output


@pytest.mark.skipif(not REAL.is_dir(), reason="needs utterances of LibriSpeech")
def test_real_utterances(tmp_path: Path) -> None:
    prepare.prepare_librispeech(REAL, tmp_path, ["test-clean"])
    first, *_ = utterances = check_manifest(tmp_path / "test-clean.csv", REAL)
    assert len(utterances) == 4
    assert first.ID == "1089-134686-0000"
    assert first.wrd.startswith("HE HOPED THERE WOULD BE STEW FOR DINNER")
    assert first.duration == pytest.approx(10.435)


# Models


@pytest.mark.parametrize(
    ("name", "millions"), [("srupp_s", 13.8), ("srupp_ctc_m", 29.6), ("srupp_l", 117.4)]
)
def test_model_sizes_are_those_of_the_readme(name: str, millions: float, tmp_path: Path) -> None:
    from sru_asr.training import load_hparams

    options = {"manifest_folder", "train_splits", "valid_splits", "test_splits"}
    folder = f"data_folder: {tmp_path}\noutput_folder: {tmp_path}"
    hparams = load_hparams(str(HPARAMS / f"{name}.yaml"), folder, options)
    parameters = sum(p.numel() for p in hparams["model"].parameters())
    assert round(parameters / 1e6, 1) == millions
    readme = (SCRIPT.parent / "README.md").read_text(encoding="utf-8")
    assert re.search(rf"`{name}\.yaml`.*\| {millions} M \|", readme)


# Training


@pytest.mark.slow
def test_unknown_test_split_and_missing_splits_are_named(corpus: Path) -> None:
    splits = {"train_splits": "[train-clean-100]", "valid_splits": "[dev-clean]"}
    data = {**SMALL_CTC, **splits, "data_folder": corpus, "output_neurons": 19}
    for test_splits, found in (
        ("[test-else]", "test_splits: found test-else, for which test_csv has no path"),
        ("[test-clean]", "split test-clean: found no folder"),
    ):
        command = recipe(
            "LibriSpeech",
            "librispeech/srupp_ctc_m.yaml",
            {**data, "test_splits": test_splits},
        )
        done = run(command, corpus)
        assert done.returncode == 2, done.stderr
        assert found in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason="needs utterances of LibriSpeech")
@pytest.mark.parametrize(
    ("name", "small"),
    [("srupp_s", SMALL_JOINT), ("srupp_ctc_m", SMALL_CTC), ("srupp_l", SMALL_JOINT)],
)
def test_small_models_run_from_corpus_to_scores(
    tmp_path: Path, name: str, small: dict[str, object]
) -> None:
    options = {**small, **DEBUG, "data_folder": REAL}
    done = run(recipe("LibriSpeech", f"librispeech/{name}.yaml", options), tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.name for path in (tmp_path / "results").glob("score_*.json")} == {
        "score_valid.json",
        "score_test-clean.json",
    }
    score = json.loads((tmp_path / "results/score_test-clean.json").read_text())
    assert (score["utterances"], score["words"]) == (4, 58)
    assert (tmp_path / "results/model/model.ckpt").is_file()
    assert "test-clean: WER" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason="needs utterances of LibriSpeech")
def test_the_readmes_debug_command(tmp_path: Path) -> None:
    readme = (SCRIPT.parent / "README.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"```bash\n(python [^`]*--debug[^`]*)```", readme)
    words = shlex.split(command.replace("\\\n", " "))
    assert words[:2] == ["python", "recipes/LibriSpeech/train.py"]
    arguments = recipe("LibriSpeech", words[2].removeprefix("hparams/"), {})
    overrides = [word for word in words[3:] if not word.startswith("--data_folder")]
    done = run([*arguments, *overrides, f"--data_folder={REAL}"], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    results = next(tmp_path.glob("results/librispeech_srupp_s/*"))
    assert json.loads((results / "score_test-clean.json").read_text())["utterances"] == 4
