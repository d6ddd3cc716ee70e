"""SRU against its equations, torch.nn.GRU's contract, and the promise of batch independence."""

import copy
import io
import math
import pickle
import warnings

import pytest
import torch
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import orthogonal, weight_norm
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

from sru_asr import SRU

OPTIONS = [
    {},
    {"projection_size": 3},
    {"layer_norm": "pre"},
    {"layer_norm": "post"},
    {"highway": False},
    {"highway_bias": -2.0},
    {"highway_bias": -2.0, "rescale": False},
    {"recurrent_gates": False},
    {"bias": False, "highway_bias": -1.0},
    {"activation": "tanh"},
    {"projection_size": 3, "layer_norm": "pre", "activation": "tanh", "highway_bias": -1.0},
    {"projection_size": 2, "layer_norm": "post", "recurrent_gates": False, "highway": False},
]


def name_options(options):
    return "-".join(f"{key}={value}" for key, value in options.items()) or "default"


def randomize(module):
    """Move every parameter off its initial value, so that none is tested at 0 or 1."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return module


def normalize(x, norm):
    mean = x.mean(-1, keepdim=True)
    variance = (x - mean).square().mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(variance + 1e-5) * norm.weight + norm.bias


def written_out(layer, x, c0, *, highway, highway_bias, rescale, activation, layer_norm):
    """One layer as the paper writes it, one number at a time; x (T, F), c0 (D,), one sequence."""
    steps, width, recurrence = len(x), layer.output_size, layer.recurrence
    z = normalize(x, layer.norm) if layer_norm == "pre" else x
    if layer.projection is not None:
        z = z @ layer.projection.T
    matrices = layer.weight.reshape(-1, width, z.shape[-1])
    alpha = math.sqrt(1 + 2 * math.exp(highway_bias)) if highway and rescale else 1.0
    half = width // 2 if recurrence.bidirectional else width
    h, c_n = torch.zeros(steps, width, dtype=x.dtype), torch.zeros(width, dtype=x.dtype)
    for d in range(width):
        c = c0[d]
        for t in range(steps) if d < half else reversed(range(steps)):
            vf, vr = (0, 0) if recurrence.v is None else recurrence.v[:, d]
            bf, br = recurrence.b[:, d]
            f = torch.sigmoid(matrices[1, d] @ z[t] + vf * c + bf)
            r = torch.sigmoid(matrices[2, d] @ z[t] + vr * c + br)
            c = f * c + (1 - f) * (matrices[0, d] @ z[t])
            g = torch.tanh(c) if activation == "tanh" else c
            if not highway:
                skip = 0
            elif x.shape[1] == width:
                skip = alpha * x[t, d]
            else:
                skip = matrices[3, d] @ z[t]
            h[t, d] = r * g + (1 - r) * skip
        c_n[d] = c
    return (normalize(h, layer.norm) if layer_norm == "post" else h), c_n


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("input_size", [4, 5], ids=["three_lanes", "four_lanes"])
@pytest.mark.parametrize("options", OPTIONS, ids=name_options)
def test_one_layer_is_the_equations(options, input_size, bidirectional):
    hidden = 2 if bidirectional else 4
    sru = randomize(
        SRU(input_size, hidden, bidirectional=bidirectional, dtype=torch.float64, **options)
    )
    x = torch.randn(5, 2, input_size, dtype=torch.float64)
    hx = torch.randn(2 if bidirectional else 1, 2, hidden, dtype=torch.float64)
    with torch.no_grad():
        output, c_n = sru(x, hx)
        for b in range(2):
            h, c = written_out(
                sru.layers[0],
                x[:, b],
                hx[:, b].flatten(),
                highway=options.get("highway", True),
                highway_bias=options.get("highway_bias", 0.0),
                rescale=options.get("rescale", True),
                activation=options.get("activation", "identity"),
                layer_norm=options.get("layer_norm"),
            )
            torch.testing.assert_close(output[:, b], h)
            torch.testing.assert_close(c_n[:, b].flatten(), c)


def test_layers_are_applied_one_after_the_other():
    stack = SRU(3, 2, num_layers=2, bidirectional=True, dtype=torch.float64)
    x, hx = torch.randn(4, 2, 3).double(), torch.randn(4, 2, 2).double()
    output, c_n = stack(x, hx)
    singles = [SRU(size, 2, bidirectional=True, dtype=torch.float64) for size in (3, 4)]
    states = []
    for i, single in enumerate(singles):
        single.layers[0].load_state_dict(stack.layers[i].state_dict())
        x, state = single(x, hx[2 * i : 2 * i + 2])
        states.append(state)
    torch.testing.assert_close(output, x)
    torch.testing.assert_close(c_n, torch.cat(states))


@pytest.mark.parametrize("options", OPTIONS, ids=name_options)
@pytest.mark.parametrize("input_size", [4, 3], ids=["three_lanes", "four_lanes"])
def test_gradients(options, input_size):
    sru = randomize(SRU(input_size, 2, bidirectional=True, dtype=torch.float64, **options))
    x = torch.randn(3, 2, input_size, dtype=torch.float64, requires_grad=True)
    hx = torch.randn(2, 2, 2, dtype=torch.float64, requires_grad=True)
    names, parameters = zip(*sru.named_parameters(), strict=True)

    def run(x, hx, *parameters):
        arguments = (x, hx, torch.tensor([3, 1]))
        return torch.func.functional_call(sru, dict(zip(names, parameters, strict=True)), arguments)

    assert torch.autograd.gradcheck(run, (x, hx, *parameters))


def test_without_bias_the_biases_are_fixed_values():
    sru = SRU(3, 4, bias=False, highway_bias=-2.0)
    assert not any(name.endswith("recurrence.b") for name, _ in sru.named_parameters())
    b = sru.layers[0].recurrence.b
    assert b[0].eq(0).all() and b[1].eq(-2).all() and not b.requires_grad


# Initial values


@pytest.mark.parametrize("layer_norm", [None, "pre"])
def test_initial_values_of_a_big_layer(layer_norm):
    sru = SRU(
        256, 192, 2, dropout=0.19, bidirectional=True, highway_bias=-1.0, layer_norm=layer_norm
    )
    scale = 1.0 if layer_norm is None else 0.01
    alpha = 1 + 2 * math.exp(-1)  # squared
    for layer, size, lanes in zip(sru.layers, (256, 384), (4, 3), strict=True):
        variances = layer.weight.view(lanes, -1).var(1)
        kept = 0.81 if layer is sru.layers[0] else 1.0  # 1 - dropout; the last layer has none
        expected = torch.tensor([kept, 0.5, 0.5, alpha][:lanes]) * scale / size
        torch.testing.assert_close(variances, expected, rtol=0.03, atol=0)
        v = layer.recurrence.v
        assert v.abs().max() <= math.sqrt(1.5)  # uniform: the bound is sqrt(3 * variance)
        torch.testing.assert_close(v.var(), torch.tensor(0.5), rtol=0.1, atol=0)
        assert layer.recurrence.b[0].eq(0).all() and layer.recurrence.b[1].eq(-1).all()


def test_initial_values_of_a_linear_recurrence_keep_the_gates_variance():
    layer = SRU(256, 256, recurrent_gates=False).layers[0]
    variances = layer.weight.view(3, -1).var(1)
    torch.testing.assert_close(variances, torch.full((3,), 1 / 256), rtol=0.03, atol=0)


def test_initial_values_of_a_factorised_product():
    layer = SRU(256, 256, projection_size=64, recurrent_gates=False).layers[0]
    torch.testing.assert_close(layer.weight.var(), torch.tensor(1 / 64), rtol=0.03, atol=0)
    torch.testing.assert_close(layer.projection.var(), torch.tensor(1 / 256), rtol=0.03, atol=0)


def test_reset_parameters_draws_anew():
    sru = SRU(3, 4, num_layers=2)
    before = copy.deepcopy(sru.state_dict())
    sru.reset_parameters()
    assert not torch.equal(before["layers.1.weight"], sru.layers[1].weight)
    assert not torch.equal(before["layers.1.recurrence.v"], sru.layers[1].recurrence.v)


# The contract of torch.nn.GRU


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("shape", [(5, 2, 3), (1, 1, 3), (4, 3)], ids=str)
@pytest.mark.parametrize("with_hx", [False, True])
def test_shapes_are_those_of_gru(bidirectional, num_layers, batch_first, shape, with_hx):
    arguments = (3, 6, num_layers, True, batch_first, 0.0, bidirectional)
    x, hx = torch.randn(shape), None
    if with_hx:
        batch = () if len(shape) == 2 else (shape[0 if batch_first else 1],)
        hx = torch.randn(num_layers * (1 + bidirectional), *batch, 6)
    expected = torch.nn.GRU(*arguments)(x, hx)
    found = SRU(*arguments)(x, hx)
    assert [t.shape for t in found] == [t.shape for t in expected]
    assert [t.dtype for t in found] == [t.dtype for t in expected]


@pytest.mark.parametrize("shape", [(0, 2, 3), (4, 0, 3), (0, 0, 3), (0, 3)], ids=str)
def test_no_steps_and_no_sequences(shape):
    sru = SRU(3, 2, num_layers=2, bidirectional=True, layer_norm="post")
    x = torch.randn(shape, requires_grad=True)
    hx = torch.randn(4, *shape[1:-1], 2)
    output, c_n = sru(x, hx)
    assert output.shape == (*shape[:-1], 4)
    assert c_n.shape == hx.shape
    if shape[0] == 0:
        torch.testing.assert_close(c_n, hx)
    (output.sum() + c_n.sum()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in sru.parameters())


def test_batch_first_and_unbatched_are_views_of_the_same_thing():
    sru = SRU(3, 2, num_layers=2, bidirectional=True, dtype=torch.float64)
    x, hx = torch.randn(5, 2, 3).double(), torch.randn(4, 2, 2).double()
    output, c_n = sru(x, hx)
    batch_first = SRU(3, 2, 2, batch_first=True, bidirectional=True, dtype=torch.float64)
    batch_first.load_state_dict(sru.state_dict())
    lengths = torch.tensor([5, 5])
    transposed, c_n_transposed = batch_first(x.transpose(0, 1), hx, lengths)
    torch.testing.assert_close(transposed.transpose(0, 1), output)
    torch.testing.assert_close(c_n_transposed, c_n)
    for module in (sru, batch_first):
        single, c_single = module(x[:, 1], hx[:, 1])
        torch.testing.assert_close(single, output[:, 1])
        torch.testing.assert_close(c_single, c_n[:, 1])


@pytest.mark.parametrize("cut", [0, 1, 4, 7])
def test_states_continue_a_sequence(cut):
    sru = randomize(SRU(3, 4, num_layers=3, layer_norm="post", dtype=torch.float64))
    x, hx = torch.randn(7, 2, 3).double(), torch.randn(3, 2, 4).double()
    output, c_n = sru(x, hx)
    first, state = sru(x[:cut], hx)
    second, state = sru(x[cut:], state)
    torch.testing.assert_close(torch.cat([first, second]), output)
    torch.testing.assert_close(state, c_n)


@pytest.mark.parametrize("enforce_sorted", [False, True])
@pytest.mark.parametrize("layer_norm", [None, "pre", "post"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_packed_sequences_are_padded_ones(enforce_sorted, layer_norm, batch_first):
    sru = randomize(
        SRU(3, 2, 2, True, batch_first, bidirectional=True, layer_norm=layer_norm).double()
    )
    lengths = [5, 3, 1] if enforce_sorted else [3, 1, 5]
    x, hx = torch.randn(5, 3, 3).double(), torch.randn(4, 3, 2).double()
    packed = pack_padded_sequence(x, lengths, enforce_sorted=enforce_sorted)
    output, c_n = sru(packed, hx)
    layout = (lambda t: t.transpose(0, 1)) if batch_first else (lambda t: t)
    expected, expected_c_n = sru(layout(x), hx, torch.tensor(lengths))
    padded, found_lengths = pad_packed_sequence(output)
    assert found_lengths.tolist() == lengths
    torch.testing.assert_close(padded, layout(expected))
    torch.testing.assert_close(c_n, expected_c_n)
    assert output.batch_sizes.tolist() == packed.batch_sizes.tolist()
    for name in ("sorted_indices", "unsorted_indices"):
        found, given = getattr(output, name), getattr(packed, name)
        assert (found is None) if enforce_sorted else found.tolist() == given.tolist()


def test_packed_gradients_reach_the_sequences():
    sru = SRU(3, 2, bidirectional=True, dtype=torch.float64)
    sequences = [torch.randn(n, 3, dtype=torch.float64, requires_grad=True) for n in (2, 4)]
    output, c_n = sru(pack_sequence(sequences, enforce_sorted=False))
    (output.data.square().sum() + c_n.sum()).backward()
    for sequence in sequences:
        alone = sequence.detach().clone().requires_grad_()
        h, c = sru(alone)
        (h.square().sum() + c.sum()).backward()
        torch.testing.assert_close(sequence.grad, alone.grad)


@pytest.mark.parametrize("duplicate", ["deepcopy", "pickle", "state_dict", "torch.save"])
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"layer_norm": "pre"}], ids=name_options)
def test_copies_compute_the_same(duplicate, options):
    sru = randomize(SRU(3, 4, num_layers=2, projection_size=2, **options))
    if duplicate == "deepcopy":
        other = copy.deepcopy(sru)
    elif duplicate == "pickle":
        other = pickle.loads(pickle.dumps(sru))
    elif duplicate == "state_dict":
        other = SRU(3, 4, num_layers=2, projection_size=2, **options)
        other.load_state_dict(sru.state_dict())
    else:
        file = io.BytesIO()
        torch.save(sru.state_dict(), file)
        other = SRU(3, 4, num_layers=2, projection_size=2, **options)
        other.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    x = torch.randn(4, 2, 3)
    assert torch.equal(sru(x)[0], other(x)[0])
    assert all(isinstance(value, torch.Tensor) for value in sru.state_dict().values())


def test_double_device_dtype_and_flatten_parameters():
    options = {"projection_size": 2, "layer_norm": "pre", "bias": False}
    direct = SRU(3, 4, num_layers=2, dtype=torch.float64, device="cpu", **options)
    moved = SRU(3, 4, num_layers=2, **options).double()
    for sru in (direct, moved):
        assert {t.dtype for t in sru.state_dict().values()} == {torch.float64}
        sru.flatten_parameters()
        output, c_n = sru(torch.randn(4, 2, 3).double())
        assert output.dtype == c_n.dtype == torch.float64
    meta = SRU(3, 4, num_layers=2, device="meta", **options)
    assert {t.device.type for t in meta.state_dict().values()} == {"meta"}


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"input_size": 0}, "input_size"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"num_layers": 0}, "num_layers"),
        ({"projection_size": 0}, "projection_size"),
        ({"dropout": 1.5}, "dropout"),
        ({"dropout": -0.1}, "dropout"),
        ({"layer_norm": "both"}, "layer_norm"),
        ({"layer_norm": True}, "layer_norm"),
        ({"activation": "relu"}, "activation"),
    ],
    ids=str,
)
def test_wrong_options_are_named(options, name):
    with pytest.raises(ValueError, match=name):
        SRU(**{"input_size": 3, "hidden_size": 4, "num_layers": 2, **options})


@pytest.mark.parametrize(
    ("arguments", "error", "name"),
    [
        ((torch.zeros(5, 2, 4),), ValueError, "input_size"),
        ((torch.zeros(5),), ValueError, "input"),
        ((torch.zeros(5, 2, 3, 1),), ValueError, "input"),
        ((torch.zeros(5, 2, 3), torch.zeros(1, 3, 4)), ValueError, "hx"),
        ((torch.zeros(5, 2, 3), torch.zeros(2, 4)), ValueError, "hx"),
        ((torch.zeros(5, 3), torch.zeros(1, 1, 4)), ValueError, "hx"),
        ((torch.zeros(5, 2, 3), (torch.zeros(1, 2, 4),) * 2), TypeError, "hx .*tuple.*nn.LSTM"),
        ((torch.zeros(5, 3), (torch.zeros(1, 4),) * 2), TypeError, "hx .* got tuple"),
        ((torch.zeros(5, 2, 3), None, torch.tensor([5, 6])), ValueError, "lengths"),
        ((torch.zeros(5, 2, 3), None, torch.tensor([-1, 5])), ValueError, "lengths"),
        ((torch.zeros(5, 2, 3), None, torch.tensor([5])), ValueError, "lengths"),
        ((torch.zeros(5, 2, 3), None, torch.tensor([1.0, 1.0])), TypeError, "lengths"),
        ((torch.zeros(5, 2, 3), None, torch.tensor([True, True])), TypeError, "lengths"),
        ((torch.zeros(5, 2, 3), None, [5, 5]), TypeError, "lengths"),
        ((torch.zeros(5, 3), None, torch.tensor([5])), ValueError, "lengths"),
        ((pack_sequence([torch.zeros(5, 3)]), None, torch.tensor([5])), ValueError, "lengths"),
        ((pack_sequence([torch.zeros(5, 3)]), torch.zeros(1, 2, 4)), ValueError, "hx"),
    ],
)
def test_wrong_arguments_are_named(arguments, error, name):
    with pytest.raises(error, match=name):
        SRU(3, 4)(*arguments)


def test_states_of_another_number_of_layers_are_named():
    sru = SRU(3, 4, num_layers=2, bidirectional=True)
    x = torch.zeros(5, 2, 3)
    for layers in (1, 2, 3, 5):
        with pytest.raises(
            ValueError, match=rf"hx .*= \(4, 2, 4\), got \({layers}, 2, 4\); c_n of"
        ):
            sru(x, torch.zeros(layers, 2, 4))
    old = torch.randn(2, 2, 8)  # what the old package would take
    with pytest.raises(ValueError, match=r"the old sru package's layout: hx\.unflatten"):
        sru(x, old)
    sru(x, old.unflatten(-1, (2, -1)).transpose(1, 2).flatten(0, 1))


@pytest.mark.parametrize(
    ("key", "advice"),
    [
        ("rnn_lst.0.weight_c", "old sru package; sru_asr.load_sru_checkpoint"),
        ("weight_ih_l0", "torch.nn.GRU, LSTM or RNN, .* train the SRU anew"),
    ],
)
def test_foreign_weights_are_named(key, advice):
    sru = SRU(3, 4)
    with pytest.raises(RuntimeError, match=rf"unexpected key '{key}' .*: weights of .*{advice}"):
        sru.load_state_dict({key: torch.zeros(3)})
    assert key in sru.load_state_dict({key: torch.zeros(3)}, strict=False).unexpected_keys


# Tools that take a module's parameters in hand


def test_pruned():
    sru = SRU(3, 4, num_layers=2, projection_size=2)
    layer, x = sru.layers[0], torch.randn(5, 2, 3)
    prune.l1_unstructured(layer, "weight", amount=0.5)
    prune.random_unstructured(layer, "projection", amount=1)
    mask = layer.weight_mask
    assert mask.mean() == 0.5 and layer.weight[mask == 0].eq(0).all()
    output, _ = sru(x)
    output.sum().backward()
    assert layer.weight_orig.grad[mask == 0].eq(0).all()
    assert layer.weight_orig.grad[mask == 1].ne(0).any()
    with torch.no_grad():  # inference goes another way
        torch.testing.assert_close(sru.eval()(x)[0], output)
        torch.testing.assert_close(pickle.loads(pickle.dumps(sru))(x)[0], output)
    prune.remove(layer, "weight")
    torch.testing.assert_close(sru(x)[0], output)


@pytest.mark.parametrize("parametrize", [weight_norm, orthogonal])
def test_parametrized(parametrize):
    sru = SRU(4, 4, num_layers=2, dtype=torch.float64)
    layer, x = sru.layers[0], torch.randn(5, 2, 4, dtype=torch.float64)
    before, _ = sru(x)
    parametrize(layer, "weight")
    output, _ = sru(x)
    if parametrize is weight_norm:
        torch.testing.assert_close(output, before)
    output.sum().backward()
    gradients = [p.grad for p in layer.parametrizations.weight.parameters()]
    assert gradients and all(g.isfinite().all() and g.ne(0).any() for g in gradients)
    with torch.no_grad():
        torch.testing.assert_close(sru.eval()(x)[0], output)
    copied = copy.deepcopy(sru)
    copied.load_state_dict(sru.state_dict())
    torch.testing.assert_close(copied(x)[0], output)


def train_in_a_group(rank, address, state, x, lengths, gradients):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    sru = SRU(3, 4, num_layers=2, bidirectional=True, dtype=torch.float64)
    sru.load_state_dict(state)
    parallel = torch.nn.parallel.DistributedDataParallel(sru)
    mine = slice(2 * rank, 2 * rank + 2)
    packed = pack_padded_sequence(x[:, mine], lengths[mine], enforce_sorted=False)
    for _ in range(2):  # the second round uses the buckets that the first has settled
        parallel.zero_grad()
        output, c_n = parallel(packed)
        (output.data.square().sum() + c_n.sum()).backward()
    if rank == 0:
        torch.save([p.grad for p in sru.parameters()], gradients)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_distributed_gradients_are_those_of_one_process(tmp_path):
    sru = SRU(3, 4, num_layers=2, bidirectional=True, dtype=torch.float64)
    x, lengths = torch.randn(6, 4, 3, dtype=torch.float64), torch.tensor([2, 6, 1, 5])
    output, c_n = sru(pack_padded_sequence(x, lengths, enforce_sorted=False))
    (output.data.square().sum() + c_n.sum()).backward()
    address, gradients = f"file://{tmp_path}/group", tmp_path / "gradients.pt"
    arguments = (address, sru.state_dict(), x, lengths, gradients)
    torch.multiprocessing.spawn(train_in_a_group, arguments, nprocs=2)
    for found, parameter in zip(torch.load(gradients), sru.parameters(), strict=True):
        torch.testing.assert_close(2 * found, parameter.grad)  # averaged over the processes


# Dropout


def zeros_of_dropout(train):
    """Where the first layer's highway-free output was dropped, seen through an identity."""
    sru = SRU(3, 64, num_layers=2, dropout=0.4, highway=False).train(train)
    seen = []
    sru.layers[0].register_forward_hook(lambda module, args, output: seen.append(output[0]))
    output, _ = sru(torch.randn(6, 5, 3))
    return seen[0] == 0, output == 0


