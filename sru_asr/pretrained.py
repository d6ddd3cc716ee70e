"""Going on from a model folder: its architecture, and its weights as far as they fit."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from ruamel.yaml import YAML
from sentencepiece import SentencePieceProcessor
from torch import nn

from sru_asr.manifest import list_problems
from sru_asr.model_yaml import ModelYAML
from sru_asr.transcripts import enumerate_some

logger = logging.getLogger(__name__)

# Layers of a SpeechRecognizer with one output for each piece of the tokenizer.
OUTPUTS = ("ctc_output", "attention_output", "intermediate_output")


def find_model(folder: str | Path) -> Path:
    """Check that a folder is one that training leaves.

    Parameters
    ----------
    folder : str or Path
        Holds ``hyperparams.yaml``, ``model.ckpt`` and ``tokenizer.ckpt``.

    Raises
    ------
    ValueError
        Naming what is missing.
    """
    folder = Path(folder)
    needed = ("hyperparams.yaml", "model.ckpt", "tokenizer.ckpt")
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing:
        found = f"no {' and no '.join(missing)} in it" if folder.is_dir() else "no such folder"
        raise ValueError(
            f"pretrained {folder}: found {found}, expected a model folder as training leaves it "
            f"(results/.../model with {', '.join(needed)})"
        )
    return folder


def architecture(
    folder: str | Path, output_neurons: int | str = "auto", trust: bool = False
) -> Any:
    """Read the YAML of a model folder, to become the ``inference`` section of another experiment.

    In an experiment's YAML::

        inference: !applyref:sru_asr.pretrained.architecture
            folder: !ref <pretrained>
            output_neurons: !ref <output_neurons>
        model: !ref <inference[pretrainer][loadables][model]>

    Parameters
    ----------
    folder : str or Path
        The model folder.
    output_neurons : int or "auto"
        Pieces of the tokenizer that the model is to have; "auto" for as many as it has.
    trust : bool
        Take over a YAML that makes any object: it can run any code.

    Returns
    -------
    CommentedMap
        YAML nodes, nothing built.

    Raises
    ------
    ValueError
        When it is not a model folder, or not that of a `sru_asr.model.SpeechRecognizer`.
    ModelFolderError
        When it is not trusted with what its YAML makes.
    """
    path = find_model(folder) / "hyperparams.yaml"
    yaml = ModelYAML(path)
    if not trust:
        yaml.check(
            "a YAML can run any code; if you trust those who made it, --trust_pretrained=True "
            "takes it over"
        )
    try:
        section = YAML().load(yaml.without_comments())
        model = section["pretrainer"]["loadables"]["model"]
        core = model["encoder"]["encoder"]
        outputs = [model[name] for name in OUTPUTS if name in model]
        missing = {"interface", "sample_rate", "tokenizer", "modules"} - set(section)
        if missing or not outputs:
            raise KeyError(*(missing or ["ctc_output"]))
    except (KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{path}: found no {reason}, expected the model of a sru_asr recipe"
        ) from error
    for node in _nodes(section):
        # Names of shared nodes, which would clash with those of the YAML around it.
        node.yaml_set_anchor(None)
    if output_neurons != "auto":
        for output in outputs:
            output["n_neurons"] = output_neurons
        if "tgt_vocab" in core:
            core["tgt_vocab"] = output_neurons
    return section


def searcher(inference: Any) -> Any:
    """Take the searcher out of an ``inference`` section; None where decoding is greedy CTC.

    In a YAML, below `architecture`: ``search: !applyref:sru_asr.pretrained.searcher
    [!ref <inference>]``.
    """
    return inference["modules"].get("decoder")


def load_pretrained(
    model: nn.Module, folder: str | Path, tokenizer: SentencePieceProcessor
) -> None:
    """Load a model folder's weights into a model that may have another tokenizer.

    Of layers with a row for each piece (outputs and the decoder's embedding), the rows of pieces
    that both tokenizers know are carried over, if need be from a letter's other case; the rest
    starts anew. So do layers that the folder's model does not have. The log says what became of
    what.

    Parameters
    ----------
    model : SpeechRecognizer
        Receives the weights.
    folder : str or Path
        The model folder.
    tokenizer : sentencepiece.SentencePieceProcessor
        The model's tokenizer.

    Raises
    ------
    ValueError
        When it is not a model folder, its layers have other sizes, or none is known.
    """
    folder = find_model(folder)
    stored = torch.load(folder / "model.ckpt", map_location="cpu", weights_only=True)
    before = SentencePieceProcessor(model_file=str(folder / "tokenizer.ckpt"))
    rows = _rows(before, tokenizer)
    same_pieces = all(new == old for new, old in rows) and len(rows) == before.vocab_size()
    by_piece = set(_piece_parameters(model, tokenizer.vocab_size()))
    own = model.state_dict()
    shared = [name for name in own if name in stored]
    problems = []
    for name in shared:
        new, old = own[name], stored[name]
        in_pieces = name in by_piece and old.shape[0] == before.vocab_size()
        if (new.shape[1:] if in_pieces else new.shape) != (
            old.shape[1:] if in_pieces else old.shape
        ):
            problems.append(f"{name} has shape {tuple(old.shape)}, expected {tuple(new.shape)}")
        elif in_pieces and not same_pieces:
            for row, old_row in rows:
                new[row] = old[old_row]
        else:
            new.copy_(old)
    if problems or not shared:
        problems = problems or ["found no layer that this model has"]
        raise ValueError(list_problems(f"pretrained {folder}", problems))
    logger.info("Pretrained %s: loaded %d of %d tensors", folder, len(shared), len(own))
    if not same_pieces:
        known = {row for row, _ in rows}
        size = tokenizer.vocab_size()
        anew = [tokenizer.id_to_piece(i) for i in range(size) if i not in known]
        carried = sum(name in by_piece for name in shared)
        logger.info(
            "In the %d with a row for each piece, carried over %d of %d rows; anew: %s",
            *(carried, len(known), size, enumerate_some(anew, 20) or "none"),
        )
    for what, names in (
        ("Not in the folder, starts anew", own.keys() - stored.keys()),
        ("Not in this model, left out", stored.keys() - own.keys()),
    ):
        if names:
            logger.info("%s: %s", what, enumerate_some(sorted(names)))


def _rows(before: SentencePieceProcessor, after: SentencePieceProcessor) -> list[tuple[int, int]]:
    """For each piece that both know, its new and its old number."""
    old = {before.id_to_piece(i): i for i in range(before.vocab_size())}
    rows = []
    for i in range(after.vocab_size()):
        piece = after.id_to_piece(i)
        known = [old[p] for p in (piece, piece.upper(), piece.lower()) if p in old]
        rows += [(i, row) for row in known[:1]]
    return rows


def _piece_parameters(model: nn.Module, pieces: int) -> Iterator[str]:
    """Names of the parameters that have a row for each piece."""
    for name, module in model.named_modules():
        embeds = isinstance(module, nn.Embedding) and module.num_embeddings == pieces
        if embeds or name in OUTPUTS:
            yield from (f"{name}.{parameter}" for parameter, _ in module.named_parameters())


def _nodes(node: Any) -> Iterator[Any]:
    """All nodes of a YAML tree that can have an anchor."""
    if hasattr(node, "yaml_set_anchor"):
        yield node
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    for child in children:
        yield from _nodes(child)
