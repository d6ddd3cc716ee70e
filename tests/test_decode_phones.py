"""Rescoring by phones against probabilities summed over all paths."""

import itertools
import math

import pytest
import torch

from sru_asr.decode import PhoneRescorer
from sru_asr.decode.result import Hypothesis
from sru_asr.lexicon import Lexicon

WORDS = {2: "AB", 3: "A", 4: "NONE", 5: "BA"}  # tokens


class Tokenizer:
    def decode(self, tokens):
        return " ".join(WORDS[token] for token in tokens)


class Listed(torch.nn.Module):
    """A searcher that knows its hypotheses beforehand."""

    def __init__(self, *found):
        super().__init__()
        self.found = [
            [Hypothesis(tokens, score, {"ctc": score}) for tokens, score in each] for each in found
        ]

    def nbest(self, encoded, lengths):
        return self.found


@pytest.fixture
def lexicon(tmp_path):
    path = tmp_path / "lexicon.txt"
    path.write_text("A a\nAB a b\nBA b a\n", encoding="utf-8")
    return Lexicon(path)


def rescorer(lexicon, *found, **options):
    torch.manual_seed(0)
    output = torch.nn.Linear(4, lexicon.size)
    return PhoneRescorer(Listed(*found), output, lexicon, Tokenizer(), **options)


def over_all_paths(log_probs, phones):
    """Log probability of all alignments that collapse to the phones."""
    total = -math.inf
    for path in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        collapsed = [key for key, _ in itertools.groupby(path) if key]
        if collapsed == phones:
            score = sum(log_probs[t, p].item() for t, p in enumerate(path))
            total = max(total, score) + math.log1p(math.exp(-abs(total - score)))
    return total


FOUND = [((3, 2), -1.0), ((2,), -1.5), ((5, 4), 9.0), ((), -0.2)]


def test_scores_are_sums_over_all_paths_and_the_batch_does_not_matter(lexicon):
    searcher = rescorer(lexicon, FOUND, FOUND[:2], [((), 0.0)], weight=0.7)
    encoded, lengths = torch.randn(3, 6, 4), torch.tensor([1.0, 4 / 6, 0.0])
    encoded[1, 4:] = math.nan  # padding
    encoded[2] = math.nan
    ranked = searcher.nbest(encoded, lengths)
    log_probs = searcher.phone_output(encoded).log_softmax(-1)
    for i, (frames, hypotheses) in enumerate([(6, FOUND), (4, FOUND[:2])]):
        expected = {}
        for tokens, score in hypotheses:
            if 4 not in tokens:
                phones = lexicon.encode(Tokenizer().decode(tokens))
                phones = over_all_paths(log_probs[i, :frames], phones)
                expected[tokens] = score + 0.7 * phones
        found = [h for h in ranked[i] if h.tokens != (5, 4)]
        assert {h.tokens: h.score for h in found} == pytest.approx(expected, abs=1e-5)
        assert found == sorted(found, key=lambda h: -h.score)
        for h in found:
            assert h.score == pytest.approx(h.parts["ctc"] + 0.7 * h.parts["phones"])
    assert ranked[0][-1].tokens == (5, 4)  # NONE is no word, whatever its score
    assert ranked[0][-1].parts["phones"] == -math.inf
    assert ranked[2] == [Hypothesis((), 0.0, {"ctc": 0.0, "phones": 0.0})]


def test_without_weight_the_order_stays(lexicon):
    searcher = rescorer(lexicon, FOUND, weight=0.0)
    ranked = searcher.nbest(torch.randn(1, 6, 4), torch.ones(1))[0]
    assert [h.tokens for h in ranked] == [(5, 4), (), (3, 2), (2,)]
    assert [h.score for h in ranked] == [9.0, -0.2, -1.0, -1.5]
    nameless = [((5, 4), 1.0), ((4,), 3.0)]
    searcher = rescorer(lexicon, nameless, weight=0.5)
    best = searcher(torch.randn(1, 6, 4), torch.ones(1))
    assert best.tokens == [[5, 4]]  # nothing can be pronounced: as the searcher had them


def test_bad_options_are_refused(lexicon):
    output = torch.nn.Linear(4, lexicon.size)
    with pytest.raises(TypeError, match="must have a method nbest, got Linear"):
        PhoneRescorer(output, output, lexicon, Tokenizer())
    means = Listed()
    means.length_normalization = True
    with pytest.raises(ValueError, match="length_normalization False"):
        PhoneRescorer(means, output, lexicon, Tokenizer())
    with pytest.raises(ValueError, match="weight must be at least 0, got -1"):
        PhoneRescorer(Listed(), output, lexicon, Tokenizer(), weight=-1)