def test_dropout_is_shared_over_time_and_spares_the_last_layer():
    dropped, last = zeros_of_dropout(train=True)
    assert torch.equal(dropped.all(0), dropped.any(0))  # a dimension is dropped always or never
    assert 0.25 < dropped.float().mean() < 0.55
    assert not torch.equal(dropped[0, 0], dropped[0, 1])  # each sequence has its own mask
    assert not last.any()


def test_no_dropout_in_evaluation():
    dropped, _ = zeros_of_dropout(train=False)
    assert not dropped.any()
    sru = SRU(3, 4, num_layers=2, dropout=0.5).eval()
    x = torch.randn(5, 2, 3)
    assert torch.equal(sru(x)[0], sru(x)[0])


def test_dropout_keeps_the_expectation_and_the_states():
    layer = SRU(4, 4, num_layers=2, dropout=0.3).layers[0]
    x = torch.randn(3, 1, 4).expand(3, 100_000, 4)
    with torch.no_grad():
        dropped, c_n = layer.train()(x)
        kept, expected_c_n = layer.eval()(x[:, :1])
    torch.testing.assert_close(c_n, expected_c_n.expand_as(c_n))
    assert dropped.std(1).max() > 0.1  # there is something to average
    torch.testing.assert_close(dropped.mean(1), kept[:, 0], rtol=0, atol=0.02)


