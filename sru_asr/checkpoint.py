"""Weights trained with the ``sru`` package, read into our layers."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from sru_asr.compat.sru3 import SRUpp
from sru_asr.sru import SRU, SRULayer

_KEYS = {
    "weight",
    "weight_proj",
    "transform_module.weight",
    "transform_module.0.weight",
    "transform_module.1.weight",
    "weight_c",
    "bias",
    "scale_x",
    "layer_norm.weight",
    "layer_norm.bias",
    "gain",
    "ln.a",
    "ln.b",
}
_SRUPP = re.compile(r"rnn_lst\.\d+\.transform_module\.(linear\d\.weight|alpha)")
_CUSTOM = re.compile(r"rnn_lst\.\d+\.(custom_m\.|transform_module\.(?!([01]\.)?weight$))")

# What stands in other checkpoints, and what to do with them.
_FOREIGN = {
    r"layers\.\d+\.(weight|projection|recurrence\.\w+)": (
        "is a weight of sru_asr.SRU: use its own load_state_dict"
    ),
    r"weight_[ih]h_l\d+(_reverse)?": (
        "is a weight of torch.nn.GRU, LSTM or RNN, which compute something else: train an SRU anew"
    ),
}
_2_1_EPS = 1e-6  # of layer norm in sru 2.1.7 and before


def load_sru_checkpoint(
    state_dict_or_path: Mapping[str, Tensor] | str | os.PathLike[str],
    *,
    prefix: str = "",
    **options: Any,
) -> SRU | SRUpp:
    """Build an `SRU` from the weights of the ``sru`` package, 2.x or 3.0-dev.

    What the weights say need not be given: sizes, number of layers, projection, highway, layer
    norm. Their ``scale_x`` decides ``alpha``, the scale of the highway. What they cannot say has
    to be given when it is not the default: above all ``bidirectional``. SRU++ weights (3.0-dev)
    become a `sru_asr.compat.SRUpp`, which keeps the old package's contract.

    Parameters
    ----------
    state_dict_or_path : mapping of str to Tensor, or path
        ``state_dict()`` of an old ``sru.SRU``, or a file with one, which is read with
        ``torch.load(weights_only=True)`` to the CPU. For each layer ``i``, with F input features,
        D = ``hidden_size`` times directions and k = 3 or 4 lanes::

            rnn_lst.{i}.weight                       (F, D * k), lanes fastest
            rnn_lst.{i}.weight_c, .bias              (2 * D,)
            rnn_lst.{i}.scale_x                      (1,)
            rnn_lst.{i}.layer_norm.weight, .bias     (F,) or (D,), with layer norm

        "Lanes fastest": column ``d * k + lane``, the forward direction's dimensions first.
        With a projection to P features, ``weight`` is (P, D * k) and ``weight_proj`` (F, P).
        3.0-dev has ``transform_module.weight`` (D * k, F) instead, or
        ``transform_module.0.weight`` (P, F) and ``transform_module.1.weight`` (D * k, P).
        Until 2.1.7 there were ``gain`` (D * k,) with weight norm, which is multiplied in, and
        ``ln_lst.{i}.a`` and ``.b`` (D,) with layer norm, whose epsilon and variance were others:
        the stack's ``norm.weight`` and ``norm.eps`` make up for it.
        ``input_to_hidden.weight`` (D, F) of ``proj_input_to_hidden_first`` becomes the first
        layer's projection, if no layer norm stands between the two.
    prefix : str
        Beginning of the keys to read, such as ``"encoder.rnn."`` for an SRU that was part of a
        larger model; other keys are ignored.
    **options
        Options of `SRU`, or of `sru_asr.compat.SRUpp` for SRU++ weights. Not in the weights, with
        their defaults: ``bidirectional=False``, ``activation="identity"`` (``use_tanh``),
        ``dropout=0.0``, ``batch_first=False``, and ``recurrent_gates=True`` (``v1`` is False). In
        the weights, sometimes:

        - ``highway`` (``has_skip_term``), where no layer's input has another width than D and
          ``scale_x`` is 1; default True.
        - ``layer_norm``, ``"pre"`` or ``"post"`` (``normalize_after``), where the first layer's
          input has width D; default ``"pre"`` if there is layer norm.
        - ``highway_bias``, where ``scale_x`` is 1; default 0. It matters only to
          ``reset_parameters``.

        ``device`` and ``dtype`` move and convert the finished stack; by default it stays as the
        weights are. All other options are checked against the weights.

        For SRU++: ``bidirectional=False``, ``num_heads=1``, ``dropout=0.0``, ``attn_dropout=0.0``,
        ``nn_rnn_compatible_return=False``, and ``normalize_after=False`` where the first layer's
        input has width D.

    Returns
    -------
    SRU or sru_asr.compat.SRUpp
        In training mode, with weights of its own (no memory shared with the state_dict). An `SRU`
        takes and returns states as (num_layers * directions, B, H), which the old package does only
        with ``nn_rnn_compatible_return``.

    Raises
    ------
    ValueError
        When an option contradicts the weights, or a key is unknown, missing, or has a shape that
        does not fit the others; the message names it. So does the one for weights of something
        else. Weights of a custom module (``custom_m``, ``transform_module``) are refused: only
        `sru_asr.compat.SRU`, given that module, can hold them.
    TypeError
        When something is not a tensor, or not an option of what is returned.

    Examples
    --------
    >>> import torch, sru_asr
    >>> layer = {
    ...     "weight": torch.randn(80, 512 * 4), "weight_c": torch.randn(2 * 512),
    ...     "bias": torch.zeros(2 * 512), "scale_x": torch.ones(1),
    ... }
    >>> state_dict = {f"rnn_lst.0.{name}": tensor for name, tensor in layer.items()}
    >>> sru = sru_asr.load_sru_checkpoint(state_dict, bidirectional=True, batch_first=True)
    >>> output, c_n = sru(torch.randn(4, 50, 80))
    >>> output.shape, c_n.shape
    (torch.Size([4, 50, 512]), torch.Size([2, 4, 256]))
    """
    if isinstance(state_dict_or_path, Mapping):
        state_dict = state_dict_or_path
    else:
        state_dict = torch.load(state_dict_or_path, map_location="cpu", weights_only=True)
        if not isinstance(state_dict, Mapping):
            raise TypeError(
                f"{os.fspath(state_dict_or_path)} must hold a state_dict, "
                f"got {type(state_dict).__name__}"
            )
    entries = _entries(state_dict, prefix)
    placement = {name: options.pop(name) for name in ("device", "dtype") if name in options}
    if any(map(_SRUPP.fullmatch, entries)):
        srupp = _load_srupp(entries, prefix, options)
        return srupp.to(**placement) if placement else srupp
    hidden = entries.pop("input_to_hidden.weight", None)
    layers = [
        _read_layer(f"{prefix}rnn_lst.{i}", layer)
        for i, layer in enumerate(_by_layer(entries, prefix))
    ]
    if hidden is not None:
        layers[0] = _fold(f"{prefix}input_to_hidden.weight", hidden, layers[0], options)
    _settle_sizes(layers, options)
    _settle_highway(layers, options)
    _settle_layer_norm(layers, options)
    if any(layer.v.any() for layer in layers):
        _agree(options, "recurrent_gates", True, "weight_c is not zero")

    sru = SRU(**options, device="meta")  # every parameter is replaced below
    for layer, old in zip(sru.layers, layers, strict=True):
        assert isinstance(layer, SRULayer)
        layer.weight = _parameter(old.lane_major_weight())
        if old.projection is not None:
            layer.register_parameter("projection", _parameter(old.projection))
        if layer.recurrence.v is not None:
            layer.recurrence.v = _parameter(old.v)
        layer.recurrence.b = _parameter(old.b)
        layer.recurrence.alpha = old.alpha
        layer.recurrence.highway_bias = options.get("highway_bias", old.highway_bias())
        if old.norm is not None:
            layer.norm.weight, layer.norm.bias = map(_parameter, old.norm)
            layer.norm.eps = old.eps
    return sru.to(**placement) if placement else sru


@dataclass
class _OldLayer:
    """One layer of a checkpoint, matrices in nn.Linear's (out, in) order."""

    name: str
    weight: Tensor  # (D * k, in), lanes fastest
    projection: Tensor | None  # (in, F)
    v: Tensor  # (2, D)
    b: Tensor  # (2, D)
    alpha: float
    tolerance: float  # of alpha, which is stored in the weights' precision
    norm: tuple[Tensor, Tensor] | None
    eps: float = 1e-5  # of layer norm

    @property
    def input_size(self) -> int:
        return (self.weight if self.projection is None else self.projection).shape[1]

    @property
    def output_size(self) -> int:
        return self.v.shape[1]

    @property
    def lanes(self) -> int:
        return self.weight.shape[0] // self.output_size

    @property
    def rescaled(self) -> bool:
        return self.alpha != 1

    def lane_major_weight(self) -> Tensor:
        return (
            self.weight.unflatten(0, (self.output_size, self.lanes)).transpose(0, 1).flatten(0, 1)
        )

    def highway_bias(self) -> float:
        """Invert ``alpha = sqrt(1 + 2 * exp(highway_bias))``."""
        return math.log((self.alpha**2 - 1) / 2) if self.rescaled else 0.0

    def alpha_fits(self, highway_bias: float) -> bool:
        expected = math.sqrt(1 + 2 * math.exp(highway_bias))
        return math.isclose(expected, self.alpha, rel_tol=self.tolerance)


