"""Token probabilities from words: proper everywhere, and exactly the n-gram's for sentences."""

import itertools
import math

import numpy as np
import pytest
import torch
from hyperpyyaml import load_hyperpyyaml
from sentencepiece import SentencePieceProcessor

from sru_asr.decode.lookahead import WordLookahead
from sru_asr.decode.ngram import NGram
from sru_asr.tokenizer import BLANK, BOS, EOS, train_tokenizer

TEXTS = ["THE CAT SAT ON THE MAT", "A DOG ATE IT", "NO", "DON'T", "THE CATS", "AT A MAT"] * 10
SIZES = {"char": len(set("".join(TEXTS))) + 3, "bpe": 32, "unigram": 24}


@pytest.fixture(scope="module", params=SIZES)
def tokenizer(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / request.param
    return train_tokenizer(path, TEXTS, SIZES[request.param], request.param)


@pytest.fixture(scope="module")
def characters(tmp_path_factory):
    return train_tokenizer(tmp_path_factory.mktemp("tokenizer") / "m", TEXTS, SIZES["char"])


@pytest.fixture(scope="module", params=[1, 2, 3], ids="order{}".format)
def ngram(request):
    return NGram.estimate(TEXTS, request.param)


def sentence_log_prob(scorer, tokens):
    """Sum of the tokens' log probabilities, the end's included."""
    state, total = scorer.initial(1), 0.0
    for last, token in itertools.pairwise([BOS, *tokens, EOS]):
        log_probs, state = scorer.score(torch.tensor([last]), state)
        total += log_probs[0, token].item()
    return total


def word_log_prob(ngram, text):
    words = ["<s>", *text.split(), "</s>"]
    return sum(ngram.log_prob(words[i], words[:i]) for i in range(1, len(words)))


@pytest.mark.parametrize(
    "text", ["THE CAT SAT", "THE CATS", "A", "IT ATE A DOG", "MAT MAT MAT CAT THE", "DON'T DON'T"]
)
def test_sentences_have_the_probability_of_their_words(ngram, tokenizer, text):
    scorer = WordLookahead(ngram, tokenizer)
    expected = word_log_prob(ngram, text)
    assert sentence_log_prob(scorer, tokenizer.encode(text)) == pytest.approx(expected, abs=1e-5)


def test_a_word_counts_from_its_first_token(characters):
    ngram = NGram.estimate(TEXTS, 2)
    scorer = WordLookahead(ngram, characters)
    log_probs, state = scorer.score(torch.tensor([BOS]), scorer.initial(1))
    t, h = characters.encode("TH")
    for tokens, begin in [([], "A"), ([t], "TH"), ([t, h], "THE")]:
        if tokens:
            log_probs, state = scorer.score(torch.tensor(tokens[-1:]), state)
        words = {w: math.exp(ngram.log_prob(w, ["<s>"])) for w in ngram.vocabulary}
        before = sum(p for w, p in words.items() if w.startswith(begin[:-1]))
        share = sum(p for w, p in words.items() if w.startswith(begin)) / before
        found = log_probs[0, characters.encode(begin)[-1]].exp().item()
        # The unknown words have a little.
        assert found == pytest.approx(share, abs=0.03)


def test_every_distribution_sums_to_one(ngram, tokenizer):
    """Along random tokens, so in the middle of unknown words and odd spellings, too."""
    scorer = WordLookahead(ngram, tokenizer)
    tokens, state = torch.full((20,), BOS), scorer.initial(20)
    for step in range(30):
        log_probs, state = scorer.score(tokens, state)
        assert log_probs.shape == (20, tokenizer.vocab_size())
        torch.testing.assert_close(log_probs.exp().sum(1), torch.ones(20))
        assert log_probs[:, [BLANK, BOS]].eq(-math.inf).all()
        ordinary = list(range(3, tokenizer.vocab_size()))
        beginnings = [i for i in ordinary if tokenizer.id_to_piece(i)[0] == "▁"]
        is_char = tokenizer.encode("A", out_type=str) == ["A"]
        inside = ordinary if step or is_char else beginnings
        assert inside and log_probs[:, inside].isfinite().all()
        weights = log_probs.exp() if step % 3 else log_probs.isfinite().float()
        weights[:, EOS] = 0
        tokens = torch.multinomial(weights, 1)[:, 0]


def test_unknown_words_share_their_probability(tmp_path):
    """All of them together, enumerated, have that of the unknown word."""
    tokenizer = train_tokenizer(tmp_path / "m", ["A AB", "B"], 6)
    ngram = NGram.estimate(["A AB", "B", "AB"], 2)
    scorer = WordLookahead(ngram, tokenizer)
    found = {}
    for size in range(1, 8):
        for letters in itertools.product("AB", repeat=size):
            word = "".join(letters)
            found[word] = math.exp(sentence_log_prob(scorer, tokenizer.encode(word)))
    unknown = math.exp(word_log_prob(ngram, "X"))
    others = {word: p for word, p in found.items() if word not in ngram.vocabulary}
    # Letters of the vocabulary: A twice, B twice, three ends; each letter once more.
    draws = {word: (3 / 9) ** (len(word) + 1) for word in ["", *found]}
    left = 1 - sum(draws[word] for word in ngram.vocabulary)
    for word, probability in others.items():
        assert probability == pytest.approx(unknown * draws[word] / left, rel=1e-4)
    # The empty word is one of them, but does not show.
    expected = unknown * (1 - draws[""] / left)
    assert 0.9 * expected < sum(others.values()) < expected
    for word in ngram.vocabulary:
        assert found[word] == pytest.approx(math.exp(word_log_prob(ngram, word)), rel=1e-5)


def test_unknown_words_are_possible_and_unlikely(ngram, tokenizer):
    scorer = WordLookahead(ngram, tokenizer)
    known, other = "THE CAT SAT", "THE TAC SAT"
    score = sentence_log_prob(scorer, tokenizer.encode(other))
    # What follows is that of the unknown word's history.
    assert -math.inf < score < word_log_prob(ngram, other)
    assert score < sentence_log_prob(scorer, tokenizer.encode(known)) - 3


def test_odd_spellings_count_as_unknown_words(tmp_path):
    tokenizer = train_tokenizer(tmp_path / "m", TEXTS, SIZES["bpe"], "bpe")
    scorer = WordLookahead(NGram.estimate(TEXTS), tokenizer)
    canonical = tokenizer.encode("THE CAT")
    odd = [tokenizer.piece_to_id(piece) for piece in ("▁", "T", "H", "E", "▁C", "AT")]
    assert tokenizer.decode(odd) == tokenizer.decode(canonical) == "THE CAT"
    assert sentence_log_prob(scorer, canonical) > sentence_log_prob(scorer, odd) + 3 > -math.inf


@pytest.mark.parametrize("unspelt", [True, False])
def test_words_that_cannot_be_spelt_count_as_unknown(characters, unspelt):
    """They are in the n-gram and keep their probability, to be shared among what can be spelt."""
    texts = [*TEXTS, "QUIZ"] if unspelt else TEXTS
    scorer = WordLookahead(NGram.estimate(texts), characters)
    log_probs, _ = scorer.score(torch.tensor([BOS]), scorer.initial(1))
    assert log_probs.exp().sum().item() == pytest.approx(1)
    plain = WordLookahead(NGram.estimate(TEXTS), characters)
    tokens = characters.encode("TAC")
    gain = sentence_log_prob(scorer, tokens) - sentence_log_prob(plain, tokens)
    assert (gain > 0.3) == unspelt


def test_a_closed_vocabulary(tmp_path, characters):
    file = tmp_path / "closed.arpa"
    file.write_text(
        "\\data\\\nngram 1=4\n\\1-grams:\n"
        "-99 <s>\n-0.30103 </s>\n-0.60206 CAT\n-0.60206 MAT\n\\end\\"
    )
    scorer = WordLookahead(file, characters)
    for text, expected in [("CAT", -0.90309), ("", -0.30103), ("CAT MAT", -1.50515)]:
        found = sentence_log_prob(scorer, characters.encode(text)) / math.log(10)
        assert found == pytest.approx(expected, abs=1e-4)
    for text in ("CATS", "TA", "A CAT"):
        assert sentence_log_prob(scorer, characters.encode(text)) == -math.inf


@pytest.mark.parametrize("text", ["", "▁", "▁▁", "CAT▁", "▁CAT", "CAT▁▁MAT"])
def test_odd_spaces_are_possible_and_unlikely(characters, text):
    """An empty word is an unknown one: no hypothesis of a search is lost to a double space."""
    scorer = WordLookahead(NGram.estimate(TEXTS), characters)
    tokens = [characters.piece_to_id(character) for character in text]
    plain = characters.encode(" ".join(text.replace("▁", " ").split()))
    score = sentence_log_prob(scorer, tokens)
    assert score > -math.inf
    if tokens != plain:
        assert score < sentence_log_prob(scorer, plain) - 2


def test_hypotheses_do_not_disturb_each_other(ngram, tokenizer):
    scorer, alone = WordLookahead(ngram, tokenizer), WordLookahead(ngram, tokenizer, cache_size=1)
    sentences = [tokenizer.encode(text)[:3] for text in ("THE CATS", "DON'T", "A DOG ATE")]
    columns = torch.tensor([sentence + [EOS] * (3 - len(sentence)) for sentence in sentences]).T
    state = scorer.initial(3)
    old = list(state)
    for tokens in [torch.full((3,), BOS), *columns]:
        log_probs, state = scorer.score(tokens, state)
    assert old == list(scorer.initial(3))
    picked, _ = scorer.score(columns[0][[2, 0, 2]], scorer.select(state, torch.tensor([2, 0, 2])))
    assert torch.equal(picked[0], picked[2])
    for row, sentence in zip(log_probs, columns.T, strict=True):
        state = alone.initial(1)
        for token in [BOS, *sentence.tolist()]:
            again, state = alone.score(torch.tensor([token]), state)
        assert torch.equal(row, again[0])


def test_empty_batches(characters):
    scorer = WordLookahead(NGram.estimate(TEXTS), characters)
    log_probs, state = scorer.score(torch.zeros(0, dtype=torch.long), scorer.initial(0))
    assert log_probs.shape == (0, SIZES["char"])
    assert scorer.select(state, torch.zeros(0, dtype=torch.long)) == []


def test_many_words(tmp_path):
    rng = np.random.default_rng(0)
    letters = np.array(list("ABCDEFGHIJ"))
    words = ["".join(rng.choice(letters, size)) for size in rng.integers(2, 12, 1000)]
    texts = [" ".join(rng.choice(words, 6)) for _ in range(200)]
    ngram = NGram.estimate(texts, 2)
    tokenizer = train_tokenizer(tmp_path / "m", texts, 60, "bpe")
    scorer = WordLookahead(ngram, tokenizer, cache_size=10**5)
    for text in texts[:20]:
        score = sentence_log_prob(scorer, tokenizer.encode(text))
        assert score == pytest.approx(word_log_prob(ngram, text), abs=1e-4)
    tokens = torch.tensor([BOS])
    state = scorer.initial(1)
    for _ in range(40):
        log_probs, state = scorer.score(tokens, state)
        assert log_probs.exp().sum().item() == pytest.approx(1, abs=1e-5)
        log_probs[0, EOS] = -math.inf
        tokens = torch.multinomial(log_probs.exp(), 1)[0]


def test_from_yaml_before_the_files_are_there(tmp_path):
    yaml = f"""
tokenizer: !new:sentencepiece.SentencePieceProcessor
lm: !new:sru_asr.decode.WordLookahead
    ngram: {tmp_path}/words.arpa
    tokenizer: !ref <tokenizer>
"""
    hparams = load_hyperpyyaml(yaml)
    lm = hparams["lm"]
    assert lm.state_dict() == {}
    with pytest.raises(FileNotFoundError, match=r"words.arpa: no such file"):
        lm.initial(1)
    NGram.estimate(TEXTS).write_arpa(tmp_path / "words.arpa")
    with pytest.raises(ValueError, match="tokenizer: found none loaded"):
        lm.initial(1)
    train_tokenizer(tmp_path / "m", TEXTS, SIZES["char"])
    hparams["tokenizer"].load(str(tmp_path / "m"))
    before, _ = lm.score(torch.tensor([BOS]), lm.initial(1))
    NGram.estimate(["NO"] * 9 + ["CAT"]).write_arpa(tmp_path / "other.arpa")
    lm.load(tmp_path / "other.arpa")
    after, _ = lm.score(torch.tensor([BOS]), lm.initial(1))
    n = hparams["tokenizer"].encode("N")[0]
    assert after[0, n] > before[0, n] + 1


def test_another_case_is_noticed(characters):
    scorer = WordLookahead(NGram.estimate(["the cat"]), characters)
    with pytest.raises(ValueError, match=r"spell none of the n-gram's words \(cat, the\)"):
        scorer.initial(1)


class Pieces(SentencePieceProcessor):
    """A tokenizer whose pieces are not what they should be."""

    def __init__(self, path, piece):
        super().__init__(model_file=str(path))
        self.piece = piece

    def id_to_piece(self, index):
        piece = super().id_to_piece(index)
        return self.piece if piece == "▁" else piece


@pytest.mark.parametrize(
    ("piece", "message"),
    [("▁A", "found no dummy prefix, but ▁A to begin words with"), ("A▁B", "found the piece 'A▁B'")],
)
def test_unfit_tokenizers(tmp_path, piece, message):
    train_tokenizer(tmp_path / "m", TEXTS, SIZES["char"])
    tokenizer = Pieces(tmp_path / "m", piece)
    with pytest.raises(ValueError, match=message):
        WordLookahead(NGram.estimate(TEXTS), tokenizer).initial(1)
