"""The old package's interface: shapes, padding, TorchScript, pickles, and what it refuses.

Its numbers are compared with the old package itself in test_old_sru.py, and those of SRU++ with its
equations in test_checkpoint.py.
"""

import copy
import importlib
import pickle
import sys

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from sru_asr import compat, load_sru_checkpoint
from sru_asr.compat import sru2, sru3

STEPS, BATCH, FEATURES, WIDTH = 6, 3, 5, 8
STACKS = {
    "2.6": (sru2.SRU, {}),
    "2.6-options": (
        sru2.SRU,
        {"layer_norm": True, "rescale": True, "projection_size": 3, "use_tanh": True},
    ),
    "2.6-first": (sru2.SRU, {"proj_input_to_hidden_first": True, "rescale": True}),
    "3.0": (sru3.SRU, {"normalize_after": True, "layer_norm": True}),
    "3.0-projections": (sru3.SRU, {"projection_size": [0, 9, 3], "has_skip_term": False}),
    "3.0-srupp": (sru3.SRUpp, {"proj_size": 4, "num_heads": 2}),
    "3.0-srupp-options": (
        sru3.SRUpp,
        {"proj_size": 4, "layer_norm": True, "attention_last_n_layers": 1, "rescale": True},
    ),
}


def make(name, **options):
    """Make a stack with every weight off its initial value, and attention that matters."""
    cls, own = STACKS[name]
    bidirectional = options.setdefault("bidirectional", True)
    hidden = WIDTH // 2 if bidirectional else WIDTH
    stack = cls(
        **{"input_size": FEATURES, "hidden_size": hidden, "num_layers": 3} | own | options
    ).double()
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter += torch.randn_like(parameter) / 3
    return stack.eval()


def random(*shape):
    return torch.randn(shape, dtype=torch.float64)


@pytest.fixture(params=STACKS)
def name(request):
    return request.param


@pytest.fixture
def no_sru(monkeypatch):
    """Forget what has been imported as sru, and again afterwards."""
    for key in [key for key in sys.modules if key.partition(".")[0] == "sru"]:
        monkeypatch.delitem(sys.modules, key)
    yield
    for key in [key for key in sys.modules if key.partition(".")[0] == "sru"]:
        del sys.modules[key]


# Numbers


@pytest.mark.parametrize("name", [key for key in STACKS if "srupp" not in key])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_the_loaded_stack_computes_the_same(name, bidirectional):
    old = make(name, bidirectional=bidirectional)
    cell = old.rnn_lst[0]
    place = ("post" if cell.normalize_after else "pre") if old.use_layer_norm else None
    ours = load_sru_checkpoint(
        old.state_dict(),
        bidirectional=bidirectional,
        layer_norm=place,
        activation="tanh" if cell.activation == "tanh" else "identity",
        highway=old.has_skip_term,
    )
    x, c0 = random(STEPS, BATCH, FEATURES), random(3, BATCH, WIDTH)
    directions = 1 + bidirectional
    hx = c0.unflatten(-1, (directions, -1)).transpose(1, 2).flatten(0, 1)
    for found, expected in zip(ours(x, hx), old(x, c0), strict=True):
        if found.shape != expected.shape:
            expected = expected.unflatten(-1, (directions, -1)).transpose(1, 2).flatten(0, 1)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_a_padded_step_anywhere_is_as_if_it_were_not_there(name):
    stack = make(name)
    x, c0 = random(STEPS, BATCH, FEATURES), random(3, BATCH, WIDTH)
    pads = [[0, 0, 0, 0, 1, 1], [1, 1, 0, 0, 0, 0], [0, 1, 0, 0, 1, 0]]
    for dtype in (torch.bool, torch.uint8, torch.float32):
        mask = torch.tensor(pads).T.to(dtype)
        h, c, *_ = stack(x, c0, mask)
        for b in range(BATCH):
            real = torch.tensor(pads[b]) == 0
            alone, state, *_ = stack(x[real, b : b + 1], c0[:, b : b + 1])
            torch.testing.assert_close(h[real, b : b + 1], alone)
            torch.testing.assert_close(c[:, b : b + 1], state)
    padded = h[mask != 0]
    if stack.use_layer_norm and stack.rnn_lst[0].normalize_after:
        padded = padded - stack.rnn_lst[-1].layer_norm.bias  # what it makes of 0, as it ever did
    assert padded.abs().max() == 0