def test_the_dropout_mask_is_exact_under_autocast(monkeypatch):
    import sru_asr.recurrence as module

    masks, run = [], module.ops.sru_recurrence

    def spy(*args, mask=None, **options):
        masks.append(mask)
        return run(*args, mask=mask, **options)

    monkeypatch.setattr(module.ops, "sru_recurrence", spy)
    with torch.autocast("cpu", torch.bfloat16):
        SRU(3, 64, num_layers=2, dropout=0.1)(torch.randn(2, 4, 3))
    assert masks[1] is None
    assert set(masks[0].unique().tolist()) == {0.0, torch.tensor(1 / 0.9).item()}


@pytest.mark.parametrize("highway", [False, True])
def test_full_dropout_leaves_the_highway(highway):
    sru = SRU(4, 4, num_layers=2, dropout=1.0, highway=highway)
    x = torch.randn(5, 2, 4, requires_grad=True)
    seen = []
    sru.layers[0].register_forward_hook(lambda module, args, output: seen.append(output[0]))
    output, _ = sru(x)
    output.sum().backward()
    alpha = sru.layers[0].recurrence.alpha
    torch.testing.assert_close(seen[0], alpha * x if highway else torch.zeros_like(x))
    assert x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in sru.parameters())


def test_dropout_of_a_single_layer_warns():
    with pytest.warns(UserWarning, match="dropout"):
        SRU(3, 4, dropout=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SRU(3, 4, num_layers=2, dropout=0.5)


# Batch independence


@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), -1e30])
@pytest.mark.parametrize("lengths", [[3, 6, 0, 1], [6, 6, 2, 5], [0, 0, 4, 2]], ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bidirectional": True},
        {"bidirectional": True, "layer_norm": "pre"},
        {"bidirectional": True, "layer_norm": "post"},
        {"bidirectional": True, "projection_size": 2, "activation": "tanh"},
    ],
    ids=name_options,
)
def test_a_sequence_gives_the_same_alone_and_in_a_batch(garbage, lengths, options):
    sru = randomize(SRU(3, 4, num_layers=2, dtype=torch.float64, **options))
    directions = 2 if options.get("bidirectional") else 1
    data = torch.randn(6, 4, 3, dtype=torch.float64)
    for b, n in enumerate(lengths):
        data[n:, b] = garbage
    x = data.clone().requires_grad_()
    hx = torch.randn(2 * directions, 4, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, 4, 4 * directions, dtype=torch.float64)
    output, c_n = sru(x, hx, torch.tensor(lengths))
    ((output * weight).sum() + c_n.square().sum()).backward()
    gradients = [p.grad for p in sru.parameters()]

    sru.zero_grad()
    for b, n in enumerate(lengths):
        alone = data[:n, b : b + 1].clone().requires_grad_()
        state = hx.detach()[:, b : b + 1].clone().requires_grad_()
        h, c = sru(alone, state)
        ((h * weight[:n, b : b + 1]).sum() + c.square().sum()).backward()
        torch.testing.assert_close(output[:n, b : b + 1], h)
        torch.testing.assert_close(c_n[:, b : b + 1], c)
        assert output[n:, b].eq(0).all()
        torch.testing.assert_close(x.grad[:n, b : b + 1], alone.grad)
        assert x.grad[n:, b].eq(0).all()
        torch.testing.assert_close(hx.grad[:, b : b + 1], state.grad)
    for together, parameter in zip(gradients, sru.parameters(), strict=True):
        torch.testing.assert_close(together, parameter.grad)


