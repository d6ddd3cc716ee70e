"""The attentive projection against an explicit softmax, and the SRU++ layer around it."""

import math

import pytest
import torch

from sru_asr.recurrence import Recurrence
from sru_asr.srupp import AttentiveProjection, SRUppLayer


def written_out(project, x, visible):
    """The projection as the docstring has it; x (T, F), visible: how many steps may be seen."""
    z = x @ project.down.weight.T
    if project.conv is not None:
        z = z + project.conv(z[:, None])[:, 0]  # written out in test_convolution.py
    if project.num_heads:
        width = z.shape[1]
        keys, values = (z @ matrix.T for matrix in project.key_value.weight.split(width))
        head = width // project.num_heads
        a = torch.zeros_like(z)
        for i in range(0, width, head):
            part = slice(i, i + head)
            for t in range(len(z)):
                scores = keys[:visible, part] @ z[t, part] / math.sqrt(head)
                weights = scores.exp() / scores.exp().sum()
                a[t, part] = weights @ values[:visible, part]
        z = z + project.alpha * a
    mean, variance = z.mean(-1, keepdim=True), z.var(-1, unbiased=False, keepdim=True)
    z = (z - mean) / torch.sqrt(variance + 1e-5) * project.norm.weight + project.norm.bias
    return z @ project.up.weight.T


@pytest.mark.parametrize("conv_kernel", [0, 1, 3, 17])
@pytest.mark.parametrize("num_heads", [0, 1, 2, 6])
def test_projection_is_an_explicit_softmax(num_heads, conv_kernel):
    project = AttentiveProjection(5, 6, 12, num_heads, conv_kernel=conv_kernel).double()
    with torch.no_grad():
        for parameter in project.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.5)
        if num_heads:
            project.alpha.fill_(1)
    x = torch.randn(7, 3, 5, dtype=torch.float64)
    lengths = (7, 4, 1)
    for b, n in enumerate(lengths):
        x[n:, b] = 0
    attend = torch.arange(7) < torch.tensor(lengths)[:, None]
    everywhere, masked = project(x), project(x, attend[:, None, None, :])
    for b, n in enumerate(lengths):
        torch.testing.assert_close(everywhere[:, b], written_out(project, x[:, b], 7))
        torch.testing.assert_close(masked[:, b], written_out(project, x[:, b], n))


def test_layer_starts_as_the_one_without_attention():
    attentive, plain = SRUppLayer(6, 4, 4, num_heads=2), SRUppLayer(6, 4, 4, num_heads=0)
    missing, unexpected = plain.load_state_dict(attentive.state_dict(), strict=False)
    assert not missing and unexpected == ["project.alpha", "project.key_value.weight"]
    x = torch.randn(5, 2, 6)
    assert torch.equal(attentive(x)[0], plain(x)[0])
    with torch.no_grad():
        attentive.project.alpha.fill_(1)
    assert not torch.allclose(attentive(x)[0], plain(x)[0])


def test_attention_can_leave_its_starting_point():
    layer = SRUppLayer(6, 4, 4)
    layer(torch.randn(5, 2, 6))[0].square().sum().backward()
    assert layer.project.alpha.grad.abs() > 0


@pytest.mark.parametrize("lanes", [3, 4])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_layer_is_the_recurrence_of_its_projection(lanes, bidirectional):
    width = 8 if bidirectional else 4
    layer = SRUppLayer(width if lanes == 3 else 5, 4, 6, bidirectional=bidirectional).double()
    assert layer.recurrence.num_lanes == lanes
    x = torch.randn(5, 2, 8 if lanes == 3 and bidirectional else 4 if lanes == 3 else 5).double()
    c0, lengths = torch.randn(2, width).double(), torch.tensor([5, 2])
    h, c_n = layer(x, c0, lengths)
    recurrence = Recurrence(4, lanes, bidirectional=bidirectional, highway_bias=-2.0).double()
    recurrence.load_state_dict(layer.recurrence.state_dict())
    u = layer.project(x).view(5, 2, lanes, width)
    expected_h, expected_c_n = recurrence(u, x, c0, lengths)
    assert torch.equal(h, expected_h) and torch.equal(c_n, expected_c_n)


@pytest.mark.parametrize("conv_kernel", [0, 3])
def test_gradients(conv_kernel):
    layer = SRUppLayer(3, 2, 4, num_heads=2, conv_kernel=conv_kernel).double()
    with torch.no_grad():
        layer.project.alpha.fill_(0.7)
    x = torch.randn(3, 2, 3, dtype=torch.float64, requires_grad=True)
    names, parameters = zip(*layer.named_parameters(), strict=True)
    attend = torch.tensor([[True, True, True], [True, False, False]])[:, None, None]

    def run(x, *parameters):
        values = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(layer, values, (x, None, torch.tensor([3, 1]), attend))

    assert torch.autograd.gradcheck(run, (x, *parameters))


