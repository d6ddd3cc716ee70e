"""The old package's checkpoints: what is read from them, and what is refused."""

from __future__ import annotations

import itertools
import math
import pathlib
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from sru_asr import SRU, compat, load_sru_checkpoint, reference
from sru_asr.sru import SRULayer

StateDict = dict[str, Tensor]


def old_state_dict(
    sizes: list[int],
    *,
    directions: int = 1,
    highway: bool = True,
    highway_bias: float = 0.0,
    rescale: bool = True,
    layer_norm: str | None = None,
    projection: int | None = None,
    dev: bool = False,
    dtype: torch.dtype = torch.float64,
) -> StateDict:
    """Make random weights in the old layout for layers of ``sizes[i]`` to ``sizes[i + 1]``."""
    state: StateDict = {}
    draw = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype) / 2

    for i, (features, width) in enumerate(itertools.pairwise(sizes)):
        assert width % directions == 0
        columns = width * (4 if highway and features != width else 3)
        name = f"rnn_lst.{i}"
        if projection is None:
            matrices = {"weight": random(features, columns)}
        else:
            matrices = {
                "weight_proj": random(features, projection),
                "weight": random(projection, columns),
            }
        if dev:
            names = ["0.", "1."] if projection else [""]
            matrices = {
                f"transform_module.{part}weight": matrix.T.contiguous()
                for part, matrix in zip(names, matrices.values(), strict=True)
            }
        state |= {f"{name}.{key}": matrix for key, matrix in matrices.items()}
        state[f"{name}.weight_c"] = random(2 * width)
        state[f"{name}.bias"] = random(2 * width)
        alpha = math.sqrt(1 + 2 * math.exp(highway_bias)) if highway and rescale else 1.0
        state[f"{name}.scale_x"] = torch.tensor([alpha])
        if layer_norm is not None:
            normed = features if layer_norm == "pre" else width
            state[f"{name}.layer_norm.weight"] = 1 + random(normed)
            state[f"{name}.layer_norm.bias"] = random(normed)
    return state


def old_forward(
    state: StateDict,
    x: Tensor,
    c0: Tensor,
    *,
    directions: int,
    layer_norm: str | None,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """Run the layers as the old layout means them: columns are [direction][dimension][lane]."""
    highway, finals = options.pop("highway"), []
    for i in range(len(c0)):
        part = {key.removeprefix(f"rnn_lst.{i}."): t.double() for key, t in state.items()}
        v, b = part["weight_c"], part["bias"]
        width = len(v) // 2
        hidden = width // directions

        def norm(h: Tensor, part: StateDict = part) -> Tensor:
            centred = h - h.mean(-1, keepdim=True)
            deviation = (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
            return centred / deviation * part["layer_norm.weight"] + part["layer_norm.bias"]

        z = norm(x) if layer_norm == "pre" else x
        if "weight_proj" in part:
            z = torch.einsum("tbi,ip->tbp", z, part["weight_proj"])
        elif "transform_module.0.weight" in part:
            z = torch.einsum("tbi,pi->tbp", z, part["transform_module.0.weight"])
        if "weight" in part:
            weight = part["weight"]
        else:
            last = "1." if "transform_module.1.weight" in part else ""
            weight = part[f"transform_module.{last}weight"].T
        matrix = weight.reshape(weight.shape[0], directions, hidden, -1)
        u = torch.einsum("tbi,iedk->tbked", z, matrix).flatten(-2)
        h, c_n = reference.sru_recurrence(
            u,
            v.reshape(2, width),
            b.reshape(2, width),
            x if highway and u.shape[2] == 3 else None,
            c0[i],
            bidirectional=directions == 2,
            alpha=part["scale_x"].item(),
            **options,
        )
        x = norm(h) if layer_norm == "post" else h
        finals.append(c_n)
    return x, torch.stack(finals)


def layers_of(sru: SRU) -> list[SRULayer]:
    return cast("list[SRULayer]", list(sru.layers))


@pytest.mark.parametrize("dev", [False, True], ids=["2.x", "3.0-dev"])
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("sizes", [[6, 6], [5, 6], [5, 6, 6, 6]], ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"highway": False},
        {"rescale": False},
        {"highway_bias": -2.0, "layer_norm": "pre"},
        {"layer_norm": "post", "activation": "tanh"},
        {"projection": 3, "layer_norm": "pre"},
    ],
    ids=str,
)
def test_outputs_are_the_old_layouts(
    options: dict[str, Any], sizes: list[int], directions: int, dev: bool
) -> None:
    made = {key: value for key, value in options.items() if key != "activation"}
    state = old_state_dict(sizes, directions=directions, dev=dev, **made)
    given = {key: value for key, value in options.items() if key != "projection"}
    sru = load_sru_checkpoint(state, bidirectional=directions == 2, **given)
    assert (sru.input_size, sru.num_layers) == (sizes[0], len(sizes) - 1)
    assert sru.hidden_size * directions == sizes[-1]
    x = torch.randn(7, 2, sizes[0], dtype=torch.float64)
    c0 = torch.randn(len(sizes) - 1, 2, sizes[-1], dtype=torch.float64)
    expected, finals = old_forward(
        state,
        x,
        c0,
        directions=directions,
        layer_norm=options.get("layer_norm"),
        highway=options.get("highway", True),
        activation=options.get("activation", "identity"),
    )

    def by_direction(c: Tensor) -> Tensor:  # (layers, B, D) to (layers * directions, B, H)
        return c.unflatten(-1, (directions, -1)).transpose(1, 2).flatten(0, 1)

    output, c_n = sru(x, by_direction(c0))
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(c_n, by_direction(finals), rtol=0, atol=1e-12)


