"""Lengths for recurrent layers inside models that are called without them."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn

from sru_asr.nnet import SRU


class _Passer:
    """The hooks of `pass_lengths`, and the lengths between two calls."""

    def __init__(self, source: nn.Module, target: nn.Module) -> None:
        self.signature = inspect.signature(source.forward)
        if "lengths" not in self.signature.parameters:
            raise ValueError(
                f"source must take lengths in its forward method; {type(source).__name__} does not"
            )
        receivers = [module for module in target.modules() if isinstance(module, SRU)]
        if not receivers:
            raise ValueError(
                f"target has no sru_asr.nnet.SRU to give lengths to: {type(target).__name__}; "
                "set its rnn_class to !name:sru_asr.nnet.SRU"
            )
        self.kept: Tensor | None = None
        source.register_forward_pre_hook(self._keep, with_kwargs=True)
        target.register_forward_pre_hook(self._check)
        for receiver in receivers:
            receiver.register_forward_pre_hook(self._give, with_kwargs=True)
        target.register_forward_hook(self._forget, always_call=True)

    def _keep(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.kept = self.signature.bind(*args, **kwargs).arguments.get("lengths")

    def _check(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if self.kept is None:
            raise RuntimeError(
                f"{type(module).__name__} was called without a call of pass_lengths's source, with "
                "lengths, before it: there are no lengths for this batch"
            )

    def _give(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, {**kwargs, "lengths": self.kept}

    def _forget(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.kept = None  # the next batch has other lengths, even where it has as many sequences


def pass_lengths(source: nn.Module, target: nn.Module) -> None:
    """Give every `sru_asr.nnet.SRU` in ``target`` the lengths that ``source`` was called with.

    SpeechBrain's CRDNN recipes normalise features with ``lengths`` and then call the model without:
    its recurrent layers read padding as speech, and what a sequence gives depends on the batch. In
    such a recipe's YAML, beside the modules::

        __lengths: !apply:sru_asr.lengths.pass_lengths
            source: !ref <normalize>
            target: !ref <enc>

    Neither module changes otherwise: no parameter, no name, nothing in a checkpoint.

    Parameters
    ----------
    source : nn.Module
        Called with relative ``lengths`` before each call of ``target``, as SpeechBrain's
        InputNormalization is.
    target : nn.Module
        A model with `sru_asr.nnet.SRU` inside, such as SpeechBrain's CRDNN.

    Raises
    ------
    ValueError
        When ``source`` takes no lengths, or ``target`` has no layer for them. ``target`` itself
        raises a RuntimeError when it is called without lengths kept for it.

    Examples
    --------
    >>> import torch
    >>> from speechbrain.lobes.models.CRDNN import CRDNN
    >>> from speechbrain.processing.features import InputNormalization
    >>> from sru_asr.lengths import pass_lengths
    >>> from sru_asr.nnet import SRU
    >>> normalize = InputNormalization()
    >>> encoder = CRDNN(input_size=20, rnn_class=SRU, rnn_layers=2, rnn_neurons=16)
    >>> pass_lengths(normalize, encoder)
    >>> features, lengths = torch.randn(2, 10, 20), torch.tensor([1.0, 0.5])
    >>> encoder(normalize(features, lengths)).shape
    torch.Size([2, 10, 512])
    """
    _Passer(source, target)
