"""Rescoring against sums written out by hand, with language models that are tables."""

import math

import pytest
import torch

from sru_asr.decode import NBestRescorer, SRULanguageModel
from sru_asr.decode.rescore import sentence_log_probs
from sru_asr.decode.result import Hypothesis, SearchResult
from sru_asr.decode.scorer import TokenScorer
from sru_asr.tokenizer import BOS, EOS

VOCAB = 7


class Bigram(TokenScorer):
    """Looks up the next token by the last two, which it has to carry along."""

    def __init__(self, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        table = torch.randn(VOCAB, VOCAB, VOCAB, generator=generator)
        self.register_buffer("table", table.log_softmax(-1))
        self.calls = 0

    def initial(self, size, device=None):
        return torch.zeros(size, dtype=torch.long, device=device)

    def score(self, tokens, state):
        self.calls += 1
        return self.table[state, tokens], tokens

    def select(self, state, rows):
        return state[rows]

    def by_hand(self, tokens):
        padded = [0, BOS, *tokens, EOS]
        return sum(
            self.table[a, b, c].item()
            for a, b, c in zip(padded, padded[1:], padded[2:], strict=False)
        )


class Listed(torch.nn.Module):
    """A searcher that knows its hypotheses beforehand."""

    def __init__(self, *found):
        super().__init__()
        self.found = [list(hypotheses) for hypotheses in found]

    def nbest(self, encoded, lengths):
        return self.found


FIRST = [
    Hypothesis((3, 4, 5), -1.0, {"ctc": -2.0}),
    Hypothesis((3,), -1.5, {"ctc": -3.0}),
    Hypothesis((), -4.0, {"ctc": -4.0}),
    Hypothesis((6, 6, 6, 6, 3, 4), -5.0, {"ctc": -9.0}),
]
SECOND = [Hypothesis((4, 4), -0.5, {"ctc": -1.0})]
ENCODED, LENGTHS = torch.zeros(2, 3, 4), torch.ones(2)


def rescorer(*args, found=(FIRST, SECOND), **options):
    return NBestRescorer(Listed(*found), *args, **options)


def test_sentences_are_summed_with_their_end():
    sentences = [(3, 4, 5), (), (6,), (2, 6, 6, 6, 3, 4, 5, 5), (6,)]
    scorer = Bigram()
    found = sentence_log_probs(scorer, sentences)
    expected = torch.tensor([scorer.by_hand(s) for s in sentences], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert scorer.calls == 9, "not side by side"
    assert sentence_log_probs(scorer, []).shape == (0,)
    assert sentence_log_probs(scorer, [()]).item() == pytest.approx(scorer.by_hand(()))


def test_sentences_of_the_sru_are_those_of_its_whole_sequence():
    model = SRULanguageModel(VOCAB, 6, 8, num_layers=2, projection_size=4).double().eval()
    torch.nn.init.ones_(model.layers[1].project.alpha)
    sentences = [(3, 4, 5), (), (6, 3, 3, 4, 5)]
    found = sentence_log_probs(model, sentences)
    for sentence, total in zip(sentences, found, strict=True):
        log_probs = model(torch.tensor([[BOS, *sentence]]))[0]
        expected = log_probs.gather(1, torch.tensor([*sentence, EOS])[:, None]).sum()
        torch.testing.assert_close(total, expected)


def test_scores_parts_and_order():
    scorer = Bigram()
    first, second = rescorer(scorer, 0.7, token_bonus=0.3).nbest(ENCODED, LENGTHS)
    expected = sorted(
        ((h.score + 0.7 * scorer.by_hand(h.tokens) + 0.3 * len(h.tokens), h) for h in FIRST),
        reverse=True,
    )
    assert [h.tokens for h in first] == [old.tokens for _, old in expected]
    assert [h.tokens for h in first] != [h.tokens for h in FIRST]
    for new, (score, old) in zip(first, expected, strict=True):
        assert new.score == pytest.approx(score, rel=1e-6)
        assert new.parts == {
            "ctc": old.parts["ctc"],
            "lm": pytest.approx(scorer.by_hand(old.tokens)),
        }
    assert len(second) == 1


def test_several_models_by_name():
    one, two = Bigram(1), Bigram(2)
    searcher = rescorer({"ngram": one, "sru": two}, {"sru": 0.2, "ngram": 0.5})
    (best, *_), _ = searcher.nbest(ENCODED, LENGTHS)
    old = next(h for h in FIRST if h.tokens == best.tokens)
    a, b = one.by_hand(best.tokens), two.by_hand(best.tokens)
    assert best.score == pytest.approx(old.score + 0.5 * a + 0.2 * b)
    assert best.parts == {
        "ctc": old.parts["ctc"], "ngram": pytest.approx(a), "sru": pytest.approx(b)
    }  # fmt: skip


def test_it_is_a_searcher_and_can_be_wrapped():
    inner = rescorer(Bigram(1), 0.5)
    outer = NBestRescorer(inner, {"second": Bigram(2)}, {"second": 0.5})
    result = outer(ENCODED, LENGTHS)
    assert isinstance(result, SearchResult)
    best = [hypotheses[0] for hypotheses in outer.nbest(ENCODED, LENGTHS)]
    assert result.tokens == [list(h.tokens) for h in best]
    assert result.scores == [h.score for h in best]
    assert list(best[0].parts) == ["ctc", "lm", "second"]


def test_weight_zero_changes_nothing_but_the_parts():
    scorer = Bigram()
    scorer.table[:, :, EOS] = -math.inf
    first, _ = rescorer(scorer, 0.0).nbest(ENCODED, LENGTHS)
    assert [(h.tokens, h.score) for h in first] == [(h.tokens, h.score) for h in FIRST]
    assert all(h.parts["lm"] == -math.inf for h in first)


def test_what_a_model_has_for_impossible_comes_last():
    scorer = Bigram()
    scorer.table[BOS, 3] = -math.inf  # nothing may follow a 3 that begins the sentence
    first, _ = rescorer(scorer, 1e-3).nbest(ENCODED, LENGTHS)
    assert [h.tokens for h in first[-2:]] == [(3, 4, 5), (3,)]
    assert first[-1].score == -math.inf


def test_of_equals_the_searchers_first_stays_first():
    twins = [Hypothesis((3,), -1.0, {"rank": 1.0}), Hypothesis((3,), -1.0, {"rank": 2.0})]
    (found,) = rescorer(Bigram(), 0.5, found=[twins]).nbest(ENCODED, LENGTHS)
    assert [h.parts["rank"] for h in found] == [1.0, 2.0]


def test_sequences_without_hypotheses():
    assert rescorer(Bigram(), 0.5, found=[[], []]).nbest(ENCODED, LENGTHS) == [[], []]
    assert rescorer(Bigram(), 0.5, found=[]).nbest(ENCODED[:0], LENGTHS[:0]) == []


def test_models_move_and_rest_with_the_searcher():
    model = SRULanguageModel(VOCAB, 6, 8, num_layers=1, projection_size=4)
    searcher = rescorer(model, 0.5)
    assert set(model.parameters()) <= set(searcher.parameters())
    searcher.eval()
    assert not model.training
    (best, *_), _ = searcher.nbest(ENCODED, LENGTHS)
    assert isinstance(best.score, float)


@pytest.mark.parametrize(
    ("arguments", "error", "found"),
    [
        ((torch.nn.Identity(), Bigram(), 0.5), TypeError, "method nbest, got Identity"),
        ((Listed(), torch.nn.Identity(), 0.5), TypeError, "'lm' must be a TokenScorer, got Ident"),
        ((Listed(), {"a": Bigram()}, 0.5), ValueError, r"models \['a'\], got \['lm'\]"),
        ((Listed(), {"a": Bigram()}, {"a": 1, "b": 2}), ValueError, r"\['a'\], got \['a', 'b'\]"),
    ],
)
def test_what_does_not_fit_is_named(arguments, error, found):
    with pytest.raises(error, match=found):
        NBestRescorer(*arguments)


def test_means_over_tokens_are_refused():
    searcher = Listed()
    searcher.length_normalization = True
    with pytest.raises(ValueError, match="length_normalization False"):
        NBestRescorer(searcher, Bigram(), 0.5)


def test_another_tokenizers_model_is_refused():
    searcher = rescorer(Bigram(), 0.5, found=[[Hypothesis((3, VOCAB), -1.0, {})]])
    with pytest.raises(ValueError, match="found token 7 in a hypothesis, .* has 7 tokens"):
        searcher.nbest(ENCODED, LENGTHS)


def test_a_part_is_never_overwritten():
    searcher = rescorer(Bigram(), 0.5, found=[[Hypothesis((3,), -1.0, {"lm": -2.0})]])
    with pytest.raises(ValueError, match=r"parts \['lm'\] itself; give lm and weight"):
        searcher.nbest(ENCODED, LENGTHS)
