"""The SRU++ encoder: where attention is, and that a batch has no effect on its sequences."""

import copy
import pickle

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from sru_asr import SRUEncoder, attention, blocks, encoder

MACARON = {"d_ffn": 5, "num_heads": 3}


def build(alpha=1.0, **options):
    options = {"attention_every": 1, "num_heads": 2} | options
    encoder = SRUEncoder(3, 4, 3, 4, **options)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
            if name.endswith("alpha"):
                parameter.fill_(alpha)
    return encoder.double()


@pytest.mark.parametrize(
    ("attention_every", "expected"),
    [
        (0, []),
        (1, [0, 1, 2, 3, 4, 5]),
        (2, [1, 3, 5]),
        (3, [2, 5]),
        (4, [3]),
        (6, [5]),
        (7, []),
    ],
)
def test_attention_is_in_every_kth_layer(attention_every, expected):
    encoder = SRUEncoder(3, 4, 6, 4, attention_every=attention_every)
    attentive = [hasattr(layer.project, "alpha") for layer in encoder.layers]
    assert [i for i, found in enumerate(attentive) if found] == expected


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("batch", "steps"), [(2, 5), (1, 1), (0, 5), (2, 0), (0, 0)])
@pytest.mark.parametrize("with_lengths", [False, True])
@pytest.mark.parametrize("d_ffn", [0, 5])
def test_shapes(d_ffn, bidirectional, batch, steps, with_lengths):
    encoder = SRUEncoder(3, 4, 2, 4, attention_every=1, bidirectional=bidirectional, d_ffn=d_ffn)
    assert encoder.output_size == (3 if d_ffn else 8 if bidirectional else 4)
    lengths = torch.ones(batch) if with_lengths else None
    output = encoder(torch.randn(batch, steps, 3), lengths)
    assert output.shape == (batch, steps, encoder.output_size)
    output.sum().backward()


@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), -1e30])
@pytest.mark.parametrize("lengths", [[3, 6, 0, 1], [5, 2, 4, 0]], ids=str)
@pytest.mark.parametrize(
    "options", [{}, {"bidirectional": False}, {"conv_kernel": 5}, MACARON], ids=str
)
def test_a_sequence_gives_the_same_alone_and_in_a_batch(garbage, lengths, options):
    encoder = build(**options)
    data = torch.randn(4, 6, 3, dtype=torch.float64)
    for b, n in enumerate(lengths):
        data[b, n:] = garbage
    x = data.clone().requires_grad_()
    output = encoder(x, torch.tensor(lengths) / 6)
    weight = torch.randn_like(output)
    (output * weight).sum().backward()
    gradients = [p.grad for p in encoder.parameters()]
    encoder.zero_grad()
    for b, n in enumerate(lengths):
        alone = data[b : b + 1, :n].clone().requires_grad_()
        h = encoder(alone)
        (h * weight[b : b + 1, :n]).sum().backward()
        torch.testing.assert_close(output[b : b + 1, :n], h)
        assert output[b, n:].eq(0).all()
        torch.testing.assert_close(x.grad[b : b + 1, :n], alone.grad)
        assert x.grad[b, n:].eq(0).all()
    for together, parameter in zip(gradients, encoder.parameters(), strict=True):
        torch.testing.assert_close(together, parameter.grad)


@pytest.mark.parametrize("options", [{}, {"conv_kernel": 5}, MACARON], ids=str)
def test_only_real_steps_of_the_same_sequence_have_an_effect(options):
    encoder = build(**options)
    x, lengths = torch.randn(3, 6, 3, dtype=torch.float64), torch.tensor([1.0, 0.5, 0.5])
    expected = encoder(x, lengths)
    changed = x.clone()
    changed[1, 3:] += 5  # padding
    changed[2] += 5  # another sequence
    output = encoder(changed, lengths)
    assert torch.equal(output[:2], expected[:2])
    changed[1, 2, 0] += 5  # the last real step is seen from the first one
    assert not torch.equal(encoder(changed, lengths)[1, 0], expected[1, 0])


def test_attention_reaches_back_where_the_recurrence_cannot():
    x = torch.randn(1, 6, 3, dtype=torch.float64)
    for alpha, sees_ahead in ((0.0, False), (1.0, True)):
        encoder = build(alpha, bidirectional=False)
        changed = x.clone()
        changed[0, 5] += 1
        same = torch.equal(encoder(x)[0, :5], encoder(changed)[0, :5])
        assert same != sees_ahead


def test_alpha_starts_at_zero():
    encoder = SRUEncoder(3, 4, 4, 4, num_heads=2, attention_every=2)
    assert [layer.project.alpha.item() for layer in encoder.layers[1::2]] == [0, 0]


