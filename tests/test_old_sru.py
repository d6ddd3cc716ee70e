"""The old ``sru`` package as a witness: its weights, our layers, the same numbers.

Install it with the extra ``witness``. Importing it compiles its CPU operator, once for each
version of PyTorch; where that does not work these tests are skipped. Padded input is compared with
`sru_asr.compat` alone: the old package lets padding through its layer norm.
"""

from __future__ import annotations

import importlib
import os
import sysconfig
import warnings
from types import ModuleType
from typing import Any, cast

import pytest
import torch
import torch.utils.cpp_extension
from torch import Tensor, nn

from sru_asr import SRU, compat, load_sru_checkpoint
from sru_asr.sru import SRULayer

pytestmark = pytest.mark.filterwarnings("ignore:Running SRU on CPU", "ignore:use_tanh")
WIDTH, STEPS, BATCH = 12, 9, 3


@pytest.fixture(scope="module")
def old_sru() -> ModuleType:
    compile_extension = torch.utils.cpp_extension.load

    def compile_for_cpu(name: str, sources: list[str], **options: Any) -> Any:
        # The package's CUDA part has not compiled for years: do not wait for it to fail.
        if any(source.endswith(".cu") for source in sources):
            raise RuntimeError("CUDA is not needed")
        return compile_extension(name, sources, **options)

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr(torch.utils.cpp_extension, "load", compile_for_cpu)
        # The compiler driver looks for ninja there, where an extra's ninja is not by itself.
        path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
        patch.setenv("PATH", path)
        try:
            return importlib.import_module("sru")
        except Exception as error:  # compilers fail in many ways
            pytest.skip(f"the old sru package does not import here: {error}")


def make_old(
    old_sru: ModuleType, features: int, num_layers: int, directions: int, **options: Any
) -> nn.Module:
    """Make an old stack whose every weight matters: its own initial values leave some at 0 or 1."""
    layer_norm = options.pop("layer_norm", None)
    torch.manual_seed(0)
    old = old_sru.SRU(
        features,
        WIDTH // directions,
        num_layers,
        bidirectional=directions == 2,
        layer_norm=layer_norm is not None,
        normalize_after=layer_norm == "post",
        nn_rnn_compatible_return=True,
        **options,
    )
    with torch.no_grad():
        for name, parameter in old.named_parameters():
            if name.endswith("bias") or "layer_norm" in name:
                parameter += torch.randn_like(parameter) / 2
    return old


def difference(found: Tensor | None, expected: Tensor | None) -> float:
    assert found is not None and expected is not None and found.shape == expected.shape
    return (found - expected).abs().max().item()


def compare(old: nn.Module, ours: SRU, dtype: torch.dtype = torch.float32) -> float:
    """Return the largest difference of outputs, final states and gradients.

    The parameters' gradients are sums over steps and sequences, in the hundreds behind a post
    layer norm: their differences are relative to their size.
    """
    generator = torch.Generator().manual_seed(1)
    layers, directions = ours.num_layers, ours.output_size // ours.hidden_size

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=dtype)

    x = random(STEPS, BATCH, ours.input_size)
    c0 = random(layers, BATCH, WIDTH)
    hx = c0.unflatten(-1, (directions, -1)).transpose(1, 2).flatten(0, 1)
    weights = random(STEPS, BATCH, WIDTH), random(*hx.shape)
    results = []
    for model, states in ((old, c0), (ours, hx)):
        inputs = x.clone().requires_grad_(), states.clone().requires_grad_()
        torch.manual_seed(2)  # for dropout: both draw the same masks
        output, c_n = model(*inputs)
        ((output * weights[0]).sum() + (c_n * weights[1]).sum()).backward()
        results.append((output, c_n, inputs[0].grad, inputs[1].grad))
    (output, c_n, dx, dc0), (our_output, our_c_n, our_dx, dhx) = results
    assert dc0 is not None
    pairs = [(our_output, output), (our_c_n, c_n), (our_dx, dx)]
    pairs.append((dhx, dc0.unflatten(-1, (directions, -1)).transpose(1, 2).flatten(0, 1)))
    largest = max(difference(*pair) for pair in pairs)
    for i, layer in enumerate(layers_of(ours)):
        cell: Any = old.get_submodule(f"rnn_lst.{i}")
        lanes = layer.recurrence.num_lanes
        gradient = cell.weight.grad.unflatten(1, (WIDTH, lanes)).permute(2, 1, 0).flatten(0, 1)
        pairs = [(layer.weight.grad, gradient), (layer.recurrence.b.grad, cell.bias.grad)]
        if layer.recurrence.v is not None:
            pairs.append((layer.recurrence.v.grad, cell.weight_c.grad))
        if layer.projection is not None:
            pairs.append((layer.projection.grad, cell.weight_proj.grad.T))
        if layer.layer_norm is not None:
            pairs.append((layer.norm.weight.grad, cell.layer_norm.weight.grad))
            pairs.append((layer.norm.bias.grad, cell.layer_norm.bias.grad))
        for found, expected in pairs:
            assert found is not None and expected is not None
            size = max(1, expected.abs().max().item())
            largest = max(largest, difference(found, expected.reshape(found.shape)) / size)
    return largest


