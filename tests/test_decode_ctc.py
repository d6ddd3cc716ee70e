"""Searches over CTC posteriors against the sum over all alignments, written out."""

import itertools
import math

import numpy as np
import pytest
import torch
from speechbrain.decoders.ctc import ctc_greedy_decode
from torch import nn

from sru_asr.decode.ctc import CTCBeamSearcher, CTCGreedySearcher
from sru_asr.decode.ctc_kenlm import KenlmCTCSearcher
from sru_asr.decode.lookahead import WordLookahead
from sru_asr.decode.ngram import NGram
from sru_asr.decode.scorer import TokenScorer
from sru_asr.tokenizer import BLANK, BOS, EOS, train_tokenizer

V = 6
ORDINARY = range(3, V)
WIDE = {"beam_size": 5000, "token_threshold": -math.inf}
WHOLE = torch.ones(1)


class TokenTrigrams(TokenScorer):
    """A random model of the next token after two; the state holds the last ones."""

    def __init__(self, impossible=()):
        super().__init__()
        logits = 2 * torch.randn(V, V, V, dtype=torch.float64)
        logits[..., [BLANK, BOS]] = -math.inf
        for ngram in impossible:
            logits[ngram] = -math.inf
        self.log_probs = logits.log_softmax(-1)
        self.asked = 0

    def initial(self, size, device=None):
        return torch.zeros(size, dtype=torch.long)

    def score(self, tokens, state):
        self.asked += len(tokens)
        return self.log_probs[state, tokens], tokens

    def select(self, state, rows):
        return state[rows]

    def sentence(self, tokens):
        padded = [0, BOS, *tokens, EOS]
        return sum(
            self.log_probs[t].item()
            for t in zip(padded[:-2], padded[1:-1], padded[2:], strict=True)
        )


def sums_over_alignments(log_probs):
    """Log probability of every sequence of ordinary tokens."""
    sums = {}
    for path in itertools.product([BLANK, *ORDINARY], repeat=len(log_probs)):
        tokens = tuple(token for token, _ in itertools.groupby(path) if token != BLANK)
        score = sum(frame[token] for frame, token in zip(log_probs.tolist(), path, strict=True))
        sums[tokens] = float(np.logaddexp(sums.get(tokens, -math.inf), score))
    return sums


@pytest.mark.parametrize("frames", range(6))
@pytest.mark.parametrize("scale", [1, 4])
def test_all_hypotheses_without_a_language_model(frames, scale):
    encoded = scale * torch.randn(1, frames, V, dtype=torch.float64)
    [found] = CTCBeamSearcher(nn.Identity(), **WIDE).nbest(encoded, WHOLE)
    expected = sums_over_alignments(encoded[0].float().log_softmax(-1))
    assert len(found) == len(expected) == len({h.tokens for h in found})
    for hypothesis in found:
        assert hypothesis.score == pytest.approx(expected[hypothesis.tokens], abs=1e-5)
        assert hypothesis.parts == {"ctc": hypothesis.score}
    scores = [hypothesis.score for hypothesis in found]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("frames", range(6))
@pytest.mark.parametrize(("weight", "bonus"), [(0.7, 0.0), (1.5, -0.4), (0.0, 0.3)])
def test_all_hypotheses_with_a_language_model(frames, weight, bonus):
    encoded, lm = torch.randn(1, frames, V), TokenTrigrams()
    search = CTCBeamSearcher(nn.Identity(), lm=lm, lm_weight=weight, token_bonus=bonus, **WIDE)
    [found] = search.nbest(encoded, WHOLE)
    expected = sums_over_alignments(encoded[0].log_softmax(-1))
    assert {h.tokens for h in found} == expected.keys()
    for tokens, score, parts in found:
        assert parts["ctc"] == pytest.approx(expected[tokens], abs=1e-5)
        assert parts.get("lm", 0) == pytest.approx(lm.sentence(tokens) if weight else 0)
        total = parts["ctc"] + weight * lm.sentence(tokens) + bonus * len(tokens)
        assert score == pytest.approx(total)
    assert bool(lm.asked) == bool(weight)
    best = max(expected, key=lambda t: expected[t] + weight * lm.sentence(t) + bonus * len(t))
    result = search(encoded, WHOLE)
    assert (result.tokens, result.scores) == ([list(best)], [found[0].score])