def test_projection_only_where_the_old_package_had_one() -> None:
    # It factorised only layers whose input and output were wider than the projection.
    state = old_state_dict([4, 8, 8], projection=6, highway=False)
    state["rnn_lst.0.weight"] = torch.randn(4, 24, dtype=torch.float64)
    del state["rnn_lst.0.weight_proj"]
    sru = load_sru_checkpoint(state, projection_size=6)
    first, second = layers_of(sru)
    assert first.projection is None and second.projection.shape == (6, 8)
    x, c0 = torch.randn(5, 2, 4, dtype=torch.float64), torch.zeros(2, 2, 8, dtype=torch.float64)
    expected, _ = old_forward(state, x, c0, directions=1, layer_norm=None, highway=False)
    torch.testing.assert_close(sru(x)[0], expected, rtol=0, atol=1e-12)
    sru.reset_parameters()  # draws for the shapes that are there
    with pytest.raises(ValueError, match="projection_size=5 contradicts"):
        load_sru_checkpoint(state, projection_size=5)


@pytest.mark.parametrize("sizes", [[6, 6], [5, 6]], ids=str)
def test_stored_scale_decides_alpha(sizes: list[int]) -> None:
    state = old_state_dict(sizes, highway_bias=-2.0)
    recurrence = layers_of(load_sru_checkpoint(state))[0].recurrence
    assert recurrence.alpha == state["rnn_lst.0.scale_x"].item()
    assert recurrence.highway_bias == pytest.approx(-2, abs=1e-5)
    state = old_state_dict(sizes, rescale=False)
    recurrence = layers_of(load_sru_checkpoint(state, highway_bias=-3.0))[0].recurrence
    assert (recurrence.alpha, recurrence.highway_bias) == (1, -3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_dtype_is_kept_and_memory_is_not_shared(dtype: torch.dtype) -> None:
    state = old_state_dict([5, 6], layer_norm="pre", highway_bias=-2.0, dtype=dtype)
    state = {key: tensor.to(dtype) for key, tensor in state.items()}
    sru = load_sru_checkpoint(state, highway_bias=-2.0)
    assert {p.dtype for p in sru.parameters()} == {dtype}
    assert all(p.requires_grad and p.is_contiguous() for p in sru.parameters())
    before = [p.clone() for p in sru.parameters()]
    for tensor in state.values():
        tensor.zero_()
    assert all(map(torch.equal, before, sru.parameters()))
    converted = load_sru_checkpoint(old_state_dict([5, 6]), dtype=dtype, device="cpu")
    assert {p.dtype for p in converted.parameters()} == {dtype}


def test_file_and_prefix(tmp_path: pathlib.Path) -> None:
    state = old_state_dict([5, 6])
    model = {f"encoder.rnn.{key}": tensor for key, tensor in state.items()}
    model["decoder.weight"] = torch.zeros(3)
    torch.save(model, tmp_path / "model.pt")
    expected = load_sru_checkpoint(state)
    for path in (tmp_path / "model.pt", str(tmp_path / "model.pt")):
        sru = load_sru_checkpoint(path, prefix="encoder.rnn.")
        assert all(map(torch.equal, sru.parameters(), expected.parameters()))
    with pytest.raises(ValueError, match=r"give prefix='encoder\.rnn\.'"):
        load_sru_checkpoint(tmp_path / "model.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(TypeError, match=r"list\.pt must hold a state_dict, got list"):
        load_sru_checkpoint(tmp_path / "list.pt")


def test_other_options_reach_the_stack() -> None:
    state = old_state_dict([5, 6, 6])
    sru = load_sru_checkpoint(state, bidirectional=True, batch_first=True, dropout=0.25)
    assert sru(torch.randn(2, 7, 5, dtype=torch.float64))[0].shape == (2, 7, 6)
    assert [layer.recurrence.dropout for layer in layers_of(sru)] == [0.25, 0]
    with pytest.raises(TypeError, match="has_skip_term"):
        load_sru_checkpoint(state, has_skip_term=True)


def test_v1_may_lose_its_recurrent_gates() -> None:
    state = old_state_dict([6, 6])
    with pytest.raises(ValueError, match="recurrent_gates=False contradicts"):
        load_sru_checkpoint(state, recurrent_gates=False)
    state["rnn_lst.0.weight_c"].zero_()
    x = torch.randn(4, 2, 6, dtype=torch.float64)
    linear = load_sru_checkpoint(state, recurrent_gates=False)
    assert layers_of(linear)[0].recurrence.v is None
    torch.testing.assert_close(linear(x), load_sru_checkpoint(state)(x))


@pytest.mark.parametrize(
    ("made", "option"),
    [
        ({"sizes": [5, 7]}, {"bidirectional": True}),
        ({"sizes": [5, 6]}, {"highway": False}),
        ({"sizes": [5, 6], "highway": False}, {"highway": True}),
        ({"sizes": [6, 6]}, {"highway": False}),
        ({"sizes": [6, 6]}, {"rescale": False}),
        ({"sizes": [6, 6]}, {"highway_bias": -2.0}),
        ({"sizes": [6, 6], "rescale": False}, {"rescale": True}),
        ({"sizes": [5, 6]}, {"layer_norm": "pre"}),
        ({"sizes": [5, 6], "layer_norm": "pre"}, {"layer_norm": "post"}),
        ({"sizes": [5, 6], "layer_norm": "post"}, {"layer_norm": "pre"}),
        ({"sizes": [6, 6], "layer_norm": "post"}, {"layer_norm": None}),
        ({"sizes": [5, 6]}, {"input_size": 6}),
        ({"sizes": [5, 6]}, {"hidden_size": 3}),
        ({"sizes": [5, 6]}, {"num_layers": 2}),
        ({"sizes": [5, 6]}, {"bias": False}),
        ({"sizes": [5, 6]}, {"projection_size": 3}),
    ],
    ids=str,
)
def test_contradicting_option_is_named(made: dict[str, Any], option: dict[str, Any]) -> None:
    state = old_state_dict(**made)
    load_sru_checkpoint(state)
    ((name, value),) = option.items()
    with pytest.raises(ValueError, match=f"{name}={value!r} contradicts the weights"):
        load_sru_checkpoint(state, **option)


def test_layer_norm_is_read_where_it_can_be() -> None:
    def place_of(state: StateDict, **options: Any) -> str | None:
        return layers_of(load_sru_checkpoint(state, **options))[0].layer_norm

    for place in ("pre", "post"):
        assert place_of(old_state_dict([5, 6], layer_norm=place)) == place
    state = old_state_dict([6, 6], layer_norm="post")
    assert place_of(state) == "pre"
    assert place_of(state, layer_norm="post") == "post"


MATRIX = torch.zeros(6, 18)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rnn_lst.0.weight": None}, r"missing key rnn_lst\.0\.weight: expected .* \(input, 3\*6"),
        ({"rnn_lst.1.bias": None}, r"missing key rnn_lst\.1\.bias: .* \(12,\)"),
        ({"rnn_lst.0.scale_x": None}, r"missing key rnn_lst\.0\.scale_x: .* \(1,\)"),
        ({"rnn_lst.0.layer_norm.bias": None}, r"missing key rnn_lst\.0\.layer_norm\.bias"),
        ({"rnn_lst.3.bias": torch.zeros(12)}, r"missing keys rnn_lst\.2\.\*"),
        ({"rnn_lst.0.gate": MATRIX}, r"unexpected key 'rnn_lst\.0\.gate': expected .*weight_c"),
        ({"extra": MATRIX}, "unexpected key 'extra'"),
        ({"rnn_lst.0.transform_module.weight": MATRIX.T}, r"unexpected key rnn_lst\.0\.weight"),
        ({"rnn_lst.0.weight": torch.zeros(6, 17)}, r"rnn_lst\.0\.weight must .* 3\*6 .* got 17"),
        ({"rnn_lst.0.weight": torch.zeros(6, 24)}, r"rnn_lst\.0\.weight must have 3\*6 outputs"),
        ({"rnn_lst.0.weight": torch.zeros(18)}, r"rnn_lst\.0\.weight must have shape \(input, "),
        ({"rnn_lst.1.weight": torch.zeros(5, 24)}, r"rnn_lst\.1 must map 6 to 6 .* got 5 to 6"),
        ({"rnn_lst.0.weight_c": torch.zeros(11)}, r"rnn_lst\.0\.weight_c must .* \(2\*D,\)"),
        ({"rnn_lst.0.bias": torch.zeros(6)}, r"rnn_lst\.0\.bias must have shape \(12,\)"),
        ({"rnn_lst.0.scale_x": torch.zeros(1)}, r"rnn_lst\.0\.scale_x must .* at least 1, got 0"),
        (
            {
                "rnn_lst.0.layer_norm.weight": torch.zeros(4),
                "rnn_lst.0.layer_norm.bias": torch.zeros(4),
            },
            r"rnn_lst\.0\.layer_norm\.weight must have shape",
        ),
        (
            {"rnn_lst.1.layer_norm.weight": None, "rnn_lst.1.layer_norm.bias": None},
            r"missing key rnn_lst\.1\.layer_norm\.weight: rnn_lst\.0 has layer norm",
        ),
        ({"input_to_hidden.weight": MATRIX}, r"'input_to_hidden\.weight': .*nn\.Linear"),
        (
            {"input_to_hidden.weight": MATRIX.T},
            r"input_to_hidden\.weight must have shape \(6, inpu",
        ),
        ({"rnn_lst.0.transform_module.linear1.weight": MATRIX}, r"missing key rnn_lst\.0\.transfo"),
        ({"rnn_lst.0.transform_module.alpha": torch.ones(1)}, r"missing key .*\.linear1\.weight"),
        (
            {"rnn_lst.0.transform_module.bias": torch.ones(1)},
            r"module\.bias'.* custom module .*compat",
        ),
        ({"rnn_lst.0.custom_m.weight": MATRIX}, r"'rnn_lst\.0\.custom_m\.weight'.*compat\.SRU"),
        ({"rnn_lst.0.gain": torch.ones(17)}, r"rnn_lst\.0\.gain must have shape \(18,\)"),
        ({"ln_lst.0.a": torch.ones(6)}, r"missing key ln_lst\.0\.b: expected .* \(6,\)"),
        (
            {"ln_lst.0.a": torch.ones(6), "ln_lst.0.b": torch.ones(6)},
            r"unexpected key rnn_lst\.0\.layer_norm\.bias: it does not go with",
        ),
    ],
)
def test_bad_key_is_named(change: dict[str, Tensor | None], message: str) -> None:
    state = old_state_dict([6, 6, 6], layer_norm="pre")
    for key, tensor in change.items():
        if tensor is None:
            del state[key]
        else:
            state[key] = tensor
    with pytest.raises(ValueError, match=message):
        load_sru_checkpoint(state)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (SRU(6, 6), r"unexpected key 'layers\.0\.weight': .*sru_asr\.SRU: use its own load_state"),
        (nn.GRU(6, 6), r"unexpected key 'weight_ih_l0': .*torch\.nn\.GRU.*train an SRU anew"),
        (nn.Sequential(nn.LSTM(6, 6)), r"unexpected key '0\.weight_ih_l0'"),
        (nn.Linear(6, 6), r"no key that begins with 'rnn_lst\.0\.', .*it begins with 'weight'"),
    ],
)
def test_weights_of_something_else_are_named(module: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_sru_checkpoint(module.state_dict())


def test_what_is_no_weight_is_refused() -> None:
    state: dict[str, Any] = dict(old_state_dict([6, 6]))
    with pytest.raises(TypeError, match=r"rnn_lst\.0\.bias must be a floating-point tensor"):
        load_sru_checkpoint(state | {"rnn_lst.0.bias": torch.zeros(12, dtype=torch.int)})
    with pytest.raises(TypeError, match=r"rnn_lst\.0\.bias .* got list"):
        load_sru_checkpoint(state | {"rnn_lst.0.bias": [0.0] * 12})
    with pytest.raises(ValueError, match=r"no key that begins with 'model\.rnn_lst\.0\.'"):
        load_sru_checkpoint(state, prefix="model.")


# What only some releases stored


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"highway": False},
        {"rescale": False, "projection": 3},
        {"highway_bias": -2.0, "layer_norm": "post"},
    ],
    ids=str,
)
def test_a_matrix_before_the_first_layer(options: dict[str, Any], directions: int) -> None:
    state = old_state_dict([6, 6, 6], directions=directions, **options)
    matrix = torch.randn(6, 4, dtype=torch.float64)
    given = {name: options[name] for name in ("highway", "layer_norm") if name in options}
    sru = load_sru_checkpoint(
        state | {"input_to_hidden.weight": matrix}, bidirectional=directions == 2, **given
    )
    x = torch.randn(7, 2, 4, dtype=torch.float64)
    expected, finals = old_forward(
        state,
        x @ matrix.T,
        torch.zeros(2, 2, 6, dtype=torch.float64),
        directions=directions,
        layer_norm=options.get("layer_norm"),
        highway=options.get("highway", True),
    )
    output, c_n = sru(x)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)
    by_direction = finals.unflatten(-1, (directions, -1)).transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(c_n, by_direction, rtol=0, atol=1e-12)


