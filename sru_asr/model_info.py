"""What can be told of a model folder without loading it: neither PyTorch nor its YAML's objects.

A folder may be anybody's. Nothing is built, of the weights only names and shapes are read, and a
part that is damaged is named while the others are described.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any

from ruamel.yaml.nodes import MappingNode, Node, SequenceNode

from sru_asr.model_card import PACKAGES, collect_scores, read_card, wrong_kinds
from sru_asr.model_yaml import EXPECTED, NUMBERS, ModelFolderError, ModelYAML, children, one_line
from sru_asr.versions import version_of

MOST_BYTES = 16_000_000  # of the names and shapes of a model's tensors
FIRST = 12  # tokens that are listed
# In a state dict, but not learnt: the filters of the features, their statistics in the training
# data, sines and cosines of positions.
CONSTANTS = ("features", "normalize", "positional_encoding", "positional_encoding_decoder")


def describe(folder: Path) -> dict[str, Any]:
    """Describe a model folder, as far as it can be.

    Parameters
    ----------
    folder : Path
        As training leaves it: ``results/.../model``.

    Returns
    -------
    dict
        ``files`` (bytes by name), ``interface``, ``sample_rate``, ``parts`` (kind and settings of
        features, encoder and so on), ``tokens``, ``parameters`` (total, and by part), ``card``
        (`sru_asr.model_card`), ``versions`` (trained with, and installed), ``trusted`` (whether it
        loads without being trusted) and ``problems``, sentences. What is unknown is None.

    Raises
    ------
    ModelFolderError
        When there is no such folder.

    Examples
    --------
    >>> from sru_asr.model_info import describe
    >>> describe(Path("results/demo/model"))["sample_rate"]  # doctest: +SKIP
    16000
    """
    if not folder.is_dir():
        found = "a file" if folder.exists() else "no such folder"
        raise ModelFolderError(
            f"model folder {folder}: found {found}, expected one as training leaves it"
        )
    info: dict[str, Any] = {
        "folder": str(folder),
        "files": {p.name: p.stat().st_size for p in sorted(folder.iterdir()) if p.is_file()},
        **dict.fromkeys(("interface", "sample_rate", "parts", "tokens", "parameters")),
        "card": {},
        "trusted": None,
    }
    problems: list[str] = []
    steps: tuple[Callable[[Path], dict[str, Any]], ...] = (_yaml, _tokens, _weights, _card)
    for step in steps:
        try:
            told = step(folder)
            problems += told.pop("problems", [])
            info |= told
        except ModelFolderError as error:
            problems.append(str(error))
        except Exception as error:  # a damaged file makes its reader raise anything
            problems.append(f"model folder {folder}: {one_line(error)}")
    trained = info["card"].get("versions", {})
    info["versions"] = {
        package: {"trained": trained.get(package), "installed": version_of(package)}
        for package in PACKAGES
    }
    return info | {"problems": problems}


def _yaml(folder: Path) -> dict[str, Any]:
    yaml = ModelYAML(folder / "hyperparams.yaml")
    loadables = children(yaml.find("pretrainer", "loadables"))
    found: dict[str, Any] = {
        "interface": plain(yaml.find("interface")),
        "sample_rate": plain(yaml.find("sample_rate")),
        "parts": dict(_parts(yaml)),
        "trusted": True,
        "problems": [],
    }
    missing = [f"{name}.ckpt" for name in loadables if not (folder / f"{name}.ckpt").is_file()]
    if not loadables:
        missing = ["pretrainer.loadables in hyperparams.yaml"]
    try:
        yaml.check()
    except ModelFolderError as error:
        found |= {"trusted": False, "problems": [str(error)]}
    if missing:
        found["problems"].append(
            f"model folder {folder}: found no {' and no '.join(missing)}, {EXPECTED}"
        )
    return found


def _parts(yaml: ModelYAML) -> Iterator[tuple[str, dict[str, Any]]]:
    """Kind and settings of what a recogniser or language model is made of."""
    encoder = yaml.find("modules", "encoder")
    while encoder is not None:
        inside = children(encoder)
        for name in ("features", "subsampling"):
            if name in inside:
                yield name, _settings(inside[name])
        if "encoder" not in inside:
            yield "encoder", _settings(encoder)
        encoder = inside.get("encoder")
    decoder = yaml.find("modules", "decoder")
    names = {"language_model": yaml.find("language_model"), "decoder": decoder}
    if decoder is None:
        names["decoder"] = yaml.find("decoding_function")
    for name, node in names.items():
        if node is not None:
            yield name, _settings(node)


def _settings(node: Node) -> dict[str, Any]:
    kind = str(node.tag).rpartition(".")[2]
    settings = {key: plain(value) for key, value in children(node).items()}
    return {"kind": kind, **{k: v for k, v in settings.items() if v is not None}}


def plain(node: Node | None) -> Any:
    """A node's value without building anything; None for an object, a function by its last name."""
    if node is None or isinstance(node, MappingNode):
        return None
    tag = str(node.tag)
    if tag.startswith("!"):
        return tag.rpartition(".")[2] if tag.startswith("!name:") else None
    if isinstance(node, SequenceNode):
        return [plain(item) for item in node.value]
    if tag in NUMBERS:
        with suppress(ValueError):  # spelled as YAML allows and JSON does not
            return json.loads(node.value)
    return node.value