def layers_of(sru: SRU) -> list[SRULayer]:
    return cast("list[SRULayer]", list(sru.layers))


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("num_layers", [1, 2, 3, 4])
@pytest.mark.parametrize("features", [WIDTH, 7], ids=["3matrices", "4matrices"])
@pytest.mark.parametrize("layer_norm", [None, "pre", "post"])
@pytest.mark.parametrize("rescale", [True, False], ids=["rescale", "no-rescale"])
@pytest.mark.parametrize("highway", [True, False], ids=["highway", "no-highway"])
def test_same_numbers(
    old_sru: ModuleType,
    highway: bool,
    rescale: bool,
    layer_norm: str | None,
    features: int,
    num_layers: int,
    directions: int,
) -> None:
    old = make_old(
        old_sru,
        features,
        num_layers,
        directions,
        has_skip_term=highway,
        rescale=rescale,
        layer_norm=layer_norm,
        highway_bias=-1.0,
    )
    options: dict[str, Any] = {"highway": highway, "layer_norm": layer_norm}
    ours = load_sru_checkpoint(old.state_dict(), bidirectional=directions == 2, **options)
    assert compare(old, ours) < 2e-5
    with torch.no_grad():  # the old package has a compiled operator here
        x = torch.randn(STEPS, BATCH, features)
        for found, expected in zip(ours(x), old(x), strict=True):
            assert difference(found, expected) < 2e-5


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize(
    "options",
    [
        {"layer_norm": "pre", "projection_size": 5},
        {"layer_norm": "post", "projection_size": 5, "use_tanh": True},
        {"dropout": 0.3},  # the masks are drawn in the same way from the same seed
        {"dropout": 0.3, "layer_norm": "post", "has_skip_term": False},
    ],
    ids=str,
)
def test_same_numbers_to_double_precision(
    old_sru: ModuleType, options: dict[str, Any], directions: int
) -> None:
    old = make_old(old_sru, 7, 3, directions, highway_bias=-2.0, rescale=True, **options).double()
    ours = load_sru_checkpoint(
        old.state_dict(),
        bidirectional=directions == 2,
        dropout=options.get("dropout", 0.0),
        layer_norm=options.get("layer_norm"),
        activation="tanh" if "use_tanh" in options else "identity",
    )
    assert compare(old, ours, torch.float64) < 1e-12


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("features", [WIDTH, 7], ids=["3matrices", "4matrices"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rescale": True, "highway_bias": -2.0, "layer_norm": True, "dropout": 0.3},
        {"normalize_after": True, "layer_norm": True, "use_tanh": True, "rnn_dropout": 0.3},
        {"has_skip_term": False, "projection_size": 5, "v1": True, "weight_c_init": 0.5},
        {"proj_input_to_hidden_first": True, "rescale": True, "nn_rnn_compatible_return": True},
    ],
    ids=str,
)
def test_the_same_interface(
    old_sru: ModuleType, options: dict[str, Any], features: int, directions: int
) -> None:
    arguments = features, WIDTH // directions, 3
    made = []
    for package in (old_sru, compat):  # the same initial values from the same seed
        torch.manual_seed(0)
        made.append(package.SRU(*arguments, bidirectional=directions == 2, **options))
    old, ours = made
    assert list(old.state_dict()) == list(ours.state_dict())
    assert all(map(torch.equal, old.state_dict().values(), ours.state_dict().values()))
    with torch.no_grad():
        for parameter in old.parameters():
            if parameter.requires_grad:
                parameter += torch.randn_like(parameter) / 2
    ours.load_state_dict(old.state_dict())
    x, c0 = torch.randn(STEPS, BATCH, features), torch.randn(3, BATCH, WIDTH).double()
    mask = torch.zeros(STEPS, BATCH)
    mask[5:, 1] = mask[:2, 2] = mask[3, 0] = 1
    results = []
    for model in (old.double(), ours.double()):
        torch.manual_seed(2)  # for dropout: both draw the same masks
        inputs = x.double().requires_grad_()
        h, c = model(inputs, c0, mask)
        (h.square().sum() + c.square().sum()).backward()
        gradients = [p.grad for p in model.parameters() if p.requires_grad]
        results.append([h, c, inputs.grad, *gradients])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("highway", [True, False], ids=["highway", "no-highway"])