@pytest.mark.parametrize("lengths", [None, torch.tensor([1.0, 0.4])], ids=["all", "padded"])
@pytest.mark.parametrize("options", [{}, MACARON], ids=str)
def test_layer_outputs(options, lengths):
    encoder = build(**options)
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    steps = None if lengths is None else (lengths * 5).round().long()
    outputs = encoder.encode_steps(x, steps)
    assert [tuple(t.shape) for t in outputs] == [(2, 5, encoder.output_size)] * 3
    assert torch.equal(outputs[-1], encoder(x, lengths))
    if lengths is not None:
        assert all(t[1, 2:].eq(0).all() for t in outputs)


def test_dropout_spares_the_last_layer_and_evaluation():
    encoder = build(dropout=0.5)
    assert [layer.recurrence.dropout for layer in encoder.layers] == [0.5, 0.5, 0.0]
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    assert not torch.equal(encoder(x), encoder(x))
    encoder.eval()
    assert torch.equal(encoder(x), encoder(x))


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"input_size": 0}, "input_size"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"num_layers": 0}, "num_layers"),
        ({"projection_size": 0}, "projection_size"),
        ({"num_heads": 0}, "num_heads"),
        ({"num_heads": 3}, "num_heads"),
        ({"attention_every": -1}, "attention_every"),
        ({"dropout": 2.0}, "^dropout"),
        ({"attention_dropout": -1.0}, "^attention_dropout"),
        ({"conv_kernel": 2}, "^conv_kernel must be odd, or 0 for none, got 2"),
        ({"conv_kernel": 3, "conv_dropout": 1.5}, "^conv_dropout"),
        ({"attention_window": 0}, "attention_window"),
        ({"d_ffn": -1}, "^d_ffn must be 0"),
        ({"d_ffn": 5, "conv_kernel": 3}, "^d_ffn=5 goes with conv_kernel=0"),
        ({"d_ffn": 5, "num_heads": 2}, "multiple of num_heads, got 3 and 2"),
        ({"d_ffn": 5, "attention_window": 0}, "attention_window"),
        ({"d_ffn": 5, "attention_window": 0, "attention_every": 0}, "attention_window"),
    ],
    ids=str,
)
def test_wrong_options_are_named(options, name):
    sizes = {"input_size": 3, "hidden_size": 4, "num_layers": 2, "projection_size": 4}
    with pytest.raises(ValueError, match=name):
        SRUEncoder(**{**sizes, **options})


@pytest.mark.parametrize(
    ("x", "lengths", "error", "name"),
    [
        (torch.zeros(2, 5, 4), None, ValueError, "x must"),
        (torch.zeros(5, 3), None, ValueError, "x must"),
        (torch.zeros(2, 5, 3), torch.tensor([5, 3]), TypeError, "lengths must be relative"),
        (torch.zeros(2, 5, 3), torch.tensor([5.0, 3.0]), ValueError, "lengths must be relative"),
        (torch.zeros(2, 5, 3), torch.tensor([1.0]), ValueError, "lengths must have shape"),
    ],
)
def test_wrong_arguments_are_named(x, lengths, error, name):
    with pytest.raises(error, match=name):
        SRUEncoder(3, 4, 2, 4)(x, lengths)


@pytest.mark.parametrize("options", [{}, MACARON], ids=str)
def test_copies_compute_the_same(options):
    encoder = build(**options)
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    for other in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
        assert torch.equal(encoder(x), other(x))
    other = build(alpha=0.5, **options)
    other.load_state_dict(encoder.state_dict())
    assert torch.equal(encoder(x), other(x))


@pytest.mark.parametrize("d_ffn", [0, 24])
def test_bfloat16_autocast_stays_close(d_ffn):
    encoder = SRUEncoder(16, 16, 2, 16, num_heads=2, attention_every=1, d_ffn=d_ffn)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if name.endswith("alpha"):
                parameter.fill_(1)
    x, lengths = torch.randn(3, 12, 16), torch.tensor([1.0, 0.6, 0.0])
    weight = torch.randn(3, 12, encoder.output_size)
    results = []
    for enabled in (False, True):
        encoder.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            output = encoder(x, lengths)
        (output.float() * weight).sum().backward()
        results.append((output.float(), *(p.grad.clone() for p in encoder.parameters())))
    for exact, rounded in zip(*results, strict=True):
        error = (rounded - exact).norm() / exact.norm()
        assert error < 0.06


