"""The gated convolution against its definition, written out step by step."""

from __future__ import annotations

import pytest
import torch

from sru_asr.convolution import GatedConvolution


def randomised(*args, **options):
    module = GatedConvolution(*args, **options).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.5)
    return module


def normalised(y):
    return (y - y.mean()) / torch.sqrt(y.var(unbiased=False) + 1e-5)


def written_out(module, z):
    """Output for a single sequence z (T, F)."""
    steps, size = z.shape
    taps = module.conv.weight[:, 0, :, 0]
    gated = []
    for step in z:
        wide = module.expand.weight @ (normalised(step) * module.norm_in.weight)
        gated.append(wide[:size] / (1 + torch.exp(-wide[size:])))
    outputs = []
    for t in range(steps):
        y = torch.zeros(size, dtype=z.dtype)
        for i in range(taps.shape[1]):
            s = t + i - taps.shape[1] // 2
            if 0 <= s < steps:
                y = y + taps[:, i] * gated[s]
        y = normalised(y) * module.norm_out.weight + module.norm_out.bias
        outputs.append(module.contract.weight @ (y / (1 + torch.exp(-y))))
    return torch.stack(outputs)


@pytest.mark.parametrize("kernel_size", [1, 3, 15])
@pytest.mark.parametrize("lengths", [(7, 4, 1), (1,)])
def test_is_its_definition_and_padding_has_no_effect(kernel_size, lengths):
    module = randomised(6, kernel_size)
    z = torch.randn(max(lengths), len(lengths), 6, dtype=torch.float64)
    for b, steps in enumerate(lengths):
        z[steps:, b] = 0
    output = module(z)
    for b, steps in enumerate(lengths):
        torch.testing.assert_close(output[:steps, b], written_out(module, z[:steps, b]))


@pytest.mark.parametrize("shape", [(0, 2, 6), (3, 0, 6)])
def test_nothing_gives_nothing(shape):
    z = torch.randn(shape, requires_grad=True)
    output = GatedConvolution(6, 5)(z)
    assert output.shape == shape
    output.sum().backward()
    assert z.grad.shape == shape


def test_gradients():
    module = randomised(4, 3)
    z = torch.randn(5, 2, 4, dtype=torch.float64, requires_grad=True)
    names, parameters = zip(*module.named_parameters(), strict=True)

    def run(z, *values):
        return torch.func.functional_call(module, dict(zip(names, values, strict=True)), z)

    assert torch.autograd.gradcheck(run, (z, *parameters))


def test_does_not_need_contiguous_input():
    module = GatedConvolution(6, 5)
    z = torch.randn(3, 7, 6).transpose(0, 1)
    torch.testing.assert_close(module(z), module(z.contiguous()))


def test_drops_what_it_adds_in_training_only():
    module = GatedConvolution(6, 3, dropout=0.5)
    z = torch.randn(50, 2, 6)
    dropped = module(z)
    kept = dropped != 0
    assert 0.3 < kept.float().mean() < 0.7
    torch.testing.assert_close(dropped[kept], 2 * module.eval()(z)[kept])


@pytest.mark.parametrize("kernel_size", [-3, 2])
def test_has_a_middle(kernel_size):
    with pytest.raises(
        ValueError, match=f"conv_kernel must be odd, or 0 for none, got {kernel_size}"
    ):
        GatedConvolution(6, kernel_size)
