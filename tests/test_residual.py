"""The residual block around a recurrence, against its formula."""

import pytest
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from sru_asr import attention, reference
from sru_asr.residual import FeedForward, ResidualBlock, SelfAttention, SequenceDropout
from sru_asr.srupp import SRUppLayer


def normalised(norm, x):
    return F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias)


def feed_forward_by_hand(module, x):
    y = normalised(module.norm, x) @ module.expand.weight.T + module.expand.bias
    return (y * y.sigmoid()) @ module.contract.weight.T + module.contract.bias


def attention_by_hand(module, x, lengths):
    _, batch, size = x.shape
    qkv = normalised(module.norm, x) @ module.query_key_value.weight.T + module.query_key_value.bias
    seen = torch.zeros_like(x)
    width = size // module.num_heads
    for b in range(batch):
        for head in range(module.num_heads):
            q, k, v = (
                qkv[:, b, i * size + head * width : i * size + (head + 1) * width] for i in range(3)
            )
            weights = (q @ k[: lengths[b]].T / width**0.5).softmax(-1)
            seen[:, b, head * width : (head + 1) * width] = weights @ v[: lengths[b]]
    return seen @ module.output.weight.T + module.output.bias


def recurrence_by_hand(layer, x, lengths):
    z = normalised(layer.project.norm, x @ layer.project.down.weight.T)
    u = (z @ layer.project.up.weight.T).unflatten(-1, (layer.recurrence.num_lanes, -1))
    return reference.sru_recurrence(
        u,
        layer.recurrence.v,
        layer.recurrence.b,
        x if layer.recurrence.num_lanes == 3 else None,
        None,
        lengths,
        bidirectional=True,
        alpha=layer.recurrence.alpha,
        activation=layer.recurrence.activation,
    )


@pytest.mark.parametrize("hidden", [3, 5], ids=["three lanes", "four lanes"])
@pytest.mark.parametrize("heads", [0, 3])
def test_a_block_is_its_formula(hidden, heads):
    block = ResidualBlock(SRUppLayer(6, hidden, 4, 0), 6, d_ffn=7, num_heads=heads).double()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    x = torch.randn(5, 2, 6, dtype=torch.float64)
    lengths = torch.tensor([5, 3])
    attend = (torch.arange(5) < lengths[:, None])[:, None, None]
    y, c_n = block(x, None, lengths, attend)

    z = x
    if heads:
        z = z + attention_by_hand(block.attention, z, lengths)
    h, expected_c_n = recurrence_by_hand(block.recurrent, normalised(block.norm, z), lengths)
    z = z + h @ block.output.weight.T + block.output.bias
    z = z + feed_forward_by_hand(block.feed_forward, z)
    for b, n in enumerate(lengths):
        torch.testing.assert_close(y[:n, b], z[:n, b])
        assert y[n:, b].eq(0).all()
    torch.testing.assert_close(c_n, expected_c_n)


def test_gradients():
    block = ResidualBlock(SRUppLayer(4, 2, 2, 0), 4, d_ffn=3, num_heads=2).double()
    x = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: block(x)[0], x)
    names = [name for name, _ in block.named_parameters()]
    parameters = [p.detach().clone().requires_grad_() for p in block.parameters()]

    def of_parameters(*values):
        given = dict(zip(names, values, strict=True))
        return torch.func.functional_call(block, given, (x.detach(),))[0]

    assert torch.autograd.gradcheck(of_parameters, parameters)


def test_dropout_has_one_mask_for_a_sequence_and_keeps_the_mean():
    torch.manual_seed(0)
    x = torch.ones(4, 300, 50)
    y = SequenceDropout(0.3)(x)
    assert torch.equal(y, y[:1].expand_as(y))  # of all steps
    assert not torch.equal(y[:, 0], y[:, 1])  # of a sequence
    assert set(y.unique().tolist()) == {0.0, (x / 0.7).unique().item()}
    assert y.mean().item() == pytest.approx(1, abs=0.03)  # 5 standard deviations
    assert SequenceDropout(1.0)(x).eq(0).all()
    assert SequenceDropout(0.3).eval()(x) is x
    assert SequenceDropout(0.0)(x) is x
    assert SequenceDropout(0.3)(x.bfloat16()).dtype is torch.bfloat16