def test_layer_norm_after_a_first_matrix_must_be_said() -> None:
    state = old_state_dict([6, 6], layer_norm="pre")
    state["input_to_hidden.weight"] = torch.randn(6, 4, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"'input_to_hidden\.weight'.*layer_norm='post'.*Linear"):
        load_sru_checkpoint(state)
    assert layers_of(load_sru_checkpoint(state, layer_norm="post"))[0].layer_norm == "post"
    with pytest.raises(ValueError, match="highway=False contradicts"):
        load_sru_checkpoint(state, layer_norm="post", highway=False)


def test_weight_norm_is_multiplied_in() -> None:
    state = old_state_dict([5, 6, 6])
    expected = load_sru_checkpoint(state)
    for i in range(2):
        weight = state[f"rnn_lst.{i}.weight"]
        state[f"rnn_lst.{i}.gain"] = weight.square().sum(0).sqrt()
        state[f"rnn_lst.{i}.weight"] = weight * torch.linspace(1, 3, weight.shape[1])
    loaded = load_sru_checkpoint(state)
    torch.testing.assert_close(list(loaded.parameters()), list(expected.parameters()))


def test_layer_norm_of_2_1_has_its_own_variance_and_epsilon() -> None:
    state = old_state_dict([5, 6, 6])
    gains, shifts = torch.randn(2, 2, 6, dtype=torch.float64)
    for i in range(2):
        state |= {f"ln_lst.{i}.a": gains[i], f"ln_lst.{i}.b": shifts[i]}
    x = 1e-3 * torch.randn(7, 2, 5, dtype=torch.float64)  # small: epsilon matters
    sru = load_sru_checkpoint(state)
    h, c0 = x, torch.zeros(1, 2, 6, dtype=torch.float64)
    for i in range(2):
        layer = {k.replace(f".{i}.", ".0."): t for k, t in state.items() if f"rnn_lst.{i}." in k}
        h, _ = old_forward(layer, h, c0, directions=1, layer_norm=None, highway=True)
        deviation = (h.var(-1, keepdim=True) + 1e-6).sqrt()
        h = gains[i] * (h - h.mean(-1, keepdim=True)) / deviation + shifts[i]
    torch.testing.assert_close(sru(x)[0], h, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="layer_norm='pre' contradicts"):
        load_sru_checkpoint(state, layer_norm="pre")


