"""The synthetic corpus that AN4's models may start from: what is said, how, and by whom."""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
from pathlib import Path
from string import ascii_uppercase

import numpy as np
import pytest

from sru_asr.lexicon import Lexicon
from sru_asr.manifest import Utterance, check_manifest, read_manifest
from sru_asr.synthetic import espeak
from sru_asr.synthetic.corpus import make_corpus
from sru_asr.synthetic.grammar import NAME

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "AN4"
sys.path.insert(0, str(RECIPE))

import census  # noqa: E402
import rare_words  # noqa: E402
import synthetic  # noqa: E402
from names import NAMES  # noqa: E402

AN4 = ROOT.parent / "shared" / "data" / "an4" / "etc" / "an4_train.transcription"

try:
    import espeakng_loader  # noqa: F401

    HAS_ESPEAK = True
except ModuleNotFoundError:
    HAS_ESPEAK = False

needs_espeak = pytest.mark.skipif(not HAS_ESPEAK, reason="espeakng-loader is not installed")

PHONEMES = """eI bi: si: di: i: Ef dZi: eItS aI dZeI keI El Em En oU pi: kju: A@ Es ti: ju: vi:
    dVb@Lju: Eks waI zi:"""
LETTERS = dict(zip(ascii_uppercase, PHONEMES.split(), strict=True))