def test_a_nan_in_one_sequence_stays_there():
    sru = SRU(3, 4, num_layers=2, bidirectional=True, layer_norm="post")
    x = torch.randn(5, 3, 3)
    expected, expected_c_n = sru(x)
    x[2, 1] = float("nan")
    output, c_n = sru(x)
    assert output[:, 1].isnan().any()
    for b in (0, 2):
        assert torch.equal(output[:, b], expected[:, b])
        assert torch.equal(c_n[:, b], expected_c_n[:, b])


def test_the_input_is_left_alone():
    x = torch.randn(5, 2, 3)
    before = x.clone()
    SRU(3, 4)(x, None, torch.tensor([2, 5]))
    assert torch.equal(x, before)


# Training machinery


@pytest.mark.parametrize("layer_norm", [None, "pre", "post"])
def test_bfloat16_autocast_stays_close(layer_norm):
    sru = SRU(16, 16, num_layers=2, bidirectional=True, layer_norm=layer_norm)
    x, lengths = torch.randn(12, 3, 16), torch.tensor([12, 7, 0])
    weight = torch.randn(12, 3, 32)
    results = []
    for enabled in (False, True):
        sru.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            output, c_n = sru(x, None, lengths)
        (output.float() * weight).sum().backward()
        results.append((output.float(), c_n.float(), *(p.grad.clone() for p in sru.parameters())))
        assert all(p.grad.dtype == torch.float32 for p in sru.parameters())
    for exact, rounded in zip(*results, strict=True):
        torch.testing.assert_close(rounded, exact, rtol=0.05, atol=0.05 * exact.abs().max().item())