def _tokens(folder: Path) -> dict[str, Any]:
    from sentencepiece import SentencePieceProcessor

    path = folder / "tokenizer.ckpt"
    if not path.is_file():
        return {}
    tokenizer = SentencePieceProcessor(model_file=str(path))
    pieces = [tokenizer.id_to_piece(i) for i in range(tokenizer.vocab_size())]
    words = [p for i, p in enumerate(pieces) if not tokenizer.is_control(i)]
    words = [p for p in words if p != "<unk>"]
    kind = "characters" if all(len(piece) == 1 for piece in words) else "pieces"
    return {"tokens": {"kind": kind, "count": len(pieces), "first": words[:FIRST]}}


def _weights(folder: Path) -> dict[str, Any]:
    path = next(
        (p for p in (folder / "model.ckpt", folder / "language_model.ckpt") if p.is_file()), None
    )
    if path is None:
        return {}
    try:
        shapes = read_shapes(path)
    except Exception as error:
        raise ModelFolderError(
            f"{path}: found no weights ({one_line(error)}), expected tensors as torch.save "
            "stores them"
        ) from None
    parts: dict[str, int] = {}
    seen = set()
    for name, (storage, shape) in shapes.items():
        path_in_model = name.split(".")
        if storage in seen or any(constant in path_in_model for constant in CONSTANTS):
            continue
        seen.add(storage)  # a matrix that two layers share is one
        while path_in_model[:2] == ["encoder", "encoder"]:
            path_in_model = path_in_model[1:]
        depth = 2 if path_in_model[0] == "encoder" else 1
        label = ".".join(path_in_model[:depth])
        parts[label] = parts.get(label, 0) + prod(shape)
    return {"parameters": {"total": sum(parts.values()), "parts": parts}}


def read_shapes(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Read names and shapes of the tensors of a file, and the name of each one's storage.

    Parameters
    ----------
    path : Path
        A state dict as ``torch.save`` writes it.

    Raises
    ------
    ValueError, OSError, zipfile.BadZipFile, pickle.UnpicklingError
        When it is something else. No object but tensors is ever made.
    """
    with zipfile.ZipFile(path) as archive:
        entry = next((i for i in archive.infolist() if i.filename.endswith("/data.pkl")), None)
        if entry is None or entry.file_size > MOST_BYTES:
            raise ValueError("no data.pkl of a reasonable size in it")
        with archive.open(entry) as file:
            state = _Shapes(file).load()
    if not isinstance(state, dict) or not all(isinstance(v, tuple) for v in state.values()):
        raise ValueError("something else than tensors by name")
    return {str(name): value for name, value in state.items()}


class _Shapes(pickle.Unpickler):
    """Reads tensors as (storage, shape), and knows no other name of any module."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, shape, *_: (f"{storage}:{offset}", shape)
        if module == "torch" and name.endswith("Storage"):
            return name
        raise pickle.UnpicklingError(f"found {module}.{name}, expected tensors alone")

    def persistent_load(self, pid: Any) -> str:
        return str(pid[2])


def _card(folder: Path) -> dict[str, Any]:
    card = read_card(folder)
    if wrong := wrong_kinds(card):
        raise ValueError(f"model_card.json: found {wrong[0]} of another kind than training writes")
    if not card:  # of an earlier version: the run's own folder is around it
        scores = {k: v for k, v in collect_scores(folder.parent).items() if isinstance(v, dict)}
        card = {"scores": scores} if scores else {}
    return {"card": card}
