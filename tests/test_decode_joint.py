"""The joint search: SpeechBrain's hypotheses and scores, brute force, and the sources alone."""

import itertools
import math
from contextlib import contextmanager

import pytest
import torch
from speechbrain.decoders import S2STransformerBeamSearcher
from speechbrain.decoders.scorer import CTCScorer, ScorerBuilder
from speechbrain.lobes.models.transformer import TransformerASR as transformer_asr
from speechbrain.nnet.linear import Linear
from torch import nn

from sru_asr import SRUTransformerASR
from sru_asr.decode.ctc_prefix import CTCPrefixes
from sru_asr.decode.joint import JointBeamSearcher
from sru_asr.decode.scorer import TokenScorer
from sru_asr.decode.transformer_decoder import AttentionPrefixes

BLANK, BOS, EOS, VOCABULARY, WIDTH, STEPS = 0, 1, 2, 8, 16, 13
SIZES = {
    "tgt_vocab": VOCABULARY,
    "input_size": 6,
    "d_model": WIDTH,
    "nhead": 2,
    "num_encoder_layers": 1,
    "num_decoder_layers": 2,
    "d_ffn": 32,
    "dropout": 0.1,
    "activation": nn.GELU,
}
KINDS = {
    "srupp": lambda: SRUTransformerASR(**SIZES),
    "conformer": lambda: transformer_asr.TransformerASR(
        **SIZES,
        encoder_module="conformer",
        attention_type="RelPosMHAXL",
        normalize_before=True,
        causal=False,
        kernel_size=3,
    ),
    "post_norm": lambda: transformer_asr.TransformerASR(
        **{**SIZES, "activation": nn.ReLU}, normalize_before=False, causal=False
    ),
}


class Setting:
    """A random model with sharp outputs in float64, and what its encoder makes of noise."""

    def __init__(self, kind="srupp", seed=0, lengths=(1.0,), steps=STEPS):
        torch.manual_seed(seed)
        self.transformer = KINDS[kind]().eval()
        self.attention_output, self.ctc_output = (
            Linear(input_size=WIDTH, n_neurons=VOCABULARY) for _ in range(2)
        )
        self.lengths = torch.tensor(lengths)
        with torch.no_grad():
            self.attention_output.w.weight *= 4
            self.attention_output.w.bias[EOS] += 2
            self.ctc_output.w.weight *= 4
            self.ctc_output.w.bias[BLANK] += 2
            for parameter in self.transformer.decoder.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
            src = torch.randn(len(lengths), steps, 6)
            self.encoded = self.transformer.encode(src, self.lengths).double()
        for module in self.modules:
            module.double()

    @property
    def modules(self):
        return self.transformer, self.attention_output, self.ctc_output

    def searcher(self, **options):
        return JointBeamSearcher(*self.modules, **options)

    def nbest(self, **options):
        return self.searcher(**options).nbest(self.encoded, self.lengths)


@contextmanager
def double():
    """Let SpeechBrain's decoding, which makes some tensors of the default dtype, use float64."""
    lookahead = transformer_asr.get_lookahead_mask
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(transformer_asr, "get_lookahead_mask", lambda x: lookahead(x).double())
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(torch.float32)


def decode(transformer, tokens, encoded, steps=None):
    """Run the decoder on whole prefixes."""
    with double():
        return transformer.decode(tokens, encoded, steps)[0]


class Upstream(S2STransformerBeamSearcher):
    """With ``ctc_weight=1`` each step's scores begin from 0, not from those of the step before."""

    def _attn_weight_step(self, inp_tokens, memory, enc_states, enc_lens, attn, log_probs):
        if self.attn_weight == 0:
            log_probs = torch.zeros_like(log_probs)
        return super()._attn_weight_step(inp_tokens, memory, enc_states, enc_lens, attn, log_probs)