def test_activation_checkpointing_gives_the_same_gradients():
    sru = SRU(3, 4, num_layers=3, dropout=0.3, bidirectional=True)
    x, lengths = torch.randn(5, 2, 3), torch.tensor([5, 3])
    gradients = []
    for wrap in (lambda f, *a: f(*a), lambda f, *a: checkpoint(f, *a, use_reentrant=False)):
        torch.manual_seed(1)
        sru.zero_grad()
        output, c_n = wrap(sru, x, None, lengths)
        (output.sum() + c_n.sum()).backward()
        gradients.append([p.grad.clone() for p in sru.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(("layer_norm", "with_lengths"), [(None, False), ("post", True)])
def test_compiles_once_into_one_graph(layer_norm, with_lengths):
    sru = SRU(3, 4, num_layers=2, bidirectional=True, layer_norm=layer_norm)
    compiled = torch.compile(sru, fullgraph=True, dynamic=True)
    for batch, steps in ((2, 40), (3, 50), (4, 150)):  # 32 steps or fewer are another graph
        x = torch.randn(steps, batch, 3)
        lengths = torch.randint(0, steps + 1, (batch,)) if with_lengths else None
        with torch._dynamo.config.patch(error_on_recompile=batch > 2):
            expected, found = sru(x, None, lengths), compiled(x, None, lengths)
        torch.testing.assert_close(found, expected)
        gradients = []
        for output, c_n in (expected, found):
            sru.zero_grad()
            (output.sum() + c_n.sum()).backward()
            gradients.append([p.grad.clone() for p in sru.parameters()])
        torch.testing.assert_close(*gradients)