@pytest.mark.parametrize("lm_weight", [0.5, 0.0])
def test_what_the_language_model_forbids(lm_weight):
    lm = TokenTrigrams(impossible=[(0, BOS, 3), (slice(None), slice(None), 4), (4, 5, EOS)])
    encoded = torch.randn(1, 5, V)
    search = CTCBeamSearcher(nn.Identity(), lm=lm, lm_weight=lm_weight, **WIDE)
    [found] = search.nbest(encoded, WHOLE)
    assert not any(math.isnan(hypothesis.score) for hypothesis in found)
    allowed = {t: lm.sentence(t) > -math.inf for t in sums_over_alignments(encoded[0])}
    for hypothesis in found:
        assert math.isfinite(hypothesis.score) == (allowed[hypothesis.tokens] or not lm_weight)
    assert sum(math.isfinite(h.score) for h in found) >= sum(allowed.values())


def test_nothing_but_the_impossible_is_left():
    frames = torch.full((1, 2, V), -math.inf)
    frames[..., 4] = 0  # no blank, and a token that must not be
    lm = TokenTrigrams(impossible=[(slice(None), slice(None), 4)])
    [[best, *others]] = CTCBeamSearcher(nn.Identity(), lm=lm).nbest(frames, WHOLE)
    assert best.score == -math.inf
    assert not others


@pytest.mark.parametrize("beam_size", [1, 3, 8])
def test_a_narrow_beam_finds_nearly_as_good(beam_size):
    lm, wide, narrow = TokenTrigrams(), [], []
    for _ in range(10):
        encoded = 2 * torch.randn(1, 6, V)
        search = CTCBeamSearcher(nn.Identity(), lm=lm, **WIDE)
        true = {h.tokens: h for h in search.nbest(encoded, WHOLE)[0]}
        search = CTCBeamSearcher(nn.Identity(), beam_size, lm)
        [found] = search.nbest(encoded, WHOLE)
        assert 1 <= len(found) <= beam_size
        assert len({h.tokens for h in found}) == len(found)
        for tokens, score, parts in found:
            # Alignments may have been lost, none may be counted twice.
            assert score <= true[tokens].score + 1e-6
            assert parts["lm"] == pytest.approx(true[tokens].parts["lm"])
        wide.append(max(h.score for h in true.values()))
        narrow.append(found[0].score)
    assert np.mean(narrow) > np.mean(wide) - {1: 3, 3: 0.5, 8: 0.1}[beam_size]


def test_unlikely_tokens_are_not_appended():
    encoded = torch.full((1, 30, V), -20.0)
    encoded[..., BLANK] = 0
    encoded[:, 10, 3] = encoded[:, 20, 4] = 3
    lm = TokenTrigrams()
    search = CTCBeamSearcher(nn.Identity(), lm=lm, token_threshold=-5)
    assert {h.tokens for h in search.nbest(encoded, WHOLE)[0]} == {(), (3,), (4,), (3, 4)}
    assert lm.asked == 4  # each prefix once, however many frames


def test_a_token_again_needs_a_blank_between():
    path = [3, 3, BLANK, 3, 4, 4, BLANK, BLANK, 4]
    encoded = 20 * torch.eye(V)[path][None]
    for search in (CTCBeamSearcher(nn.Identity()), CTCGreedySearcher(nn.Identity())):
        assert search(encoded, WHOLE).tokens == [[3, 3, 4, 4]]


@pytest.mark.parametrize("kind", ["greedy", "beam", "lm"])
def test_a_sequence_is_the_same_in_any_batch(kind):
    output = nn.Linear(7, V)
    searches = {
        "greedy": CTCGreedySearcher(output),
        "beam": CTCBeamSearcher(output, 4),
        "lm": CTCBeamSearcher(output, 4, TokenTrigrams()),
    }
    search = searches[kind]
    encoded = 3 * torch.randn(5, 11, 7)
    steps = [11, 0, 1, 6, 10]
    for i, count in enumerate(steps):
        encoded[i, count:] = math.nan
    batched = search.nbest(encoded, torch.tensor(steps) / 11)
    for i, count in enumerate(steps):
        assert search.nbest(encoded[i : i + 1, :count], WHOLE) == [batched[i]]
    assert batched[1][0].tokens == ()
    assert search(encoded, torch.tensor(steps) / 11).tokens == [list(n[0].tokens) for n in batched]
    with pytest.raises(ValueError, match="NaN posteriors in sequence 3 of the batch"):
        search(encoded, torch.tensor([11, 0, 1, 7, 10]) / 11)


