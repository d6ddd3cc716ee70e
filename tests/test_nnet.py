"""nnet.SRU wherever SpeechBrain takes one of its own recurrent networks."""

import pytest
import torch
from speechbrain.lobes.models.CRDNN import CRDNN
from speechbrain.nnet.containers import LengthsCapableSequential, Sequential
from speechbrain.nnet.linear import Linear
from speechbrain.nnet.RNN import GRU
from speechbrain.utils.callchains import LengthsCapableChain, lengths_arg_exists
from speechbrain.utils.checkpoints import Checkpointer, average_checkpoints

import sru_asr
from sru_asr.nnet import SRU


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("shape", [(2, 5, 6), (2, 5, 3, 2), (1, 1, 6)], ids=str)
def test_shapes_are_those_of_speechbrains_gru(bidirectional, num_layers, shape):
    options = {"num_layers": num_layers, "bidirectional": bidirectional, "input_shape": shape}
    x = torch.randn(shape)
    expected = GRU(4, **options)(x)
    for re_init in (False, True):
        found = SRU(4, **options, re_init=re_init)(x)
        assert [t.shape for t in found] == [t.shape for t in expected]


@pytest.mark.parametrize("shape", [(2, 0, 6), (0, 5, 6), (0, 5, 3, 2)], ids=str)
def test_no_steps_and_no_sequences(shape):
    output, c_n = SRU(4, input_size=6, bidirectional=True)(torch.zeros(shape))
    assert output.shape == (*shape[:2], 8) and c_n.shape == (2, shape[0], 4)


def test_four_dimensions_are_three_with_the_last_two_joined():
    layer = SRU(4, input_shape=(2, 5, 3, 2))
    x = torch.randn(2, 5, 3, 2)
    assert torch.equal(layer(x)[0], layer(x.reshape(2, 5, 6))[0])


def test_it_is_sru_with_relative_lengths():
    options = {"layer_norm": "post", "highway_bias": -1.0, "projection_size": 2}
    layer = SRU(4, input_size=6, num_layers=2, bidirectional=True, **options)
    core = sru_asr.SRU(6, 4, 2, batch_first=True, bidirectional=True, **options)
    core.load_state_dict(layer.rnn.state_dict())
    x, hx = torch.randn(3, 5, 6), torch.randn(4, 3, 4)
    found = layer(x, hx, torch.tensor([0.2, 1.0, 0.6]))
    expected = core(x, hx, torch.tensor([1, 5, 3]))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_lengths_below_one_keep_all_steps():
    layer = SRU(4, input_size=6)
    x = torch.randn(2, 10, 6)
    output, c_n = layer(x, lengths=torch.tensor([0.5, 0.2]))
    assert output.shape == (2, 10, 4)
    assert output[0, 5:].eq(0).all() and output[1, 2:].eq(0).all()
    torch.testing.assert_close(c_n[:, :1], layer(x[:1, :5])[1])


@pytest.mark.parametrize("garbage", [float("nan"), float("inf")])
@pytest.mark.parametrize("inner", [(6,), (3, 2)], ids=str)
def test_a_sequence_gives_the_same_alone_and_in_a_batch(garbage, inner):
    layer = SRU(4, input_size=6, num_layers=2, bidirectional=True, layer_norm="post").double()
    lengths = [3, 5, 0, 1]
    data = torch.randn(4, 5, *inner, dtype=torch.float64)
    for b, n in enumerate(lengths):
        data[b, n:] = garbage
    x = data.clone().requires_grad_()
    output, c_n = layer(x, lengths=torch.tensor(lengths) / 5)
    weight = torch.randn_like(output)
    ((output * weight).sum() + c_n.sum()).backward()
    gradients = [p.grad for p in layer.parameters()]
    layer.zero_grad()
    for b, n in enumerate(lengths):
        alone = data[b : b + 1, :n].clone().requires_grad_()
        h, c = layer(alone)
        ((h * weight[b : b + 1, :n]).sum() + c.sum()).backward()
        torch.testing.assert_close(output[b : b + 1, :n], h)
        torch.testing.assert_close(c_n[:, b : b + 1], c)
        assert output[b, n:].eq(0).all()
        torch.testing.assert_close(x.grad[b : b + 1, :n], alone.grad)
    for together, parameter in zip(gradients, layer.parameters(), strict=True):
        torch.testing.assert_close(together, parameter.grad)