# SRU++


def srupp_state_dict(
    features: int,
    width: int,
    bottleneck: int,
    attentive: list[bool],
    *,
    first: bool = False,
    layer_norm: str | None = None,
    attention_norm: bool = True,
    scale: float = 1.0,
) -> StateDict:
    """Make random weights in the layout of 3.0-dev's SRUpp."""
    draw = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64) / 2

    state = {}
    if first:
        state["input_to_hidden.weight"] = random(width, features)
        features = width
    for i, attends in enumerate(attentive):
        columns = width * (3 if features == width else 4)
        part = {"linear1.weight": random(bottleneck, features)}
        if attends:
            part["linear2.weight"] = random(2 * bottleneck, bottleneck)
            part["alpha"] = random(1)
        part[f"linear{3 if attends else 2}.weight"] = random(columns, bottleneck)
        if attention_norm:
            part |= {"layer_norm.weight": random(bottleneck), "layer_norm.bias": random(bottleneck)}
        state |= {f"rnn_lst.{i}.transform_module.{key}": t for key, t in part.items()}
        state[f"rnn_lst.{i}.weight_c"] = random(2 * width)
        state[f"rnn_lst.{i}.bias"] = random(2 * width)
        state[f"rnn_lst.{i}.scale_x"] = torch.tensor([scale], dtype=torch.float64)
        if layer_norm is not None:
            normed = features if layer_norm == "pre" else width
            state[f"rnn_lst.{i}.layer_norm.weight"] = random(normed)
            state[f"rnn_lst.{i}.layer_norm.bias"] = random(normed)
        features = width
    return state