def test_dropout_has_one_mask_without_gradients_too(monkeypatch):
    monkeypatch.setattr(attention, "PART_ROWS", 8)
    module = FeedForward(4, 300, dropout=0.5)
    with torch.no_grad():
        y = module(torch.ones(50, 1, 4))  # in training
    assert torch.equal(y, y[:1].expand_as(y))


def test_dropout_acts_on_all_modules_and_not_in_evaluation():
    layer = SRUppLayer(4, 3, 2, 0, dropout=0.5)
    block = ResidualBlock(layer, 4, d_ffn=3, num_heads=2, dropout=0.5, attention_dropout=0.5)
    x = torch.randn(3, 2, 4)
    modules = [
        block.feed_forward,
        lambda x: block.recurrent(x)[0],
        block.attention,
        block.drop,
    ]
    for module in modules:
        outputs = [module(x) for _ in range(20)]
        assert any(not torch.equal(outputs[0], other) for other in outputs)
    block.eval()
    assert torch.equal(block(x)[0], block(x)[0])


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_feed_forward_keeps_what_swish_takes_and_not_what_it_gives(dropout):
    module = FeedForward(4, 300, dropout)
    x = torch.randn(50, 2, 4, requires_grad=True)
    wide = []  # storages of as many numbers as swish takes

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.nbytes() == 50 * 2 * 300 * 4 and storage.data_ptr() not in wide:
            wide.append(storage.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = module(x)
    assert len(wide) == 1
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        y.sum().backward()
    assert "aten::silu" in {event.key for event in seen.key_averages()}


def test_feed_forward_makes_no_product_again():
    module = FeedForward(4, 300, dropout=0.1)
    x = torch.randn(50, 2, 4, requires_grad=True)
    with FlopCounterMode(display=False) as forward:
        y = module(x)
    with FlopCounterMode(display=False) as backward:
        y.sum().backward()
    assert backward.get_total_flops() == 2 * forward.get_total_flops() > 0


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_feed_forward_has_the_gradients_of_what_it_computed(dropout):
    module = FeedForward(4, 30, dropout)
    leaves = [torch.randn(5, 2, 4, requires_grad=True), *module.parameters()]

    def gradients(compute):
        torch.manual_seed(1)
        y = compute(leaves[0])
        torch.rand(3)  # what is drawn in between changes no mask
        return [y, *torch.autograd.grad(y, leaves, torch.ones_like(y))]

    found = gradients(module)
    wanted = gradients(lambda x: module.drop(module._contract(module.expand(module.norm(x)))))
    for got, expected in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


def test_feed_forward_in_transformations():
    module = FeedForward(4, 6).double()
    x = torch.randn(3, 2, 4, dtype=torch.float64)
    found = torch.func.grad(lambda x: module(x).square().sum())(x)
    wanted = torch.autograd.functional.jacobian(lambda x: module(x).square().sum(), x)
    torch.testing.assert_close(found, wanted)


def test_modules_of_other_sizes_are_refused():
    with pytest.raises(ValueError, match="multiple of num_heads, got 4 and 3"):
        SelfAttention(4, 3)
    with pytest.raises(ValueError, match="attention_window must be 1 step or more.*got 0"):
        SelfAttention(4, 2, window=0)


@pytest.mark.parametrize("shape", [(0, 2, 4), (3, 0, 4), (1, 1, 4)], ids=str)
def test_nothing_to_do(shape):
    x = torch.randn(shape, requires_grad=True)
    y, c_n = ResidualBlock(SRUppLayer(4, 3, 2, 0), 4, d_ffn=3, num_heads=2)(x)
    assert y.shape == shape
    assert c_n.shape == (shape[1], 6)
    y.sum().backward()
    assert FeedForward(4, 3)(x).shape == shape