def upstream(setting, beam_size, ctc_weight, **options):
    """Return SpeechBrain's hypotheses and their scores for the first sequence."""
    options = {"min_decode_ratio": 0.0, "max_decode_ratio": 1.0, **options}
    search = Upstream(
        modules=[setting.transformer, setting.attention_output],
        bos_index=BOS,
        eos_index=EOS,
        beam_size=beam_size,
        using_eos_threshold=False,
        return_topk=True,
        topk=beam_size,
        scorer=ScorerBuilder(
            full_scorers=[CTCScorer(eos_index=EOS, blank_index=BLANK, ctc_fc=setting.ctc_output)],
            weights={"ctc": ctc_weight},
        ),
        **options,
    )
    with double():
        tokens, lengths, scores, _ = search(setting.encoded[:1].clone(), torch.ones(1))
    counts = (lengths[0] * tokens.shape[2]).round().int().tolist()
    return [tuple(row[:n].tolist()) for row, n in zip(tokens[0], counts, strict=True)], scores[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("beam_size", [1, 4, 10])
@pytest.mark.parametrize("ctc_weight", [0.0, 0.4, 1.0])
def test_hypotheses_and_scores_are_upstreams(kind, beam_size, ctc_weight):
    lengths = set()
    for seed, normalized in ((0, True), (1, True), (2, False)):
        setting = Setting(kind, seed)
        expected, scores = upstream(setting, beam_size, ctc_weight, length_normalization=normalized)
        options = {"beam_size": beam_size, "ctc_weight": ctc_weight}
        options["length_normalization"] = normalized
        [found] = setting.nbest(**options)
        for hypothesis, tokens in zip(found, expected, strict=False):
            # SpeechBrain takes an end off unfinished hypotheses too, where there is none.
            assert hypothesis.tokens in (tokens, (*tokens, *hypothesis.tokens[-1:]))
            lengths.add(len(tokens))
        # SpeechBrain's CTC posteriors are float32; a hypothesis that is impossible is -1e20.
        possible = scores[scores > -1e10]
        assert len(found) >= len(possible)
        ours = [hypothesis.score for hypothesis in found[: len(possible)]]
        assert ours == pytest.approx(possible.tolist(), rel=1e-5, abs=1e-5)
        best = setting.searcher(**options)(setting.encoded, setting.lengths)
        assert best.tokens == [list(found[0].tokens)]
        assert best.scores == [found[0].score]
    assert len(lengths) > (1 if beam_size > 1 else 0)


def test_decoding_ratios_are_upstreams():
    setting = Setting(seed=3)
    free = setting.nbest()[0][0]
    longer = (len(free.tokens) + 3) / STEPS
    expected, scores = upstream(setting, 10, 0.4, min_decode_ratio=longer)
    found = setting.nbest(min_decode_ratio=longer)[0]
    assert found[0].tokens == expected[0] and len(found[0].tokens) >= len(free.tokens) + 3
    assert found[0].score == pytest.approx(scores[0].item(), abs=1e-5)
    expected, scores = upstream(setting, 10, 0.4, max_decode_ratio=2.5 / STEPS)
    found = setting.nbest(max_decode_ratio=2.5 / STEPS)[0]
    assert found[0].score == pytest.approx(scores[0].item(), abs=1e-5)
    assert max(len(hypothesis.tokens) for hypothesis in found) <= 2
    assert len({hypothesis.tokens for hypothesis in found}) == len(found)
    # Never more than the decoder has positions for; SpeechBrain then fails.
    setting.transformer.positional_encoding_decoder.pe = torch.zeros(1, 2, WIDTH).double()
    found = setting.nbest(min_decode_ratio=1.0)[0]
    assert {len(hypothesis.tokens) for hypothesis in found} == {2}


@pytest.mark.parametrize("ctc_weight", [0.0, 0.4, 1.0])
def test_sequences_do_not_depend_on_their_batch(ctc_weight):
    lengths = (1.0, 0.0, 5 / STEPS, 10 / STEPS, 1 / STEPS)
    setting = Setting("post_norm", seed=1, lengths=lengths)
    lm = Bigram()
    options = {"ctc_weight": ctc_weight, "beam_size": 6, "lm": lm, "lm_weight": 0.3}
    setting.encoded[1:2] = math.nan
    setting.encoded[2, 5:] = math.nan
    together = setting.nbest(**options)
    best = setting.searcher(**options)(setting.encoded, setting.lengths)
    for i, length in enumerate(lengths):
        count = round(length * STEPS)
        [alone] = setting.searcher(**options).nbest(
            setting.encoded[i : i + 1, :count], torch.ones(1)
        )
        assert [h.tokens for h in together[i]] == [h.tokens for h in alone]
        for one, other in zip(together[i], alone, strict=True):
            assert one.score == pytest.approx(other.score, rel=1e-9)
            assert one.parts == pytest.approx(other.parts, rel=1e-9)
        assert best.tokens[i] == list(alone[0].tokens)
    assert together[1][0] == ((), 0.0, dict.fromkeys(together[0][0].parts, 0.0))
    assert setting.searcher()(setting.encoded[:0], torch.ones(0)).tokens == []


@pytest.mark.parametrize("kind", ["srupp", "post_norm"])
def test_decoder_is_that_of_whole_prefixes(kind):
    """Over more steps than nodes are kept for, with beams that fork, die and change in number."""
    steps = torch.tensor([9, 7, 3])
    setting = Setting(kind, lengths=(1.0, 7 / 9, 1 / 3), steps=9)
    transformer, output, _ = setting.modules
    transformer.train()  # dropout is never applied
    encoded = setting.encoded.masked_fill(torch.arange(9)[:, None] >= steps[:, None, None], 0)
    with torch.no_grad():
        prefixes = AttentionPrefixes(transformer, output, encoded, steps, BOS, temperature=1.5)
    transformer.eval()
    histories, sequences = torch.full((3, 1, 1), BOS), torch.arange(3)
    totals = torch.zeros(3, 1, dtype=torch.float64)
    for step in range(36):
        with torch.no_grad():
            found = prefixes.score()
        size, beams, _ = histories.shape
        if step % 5 == 0 or step > 30:
            decoded = decode(
                transformer,
                histories.flatten(0, 1),
                encoded[sequences].repeat_interleave(beams, 0),
                steps[sequences].repeat_interleave(beams),
            )
            log_probs = (output(decoded[:, -1]) / 1.5).log_softmax(-1).detach()
            torch.testing.assert_close(found, totals[:, :, None] + log_probs.view(size, beams, -1))
        kept = torch.tensor([0, 2]) if step == 24 else None
        going_on = torch.arange(size) if kept is None else kept
        sequences = sequences[going_on]
        shape = len(going_on), (1, 3, 5, 2)[step % 4]
        going_on = going_on[:, None]
        inside, tokens = torch.randint(0, beams, shape), torch.randint(1, VOCABULARY, shape)
        totals = found[going_on, inside, tokens]
        histories = torch.cat([histories[going_on, inside], tokens[:, :, None]], 2)
        with torch.no_grad():
            prefixes.extend(going_on * beams + inside, tokens, kept)
    assert prefixes.mask.shape[2] < 36 * 2  # nodes that no hypothesis needs have been dropped


def collapse(path):
    """What a CTC path spells."""
    return tuple(token for token, _ in itertools.groupby(path) if token != BLANK)


def test_ctc_prefix_scores_are_sums_over_all_paths():
    vocabulary, lengths = 4, (5, 1, 3)
    log_probs = (3 * torch.randn(3, 5, vocabulary)).log_softmax(-1)
    prefixes = CTCPrefixes(log_probs, torch.tensor(lengths), BLANK, EOS)
    padded = log_probs.clone()
    padded[2, 3:] = math.nan  # is not read
    others = CTCPrefixes(padded, torch.tensor(lengths), BLANK, EOS)
    spelt = [{}, {}, {}]  # the probability of each text
    for x, length, texts in zip(log_probs.tolist(), lengths, spelt, strict=True):
        for path in itertools.product(range(vocabulary), repeat=length):
            p = math.exp(sum(frame[token] for frame, token in zip(x, path, strict=False)))
            texts[collapse(path)] = texts.get(collapse(path), 0.0) + p

    hypotheses = [()]  # the same for all three sequences
    for tokens in ([1, 3], [3, 3, 1], [3, 1, 3, 3]):
        scores = prefixes.score().exp()
        assert torch.equal(others.score().exp(), scores)
        for found, texts in zip(scores.tolist(), spelt, strict=True):
            for row, hypothesis in zip(found, hypotheses, strict=True):
                begun = [0.0] * vocabulary
                for text, p in texts.items():
                    if text[: len(hypothesis)] == hypothesis and len(text) > len(hypothesis):
                        begun[text[len(hypothesis)]] += p
                begun[EOS] = texts.get(hypothesis, 0.0)
                assert row == pytest.approx(begun, rel=1e-6)
        beams = len(hypotheses)
        rows = [(2 * k + 1) % beams for k in range(len(tokens))]
        hypotheses = [(*hypotheses[row], token) for row, token in zip(rows, tokens, strict=True)]
        for each in (prefixes, others):
            first = beams * torch.arange(3)[:, None]
            each.extend(torch.tensor([rows]) + first, torch.tensor([tokens] * 3))


def test_ctc_of_long_recordings_loses_nothing():
    """Scores over 2000 frames, of a text that is far from likely, as by a loop over frames."""
    frames, vocabulary = 2000, 6
    log_probs = (20 * torch.randn(1, frames, vocabulary)).log_softmax(-1).double()
    prefixes = CTCPrefixes(log_probs, torch.tensor([frames]), BLANK, EOS)
    x = log_probs[0].tolist()
    nonblank, blank = [-math.inf] * (frames + 1), [0.0]
    for frame in x:
        blank.append(blank[-1] + frame[BLANK])
    last = None
    for token in (3, 3, 4, 1):
        total = [log_add(n, b) for n, b in zip(nonblank, blank, strict=True)]
        phi = blank if token == last else total
        nonblank, blank = [-math.inf], [-math.inf]
        expected = -math.inf
        for t, frame in enumerate(x):
            expected = log_add(expected, phi[t] + frame[token])
            blank.append(log_add(nonblank[t], blank[t]) + frame[BLANK])
            nonblank.append(log_add(nonblank[t], phi[t]) + frame[token])
        found = prefixes.score()[0, 0]
        assert found[token].item() == pytest.approx(expected, rel=1e-12, abs=1e-9)
        assert found[EOS].item() == pytest.approx(total[-1], rel=1e-12, abs=1e-9)
        prefixes.extend(torch.tensor([[0]]), torch.tensor([[token]]))
        last = token


def log_add(a, b):
    high, low = max(a, b), min(a, b)
    return high if high == -math.inf else high + math.log1p(math.exp(low - high))


class Bigram(TokenScorer):
    """A fake language model; its state is the sum of each hypothesis's tokens."""

    def __init__(self, vocabulary=VOCABULARY):
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        table = 2 * torch.randn(vocabulary, vocabulary, generator=generator, dtype=torch.float64)
        self.table = table.log_softmax(-1)

    def initial(self, size, device=None):
        return torch.zeros(size, device=device)

    def score(self, tokens, state):
        # Sharpened by what came before, so that another hypothesis's state is noticed.
        state = state + tokens
        return (state[:, None] / 2 * self.table[tokens]).log_softmax(-1), state

    def select(self, state, rows):
        return state[rows]

    def log_prob(self, tokens):
        state, total = self.initial(1), 0.0
        for before, after in itertools.pairwise((BOS, *tokens, EOS)):
            log_probs, state = self.score(torch.tensor([before]), state)
            total += log_probs[0, after].item()
        return total


def test_language_model_fusion_is_brute_force():
    """With a beam that keeps all, the best of all texts of up to two tokens."""
    ctc_weight, lm_weight, steps = 0.3, 0.8, 3
    setting, lm = Setting(seed=5, steps=steps), Bigram()
    transformer, attention_output, ctc_output = setting.modules
    with torch.no_grad():
        ctc = ctc_output(setting.encoded)[0].log_softmax(-1)
    spelt = {}
    for path in itertools.product(range(VOCABULARY), repeat=steps):
        p = ctc[range(steps), path].sum().exp().item()
        spelt[collapse(path)] = spelt.get(collapse(path), 0.0) + p
    expected = {}
    letters = [token for token in range(1, VOCABULARY) if token != EOS]
    for n in range(3):
        texts = list(itertools.product(letters, repeat=n))
        inputs = torch.tensor([(BOS, *tokens) for tokens in texts])
        decoded = decode(transformer, inputs, setting.encoded.expand(len(texts), -1, -1))
        with torch.no_grad():
            log_probs = attention_output(decoded).log_softmax(-1)
        for tokens, row in zip(texts, log_probs, strict=True):
            parts = {
                "attention": row[range(n + 1), [*tokens, EOS]].sum().item(),
                "ctc": math.log(spelt[tokens]),
                "lm": lm.log_prob(tokens),
            }
            score = (1 - ctc_weight) * parts["attention"] + ctc_weight * parts["ctc"]
            expected[tokens] = (score + lm_weight * parts["lm"]) / (n + 1), parts
    options = {"beam_size": 50, "ctc_weight": ctc_weight, "lm": lm}
    [found] = setting.nbest(lm_weight=lm_weight, **options)
    ended = {h.tokens: h for h in found if len(h.tokens) < 3}
    assert len(ended) > 10
    for tokens, hypothesis in ended.items():
        score, parts = expected[tokens]
        assert hypothesis.score == pytest.approx(score)
        assert hypothesis.parts == pytest.approx(parts)
    best = max(expected, key=lambda tokens: expected[tokens][0])
    assert max(ended.values(), key=lambda h: h.score).tokens == best
    [without] = setting.nbest(lm_weight=0.0, **options)
    assert [h.tokens for h in without] != [h.tokens for h in found]
    assert "lm" not in without[0].parts


def test_token_bonus_makes_up_for_length():
    bonus, changed = 1.5, 0
    for seed in range(6):
        setting = Setting(seed=seed, lengths=(1.0, 0.5))
        options = {"beam_size": VOCABULARY**3, "length_normalization": False}
        plain = setting.nbest(**options)
        ranked = setting.nbest(**options, token_bonus=bonus)
        best = setting.searcher(**options, token_bonus=bonus)(setting.encoded, setting.lengths)
        for before, after, tokens in zip(plain, ranked, best.tokens, strict=True):
            expected = {h.tokens: h.score + bonus * len(h.tokens) for h in before}
            found = {h.tokens: h.score for h in after}
            assert found == pytest.approx(expected)
            assert found[after[0].tokens] == max(found.values())
            assert tuple(tokens) == after[0].tokens  # that search ends as soon as it can
            changed += after[0].tokens != before[0].tokens
    assert changed


def test_float32_and_bfloat16_weights():
    setting = Setting(seed=1)
    expected = setting.nbest()[0][0]
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 0.2)):
        for module in setting.modules:
            module.to(dtype)
        found = setting.nbest()[0][0]
        assert found.score == pytest.approx(expected.score, rel=tolerance)
    assert setting.encoded.dtype == torch.float64  # any goes


