"""Convolutional subsampling: frame counts, and no effect of the padding."""

import pytest
import torch

from sru_asr import ConvSubsampling


@pytest.mark.parametrize("channels", [(3,), (3, 2), [2, 3, 4]], ids=str)
@pytest.mark.parametrize("steps", [0, 1, 2, 3, 4, 5, 16, 17])
@pytest.mark.parametrize("features", [1, 6, 7])
def test_shape_is_what_the_attributes_say(channels, steps, features):
    subsampling = ConvSubsampling(features, channels)
    output = subsampling(torch.randn(2, steps, features))
    assert subsampling.factor == 2 ** len(channels)
    expected = -(-steps // subsampling.factor)
    assert output.shape == (2, expected, subsampling.output_size)
    assert subsampling.steps_after(torch.tensor([steps])).tolist() == [expected]
    assert subsampling.output_size == channels[-1] * -(-features // subsampling.factor)


def test_no_sequences():
    assert ConvSubsampling(6, (3, 2))(torch.zeros(0, 5, 6), torch.zeros(0)).shape == (0, 2, 4)


@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), -1e30])
@pytest.mark.parametrize("lengths", [[9, 14, 0, 1], [2, 3, 13, 5]], ids=str)
def test_a_sequence_gives_the_same_alone_and_in_a_batch(garbage, lengths):
    subsampling = ConvSubsampling(6, (3, 2)).double()
    with torch.no_grad():
        for parameter in subsampling.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    data = torch.randn(4, 14, 6, dtype=torch.float64)
    for b, n in enumerate(lengths):
        data[b, n:] = garbage
    x = data.clone().requires_grad_()
    output = subsampling(x, torch.tensor(lengths) / 14)
    weight = torch.randn_like(output)
    (output * weight).sum().backward()
    gradients = [p.grad for p in subsampling.parameters()]
    subsampling.zero_grad()
    for b, n in enumerate(lengths):
        alone = data[b : b + 1, :n].clone().requires_grad_()
        h = subsampling(alone)
        steps = h.shape[1]
        torch.testing.assert_close(output[b : b + 1, :steps], h)
        assert output[b, steps:].eq(0).all()
        if n:
            (h * weight[b : b + 1, :steps]).sum().backward()
            torch.testing.assert_close(x.grad[b : b + 1, :n], alone.grad)
        assert x.grad[b, n:].eq(0).all()
    for together, parameter in zip(gradients, subsampling.parameters(), strict=True):
        torch.testing.assert_close(together, parameter.grad)


def test_dropout_is_for_training():
    subsampling = ConvSubsampling(6, (3, 2), dropout=0.5)
    x = torch.randn(2, 9, 6)
    assert (subsampling(x) == 0).any()
    assert not (subsampling.eval()(x) == 0).any()


@pytest.mark.parametrize(
    ("x", "lengths", "error", "name"),
    [
        (torch.zeros(2, 5, 4), None, ValueError, "x must"),
        (torch.zeros(5, 6), None, ValueError, "x must"),
        (torch.zeros(2, 5, 6), torch.tensor([5, 3]), TypeError, "lengths"),
        (torch.zeros(2, 5, 6), torch.tensor([5.0, 3.0]), ValueError, "lengths"),
    ],
)
def test_wrong_arguments_are_named(x, lengths, error, name):
    with pytest.raises(error, match=name):
        ConvSubsampling(6)(x, lengths)