def test_initial_values_of_a_big_layer():
    layer = SRUppLayer(400, 200, 128, num_heads=1)
    project, recurrence = layer.project, layer.recurrence
    for weight in (project.down.weight, project.key_value.weight, project.up.weight):
        xavier = 2 / sum(weight.shape)
        torch.testing.assert_close(weight.var(), torch.tensor(xavier), rtol=0.05, atol=0)
    assert project.alpha.item() == 0
    assert recurrence.v.abs().max() <= 1
    torch.testing.assert_close(recurrence.v.var(), torch.tensor(1 / 3), rtol=0.1, atol=0)
    assert recurrence.b[0].eq(0).all() and recurrence.b[1].eq(-2).all()
    assert recurrence.alpha == pytest.approx(math.sqrt(1 + 2 * math.exp(-2)))


def test_the_fourth_lane_gets_alpha_once():
    layer = SRUppLayer(300, 200, 128, num_heads=1)
    lanes = layer.project.up.weight.view(4, -1)
    xavier = 2 / sum(layer.project.up.weight.shape)
    squared = layer.recurrence.alpha**2
    expected = torch.tensor([xavier, xavier, xavier, xavier * squared])
    torch.testing.assert_close(lanes.var(1), expected, rtol=0.05, atol=0)


def test_attention_dropout_acts_in_training_only():
    project = AttentiveProjection(5, 6, 12, dropout=0.5)
    with torch.no_grad():
        project.alpha.fill_(1)
    x = torch.randn(7, 3, 5)
    assert not torch.equal(project(x), project(x))
    project.eval()
    assert torch.equal(project(x), project(x))


def test_heads_must_divide_the_bottleneck():
    with pytest.raises(ValueError, match=r"num_heads, got 6 and 4"):
        AttentiveProjection(5, 6, 12, num_heads=4)


@pytest.mark.parametrize("gradients", [True, False])
def test_what_stands_in_the_last_products_place_is_called(gradients):
    torch.manual_seed(0)
    layer = SRUppLayer(6, 4, 4).eval()
    x = torch.randn(5, 3, 6)
    with torch.set_grad_enabled(gradients):
        plain, _ = layer(x)
        # A hook.
        handle = layer.project.up.register_forward_hook(lambda module, args, output: 0 * output)
        hooked, _ = layer(x)
        handle.remove()
        # An adapter, without a weight of its own.
        up = layer.project.up
        layer.project.up = torch.nn.Sequential(up)
        wrapped, _ = layer(x)
        # A product with a bias.
        layer.project.up = torch.nn.Linear(up.in_features, up.out_features)
        layer.project.up.weight = up.weight
        torch.nn.init.ones_(layer.project.up.bias)
        biased, _ = layer(x)
    torch.testing.assert_close(wrapped, plain)
    assert not torch.allclose(hooked, plain, atol=1e-2)
    assert not torch.allclose(biased, plain, atol=1e-2)


@pytest.mark.parametrize("num_heads", [0, 1, 2])
@pytest.mark.parametrize("input_size", [8, 5])
def test_step_by_step_is_the_causal_whole(num_heads, input_size):
    layer = SRUppLayer(input_size, 8, 6, num_heads, bidirectional=False).double().eval()
    if num_heads:
        torch.nn.init.ones_(layer.project.alpha)
    x = torch.randn(5, 3, input_size, dtype=torch.float64)
    causal = torch.ones(5, 5, dtype=torch.bool).tril()
    h, c_n = layer(x, None, None, causal)
    c, past, steps = torch.zeros(3, 8).double(), torch.empty(0, 3, 12).double(), []
    for step in x:
        before = past.clone()
        step_h, c, past = layer.extend(step[None], c, past)
        steps.append(step_h)
        assert torch.equal(past[: len(before)], before)
    torch.testing.assert_close(torch.cat(steps), h)
    torch.testing.assert_close(c, c_n)
    assert past.shape == (5 if num_heads else 0, 3, 12)


def test_a_bidirectional_layer_has_no_next_step():
    with pytest.raises(ValueError, match="bidirectional"):
        SRUppLayer(6, 4, 4).extend(torch.zeros(1, 2, 6), torch.zeros(2, 8), torch.zeros(0, 2, 8))


def test_a_convolution_has_no_next_step():
    layer = SRUppLayer(6, 4, 4, bidirectional=False, conv_kernel=3)
    with pytest.raises(ValueError, match="convolution"):
        layer.extend(torch.zeros(1, 2, 6), torch.zeros(2, 4), torch.zeros(0, 2, 8))


def test_a_window_has_no_next_step():
    layer = SRUppLayer(6, 4, 4, bidirectional=False, window=3)
    with pytest.raises(ValueError, match="attention window"):
        layer.extend(torch.zeros(1, 2, 6), torch.zeros(2, 4), torch.zeros(0, 2, 8))