def _entries(state_dict: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return what stands under ``prefix``; refuse what is not of the old package."""
    keys = [key for key in state_dict if key.startswith(prefix)]
    entries = {key[len(prefix) :]: state_dict[key] for key in keys}
    if not any(key.startswith("rnn_lst.") for key in entries):
        for pattern, advice in _FOREIGN.items():
            for key in keys:
                if re.search(rf"(^|\.){pattern}$", key):
                    raise ValueError(f"unexpected key {key!r}: it {advice}")
        inner = next((key for key in entries if ".rnn_lst.0." in key), None)
        if inner is not None:
            raise ValueError(f"unexpected key {prefix + inner!r}: {_expectation(inner, prefix)}")
        found = f"; it begins with {keys[0]!r}" if keys else ""
        raise ValueError(
            f"the state_dict has no key that begins with {prefix + 'rnn_lst.0.'!r}, as those of "
            f"the old package's SRU and SRUpp do{found}"
        )
    for key, tensor in entries.items():
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            what = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise TypeError(f"{prefix + key} must be a floating-point tensor, got {what}")
    return {key: tensor.detach() for key, tensor in entries.items()}


def _by_layer(entries: dict[str, Tensor], prefix: str) -> list[dict[str, Tensor]]:
    """Sort the entries by layer and take the layer from their names."""
    found: dict[int, dict[str, Tensor]] = {}
    for key, tensor in entries.items():
        if _CUSTOM.match(key):
            raise ValueError(
                f"cannot load {prefix + key!r}: only the custom module that it belongs to can "
                "compute with it; give that module to sru_asr.compat.SRU (custom_m) or "
                "sru_asr.compat.sru3.SRU (transform_module) and use load_state_dict"
            )
        name = re.sub(r"^ln_lst\.(\d+)\.", r"rnn_lst.\1.ln.", key)
        match = re.fullmatch(r"rnn_lst\.(\d+)\.(.+)", name)
        if match is None or match[2] not in _KEYS:
            raise ValueError(f"unexpected key {prefix + key!r}: {_expectation(key, prefix)}")
        found.setdefault(int(match[1]), {})[match[2]] = tensor
    for i in range(len(found)):
        if i not in found:
            raise ValueError(
                f"missing keys {prefix}rnn_lst.{i}.*: the state_dict has layer {max(found)}"
            )
    return [found[i] for i in range(len(found))]


def _expectation(key: str, prefix: str) -> str:
    inner = re.match(r"(.+\.)rnn_lst\.\d+\.", key)
    if inner is not None:
        return f"give prefix={prefix + inner[1]!r} if this is the stack to load"
    return f"expected {prefix}rnn_lst.<layer>. and one of {', '.join(sorted(_KEYS))}"


def _read_layer(name: str, entries: dict[str, Tensor]) -> _OldLayer:
    entries = dict(entries)

    def full(key: str) -> str:
        return (
            name.replace("rnn_lst.", "ln_lst.") + key[2:] if key[:3] == "ln." else f"{name}.{key}"
        )

    def take(key: str, *shape: int | str) -> Tensor:
        """Remove an entry whose shape must be this one; sizes with a name are free."""
        wanted = f"({', '.join(map(str, shape))}{',' * (len(shape) == 1)})"
        if key not in entries:
            raise ValueError(f"missing key {full(key)}: expected a tensor of shape {wanted}")
        tensor = entries.pop(key)
        fits = tensor.dim() == len(shape) and all(
            isinstance(size, str) or size == found
            for size, found in zip(shape, tensor.shape, strict=True)
        )
        if not fits:
            raise ValueError(f"{full(key)} must have shape {wanted}, got {tuple(tensor.shape)}")
        return tensor

    v = take("weight_c", "2*D")
    if len(v) == 0 or len(v) % 2:
        raise ValueError(f"{name}.weight_c must have shape (2*D,), got {tuple(v.shape)}")
    width = len(v) // 2
    projection = None
    if "transform_module.0.weight" in entries or "transform_module.1.weight" in entries:
        key = "transform_module.1.weight"
        projection = take("transform_module.0.weight", "projection", "input")
        weight = take(key, f"3*{width} or 4*{width}", projection.shape[0])
    elif "transform_module.weight" in entries:
        key = "transform_module.weight"
        weight = take(key, f"3*{width} or 4*{width}", "input")
    else:
        key = "weight"
        if "weight_proj" in entries:
            projection = take("weight_proj", "input", "projection").T
        inner = "input" if projection is None else len(projection)
        weight = take(key, inner, f"3*{width} or 4*{width}").T
    if "gain" in entries:
        gain = take("gain", weight.shape[0])
        weight = weight * (gain / weight.norm(dim=1))[:, None]
    if weight.shape[0] not in (3 * width, 4 * width):
        raise ValueError(
            f"{name}.{key} must have 3*{width} or 4*{width} outputs, as weight_c has 2*{width} "
            f"entries, got {weight.shape[0]}"
        )
    scale = take("scale_x", 1)
    alpha = float(scale)
    if not 1 <= alpha < math.inf:
        raise ValueError(f"{name}.scale_x must be a number of at least 1, got {alpha}")
    norm, eps = None, 1e-5
    if "ln.a" in entries or "ln.b" in entries:
        if width == 1:
            raise ValueError(
                f"cannot load {full('ln.a')!r}: layer norm of a single feature did nothing in sru "
                "2.1; load the other entries"
            )
        # It divided by the root of the unbiased variance plus epsilon.
        biased = (width - 1) / width
        norm = take("ln.a", width) * math.sqrt(biased), take("ln.b", width)
        eps = _2_1_EPS * biased
    elif "layer_norm.weight" in entries or "layer_norm.bias" in entries:
        gain = take("layer_norm.weight", "input or D")
        norm = gain, take("layer_norm.bias", len(gain))
    b = take("bias", 2 * width)
    if entries:
        raise ValueError(
            f"unexpected key {full(min(entries))}: it does not go with {name}.{key} and the others"
        )
    layer = _OldLayer(
        name=name,
        weight=weight,
        projection=projection,
        v=v.view(2, width),
        b=b.view(2, width),
        alpha=alpha,
        tolerance=max(1e-6, 2 * torch.finfo(scale.dtype).eps),
        norm=norm,
        eps=eps,
    )
    if layer.lanes == 4 and layer.input_size == width:
        raise ValueError(
            f"{name}.{key} must have 3*{width} outputs, as the input has the width of the "
            f"output, got {weight.shape[0]}"
        )
    return layer


def _fold(name: str, hidden: Tensor, layer: _OldLayer, options: dict[str, Any]) -> _OldLayer:
    """Make the matrix before the first layer its projection, and what its highway carries."""
    width = layer.output_size
    if hidden.dim() != 2 or len(hidden) != width or layer.input_size != width:
        raise ValueError(
            f"{name} must have shape ({width}, input), as {layer.name} maps {layer.input_size} to "
            f"{width} features, got {tuple(hidden.shape)}"
        )
    if layer.norm is not None and options.get("layer_norm") != "post":
        raise ValueError(
            f"cannot load {name!r}: a layer norm stands between it and the first product. If that "
            "was normalize_after, give layer_norm='post'; else put this matrix into an "
            "nn.Linear(bias=False) before the stack and load the other entries, or use "
            "sru_asr.compat.SRU"
        )
    if layer.rescaled:
        _agree(options, "highway", True, "scale_x is not 1")
    weight = layer.weight if layer.projection is None else layer.weight @ layer.projection
    if options.setdefault("highway", True):
        carried = layer.alpha * torch.eye(width, dtype=weight.dtype, device=weight.device)
        lanes = [*weight.unflatten(0, (width, 3)).unbind(1), carried]
        weight = torch.stack(lanes, dim=1).flatten(0, 1)
    return replace(layer, weight=weight, projection=hidden)


def _settle_sizes(layers: list[_OldLayer], options: dict[str, Any]) -> None:
    width = layers[0].output_size
    for layer in layers[1:]:
        if (layer.input_size, layer.output_size) != (width, width):
            raise ValueError(
                f"{layer.name} must map {width} to {width} features, as the layer before it has "
                f"{width} outputs, got {layer.input_size} to {layer.output_size}"
            )
    directions = 2 if options.get("bidirectional", False) else 1
    if width % directions:
        raise ValueError(f"bidirectional=True contradicts the weights: {width} outputs are odd")
    _agree(options, "input_size", layers[0].input_size, "the width of the first matrix")
    _agree(
        options,
        "hidden_size",
        width // directions,
        f"{width} outputs, bidirectional={directions == 2}",
    )
    _agree(options, "num_layers", len(layers), "the number of layers")
    _agree(options, "bias", True, "every layer has biases")
    # A layer whose input or output was not wider than the projection has none, in 3.0-dev each
    # layer can have its own: they are set layer by layer.
    sizes = {len(layer.projection) for layer in layers if layer.projection is not None}
    projection_size = options.pop("projection_size", None)
    if projection_size is not None and {projection_size} != sizes:
        raise ValueError(
            f"projection_size={projection_size} contradicts the weights, "
            f"which have {sorted(sizes) or None}"
        )


def _settle_highway(layers: list[_OldLayer], options: dict[str, Any]) -> None:
    first = layers[0]
    if first.lanes == 4:
        _agree(options, "highway", True, f"{first.name} has 4 matrices")
    elif first.input_size != first.output_size:
        sizes = f"{first.input_size} to {first.output_size}"
        reason = f"{first.name} maps {sizes} features with 3 matrices"
        _agree(options, "highway", False, reason)
    elif any(layer.rescaled for layer in layers):
        _agree(options, "highway", True, "scale_x is not 1")
    if not options.get("highway", True):
        return
    for layer in layers:
        scale = f"{layer.name}.scale_x is {layer.alpha:.7g}"
        if layer.rescaled:
            _agree(options, "rescale", True, scale)
        if options.get("rescale", False) and not layer.alpha_fits(
            options.get("highway_bias", layer.highway_bias())
        ):
            name = "highway_bias" if layer.rescaled else "rescale"
            raise ValueError(f"{name}={options[name]!r} contradicts the weights: {scale}")


def _settle_layer_norm(layers: list[_OldLayer], options: dict[str, Any]) -> None:
    normed = [layer for layer in layers if layer.norm is not None]
    if not normed:
        _agree(options, "layer_norm", None, "no layer has layer_norm.weight")
        return
    for layer in layers:
        if layer.norm is None:
            raise ValueError(
                f"missing key {layer.name}.layer_norm.weight: {normed[0].name} has layer norm"
            )
        features, sizes = len(layer.norm[0]), (layer.input_size, layer.output_size)
        if features not in sizes:
            raise ValueError(
                f"{layer.name}.layer_norm.weight must have shape {sizes[:1]} for 'pre' or "
                f"{sizes[1:]} for 'post', got ({features},)"
            )
        if layer.input_size != layer.output_size:
            place = "pre" if features == layer.input_size else "post"
            reason = f"{layer.name}.layer_norm.weight has {features} entries"
            _agree(options, "layer_norm", place, reason)
    if options.setdefault("layer_norm", "pre") is None:
        raise ValueError("layer_norm=None contradicts the weights: they have layer norm")


def _load_srupp(entries: dict[str, Tensor], prefix: str, options: dict[str, Any]) -> SRUpp:
    """Build an `SRUpp` from its weights and check every one of them."""

    def shape(key: str, dims: int) -> tuple[int, ...]:
        if key not in entries:
            raise ValueError(f"missing key {prefix}{key}")
        if entries[key].dim() != dims:
            raise ValueError(
                f"{prefix}{key} must have {dims} dimensions, got {tuple(entries[key].shape)}"
            )
        return tuple(entries[key].shape)

    num_layers = 1 + max(int(n) for key in entries for n in re.findall(r"^rnn_lst\.(\d+)\.", key))
    module = "rnn_lst.0.transform_module"
    proj_size, features = shape(f"{module}.linear1.weight", 2)
    width = shape("rnn_lst.0.weight_c", 1)[0] // 2
    directions = 2 if options.get("bidirectional", False) else 1
    if width % directions:
        raise ValueError(f"bidirectional=True contradicts the weights: {width} outputs are odd")
    first = "input_to_hidden.weight" in entries
    input_size = shape("input_to_hidden.weight", 2)[1] if first else features
    reason = "the shapes of the first layer's weights"
    _agree(
        options, "proj_input_to_hidden_first", first, f"input_to_hidden.weight is there: {first}"
    )
    for name, size in (
        ("input_size", input_size),
        ("hidden_size", width // directions),
        ("proj_size", proj_size),
        ("num_layers", num_layers),
    ):
        _agree(options, name, size, reason)
    attentive = [
        f"rnn_lst.{i}.transform_module.linear3.weight" in entries for i in range(num_layers)
    ]
    options |= _attention_of(attentive, options)
    attn_layer_norm = f"{module}.layer_norm.weight" in entries
    _agree(options, "attn_layer_norm", attn_layer_norm, f"{module}.layer_norm.weight")
    layer_norm = "rnn_lst.0.layer_norm.weight" in entries
    _agree(options, "layer_norm", layer_norm, "rnn_lst.0.layer_norm.weight")
    if layer_norm and features != width:
        normalized = shape("rnn_lst.0.layer_norm.weight", 1)[0]
        _agree(options, "normalize_after", normalized == width, f"{normalized} are normalised")
    scale = float(entries.get("rnn_lst.0.scale_x", torch.ones(1)))
    _agree(options, "rescale", scale != 1, f"rnn_lst.0.scale_x is {scale:.7g}")
    if scale > 1:
        options.setdefault("highway_bias", math.log((scale**2 - 1) / 2))

    with torch.device("meta"):  # every entry is replaced below
        srupp = SRUpp(**options)
    expected = srupp.state_dict()
    for key in sorted(expected.keys() - entries.keys()):
        raise ValueError(f"missing key {prefix}{key}: expected {tuple(expected[key].shape)}")
    for key, tensor in entries.items():
        if key not in expected:
            raise ValueError(f"unexpected key {prefix}{key}: an SRUpp with {options} has none such")
        if tensor.shape != expected[key].shape:
            raise ValueError(
                f"{prefix}{key} must have shape {tuple(expected[key].shape)}, "
                f"got {tuple(tensor.shape)}"
            )
    srupp.load_state_dict({key: tensor.clone() for key, tensor in entries.items()}, assign=True)
    return srupp


def _attention_of(attentive: list[bool], options: dict[str, Any]) -> dict[str, int]:
    """Find the options that put attention where it is."""
    layers = len(attentive)
    choices = [{"attention_every_n_layers": n} for n in range(1, layers + 2)]
    choices += [{"attention_last_n_layers": n} for n in range(layers + 1)]
    given = {name: options[name] for name in options if name.startswith("attention_")}
    for choice in choices:
        every = choice.get("attention_every_n_layers", 1)
        last = choice.get("attention_last_n_layers", layers)
        where = [(i + 1) % every == 0 and layers - i <= last for i in range(layers)]
        if where == attentive and given.items() <= choice.items():
            return choice
    layers_with = [i for i, has in enumerate(attentive) if has]
    raise ValueError(
        f"the weights have attention in layers {layers_with}, which attention_every_n_layers or "
        f"attention_last_n_layers{f' as in {given}' if given else ''} cannot say"
    )


def _agree(options: dict[str, Any], name: str, found: Any, reason: str) -> None:
    """Set an option to what the weights say; raise if it was given and says something else."""
    if options.setdefault(name, found) != found:
        raise ValueError(
            f"{name}={options[name]!r} contradicts the weights, which need {name}={found!r}: "
            f"{reason}"
        )


def _parameter(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.clone(memory_format=torch.contiguous_format))