def test_calls_as_speechbrains_inference_does():
    setting = Setting(lengths=(1.0, 0.5))
    searcher = setting.searcher()
    tokens, *_ = searcher(setting.encoded.float(), setting.lengths)
    assert len(tokens) == 2 and all(isinstance(token, int) for row in tokens for token in row)
    assert not torch.is_inference_mode_enabled()
    for hypotheses in searcher.nbest(setting.encoded, setting.lengths):
        scores = [hypothesis.score for hypothesis in hypotheses]
        assert 1 <= len(scores) <= 10 and scores == sorted(scores, reverse=True)
        assert set(hypotheses[0].parts) == {"attention", "ctc"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam_size": 0}, "beam_size must be at least 1, got 0"),
        ({"ctc_weight": 1.1}, "ctc_weight must be between 0 and 1, got 1.1"),
        ({"ctc_weight": math.nan}, "ctc_weight"),
        ({"lm_weight": 0.5}, "lm_weight is 0.5, but there is no lm"),
        ({"lm_weight": -1.0}, "lm_weight must be at least 0"),
        ({"lm": nn.Linear(1, 1)}, "lm must be a TokenScorer, got Linear"),
        ({"token_bonus": -0.1}, "token_bonus must be at least 0, got -0.1"),
        ({"token_bonus": 0.1}, "token_bonus needs length_normalization False"),
        ({"max_decode_ratio": 0.0}, "max_decode_ratio"),
        ({"min_decode_ratio": 2.0}, "got 2.0 and 1.0"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"bos_index": 2}, "three different tokens, got 2, 2 and 0"),
        ({"eos_index": 8}, "between 0 and 7, got 1, 8 and 0"),
        ({"blank_index": -1}, "between 0 and 7"),
    ],
    ids=str,
)
def test_bad_options_are_refused(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        Setting().searcher(**options)


def test_other_decoders_are_refused():
    _, *outputs = Setting().modules
    with pytest.raises(TypeError, match="must be a TransformerASR, got Linear"):
        JointBeamSearcher(nn.Linear(1, 1), *outputs)
    with pytest.raises(ValueError, match="num_decoder_layers must be at least 1"):
        JointBeamSearcher(SRUTransformerASR(**{**SIZES, "num_decoder_layers": 0}), *outputs)
    bare = transformer_asr.TransformerASR(**SIZES, positional_encoding=None, causal=False)
    with pytest.raises(ValueError, match="no positional_encoding: .* got None and 'regularMHA'"):
        JointBeamSearcher(bare, *outputs)
    other = KINDS["srupp"]()
    other.decoder.layers[1].pos_ffn = nn.Identity()
    with pytest.raises(TypeError, match="decoder.layers.1.pos_ffn must be a Positionalwise"):
        JointBeamSearcher(other, *outputs)
    other = KINDS["srupp"]()
    other.decoder.layers[0].self_attn.att = nn.MultiheadAttention(WIDTH, 2, bias=False)
    with pytest.raises(ValueError, match="decoder.layers.0.self_attn must be attention as"):
        JointBeamSearcher(other, *outputs)


def test_bad_input_is_refused():
    setting = Setting(lengths=(1.0, 0.5))
    with pytest.raises(ValueError, match="vocabulary.*'ctc': 8, 'lm': 5"):
        setting.nbest(lm=Bigram(5), lm_weight=1.0)
    setting.encoded[1] = math.nan
    with pytest.raises(ValueError, match="sequence 1 of the batch are not a number"):
        setting.nbest()
    with pytest.raises(ValueError, match="encoded must have shape .*, got"):
        setting.searcher()(setting.encoded[0], setting.lengths)
    with pytest.raises(TypeError, match="lengths must be relative"):
        setting.searcher()(setting.encoded, torch.tensor([5, 5]))