def test_greedy_is_the_upstream_one():
    encoded, lengths = 2 * torch.randn(8, 50, V), torch.rand(8)
    log_probs = encoded.log_softmax(-1)
    expected = ctc_greedy_decode(log_probs, lengths, blank_id=BLANK)
    result = CTCGreedySearcher(nn.Identity())(encoded, lengths)
    assert result.tokens == expected
    best = [
        frames[: round(n * 50)].max(-1).values.sum()
        for frames, n in zip(log_probs, lengths.tolist(), strict=True)
    ]
    assert result.scores == pytest.approx([score.item() for score in best], rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam_size": 0}, "beam_size: found 0"),
        ({"lm_weight": -0.1}, "lm_weight: found -0.1"),
        ({"lm_weight": math.nan}, "lm_weight: found nan"),
        ({"token_bonus": math.inf}, "token_bonus: found inf"),
        ({"token_threshold": 0.0}, "token_threshold: found 0.0"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        CTCBeamSearcher(nn.Identity(), **options)


@pytest.fixture
def spoken(tmp_path):
    """Texts, their tokenizer, their n-gram's file, and frames that half say THE CAT."""
    texts = ["THE CAT SAT", "A CAT", "THE MAT"] * 3
    tokenizer = train_tokenizer(tmp_path / "m", texts, len(set("".join(texts))) + 3)
    NGram.estimate(texts, 2).write_arpa(tmp_path / "words.arpa")
    path = [BLANK]
    for token in tokenizer.encode("THE CAT"):
        path += [token, BLANK]
    frames = torch.full((1, len(path), tokenizer.vocab_size()), -8.0)
    frames[0, range(len(path)), path] = 0
    first, c = tokenizer.encode("S")[0], tokenizer.encode("C")[0]
    frames[frames[..., c] == 0, :] = frames[frames[..., c] == 0].index_fill(
        -1, torch.tensor([first]), 0.5
    )
    return tokenizer, tmp_path / "words.arpa", frames


def test_words_win_over_sounds(spoken):
    """The sixth letter sounds more like an S than a C; no word does."""
    tokenizer, arpa, frames = spoken
    lm = WordLookahead(arpa, tokenizer)
    for search, text in [
        (CTCGreedySearcher(nn.Identity()), "THE SAT"),
        (CTCBeamSearcher(nn.Identity()), "THE SAT"),
        (CTCBeamSearcher(nn.Identity(), lm=lm), "THE CAT"),
    ]:
        assert tokenizer.decode(search(frames, WHOLE).tokens) == [text]


def test_kenlm(spoken):
    pytest.importorskip("kenlm", reason="needs the extra kenlm")
    tokenizer, arpa, frames = spoken
    search = KenlmCTCSearcher(
        nn.Identity(), arpa, tokenizer, lm_weight=0.8, word_bonus=0.3, token_prune_min_logp=-20.0
    )
    batch = torch.cat([frames, frames]).index_fill(1, torch.tensor([14]), 0.0)
    [found, nothing] = search.nbest(batch, torch.tensor([14 / 15, 0.0]))
    assert [h.tokens for h in nothing] == [()]
    assert len(found) > 1
    ngram = NGram.read_arpa(arpa)
    true = {}
    for tokens, score, parts in found:
        words = tokenizer.decode(list(tokens)).split()
        assert score == pytest.approx(parts["ctc"] + 0.8 * parts["lm"] + 0.3 * len(words))
        true[" ".join(words)] = parts["lm"]
    words = ["<s>", "THE", "CAT"]
    expected = sum(ngram.log_prob(words[i], words[:i]) for i in (1, 2))
    assert true["THE CAT"] == pytest.approx(expected, abs=1e-4)
    assert tokenizer.decode(search(batch, torch.tensor([1.0, 0.0])).tokens) == ["THE CAT", ""]


def test_kenlm_files_are_read_at_first_use(spoken, tmp_path):
    pytest.importorskip("kenlm", reason="needs the extra kenlm")
    tokenizer, _, frames = spoken
    search = KenlmCTCSearcher(nn.Identity(), tmp_path / "none.arpa", tokenizer)
    with pytest.raises(FileNotFoundError, match=r"none.arpa: no such file"):
        search(frames, WHOLE)
    with pytest.raises(ValueError, match="lm_weight: found 0"):
        KenlmCTCSearcher(nn.Identity(), "words.arpa", tokenizer, lm_weight=0)


def test_missing_kenlm_names_the_extra(monkeypatch):
    monkeypatch.setattr("sru_asr.decode.ctc_kenlm.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"kenlm and pygtrie: pip install sru-asr\[kenlm\]"):
        KenlmCTCSearcher(nn.Identity(), "words.arpa", None)
