"""Tokenizers: text survives the round trip, and a wrong vocabulary size says the right one."""

import pytest

from sru_asr.tokenizer import BLANK, BOS, EOS, train_tokenizer

TEXTS = ["THE CAT SAT ON THE MAT", "A DOG ATE IT", "NO", "DON'T", "  TWO   SPACES "] * 20
CHARACTERS = len(set("".join(TEXTS))) + 3


@pytest.mark.parametrize(
    ("model_type", "size"), [("char", CHARACTERS), ("bpe", 30), ("unigram", 24)]
)
def test_round_trip(tmp_path, model_type, size):
    tokenizer = train_tokenizer(tmp_path / "new" / "model", TEXTS, size, model_type)
    assert tokenizer.vocab_size() == size
    for text in [*TEXTS[:5], "CAT DOG", "S"]:
        tokens = tokenizer.encode(text)
        assert tokenizer.decode(tokens) == " ".join(text.split())
        assert not {BLANK, BOS, EOS} & set(tokens)
    assert (tokenizer.unk_id(), tokenizer.bos_id(), tokenizer.eos_id()) == (BLANK, BOS, EOS)
    assert tokenizer.encode("#")[-1] == BLANK
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["model"]


def test_characters_are_one_piece_each(tmp_path):
    tokenizer = train_tokenizer(tmp_path / "model", TEXTS, CHARACTERS)
    assert len(tokenizer.encode("THE CAT")) == len("THE CAT")


@pytest.mark.parametrize(
    "texts",
    [
        ["ONE", "TWO"],
        ["A"],
        ["É Ü", "ß"],
        ["小 词", "e\u0301"],
        ["AB", "A B " * 5000 + "Q"],
        [f"{'A' * 5000}Q B"],
    ],
    ids=["no_space", "one", "accents", "wide", "long", "long_word"],
)
def test_every_character_counts(tmp_path, texts):
    size = len(set("".join(texts))) + 3
    tokenizer = train_tokenizer(tmp_path / "model", iter(texts), size)
    for text in texts:
        assert tokenizer.decode(tokenizer.encode(text)) == text.strip()


@pytest.mark.parametrize("off", [-1, 1])
@pytest.mark.parametrize("texts", [TEXTS, ["ONE", "TWO"]], ids=["words", "single_words"])
def test_a_wrong_number_of_characters_says_the_right_one(tmp_path, off, texts):
    right = len(set("".join(texts))) + 3
    with pytest.raises(ValueError, match=f"output_neurons: {right}"):
        train_tokenizer(tmp_path / "model", texts, right + off)
    assert not any(tmp_path.iterdir())
    train_tokenizer(tmp_path / "model", texts, right)


def test_too_many_pieces_name_the_option(tmp_path):
    with pytest.raises(ValueError, match=r"bpe pieces \(output_neurons\)"):
        train_tokenizer(tmp_path / "model", TEXTS, 5000, "bpe")
    assert not any(tmp_path.iterdir())


def test_no_transcripts_at_all(tmp_path):
    with pytest.raises(ValueError, match="output_neurons"):
        train_tokenizer(tmp_path / "model", [], 10, "bpe")


def test_an_existing_model_is_loaded(tmp_path):
    path = tmp_path / "model"
    first = train_tokenizer(path, TEXTS, CHARACTERS)
    before = path.read_bytes()
    again = train_tokenizer(path, ["QUITE DIFFERENT"], CHARACTERS)
    assert again.encode("CAT") == first.encode("CAT")
    assert path.read_bytes() == before
    with pytest.raises(ValueError, match=f"{CHARACTERS} pieces, but output_neurons is 99"):
        train_tokenizer(path, TEXTS, 99)