def sentences(count: int = 1500, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [census.sample(rng) for _ in range(count)]


def words(sentence: str) -> list[str]:
    return sentence.replace(",", "").split()


def pattern(rule: str) -> str:
    """A regular expression of all that a rule can say, with optional commas."""
    alternatives = census.RULES[rule]
    if callable(alternatives):
        return "[A-Z](?: [A-Z])*"
    texts = (NAME.sub(lambda name: pattern(name[1]), text) for text in set(alternatives))
    return f"(?:{'|'.join(texts).replace(' , ', ' ')})"


SENTENCE = re.compile(pattern("sentence"))


# What is said


def test_sentences_are_words_of_letters_and_nearly_all_of_them_are_said():
    said = {word for text in sentences(4000) for word in words(text)}
    assert said <= census.vocabulary()
    # But for streets as rare as "Seventieth".
    assert census.vocabulary() - said <= set(census.WORDS["tens_th"])
    assert all(re.fullmatch("[A-Z]+", word) for word in said)
    assert 100 < len(said) < 140


def test_commas_stand_between_words_and_sentences_follow_from_the_seed():
    texts = sentences()
    assert all(re.fullmatch(r"\w+( ,)?( \w+( ,)?)*(?<!,)", text) for text in texts)
    assert all(1 <= len(words(text)) <= 30 for text in texts)
    assert len(set(texts)) > 0.7 * len(texts)
    assert texts == sentences() != sentences(seed=1)


@pytest.mark.parametrize(
    "text",
    [
        "YES",
        "ENTER SIX HUNDRED AND TWELVE",
        "RUBOUT Q W X NINETY THREE OH FIVE",
        "ERASE K THIRTEEN",
        "N O V A K",
        "O APOSTROPHE D E L L",
        "L I B E R T Y A V E N U E",
        "NINETY NINTH S T R E E T",
        "FORTY TWO SEVENTEEN AND A HALF",
        "OH TWO ONE THREE NINE",
        "AREA CODE EIGHT ONE FOUR FIVE FIVE FIVE OH ONE NINE NINE",
        "NOVEMBER SEVENTEENTH NINETEEN SIXTY FOUR",
        "THIRTY FIRST OF MARCH NINETEEN OH FIVE",
        "TWELVE THIRTY ONE SEVENTY",
        "D E C TEN ONE NINE SIX FOUR",
    ],
)
def test_typical_sentences_belong_to_the_grammar(text):
    assert SENTENCE.fullmatch(text)


@pytest.mark.parametrize(
    "text", ["TEN ELEVEN TWELVE TEN TEN", "MARCH THIRTY SECOND SIXTY", "YES A"]
)
def test_others_do_not(text):
    assert not SENTENCE.fullmatch(text)


@pytest.mark.skipif(not AN4.exists(), reason="the AN4 corpus is not here")
def test_most_sentences_of_an4_belong_to_the_grammar_though_few_are_drawn():
    lines = AN4.read_text().splitlines()
    real = [" ".join(re.sub(r"</?s>|\(.*\)", "", line).split()) for line in lines]
    assert len(real) == 948
    assert {word for text in real for word in text.split()} <= census.vocabulary()
    assert sum(1 for text in real if not SENTENCE.fullmatch(text)) < 0.02 * len(real)
    long = {text for text in real if len(text.split()) > 3}
    drawn = [" ".join(words(text)) for text in sentences()]
    assert sum(1 for text in drawn if text in long) < 0.02 * len(drawn)
    # As many letters among the words, and sentences as long.
    shares = [
        np.mean([len(w) == 1 for text in texts for w in text.split()]) for texts in (real, drawn)
    ]
    lengths = [np.mean([len(text.split()) for text in texts]) for texts in (real, drawn)]
    assert shares[1] == pytest.approx(shares[0], abs=0.05)
    assert lengths[1] == pytest.approx(lengths[0], rel=0.1)


def test_sentences_for_a_language_model_are_as_transcripts_are(tmp_path: Path) -> None:
    census.write_sentences(tmp_path / "new" / "sentences.txt", 300, seed=3)
    text = (tmp_path / "new" / "sentences.txt").read_text(encoding="utf-8")
    expected = [" ".join(sentence.replace(",", "").split()) for sentence in sentences(300, seed=3)]
    assert text.splitlines() == expected
    assert set(text.split()) <= census.vocabulary()


def test_half_of_the_names_are_invented_from_the_listed_ones():
    rng = np.random.default_rng(0)
    rule = census.spelled(NAMES["town"])
    listed = {" , ".join(" ".join(word) for word in name.split("_")) for name in NAMES["town"]}
    drawn = [rule(rng) for _ in range(1000)]
    assert 0.4 < np.mean([name not in listed for name in drawn]) < 0.55
    triples = {f"^^{name}$"[i : i + 3] for name in NAMES["town"] for i in range(len(name) + 1)}
    for name in drawn:
        letters = f"^^{'_'.join(''.join(word.split()) for word in name.split(' , '))}$"
        assert {letters[i : i + 3] for i in range(len(letters) - 2)} <= triples


def test_lists_are_of_upper_case_names():
    for names in NAMES.values():
        assert list(names) == sorted(set(names))
        assert all(re.fullmatch("[A-Z]{2,}(_[A-Z]{2,})*", name) for name in names)
    assert set("".join(NAMES["surname"])) == set(ascii_uppercase)


# How it is said


@needs_espeak
@pytest.mark.parametrize("accent", espeak.ACCENTS)
def test_letters_are_spoken_as_letters(accent):
    with espeak.fresh_library() as library:
        library.espeak_TextToPhonemes.restype = ctypes.c_char_p
        assert library.espeak_SetVoiceByName(accent.encode()) == 0

        def phonemes(text: str) -> str:
            pointer = ctypes.c_char_p(text.encode())
            heard: bytes = library.espeak_TextToPhonemes(ctypes.byref(pointer), 1, 0)
            return re.sub("[';,]", "", heard.decode())

        for letter, meant in LETTERS.items():
            for mark in ("", ".", ",", "?"):
                heard = phonemes(census.spoken(letter) + mark)
                # Accents have vowels of their own.
                heard = heard.replace("aI2", "aI").replace("jU", "ju:").removesuffix("r")
                assert heard == meant, (letter, mark)
        # "Rub" and "out", not "roo-bout"; and the article in "and a half".
        assert "Vb" in phonemes(census.spoken("RUBOUT"))
        assert "a#" in phonemes(f"and {census.spoken('A', 'HALF')} half")
        assert "eIs" in phonemes(census.spoken("ERASE"))


def phrases(sentence: str, seed: int, tract: float = 1.0) -> list:
    rng = np.random.default_rng(seed)
    return synthetic.draw_phrases(sentence, espeak.Style("en-us+f2"), tract, rng)


def test_phrases_are_the_sentence_and_do_not_mix_letters_with_words():
    for seed, sentence in enumerate(sentences(500)):
        parts = phrases(sentence, seed)
        assert [word for part in parts for word in part.words] == words(sentence)
        for part in parts:
            letters = {len(word) == 1 for word in part.words if part.words != ("A",)}
            assert len(letters) <= 1 or part.words[-2:] in {("A", "HALF"), ("AND", "A")}
            assert len(part.spoken) == len(part.words)
            assert all(re.fullmatch("[a-z]+( [a-z]+)?", text) for text in part.spoken[:-1])
            assert re.fullmatch("[a-z]+( [a-z]+)?[,.?]?", part.spoken[-1])
            assert synthetic.SLOWEST <= part.style.rate <= synthetic.FASTEST
            assert 0.01 <= part.pause <= 1.2


def test_some_people_pause_after_every_letter_and_most_seldom():
    counts = [len(phrases("A B C D E F G H", seed)) for seed in range(400)]
    assert 8 in counts
    assert 0.3 < np.mean([count == 1 for count in counts]) < 0.6
    # Where there is a comma, more often.
    assert np.mean([len(phrases("A B C D , E F G H", seed)) for seed in range(400)]) > np.mean(
        counts
    )
    assert {part.words for part in phrases("B , TWO", 0)} == {("B",), ("TWO",)}
    assert ("TEN", "AND", "A", "HALF") in {phrases("TEN AND A HALF", i)[0].words for i in range(9)}


def test_letters_are_slower_and_a_longer_tract_is_made_up_for():
    rate = {
        (text, tract): np.mean([phrases(text, seed, tract)[0].style.rate for seed in range(200)])
        for text in ("B C D", "TWO SIX NINE")
        for tract in (1.0, 1.1)
    }
    assert rate["B C D", 1.0] < 0.85 * rate["TWO SIX NINE", 1.0]
    assert rate["B C D", 1.1] == pytest.approx(1.1 * rate["B C D", 1.0], rel=0.02)


def test_takes_stay_within_their_ranges():
    rng = np.random.default_rng(0)
    takes = [synthetic.draw_take("train", rng) for _ in range(300)]
    assert all(0.88 <= take.tract <= 1.14 for take in takes)
    scenes = [take.scene for take in takes]
    assert all(0.15 <= s.silence[0] <= 0.45 and 0 <= s.silence[1] <= 0.35 for s in scenes)
    assert all(8 <= s.snr <= 50 and -36 <= s.level <= -23 for s in scenes)
    assert 0.1 < np.mean([s.snr < 28 for s in scenes]) < 0.3
    voices = [take.phrases[0].style.voice.split("+") for take in takes]
    assert 0.6 < np.mean([accent == "en-us" for accent, _ in voices]) < 0.8
    assert {accent for accent, _ in voices} == set(espeak.ACCENTS)
    assert not set(synthetic.SPEAKERS["train"]) & set(synthetic.SPEAKERS["valid"])
    assert {variant for _, variant in voices} <= set(synthetic.SPEAKERS["train"])
    # A person has one voice for a whole utterance.
    assert all(len({part.style.voice for part in take.phrases}) == 1 for take in takes)


# The corpus


def run(folder: Path, *options: str, before: str = "") -> subprocess.CompletedProcess[str]:
    script = str(RECIPE / "synthetic.py")
    # As Python does for a script: its name first in argv, its folder first in the path.
    start = f"import runpy, sys; sys.argv[0] = {script!r}; sys.path[0] = {str(RECIPE)!r}"
    code = f"{start}\n{before}\nrunpy.run_path(sys.argv[0], run_name='__main__')"
    return subprocess.run(
        [sys.executable, "-c", code, "--data_folder", str(folder), *options],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    pytest.importorskip("espeakng_loader")
    folder = tmp_path_factory.mktemp("synthetic")
    done = run(folder, "--num_train=40", "--num_valid=4", "--workers=1")
    assert done.returncode == 0, done.stderr
    return folder


def test_manifests_describe_recordings_of_unheard_voices(corpus):
    train, valid = (check_manifest(corpus / f"{split}.csv", corpus) for split in synthetic.SPEAKERS)
    assert (len(train), len(valid)) == (40, 4)
    for row in train + valid:
        assert SENTENCE.fullmatch(row.wrd)
        assert 0.4 < row.duration < 15
    variants = [{row.spk_id.split("+")[1] for row in rows} for rows in (train, valid)]
    assert not variants[0] & variants[1]


def test_letters_last_as_long_as_in_an4(corpus):
    rows = [row for row in read_manifest(corpus / "train.csv") if len(row.wrd.split()) > 3]
    spelled = [row for row in rows if all(len(word) == 1 for word in row.wrd.split())]
    assert len(spelled) > 6
    # 0.43 seconds a letter in AN4, silence included, between 0.29 and 0.62 for nine in ten.
    seconds = [row.duration / len(row.wrd.split()) for row in spelled]
    assert 0.36 < np.mean(seconds) < 0.56


def test_a_run_without_options_keeps_to_the_corpus_that_is_there(corpus):
    before = contents(corpus)
    again = run(corpus)
    assert again.returncode == 0 and "is complete" in again.stderr
    assert contents(corpus) == before


def test_an_interrupted_run_is_completed_by_another_number_of_processes(corpus, tmp_path):
    options = ("--num_train=40", "--num_valid=4", "--workers=2")
    stop = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))"
    assert run(tmp_path, *options, before=stop).returncode != 0
    whole, partial = contents(corpus), contents(tmp_path)
    assert 1 < len(partial) < len(whole)
    assert all(whole[name] == content for name, content in partial.items())
    assert run(tmp_path).returncode == 0  # of the same size, which the folder knows
    assert contents(tmp_path) == whole