def test_gradients_of_padded_steps(name):
    stack = make(name)
    x = random(STEPS, BATCH, FEATURES).requires_grad_()
    mask = torch.zeros(STEPS, BATCH)
    mask[2, 1] = mask[4:, 0] = 1
    h, c, *_ = stack(x, None, mask)
    (h[mask == 0].sum() + c.sum()).backward()
    assert x.grad[mask != 0].abs().max() == 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in stack.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_padding_in_fewer_bits(dtype):
    exact = make("2.6")
    mask = torch.zeros(STEPS, BATCH)
    mask[1:3, 1] = mask[4:, 0] = 1
    x = random(STEPS, BATCH, FEATURES)
    expected = exact(x, None, mask)
    found = copy.deepcopy(exact).to(dtype)(x.to(dtype), None, mask)
    (found[0].sum() + found[1].sum()).backward()
    tolerance = 1e-5 if dtype == torch.float32 else 0.1
    for low, high in zip(found, expected, strict=True):
        torch.testing.assert_close(low.double(), high, rtol=0, atol=tolerance)


def test_packed_input_is_padded_input(name):
    stack = make(name)
    x, c0, lengths = random(STEPS, BATCH, FEATURES), random(3, BATCH, WIDTH), [4, 6, 1]
    mask = torch.arange(STEPS)[:, None] >= torch.tensor(lengths)
    h, c, *_ = stack(x, c0, mask)
    packed, state, *_ = stack(pack_padded_sequence(x, lengths, enforce_sorted=False), c0)
    unpacked, found = pad_packed_sequence(packed)
    assert found.tolist() == lengths
    torch.testing.assert_close(unpacked, h.masked_fill(mask[:, :, None], 0))
    torch.testing.assert_close(state, c)
    with pytest.raises(ValueError, match="mask_pad must be None for a PackedSequence"):
        stack(pack_padded_sequence(x, lengths, enforce_sorted=False), c0, mask)


