"""The old package's checkpoints: what is read from them, and what is refused."""

from __future__ import annotations

import itertools
import math
import pathlib
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from sru_asr import SRU, load_sru_checkpoint, reference
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
        ({"rnn_lst.0.transform_module.linear1.weight": MATRIX}, r"SRU\+\+ .* not supported yet"),
        ({"rnn_lst.0.transform_module.alpha": torch.ones(1)}, r"SRU\+\+ .* not supported yet"),
        ({"rnn_lst.0.transform_module.bias": torch.ones(1)}, "custom modules"),
        ({"rnn_lst.0.custom_m.weight": MATRIX}, "custom modules"),
        ({"rnn_lst.0.gain": torch.ones(18)}, "weight normalisation"),
        ({"ln_lst.0.a": torch.ones(6)}, "layer norm of sru 2.1"),
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


def test_what_is_no_weight_is_refused() -> None:
    state: dict[str, Any] = dict(old_state_dict([6, 6]))
    with pytest.raises(TypeError, match=r"rnn_lst\.0\.bias must be a floating-point tensor"):
        load_sru_checkpoint(state | {"rnn_lst.0.bias": torch.zeros(12, dtype=torch.int)})
    with pytest.raises(TypeError, match=r"rnn_lst\.0\.bias .* got list"):
        load_sru_checkpoint(state | {"rnn_lst.0.bias": [0.0] * 12})
    with pytest.raises(ValueError, match=r"no key that begins with 'model\.rnn_lst\.0\.'"):
        load_sru_checkpoint(state, prefix="model.")