@pytest.mark.parametrize("rescale", [True, False], ids=["rescale", "no-rescale"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dropout": 0.5, "highway_bias": -2.0},
        {"layer_norm": "pre", "highway_bias": -2.0, "dropout": 0.2},
        {"layer_norm": "post", "bidirectional": True},
        {"projection_size": 100, "dropout": 0.2},
    ],
    ids=str,
)
def test_same_initial_values(
    old_sru: ModuleType, options: dict[str, Any], rescale: bool, highway: bool
) -> None:
    layer_norm = options.get("layer_norm")
    torch.manual_seed(0)
    old = old_sru.SRU(
        200,
        256,
        2,
        has_skip_term=highway,
        rescale=rescale,
        normalize_after=layer_norm == "post",
        **options | {"layer_norm": layer_norm is not None},
    )
    ours = SRU(200, 256, 2, highway=highway, rescale=rescale, **options)
    theirs = load_sru_checkpoint(
        old.state_dict(),
        highway=highway,
        layer_norm=layer_norm,
        bidirectional=options.get("bidirectional", False),
    )
    for layer, witness in zip(layers_of(ours), layers_of(theirs), strict=True):
        assert layer.recurrence.alpha == pytest.approx(witness.recurrence.alpha, rel=1e-6)
        assert torch.equal(layer.recurrence.b, witness.recurrence.b)
        assert layer.recurrence.v is not None and witness.recurrence.v is not None
        same_uniform(layer.recurrence.v, witness.recurrence.v)
        lanes = layer.recurrence.num_lanes
        assert lanes == witness.recurrence.num_lanes
        for lane in zip(layer.weight.chunk(lanes), witness.weight.chunk(lanes), strict=True):
            same_uniform(*lane)
        if layer.projection is not None:
            assert witness.projection is not None
            same_uniform(layer.projection, witness.projection)
        if layer_norm is not None:
            assert torch.equal(layer.norm.weight, witness.norm.weight)
            assert torch.equal(layer.norm.bias, witness.norm.bias)


def same_uniform(found: Tensor, expected: Tensor) -> None:
    """Check that two samples come from the same uniform distribution around 0."""
    assert found.shape == expected.shape
    for sample in (found, expected):
        assert abs(sample.mean() / sample.std()) < 5 / sample.numel() ** 0.5
    # A uniform sample's variance has a relative standard error of sqrt(0.8 / n).
    assert abs(found.var() / expected.var() - 1) < 5 * (2 * 0.8 / found.numel()) ** 0.5
    for end in (torch.max, torch.min):  # sharper: a sample misses an end by about 2/n of it
        assert abs(end(found) / end(expected) - 1) < 20 / found.numel()