def test_states_of_both_layouts(name):
    stack = make(name)
    x = random(STEPS, BATCH, FEATURES)
    c = stack(x)[1]
    stack.nn_rnn_compatible_return = True
    compatible = stack(x)[1]
    assert c.shape == (3, BATCH, WIDTH) and compatible.shape == (6, BATCH, WIDTH // 2)
    for layer in range(3):
        assert torch.equal(compatible[2 * layer], c[layer, :, : WIDTH // 2])
        assert torch.equal(compatible[2 * layer + 1], c[layer, :, WIDTH // 2 :])


def test_a_sequence_goes_on_with_state_and_memory():
    stack = make("3.0-srupp", bidirectional=False)
    x = random(STEPS, BATCH, FEATURES)
    causal = torch.full((STEPS, STEPS), float("-inf"), dtype=x.dtype).triu(1)
    h, c, saved = stack(x, attn_mask=causal)
    first, state, past = stack(x[:4], attn_mask=causal[:4, :4])
    second, state, now = stack(x[4:], state, attn_mask=causal[4:], memory=past["saved_inputs"])
    torch.testing.assert_close(torch.cat([first, second]), h)
    torch.testing.assert_close(state, c)
    for all_of_it, *parts in zip(
        saved["saved_inputs"], past["saved_inputs"], now["saved_inputs"], strict=True
    ):
        torch.testing.assert_close(torch.cat(parts), all_of_it)
    hidden = torch.tensor([[1, 0, 0]] * 4)  # nobody looks at the memory of the first sequence
    apart = stack(x[4:], memory=past["saved_inputs"], memory_mask_pad=hidden)[0]
    torch.testing.assert_close(apart[:, :1], stack(x[4:, :1])[0])
    assert not torch.allclose(apart[:, 1:], stack(x[4:, 1:])[0])


def test_one_mask_for_all_steps():
    cell = sru2.SRUCell(4, 64, rnn_dropout=0.5, dropout=0.5)
    seen = cell.product_input(torch.ones(STEPS, 50, 4))
    assert set(seen.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(seen, seen[:1].expand_as(seen))
    cell = sru2.SRUCell(4, 64, dropout=0.5, has_skip_term=False)
    dropped = cell(torch.randn(STEPS, BATCH, 4))[0] == 0
    assert torch.equal(dropped.all(0), dropped.any(0)) and 0.3 < dropped.float().mean() < 0.7
    assert not (cell.eval()(torch.randn(STEPS, BATCH, 4))[0] == 0).any()


def test_dropout_spares_the_last_layer(name):
    stack = make(name, dropout=0.5)
    assert [cell.dropout for cell in stack.rnn_lst] == [0.5, 0.5, 0.0]


@pytest.mark.parametrize("fp16", [False, True])
def test_recurrence_under_autocast(fp16):
    cell = sru2.SRUCell(4, 4, amp_recurrence_fp16=fp16)
    x = torch.randn(STEPS, BATCH, 4)
    with torch.autocast("cpu", torch.bfloat16):
        h, c = cell(x)
    assert h.dtype == c.dtype == (torch.bfloat16 if fp16 else torch.float32)
    torch.testing.assert_close(h.float(), cell(x)[0], rtol=0.05, atol=0.05)


def test_a_single_step_of_a_cell():
    cell = sru2.SRUCell(4, 3).double()
    x, c0 = random(BATCH, 4), random(BATCH, 3)
    for found, expected in zip(cell(x, c0), cell(x[None], c0), strict=True):
        assert torch.equal(found, expected)


# TorchScript


def test_scripted(name, tmp_path):
    stack = make(name)
    torch.jit.script(stack).save(tmp_path / "stack.pt")
    scripted = torch.jit.load(tmp_path / "stack.pt")
    mask = torch.zeros(STEPS, BATCH)
    mask[4:, 1] = 1
    x, c0 = random(STEPS, BATCH, FEATURES), random(3, BATCH, WIDTH)
    for arguments in ((x,), (x, c0), (x, c0, mask)):
        expected, found = stack(*arguments), scripted(*arguments)
        torch.testing.assert_close(found[:2], expected[:2], rtol=0, atol=1e-12)
    weights = [random(*h.shape) for h in expected[:2]]
    gradients = []
    for module in (stack, scripted):
        outputs = module(x, c0, mask)[:2]
        sum((h * weight).sum() for h, weight in zip(outputs, weights, strict=True)).backward()
        gradients.append({key: p.grad for key, p in module.named_parameters()})
    torch.testing.assert_close(*gradients)


# Options


def test_defaults_and_names_are_each_versions_own():
    two, three = sru2.SRU(4, 4), sru3.SRU(4, 4)
    assert {key for key in two.state_dict() if ".0." in key} == {
        f"rnn_lst.0.{key}" for key in ("weight", "weight_c", "bias", "scale_x")
    }
    assert {key for key in three.state_dict() if ".0." in key} == {
        f"rnn_lst.0.{key}" for key in ("transform_module.weight", "weight_c", "bias", "scale_x")
    }
    assert len(two.rnn_lst) == len(three.rnn_lst) == 2
    assert sru2.SRUCell(4, 4).rescale and not two.rnn_lst[0].rescale
    assert not sru3.SRUCell(4, 4).rescale and sru3.SRUCell(4, 4).normalize_after
    assert sru3.SRUpp(4, 4, 2).rnn_lst[0].highway_bias == -2
    assert isinstance(sru3.SRUpp(4, 4, 2)[1], sru3.SRUppCell)
    assert not sru2.SRU(4, 4, v1=True).rnn_lst[0].weight_c.requires_grad


class Doubled(nn.Module):
    """A custom module: a product of its own."""

    def __init__(self, columns):
        super().__init__()
        self.linear = nn.Linear(4, columns)

    def forward(self, x):
        return 2 * self.linear(x)


@pytest.mark.parametrize("version", [sru2, sru3])
def test_custom_modules(version):
    option = "custom_m" if version is sru2 else "transform_module"
    one = version.SRU(4, 4, **{option: Doubled(12)})
    assert len({id(getattr(cell, option)) for cell in one.rnn_lst}) == 2  # copies
    modules = [Doubled(12), Doubled(12)]
    stack = version.SRU(4, 4, **{option: modules})
    assert [getattr(cell, option) for cell in stack.rnn_lst] == modules
    plain = sru2.SRU(4, 4)
    with torch.no_grad():
        for cell, module in zip(plain.rnn_lst, modules, strict=True):
            cell.weight.copy_(2 * module.linear.weight.T)
            module.linear.bias.zero_()
    plain.load_state_dict(
        {k: v for k, v in stack.state_dict().items() if ".linear." not in k}, strict=False
    )
    x = torch.randn(STEPS, BATCH, 4)
    torch.testing.assert_close(stack(x), plain(x))
    with pytest.raises(ValueError, match=f"{option} must have num_layers = 3 modules, got 2"):
        version.SRU(4, 4, 3, **{option: modules})
    with pytest.raises(ValueError, match=r"must return .* = 4 \* 3 features, got 16"):
        version.SRUCell(4, 4, **{option: Doubled(16)})(x)


class TwoTensors(nn.Module):
    def forward(self, x):
        return torch.zeros(*x.shape[:2], 12), torch.zeros(*x.shape[:2], 8)


@pytest.mark.parametrize("cell", [sru2.SRUCell, sru3.SRUCell])
def test_a_second_tensor_of_a_custom_module_is_refused(cell):
    option = "custom_m" if cell is sru2.SRUCell else "transform_module"
    with pytest.raises(NotImplementedError, match="must return one tensor"):
        cell(4, 4, **{option: TwoTensors()})(torch.zeros(STEPS, BATCH, 4))


# Bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"c0": random(2, BATCH, WIDTH)},
            r"c0 must .*output_size\) = \(3, 3, 8\), got \[2, 3, 8\]",
        ),
        ({"c0": random(6, BATCH, WIDTH // 2)}, "c0 must .* even with nn_rnn_compatible_return"),
        ({"mask_pad": torch.zeros(BATCH, STEPS)}, r"mask_pad .*batch\) = \(6, 3\), got \[3, 6\]"),
        ({"input": random(STEPS, BATCH, 4)}, r"input must .*input_size = 5\), got \[6, 3, 4\]"),
        ({"input": random(STEPS, FEATURES)}, "input must have shape"),
    ],
)
def test_wrong_shapes_are_named(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(name)(**{"input": random(STEPS, BATCH, FEATURES)} | arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"memory": [None]}, "memory must have num_layers = 3 entries, got 1"),
        ({"memory": [random(2, 1, 5), None, None]}, r"memory must .*\(\*, 3, 5\).*got \[2, 1, 5\]"),
        ({"attn_mask": random(6, 7)}, r"attn_mask must .* = \(6, 6\), got \[6, 7\]"),
        ({"memory_mask_pad": random(2, BATCH)}, r"memory_mask_pad must .*\(0, 3\), got \[2, 3\]"),
    ],
)
def test_wrong_attention_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        make("3.0-srupp")(random(STEPS, BATCH, FEATURES), **arguments)


def test_wrong_options_are_named():
    with pytest.raises(ValueError, match="attention_every_n_layers and attention_last_n_layers"):
        sru3.SRUpp(4, 4, 2, attention_every_n_layers=2, attention_last_n_layers=1)
    with pytest.raises(ValueError, match="proj_features must be a multiple of num_heads"):
        sru3.SRUpp(4, 4, 3, num_heads=2)
    with pytest.raises(ValueError, match="projection_size must be an int or num_layers = 2"):
        sru3.SRU(4, 4, projection_size=[1, 2, 3])
    with pytest.raises(ValueError, match=r"c0 must .*\(3, 4\), got \[3, 5\]"):
        sru2.SRUCell(4, 4)(torch.zeros(STEPS, BATCH, 4), torch.zeros(BATCH, 5))


# import sru


def test_install_answers_for_import_sru(no_sru):
    installed = compat.install()
    sru = importlib.import_module("sru")
    assert sru is installed and compat.install() is installed
    assert (sru.SRU, sru.SRUCell, sru.__version__) == (compat.SRU, compat.SRUCell, "2.6.0")
    assert not hasattr(sru, "SRUpp")
    names = {}
    exec("from sru import *\nfrom sru.modules import SRUCell as Cell", names)
    assert names["SRU"] is compat.SRU and names["Cell"] is compat.SRUCell
    assert importlib.import_module("sru.version").__version__ == "2.6.0"
    with pytest.raises(ModuleNotFoundError, match=r"sru\.ops"):
        importlib.import_module("sru.ops")
    with pytest.raises(RuntimeError, match="imported already.*2.6.0.*install.'3.0-dev'"):
        compat.install("3.0-dev")


def test_install_of_the_other_version(no_sru):
    sru = compat.install("3.0-dev")
    assert (sru.SRU, sru.SRUpp, sru.__version__) == (sru3.SRU, compat.SRUpp, "3.0.0.dev6")
    assert importlib.import_module("sru.modules").SRUppAttention is sru3.SRUppAttention
    with pytest.raises(ValueError, match=r"version must be one of 2\.6, 3\.0-dev, got '2'"):
        compat.install("2")


def test_whole_modules_that_older_releases_pickled(no_sru, monkeypatch):
    stack = make("2.6")
    x = random(STEPS, BATCH, FEATURES)
    expected = stack(x)
    for cell in stack.rnn_lst:  # what version 2.2 did not know
        del cell.custom_m, cell.normalize_after, cell.weight_c_init, cell.amp_recurrence_fp16
        del cell._parameters["weight_proj"], cell.layer_norm
    del stack.input_to_hidden
    compat.install()
    for cls in (sru2.SRU, sru2.SRUCell):
        monkeypatch.setattr(cls, "__module__", "sru.modules")
    pickled = pickle.dumps(stack)
    assert b"sru.modules" in pickled and b"sru_asr" not in pickled
    revived = pickle.loads(pickled)
    revived.make_backward_compatible()
    assert torch.equal(revived(x)[0], expected[0])
    stack.n_in = 5
    with pytest.raises(NotImplementedError, match="load_sru_checkpoint"):
        pickle.loads(pickle.dumps(stack))