def test_bad_input_is_one_clear_sentence(tmp_path):
    absent = run(tmp_path, before="sys.modules['espeakng_loader'] = None")
    assert absent.returncode == 1
    assert absent.stderr.strip() == (
        "Error: synthetic speech needs espeak-ng: pip install 'sru-asr[demo]'"
    )
    empty = run(tmp_path, "--num_train=0")
    assert empty.returncode == 1
    assert "at least 1 utterance in every split, found {'train': 0" in empty.stderr
    assert not list(tmp_path.iterdir())


def test_training_gets_manifests_of_its_own(corpus, tmp_path, monkeypatch):
    # Another recipe's module may have the name already, and gets it back afterwards.
    monkeypatch.setitem(sys.modules, "prepare", None)
    del sys.modules["prepare"]
    monkeypatch.syspath_prepend(RECIPE)
    import pretrain

    hparams = {
        "data_folder": str(corpus),
        "save_folder": tmp_path / "save",
        "train_csv": tmp_path / "save" / "train.csv",
        "valid_csv": tmp_path / "save" / "valid.csv",
        "synthetic_folder": None,
        "word_occurrences": 0,
        "num_sentences": 50,
        "sentences_file": tmp_path / "save" / "sentences.txt",
    }
    pretrain.prepare(hparams)
    assert len(hparams["sentences_file"].read_text().splitlines()) == 50
    for split in ("train", "valid"):
        written = hparams[f"{split}_csv"].read_bytes()
        assert written == (corpus / f"{split}.csv").read_bytes()
        assert b"{data_root}/" in written
    lexicon = Lexicon(tmp_path / "save" / "lexicon.txt")
    lexicon.check(census.vocabulary())
    assert lexicon.size == 37  # num_phones of the YAMLs
    with pytest.raises(ValueError, match="options of train.py; here the synthetic corpus is data"):
        pretrain.prepare({**hparams, "synthetic_folder": str(corpus), "word_occurrences": 20})