@pytest.mark.parametrize("shape", [(2, 5, 6), (None, None, 6), (None, None, 3, 2)], ids=str)
def test_in_sequential(shape):
    model = Sequential(input_shape=shape)
    model.append(SRU, hidden_size=4, bidirectional=True, layer_name="rnn")
    model.append(Linear, n_neurons=3)
    assert model.rnn.rnn.input_size == 6
    x = torch.randn(2, 7, *shape[2:])
    assert torch.equal(model(x), model["1"](model.rnn(x)[0]))


def test_lengths_capable_sequential_passes_the_lengths():
    model = LengthsCapableSequential(input_shape=(None, None, 6))
    model.append(SRU, hidden_size=4, bidirectional=True)
    x = torch.randn(2, 5, 6)
    x[0, 3:] = float("nan")
    output = model(x, lengths=torch.tensor([0.6, 1.0]))
    torch.testing.assert_close(output[:1, :3], model(x[:1, :3]))
    torch.testing.assert_close(output[1:], model(x[1:]))
    assert output[0, 3:].eq(0).all()


def test_call_chains_pass_the_lengths():
    layer, x, lengths = SRU(4, input_size=6), torch.randn(2, 5, 6), torch.tensor([0.6, 1.0])
    assert lengths_arg_exists(layer.forward)
    # Given a module, the chain would look at its __call__, which names no arguments.
    chain = LengthsCapableChain(lambda x: -x, layer.forward, lambda x: -x)
    assert torch.equal(chain(x, lengths), -layer(-x, lengths=lengths)[0])
    assert torch.equal(chain(lengths=lengths, x=x), chain(x, lengths))


def test_checkpoints_average(tmp_path):
    layer = SRU(4, input_size=6, bidirectional=True)
    checkpointer = Checkpointer(tmp_path, recoverables={"layer": layer})
    states = []
    for error in (5, 4):
        layer.rnn.reset_parameters()
        states.append({name: value.clone() for name, value in layer.state_dict().items()})
        checkpointer.save_and_keep_only(meta={"error": error}, min_keys=["error"], num_to_keep=2)
    average = average_checkpoints(checkpointer.find_checkpoints(max_num_checkpoints=2), "layer")
    layer.load_state_dict(average)
    for name, value in layer.state_dict().items():
        torch.testing.assert_close(value, (states[0][name] + states[1][name]) / 2)


@pytest.mark.parametrize("use_rnnp", [False, True])
def test_as_rnn_class_of_crdnn(use_rnnp):
    model = CRDNN(
        input_shape=(None, None, 8),
        cnn_blocks=1,
        cnn_channels=(2,),
        time_pooling=True,
        rnn_class=SRU,
        rnn_layers=2,
        rnn_neurons=4,
        use_rnnp=use_rnnp,
        dnn_blocks=1,
        dnn_neurons=5,
    )
    assert sum(isinstance(module, SRU) for module in model.modules()) == (2 if use_rnnp else 1)
    output = model(torch.randn(2, 12, 8))
    assert output.shape == (2, 6, 5)
    output.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    ("x", "lengths", "error", "name"),
    [
        (torch.zeros(2, 5, 6), torch.tensor([5, 3]), TypeError, "lengths must be relative"),
        (torch.zeros(2, 5, 6), torch.tensor([5.0, 3.0]), ValueError, "lengths must be relative"),
        (torch.zeros(2, 5, 6), torch.tensor([1.0]), ValueError, "lengths must have shape"),
        (torch.zeros(5, 6), None, ValueError, "x must have shape"),
        (torch.zeros(2, 5, 3, 2, 1), None, ValueError, "x must have shape"),
        (torch.zeros(2, 5, 7), None, ValueError, "input_size"),
    ],
)
def test_wrong_arguments_are_named(x, lengths, error, name):
    with pytest.raises(error, match=name):
        SRU(4, input_size=6)(x, lengths=lengths)


def test_an_input_size_is_needed():
    with pytest.raises(ValueError, match="input_shape"):
        SRU(4)


def test_unknown_options_are_refused():
    with pytest.raises(TypeError, match="hidden"):
        SRU(4, input_size=6, hidden=3)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_traced_where_gradients_are_enabled(bidirectional):
    layer = SRU(4, input_size=6, num_layers=2, bidirectional=bidirectional)
    traced = torch.jit.trace(layer, torch.randn(2, 5, 6))
    for shape in ((2, 5, 6), (3, 9, 6)):
        x = torch.randn(shape, requires_grad=True)
        (gradient,) = torch.autograd.grad(traced(x)[0].square().sum(), x)
        output, c_n = layer(x)
        found = (*traced(x), gradient)
        expected = (output, c_n, *torch.autograd.grad(output.square().sum(), x))
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b)
