"""Weights trained with the ``sru`` package, read into our layers."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

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
}
_UNSUPPORTED = {
    r"transform_module\.(linear\d|alpha|layer_norm)\b": "SRU++ checkpoints are not supported yet",
    r"(custom_m\.|transform_module\.(?!([01]\.)?weight$))": (
        "custom modules in place of the product are not supported"
    ),
    r"gain$": "weight normalisation (sru 2.1) is not supported",
    r"ln_lst\.": "the layer norm of sru 2.1 and older, which divides differently, is not supported",
    r"input_to_hidden\.": (
        "proj_input_to_hidden_first is not supported as part of the stack: put this matrix into "
        "an nn.Linear(bias=False) before it and load the other entries"
    ),
}


def load_sru_checkpoint(
    state_dict_or_path: Mapping[str, Tensor] | str | os.PathLike[str],
    *,
    prefix: str = "",
    **options: Any,
) -> SRU:
    """Build an `SRU` from the weights of the ``sru`` package, 2.x or 3.0-dev.

    What the weights say need not be given: sizes, number of layers, projection, highway, layer
    norm. Their ``scale_x`` decides ``alpha``, the scale of the highway. What they cannot say has
    to be given when it is not the default: above all ``bidirectional``.

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
    prefix : str
        Beginning of the keys to read, such as ``"encoder.rnn."`` for an SRU that was part of a
        larger model; other keys are ignored.
    **options
        Options of `SRU`. Not in the weights, with their defaults: ``bidirectional=False``,
        ``activation="identity"`` (``use_tanh``), ``dropout=0.0``, ``batch_first=False``, and
        ``recurrent_gates=True`` (``v1`` is False). In the weights, sometimes:

        - ``highway`` (``has_skip_term``), where no layer's input has another width than D and
          ``scale_x`` is 1; default True.
        - ``layer_norm``, ``"pre"`` or ``"post"`` (``normalize_after``), where the first layer's
          input has width D; default ``"pre"`` if there is layer norm.
        - ``highway_bias``, where ``scale_x`` is 1; default 0. It matters only to
          ``reset_parameters``.

        ``device`` and ``dtype`` move and convert the finished stack; by default it stays as the
        weights are. All other options are checked against the weights.

    Returns
    -------
    SRU
        In training mode, with weights of its own (no memory shared with the state_dict). It takes
        and returns states as (num_layers * directions, B, H), which the old package does only with
        ``nn_rnn_compatible_return``.

    Raises
    ------
    ValueError
        When an option contradicts the weights, or a key is unknown, missing, or has a shape that
        does not fit the others; the message names it. SRU++ checkpoints are not supported yet.
    TypeError
        When something is not a tensor, or not an option of `SRU`.

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
    layers = [
        _read_layer(f"{prefix}rnn_lst.{i}", entries)
        for i, entries in enumerate(_by_layer(state_dict, prefix))
    ]
    placement = {name: options.pop(name) for name in ("device", "dtype") if name in options}
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


def _by_layer(state_dict: Mapping[str, Tensor], prefix: str) -> list[dict[str, Tensor]]:
    """Sort the entries by layer, without ``prefix`` and layer; refuse what cannot be read."""
    found: dict[int, dict[str, Tensor]] = {}
    keys = [key for key in state_dict if key.startswith(prefix)]
    for pattern, reason in _UNSUPPORTED.items():
        for key in keys:
            if re.match(rf"(rnn_lst\.\d+\.)?{pattern}", key[len(prefix) :]):
                raise ValueError(f"cannot load {key!r}: {reason}")
    for key in keys:
        match = re.fullmatch(r"rnn_lst\.(\d+)\.(.+)", key[len(prefix) :])
        if match is None or match[2] not in _KEYS:
            raise ValueError(f"unexpected key {key!r}: {_expectation(key, prefix)}")
        tensor = state_dict[key]
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            what = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise TypeError(f"{key} must be a floating-point tensor, got {what}")
        found.setdefault(int(match[1]), {})[match[2]] = tensor.detach()
    if not found:
        raise ValueError(f"the state_dict has no key that begins with {prefix + 'rnn_lst.0.'!r}")
    for i in range(len(found)):
        if i not in found:
            raise ValueError(
                f"missing keys {prefix}rnn_lst.{i}.*: the state_dict has layer {max(found)}"
            )
    return [found[i] for i in range(len(found))]


def _expectation(key: str, prefix: str) -> str:
    inner = re.match(r"(.+\.)rnn_lst\.\d+\.", key[len(prefix) :])
    if inner is not None:
        return f"give prefix={prefix + inner[1]!r} if this is the stack to load"
    return f"expected {prefix}rnn_lst.<layer>. and one of {', '.join(sorted(_KEYS))}"


def _read_layer(name: str, entries: dict[str, Tensor]) -> _OldLayer:
    entries = dict(entries)

    def take(key: str, *shape: int | str) -> Tensor:
        """Remove an entry whose shape must be this one; sizes with a name are free."""
        wanted = f"({', '.join(map(str, shape))}{',' * (len(shape) == 1)})"
        if key not in entries:
            raise ValueError(f"missing key {name}.{key}: expected a tensor of shape {wanted}")
        tensor = entries.pop(key)
        fits = tensor.dim() == len(shape) and all(
            isinstance(size, str) or size == found
            for size, found in zip(shape, tensor.shape, strict=True)
        )
        if not fits:
            raise ValueError(f"{name}.{key} must have shape {wanted}, got {tuple(tensor.shape)}")
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
    if weight.shape[0] not in (3 * width, 4 * width):
        raise ValueError(
            f"{name}.{key} must have 3*{width} or 4*{width} outputs, as weight_c has 2*{width} "
            f"entries, got {weight.shape[0]}"
        )
    scale = take("scale_x", 1)
    alpha = float(scale)
    if not 1 <= alpha < math.inf:
        raise ValueError(f"{name}.scale_x must be a number of at least 1, got {alpha}")
    norm = None
    if "layer_norm.weight" in entries or "layer_norm.bias" in entries:
        gain = take("layer_norm.weight", "input or D")
        norm = gain, take("layer_norm.bias", len(gain))
    b = take("bias", 2 * width)
    if entries:
        raise ValueError(f"unexpected key {name}.{min(entries)}: the layer has {key} already")
    layer = _OldLayer(
        name=name,
        weight=weight,
        projection=projection,
        v=v.view(2, width),
        b=b.view(2, width),
        alpha=alpha,
        tolerance=max(1e-6, 2 * torch.finfo(scale.dtype).eps),
        norm=norm,
    )
    if layer.lanes == 4 and layer.input_size == width:
        raise ValueError(
            f"{name}.{key} must have 3*{width} outputs, as the input has the width of the "
            f"output, got {weight.shape[0]}"
        )
    return layer


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


def _agree(options: dict[str, Any], name: str, found: Any, reason: str) -> None:
    """Set an option to what the weights say; raise if it was given and says something else."""
    if options.setdefault(name, found) != found:
        raise ValueError(
            f"{name}={options[name]!r} contradicts the weights, which need {name}={found!r}: "
            f"{reason}"
        )


def _parameter(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.clone(memory_format=torch.contiguous_format))