# Of which some is heard beside AN4


def test_utterances_are_taken_until_each_word_occurs_often_enough():
    numbers = ["ONE", "TWO", "ONE", "THREE", "ONE", "TWO"]
    texts = [*(f"{number} HUNDRED" for number in numbers), "HUNDRED"]
    candidates = [Utterance(str(i), 1.0, "", "", text) for i, text in enumerate(texts)]

    def chosen(transcripts, occurrences):
        rows = rare_words.choose_rare(candidates, transcripts, occurrences)
        return [int(row.ID) for row in rows]

    # By the third, HUNDRED has occurred twice: only what has another rare word is taken.
    assert chosen([], 2) == [0, 1, 2, 3, 5]
    assert chosen(["TWO TWO", "THREE THREE"], 2) == [0, 1, 2]
    assert chosen(["ONE TWO THREE HUNDRED"], 1) == []
    assert chosen([], 100) == list(range(7))
    assert chosen([], 0) == []


def test_training_gets_the_rare_words(corpus, tmp_path, monkeypatch):
    for name in ("prepare", "train"):
        monkeypatch.setitem(sys.modules, name, None)
        del sys.modules[name]
    monkeypatch.syspath_prepend(RECIPE)
    import train

    candidates = check_manifest(corpus / "train.csv", corpus)
    common = [row.wrd for row in candidates[:20]]
    monkeypatch.chdir(corpus.parent)
    rows = train.rare_words(corpus.name, 1, common)
    assert 0 < len(rows) < 20
    known = {word for text in common for word in text.split()}
    assert all(set(row.wrd.split()) - known for row in rows)
    # Named in full, they may stand in a manifest of another folder.
    assert all(Path(row.wav).is_absolute() and Path(row.wav).exists() for row in rows)
    assert train.rare_words(None, 0, common) == []
    for folder, occurrences in ((None, 20), (corpus.name, 0), (corpus.name, -1), (None, "many")):
        with pytest.raises(
            ValueError, match=f"synthetic_folder {folder} and word_occurrences {occurrences}"
        ):
            train.rare_words(folder, occurrences, common)