@pytest.mark.parametrize("options", [{}, MACARON], ids=str)
def test_activation_checkpointing_gives_the_same_gradients(options):
    encoder = build(dropout=0.3, attention_dropout=0.2, **options)
    x, lengths = torch.randn(2, 5, 3).double(), torch.tensor([1.0, 0.6])
    gradients = []
    for wrap in (lambda f, *a: f(*a), lambda f, *a: checkpoint(f, *a, use_reentrant=False)):
        torch.manual_seed(1)
        encoder.zero_grad()
        wrap(encoder, x, lengths).square().sum().backward()
        gradients.append([p.grad.clone() for p in encoder.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("attention_every", [0, 1, 2])
@pytest.mark.parametrize("window", [1, 4, 70, 1000])
@pytest.mark.parametrize("options", [{}, MACARON], ids=str)
def test_window_limits_attention(options, window, attention_every):
    model = build(attention_every=attention_every, attention_window=window, **options)
    everywhere = build(attention_every=attention_every, **options)
    everywhere.load_state_dict(model.state_dict())
    x, steps = torch.randn(3, 80, 3, dtype=torch.float64), torch.tensor([80, 33, 0])
    # The window as one mask over all pairs of steps; a padded step, which nobody reads, sees
    # itself.
    time = torch.arange(80)
    padded, distance = time >= steps[:, None], (time[:, None] - time).abs()
    attend = ((distance <= window) & ~padded[:, None, None]) | (distance == 0)
    h = x.masked_fill(padded[:, :, None], 0).transpose(0, 1)
    for layer in everywhere.layers:
        h, _ = layer(h, None, steps, attend)
    expected = everywhere.norm(h.transpose(0, 1)).masked_fill(padded[:, :, None], 0)
    found = model(x, steps / 80)
    torch.testing.assert_close(found, expected)
    weight = torch.randn_like(expected)
    for output in (found, expected):
        (output * weight).sum().backward()
    for ours, theirs in zip(model.parameters(), everywhere.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_window_as_long_as_the_sequence_is_global_attention():
    model = build(attention_window=5)
    everywhere = build()
    everywhere.load_state_dict(model.state_dict())
    x = torch.randn(2, 6, 3, dtype=torch.float64)
    assert torch.equal(model(x), everywhere(x))
    longer = torch.randn(2, 7, 3, dtype=torch.float64)
    assert not torch.allclose(model(longer), everywhere(longer))


@pytest.fixture
def short_blocks(monkeypatch):
    """Blocks of a few steps, in attention, recurrence and normalisation."""
    for module in (attention, encoder):
        monkeypatch.setattr(module, "PART_ROWS", 24)
    for name, value in {"WHOLE_BYTES": 0, "BLOCK_BYTES": 0, "BLOCK_ROWS": 21}.items():
        monkeypatch.setattr(blocks, name, value)


@pytest.mark.usefixtures("short_blocks")
@pytest.mark.parametrize(
    ("options", "lengths"),
    [
        ({}, None),
        ({"attention_every": 2}, [1.0, 0.35, 0.0]),
        ({"attention_every": 2, "conv_kernel": 7}, [1.0, 0.35, 0.0]),
        ({"conv_kernel": 3}, None),
        ({"bidirectional": False, "attention_window": 9}, [1.0, 0.35, 0.0]),
        (MACARON, None),
        (MACARON | {"attention_every": 2}, [1.0, 0.35, 0.0]),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_blocks_of_inference_change_nothing(options, lengths, dtype):
    model = build(**{"attention_window": 3} | options).to(dtype).eval()
    x = torch.randn(3, 101, 3, dtype=dtype)
    given, lengths = x.clone(), None if lengths is None else torch.tensor(lengths)
    expected = model(x, lengths)
    with torch.no_grad():
        found = model(x, lengths)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    assert torch.equal(x, given)


@pytest.mark.usefixtures("short_blocks")
@pytest.mark.parametrize("options", [{}, MACARON], ids=str)
def test_no_output_that_somebody_has_seen_is_written_over(options):
    model = build(attention_window=3, **options).eval()
    x, seen = torch.randn(1, 101, 3, dtype=torch.float64), []
    with torch.no_grad():
        expected = model.encode_steps(x)
        handles = [
            layer.register_forward_hook(lambda module, args, output: seen.append(output[0]))
            for layer in model.layers
        ]
        last = model(x)
        for handle in handles:
            handle.remove()
        torch.testing.assert_close(model(x), last)
    torch.testing.assert_close(last, expected[-1])
    for found, layer in zip(seen[:-1], expected, strict=False):
        torch.testing.assert_close(found.transpose(0, 1), layer)


@pytest.mark.slow
@pytest.mark.parametrize(("window", "with_lengths"), [(None, True), (None, False), (3, True)])
@pytest.mark.parametrize("options", [{}, {"conv_kernel": 5}, MACARON], ids=str)
def test_compiles_once_into_one_graph(window, with_lengths, options):
    encoder = build(attention_window=window, **options).float()
    compiled = torch.compile(encoder, fullgraph=True, dynamic=True)
    for batch, steps in ((2, 40), (3, 50), (4, 150)):  # 32 steps or fewer are another graph
        x, lengths = torch.randn(batch, steps, 3), torch.rand(batch) if with_lengths else None
        with torch._dynamo.config.patch(error_on_recompile=batch > 2):
            expected, found = encoder(x, lengths), compiled(x, lengths)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        gradients = []
        for output in (expected, found):
            encoder.zero_grad()
            output.square().sum().backward()
            gradients.append([p.grad.clone() for p in encoder.parameters()])
        torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-4)
