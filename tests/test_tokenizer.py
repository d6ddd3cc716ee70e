"""Tokenizers: text survives the round trip, and a wrong vocabulary size says the right one."""

import pytest

from sru_asr.tokenizer import BLANK, BOS, EOS, train_tokenizer, unspellable, vocabulary_size

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


@pytest.mark.parametrize("texts", [TEXTS, ["ONE", "TWO"], ["A"], ["É  Ü", "ß"]])
def test_the_vocabulary_size_of_characters_is_the_one_that_fits(tmp_path, texts):
    train_tokenizer(tmp_path / "model", texts, vocabulary_size(texts))


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
@pytest.mark.parametrize("texts", [TEXTS, ["ONE TWO THREE"] * 5])
def test_the_vocabulary_size_of_other_pieces_can_be_made(tmp_path, texts, model_type):
    size = vocabulary_size(texts, model_type)
    assert vocabulary_size(texts) < size <= 1000
    train_tokenizer(tmp_path / "model", texts, size, model_type)


def test_the_vocabulary_does_not_grow_for_ever():
    texts = (f"word{i} A" for i in range(10_000))
    assert vocabulary_size(texts, "bpe") == 1000
    many = "".join(chr(0x4E00 + i) for i in range(3000))
    assert vocabulary_size([many], "bpe") == vocabulary_size([many]) == 3003


@pytest.mark.parametrize(("model_type", "size"), [("char", CHARACTERS), ("bpe", 30)])
def test_characters_that_cannot_be_spelled(tmp_path, model_type, size):
    tokenizer = train_tokenizer(tmp_path / "model", TEXTS, size, model_type)
    texts = {"a": "THE CAT?", "b": "É ÉTÉ !", "c": "DOG", "d": " TWO  SPACES ", "e": "7?"}
    assert unspellable(tokenizer, texts) == {
        "É": ["b", "b", "b"],
        "?": ["a", "e"],
        "!": ["b"],
        "7": ["e"],
    }
    assert unspellable(tokenizer, {}) == {}


def test_the_space_can_be_unknown(tmp_path):
    tokenizer = train_tokenizer(tmp_path / "model", ["ONE", "TWO"], 8)
    assert unspellable(tokenizer, {"a": "ONE TWO"}) == {" ": ["a"]}