def test_another_folder_is_refused_and_kept(corpus, tmp_path):
    own = tmp_path / "train" / "train-anna.wav"
    own.parent.mkdir()
    own.write_bytes(b"mine")
    refused = run(tmp_path, "--num_train=3", "--num_valid=2")
    assert refused.returncode == 1
    assert "found train/train-anna.wav, which is not of a synthetic corpus, in" in refused.stderr
    assert own.read_bytes() == b"mine"

    before = contents(corpus)
    with pytest.raises(ValueError, match="found the corpus Synthetic AN4 in .*, expected an empty"):
        make_corpus("Another", synthetic.draw_take, {"train": 1, "valid": 1}, corpus)
    assert contents(corpus) == before


def test_a_corpus_being_cleared_when_killed_is_made_anew(corpus, tmp_path):
    assert run(tmp_path, "--num_train=3", "--num_valid=2").returncode == 0
    whole = contents(tmp_path)
    # The vouchers go first; what a recording holds is not looked at.
    (tmp_path / "audio.json").write_text("{}")
    (tmp_path / "manifests.json").unlink()
    (tmp_path / "train" / "train-00001.wav").write_bytes(b"of other settings")
    again = run(tmp_path, "--num_train=3", "--num_valid=2")
    assert again.returncode == 0 and "anew" not in again.stderr
    assert contents(tmp_path) == whole