def srupp_forward(
    state: StateDict, x: Tensor, c0: Tensor, directions: int, heads: int, layer_norm: str | None
) -> tuple[Tensor, Tensor]:
    """Run the layers as their equations read; see docs/architecture.md."""
    finals = []
    if "input_to_hidden.weight" in state:
        x = x @ state["input_to_hidden.weight"].T
    for i, c in enumerate(c0):
        part = {k.removeprefix(f"rnn_lst.{i}."): t for k, t in state.items()}
        inner = {k.removeprefix("transform_module."): t for k, t in part.items()}

        def norm(h: Tensor, own: StateDict) -> Tensor:
            if "layer_norm.weight" not in own:
                return h
            centred = h - h.mean(-1, keepdim=True)
            deviation = (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
            return centred / deviation * own["layer_norm.weight"] + own["layer_norm.bias"]

        outer = {k: t for k, t in part.items() if k.startswith("layer_norm")}
        within = {
            k.removeprefix("transform_module."): t
            for k, t in part.items()
            if k.startswith("transform_module.layer_norm")
        }
        z = (norm(x, outer) if layer_norm == "pre" else x) @ inner["linear1.weight"].T
        if "linear3.weight" in inner:
            k, v = (z @ inner["linear2.weight"].T).unflatten(-1, (2, heads, -1)).unbind(2)
            q = z.unflatten(-1, (heads, -1))
            scores = torch.einsum("tbhd,sbhd->bhts", q, k) / math.sqrt(q.shape[-1])
            a = torch.einsum("bhts,sbhd->tbhd", scores.softmax(-1), v).flatten(2)
            z, last = z + inner["alpha"] * a, inner["linear3.weight"]
        else:
            last = inner["linear2.weight"]
        width = c.shape[-1]
        u = (norm(z, within) @ last.T).unflatten(-1, (width, -1)).transpose(-1, -2)
        h, c_n = reference.sru_recurrence(
            u,
            part["weight_c"].reshape(2, width),
            part["bias"].reshape(2, width),
            x if u.shape[2] == 3 else None,
            c,
            bidirectional=directions == 2,
            alpha=part["scale_x"].item(),
        )
        x = norm(h, outer) if layer_norm == "post" else h
        finals.append(c_n)
    return x, torch.stack(finals)


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("features", [6, 5], ids=["3matrices", "4matrices"])
@pytest.mark.parametrize(
    ("made", "given"),
    [
        ({"attentive": [True, True]}, {"num_heads": 2}),
        ({"attentive": [False, True, False]}, {}),
        ({"attentive": [False, False, True, True]}, {"num_heads": 4}),
        ({"attentive": [False], "attention_norm": False}, {}),
        ({"attentive": [True, True], "layer_norm": "pre", "first": True}, {}),
        ({"attentive": [True], "layer_norm": "post", "scale": 2.0}, {"normalize_after": True}),
    ],
    ids=str,
)
def test_srupp_computes_its_equations(
    made: dict[str, Any], given: dict[str, Any], features: int, directions: int
) -> None:
    if features == 6:
        made = {**made, "first": False}  # the old package had no such matrix then
    state = srupp_state_dict(features, 6, 4, **made)
    srupp = load_sru_checkpoint(state, bidirectional=directions == 2, **given)
    assert isinstance(srupp, compat.SRUpp)
    assert set(srupp.state_dict()) == set(state)
    x = torch.randn(7, 2, features, dtype=torch.float64)
    c0 = torch.randn(len(made["attentive"]), 2, 6, dtype=torch.float64)
    expected = srupp_forward(
        state, x, c0, directions, given.get("num_heads", 1), made.get("layer_norm")
    )
    output, c_n, _ = srupp(x, c0)
    torch.testing.assert_close(output, expected[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(c_n, expected[1], rtol=0, atol=1e-12)
    single = load_sru_checkpoint(state, bidirectional=directions == 2, dtype=torch.float32, **given)
    output, c_n, _ = single(x.float(), c0.float())
    assert output.dtype == c_n.dtype == torch.float32
    torch.testing.assert_close(output.double(), expected[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(c_n.double(), expected[1], rtol=1e-4, atol=1e-4)
    state["rnn_lst.0.bias"].zero_()
    assert srupp.rnn_lst[0].bias.abs().max() > 0  # memory of its own


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"rnn_lst.0.transform_module.alpha": None}, {}, r"missing key rnn_lst\.0\.tran.*\.alpha"),
        ({"rnn_lst.0.weight_c": None}, {}, r"missing key rnn_lst\.0\.weight_c"),
        ({"rnn_lst.1.weight": MATRIX}, {}, r"unexpected key rnn_lst\.1\.weight: an SRUpp with"),
        ({"rnn_lst.1.bias": MATRIX}, {}, r"rnn_lst\.1\.bias must have shape \(12,\), got \(6, 18"),
        ({}, {"num_layers": 3}, "num_layers=3 contradicts the weights"),
        ({}, {"attention_every_n_layers": 2}, r"in layers \[0, 1\], which .* as in .* cannot say"),
        ({}, {"attn_layer_norm": False}, "attn_layer_norm=False contradicts"),
        ({}, {"rescale": True}, "rescale=True contradicts"),
        ({}, {"num_heads": 3}, "multiple of num_heads"),
    ],
)
def test_srupp_bad_key_is_named(
    change: dict[str, Tensor | None], options: dict[str, Any], message: str
) -> None:
    state = srupp_state_dict(6, 6, 4, [True, True])
    for key, tensor in change.items():
        if tensor is None:
            del state[key]
        else:
            state[key] = tensor
    with pytest.raises(ValueError, match=message):
        load_sru_checkpoint(state, **options)
