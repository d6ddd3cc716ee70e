"""Alignment: words of posteriors made by hand are where they were put."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_folder import make_models
from torch import nn

from sru_asr.alignment import SHORTEST, AlignmentError, WordAligner, align_tokens, spell
from sru_asr.model import CTCPosteriors, SpeechEncoder
from sru_asr.model_folder import load_model
from sru_asr.tokenizer import train_tokenizer

FRAME = 0.04


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    return make_models(tmp_path_factory)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    texts = ["ABBA CAB", "A BAD CAB"]
    return {
        "char": train_tokenizer(folder / "char.model", texts, 8),
        "bpe": train_tokenizer(folder / "bpe.model", texts, 12, "bpe"),
        "unigram": train_tokenizer(folder / "unigram.model", texts, 10, "unigram"),
    }


def aligner(tokenizer):
    """A WordAligner whose frames are log posteriors, 40 ms each."""
    speech = SpeechEncoder.__new__(SpeechEncoder)
    nn.Module.__init__(speech)
    speech.hop_length = 160
    speech.subsampling = SimpleNamespace(factor=4)
    mods = SimpleNamespace(encoder=CTCPosteriors(speech, nn.Identity()))
    hparams = SimpleNamespace(sample_rate=16000)
    return WordAligner(SimpleNamespace(mods=mods, tokenizer=tokenizer, hparams=hparams))


def posteriors(tokenizer, frames, at, sure=0.9):
    """Log posteriors, blank but where `at` (frame to piece) says so; shape (1, T, V)."""
    size = tokenizer.vocab_size()
    probabilities = torch.full((frames, size), (1 - sure) / (size - 1))
    tokens = [tokenizer.piece_to_id(at[i]) if i in at else 0 for i in range(frames)]
    probabilities[range(frames), tokens] = sure
    return probabilities.log()[None]


WHOLE = torch.ones(1)


def test_words_are_where_they_were_put(tokenizers):
    at = {5: "A", 10: "▁", 20: "B", 22: "A", 23: "D"}
    frames = posteriors(tokenizers["char"], 40, at)
    place = aligner(tokenizers["char"])
    [words] = place.align(frames, WHOLE, ["A BAD"], [100.0], [101.6])
    assert [word.text for word in words] == ["A", "BAD"]
    expected = [(5, 5), (20, 23)]
    for word, (first, last) in zip(words, expected, strict=True):
        assert word.start == pytest.approx(100 + first * FRAME - place.head)
        assert word.end == pytest.approx(100 + last * FRAME + place.tail)
        assert word.confidence == pytest.approx(0.9)


def test_neighbours_meet_halfway(tokenizers):
    frames = posteriors(tokenizers["char"], 40, {5: "A", 6: "▁", 7: "A"})
    place = aligner(tokenizers["char"])
    place.head = place.tail = 0.05
    [(one, two)] = place.align(frames, WHOLE, ["A A"], [0.0], [1.6])
    assert one.end == two.start == pytest.approx(6 * FRAME)


@pytest.mark.parametrize("kind", ["char", "bpe", "unigram"])
def test_every_tokenizer_gives_every_word_its_tokens(tokenizers, kind):
    tokenizer = tokenizers[kind]
    words = ["A", "BAD", "ÉX", "CAB", "B?A"]
    spelling = spell(tokenizer, words)
    for index, word in enumerate(words):
        own = [token for token, at in spelling if at == index]
        assert own
        pieces = [tokenizer.id_to_piece(token) if token else "" for token in own]
        assert all(letter in "▁" + word for piece in pieces for letter in piece)
        assert (None in own) == (index in (2, 4))
    # The pieces of a sentence are those of its words.
    sentence = [token for token, _ in spell(tokenizer, ["A", "BAD", "CAB"])]
    assert sentence == tokenizer.encode("A BAD CAB")


def test_confidence_is_the_geometric_mean_of_the_tokens_best_frames(tokenizers):
    tokenizer = tokenizers["char"]
    frames = posteriors(tokenizer, 12, {2: "B", 3: "B", 6: "A"}, sure=0.5)
    frames[0, 3] = posteriors(tokenizer, 1, {0: "B"}, sure=0.8)[0, 0]
    [[word]] = aligner(tokenizer).align(frames, WHOLE, ["BA"], [0.0], [0.5])
    assert word.confidence == pytest.approx(math.sqrt(0.8 * 0.5))
    [[word]] = aligner(tokenizer).align(frames, WHOLE, ["BÉA"], [0.0], [0.5])
    assert word.confidence == 0


def test_repeated_letters_are_two_tokens(tokenizers):
    tokenizer = tokenizers["char"]
    frames = posteriors(tokenizer, 9, {1: "B", 2: "B", 4: "B", 7: "A"})[0]
    tokens = [tokenizer.piece_to_id(piece) for piece in "BBA"]
    assert [(t.first, t.last) for t in align_tokens(frames, tokens)] == [(1, 2), (4, 4), (7, 7)]


def test_the_alignment_is_the_most_probable_of_all():
    generator = torch.Generator().manual_seed(1)
    for tokens in ([1], [1, 2], [2, 2], [1, 2, 1], [1, 1, 1]):
        frames = (2 * torch.randn(6, 3, generator=generator)).log_softmax(-1)
        scores = {}
        for path in itertools.product(range(3), repeat=6):
            runs = [token for token, _ in itertools.groupby(path)]
            if [token for token in runs if token] == tokens:
                scores[path] = frames[range(6), path].sum().item()
        best = max(scores, key=scores.get)
        expected, position = [], 0
        for token, run in itertools.groupby(best):
            length = len(list(run))
            if token:
                most = frames[position : position + length, token].max().item()
                expected.append((position, position + length - 1, pytest.approx(most)))
            position += length
        assert [tuple(token) for token in align_tokens(frames, tokens)] == expected


def test_a_sequence_gives_the_same_in_any_batch(tokenizers):
    tokenizer = tokenizers["char"]
    long = posteriors(tokenizer, 20, {3: "C", 5: "A", 9: "B"})
    short = posteriors(tokenizer, 10, {2: "B", 4: "A", 7: "D"})
    padded = torch.cat([short, torch.full_like(short, math.nan)], 1)
    place = aligner(tokenizer)
    together = place.align(
        torch.cat([long, padded]), torch.tensor([1.0, 0.5]), ["CAB", "BAD"], [0, 5], [0.8, 5.4]
    )
    assert together[0] == place.align(long, WHOLE, ["CAB"], [0], [0.8])[0]
    assert together[1] == place.align(short, WHOLE, ["BAD"], [5], [5.4])[0]


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.text("ABCD É?", max_size=6), max_size=8),
    st.integers(0, 40),
    st.floats(0, 1e5),
    st.floats(0.001, 3),
    st.integers(0, 1000),
    st.sampled_from(["char", "bpe", "unigram"]),
)
def test_words_are_in_order_and_within(tokenizers, texts, frames, start, seconds, seed, kind):
    tokenizer = tokenizers[kind]
    generator = torch.Generator().manual_seed(seed)
    noise = 3 * torch.randn(1, frames, tokenizer.vocab_size(), generator=generator)
    text, end = " ".join(texts), start + seconds
    [words] = aligner(tokenizer).align(noise.log_softmax(-1), WHOLE, [text], [start], [end])
    assert [word.text for word in words] == text.split()
    edges = [time for word in words for time in (word.start, word.end)]
    assert edges == sorted(edges)
    assert all(start <= time <= end + 1e-9 for time in edges)
    assert all(word.start < word.end for word in words)
    least = min(SHORTEST, seconds / len(words)) if words else 0
    assert all(word.end - word.start >= least - 1e-9 for word in words)
    assert all(0 <= word.confidence <= 1 for word in words)


def test_a_text_that_needs_more_frames_is_spread_evenly(tokenizers):
    frames = posteriors(tokenizers["char"], 4, {})
    [words] = aligner(tokenizers["char"]).align(frames, WHOLE, ["BAD BAD"], [1.0], [1.6])
    assert [(word.start, word.end, word.confidence) for word in words] == [
        (1.0, pytest.approx(1.3), 0.0),
        (pytest.approx(1.3), 1.6, 0.0),
    ]


def test_no_text_no_words(tokenizers):
    frames = posteriors(tokenizers["char"], 4, {})
    assert aligner(tokenizers["char"]).align(frames, WHOLE, [" "], [0], [1]) == [()]


def test_what_cannot_be_aligned_is_an_error(tokenizers):
    place = aligner(tokenizers["char"])
    frames = posteriors(tokenizers["char"], 4, {})
    with pytest.raises(AlignmentError, match="NaN posteriors in sequence 0"):
        place.align(frames * math.nan, WHOLE, ["A"], [0], [1])
    with pytest.raises(AlignmentError, match="sequence 0: found 1 s to 1 s, expected an end"):
        place.align(frames, WHOLE, ["A"], [1], [1])


@pytest.mark.parametrize("name", ["ctc", "joint", "speechbrain"])
def test_model_folders(models, name):
    model = load_model(models[name], "cpu")
    place = WordAligner(model)
    assert place.frame_seconds == FRAME
    wavs = torch.randn(2, 16000, generator=torch.Generator().manual_seed(1)) / 10
    frames, lengths = model.mods.encoder.encode(wavs, torch.tensor([1.0, 0.5]))
    first, second = place.align(frames, lengths, ["AB DE", "E"], [0, 1], [1, 1.5])
    assert [word.text for word in first] == ["AB", "DE"]
    assert 0 <= first[0].start < first[1].end <= 1 <= second[0].start < second[0].end <= 1.5


def test_models_without_known_posteriors_or_times_are_refused(models):
    model = load_model(models["joint"], "cpu")
    del model.mods["ctc_output"]
    with pytest.raises(AlignmentError, match="without a CTC output, expected one with modules"):
        WordAligner(model)
    model = load_model(models["joint"], "cpu")
    model.mods["encoder"] = nn.Identity()
    with pytest.raises(AlignmentError, match="found Identity, expected SpeechEncoder"):
        WordAligner(model)
