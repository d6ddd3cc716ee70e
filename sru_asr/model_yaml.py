"""The YAML of a model folder: read once, checked, and built from the very nodes that were checked.

HyperPyYAML's tags make any object and call any function of Python, include files, and evaluate
arithmetic; a text in parentheses becomes a tuple by way of YAML's unsafe loader; and a document is
written out and parsed again in between, so that what was quoted may come back as something else.
None of that is needed to load what training exports. `ModelYAML.check` therefore lets a short list
of tags through, and `ModelYAML.build` makes their objects without HyperPyYAML.
"""

from __future__ import annotations

import ast
import importlib
import math
import re
from collections.abc import Iterator
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

# What a YAML may hold; the recipes' have 2,000 characters and 300 nodes.
MOST_CHARACTERS = 100_000
MOST_NODES = 10_000  # an alias counts as all that it stands for

ANY = None
# What `!new:` may make, each with the arguments it may be given. All others are numbers, words and
# one another: nothing here takes a path, a text to evaluate or the name of a class.
CLASSES: dict[str, frozenset[str] | None] = {
    "sentencepiece.SentencePieceProcessor": frozenset(),
    "speechbrain.dataio.preprocess.AudioNormalizer": ANY,
    "speechbrain.decoders.S2STransformerBeamSearcher": ANY,
    "speechbrain.decoders.scorer.CTCScorer": ANY,
    "speechbrain.decoders.scorer.ScorerBuilder": ANY,
    "speechbrain.lobes.features.Fbank": ANY,
    "speechbrain.lobes.models.transformer.TransformerASR.TransformerASR": ANY,
    "speechbrain.nnet.linear.Linear": ANY,
    "speechbrain.processing.features.InputNormalization": ANY,
    "speechbrain.utils.parameter_transfer.Pretrainer": frozenset({"loadables"}),
    "sru_asr.ConvSubsampling": ANY,
    "sru_asr.FeatureNormalization": ANY,
    "sru_asr.SRUEncoder": ANY,
    "sru_asr.SRUTransformerASR": ANY,
    "sru_asr.decode.CTCBeamSearcher": ANY,
    "sru_asr.decode.CTCGreedySearcher": ANY,
    "sru_asr.decode.JointBeamSearcher": ANY,
    "sru_asr.decode.NBestRescorer": ANY,
    "sru_asr.decode.PhoneRescorer": ANY,
    "sru_asr.decode.SRULanguageModel": ANY,
    "sru_asr.decode.language_model.SRULanguageModel": ANY,
    "sru_asr.lexicon.Lexicon": frozenset(),
    "sru_asr.model.CTCPosteriors": ANY,
    "sru_asr.model.SpeechEncoder": ANY,
    "sru_asr.model.SpeechRecognizer": ANY,
    "sru_asr.nnet.SRU": ANY,
}
# What `!name:` may name.
NAMES = frozenset(
    {
        "speechbrain.decoders.ctc_greedy_decode",
        "speechbrain.nnet.activations.Swish",
        "torch.nn.GELU",
        "torch.nn.LeakyReLU",
        "torch.nn.ReLU",
        "torch.nn.SiLU",
        "torch.nn.Tanh",
    }
)
# What `!ref <object.attribute>` may read; HyperPyYAML exports it as !apply:getattr.
GETATTR, ATTRIBUTES = "!apply:getattr", frozenset({"output_size"})

# Once HyperPyYAML has loaded anything in this process, any text in parentheses has this tag.
MAKES_TUPLE = "!tuple"
YAML_TAG = "tag:yaml.org,2002:"
MAP, SEQUENCE, TEXT = (YAML_TAG + kind for kind in ("map", "seq", "str"))
NUMBERS = frozenset(YAML_TAG + kind for kind in ("int", "float", "bool", "null"))
WORD = re.compile(r"[\w-]*")
TUPLE = re.compile(r"\([\s\d.,-]*\)")

EXPECTED = "expected a model folder as training leaves it (results/.../model)"
REMEDY = (
    "a YAML can run any code; if you trust those who made it, --trust-model "
    "(trust=True in Python) loads it"
)


class ModelFolderError(ValueError):
    """A folder holds no model that can be loaded; the message says what was found there."""


class ModelYAML:
    """The ``hyperparams.yaml`` of a model folder, parsed, nothing built.

    Parameters
    ----------
    path : Path
        The file.

    Attributes
    ----------
    path : Path
    text : str
        What was read.
    root : MappingNode
        What was parsed.

    Raises
    ------
    ModelFolderError
        When it cannot be read, is not YAML, or is larger than any model's description.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "hyperparams.yaml")
    >>> _ = path.write_text("activation: !name:torch.nn.GELU\\nsizes: (3, 4)\\n")
    >>> ModelYAML(path).build()
    {'activation': <class 'torch.nn.modules.activation.GELU'>, 'sizes': (3, 4)}
    >>> _ = path.write_text("tokenizer: !new:os.system [rm]\\n")
    >>> ModelYAML(path).build()  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    sru_asr.model_yaml.ModelFolderError: ...yaml, line 1: found !new:os.system, expected what...
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open(path, encoding="utf-8") as file:
                self.text = file.read(MOST_CHARACTERS + 1)
            if len(self.text) > MOST_CHARACTERS:
                raise ValueError(f"more than {MOST_CHARACTERS} characters")
            self._yaml = YAML(typ="safe", pure=True)
            self._yaml.Constructor = _Constructor
            root = self._yaml.compose(self.text)
            if not isinstance(root, MappingNode):
                raise ValueError("no keys and values")
            if _count(root, {}) > MOST_NODES:
                raise ValueError(f"aliases that stand for more than {MOST_NODES} nodes")
        except (YAMLError, ValueError, OSError, RecursionError) as error:
            raise ModelFolderError(
                f"{path}: found no interface and pretrainer.loadables ({one_line(error)}), "
                f"{EXPECTED}"
            ) from None
        self.root: MappingNode = root

    def find(self, *keys: str) -> Node | None:
        """Find the node under some keys, each inside the one before; None where there is none."""
        node: Node | None = self.root
        for key in keys:
            node = children(node).get(key)
        return node

    def check(self, remedy: str = REMEDY) -> None:
        """Make sure that `build` makes nothing but what recognisers and language models consist of.

        Parameters
        ----------
        remedy : str
            What to do about a folder that is trusted nevertheless.

        Raises
        ------
        ModelFolderError
            Naming the file, the line, what stands there and the remedy.
        """
        for node in _nodes(self.root):
            if problem := _problem(node):
                raise ModelFolderError(
                    f"{self.path}, line {node.start_mark.line + 1}: found {problem}; {remedy}"
                )

    def without_comments(self) -> str:
        """Write out what was parsed, for HyperPyYAML to read: nothing but the checked nodes."""
        for node in _nodes(self.root):
            node.comment = None
        stream = StringIO()
        self._yaml.serialize(self.root, stream)
        return stream.getvalue()

    def build(self) -> dict[str, Any]:
        """Check, then make the objects.

        Raises
        ------
        ModelFolderError
            See `check`.
        Exception
            Whatever the objects raise at their arguments.
        """
        self.check()
        # Deep: an argument is whole before it is passed, wherever else an alias repeats it.
        built: dict[str, Any] = self._yaml.constructor.construct_object(self.root, deep=True)
        return built


def children(node: Node | None) -> dict[str, Node]:
    """What a mapping node has under its keys; nothing for other nodes."""
    return {key.value: value for key, value in node.value} if isinstance(node, MappingNode) else {}


def _inside(node: Node) -> Iterator[Node]:
    if isinstance(node, MappingNode):
        for pair in node.value:
            yield from pair
    elif isinstance(node, SequenceNode):
        yield from node.value


def _nodes(root: Node) -> Iterator[Node]:
    """Every node once, in the order of the document."""
    seen, waiting = {id(root)}, [root]
    while waiting:
        node = waiting.pop()
        yield node
        new = [child for child in _inside(node) if id(child) not in seen]
        seen.update(map(id, new))
        waiting += reversed(new)


def _count(node: Node, counts: dict[int, float]) -> float:
    """How many nodes there are when each alias is written out; infinite for one inside itself."""
    if id(node) not in counts:
        counts[id(node)] = math.inf
        counts[id(node)] = 1 + sum(_count(child, counts) for child in _inside(node))
    return counts[id(node)]


def _problem(node: Node) -> str:
    """What is wrong with one node, without those inside it; "" for nothing."""
    tag = str(node.tag)
    if isinstance(node, MappingNode):
        for key, _ in node.value:
            if str(key.tag) != TEXT or not WORD.fullmatch(key.value):
                return f"the key {shown(key)}, expected a word"
    if isinstance(node, ScalarNode):
        if tag in NUMBERS:
            return ""
        if tag in (TEXT, MAKES_TUPLE):
            is_word = tag == TEXT and WORD.fullmatch(node.value)
            harmless = is_word or TUPLE.fullmatch(node.value)
            return "" if harmless else f"the text {shown(node)}, expected a single word"
    kind, _, name = tag.partition(":")
    if kind == "!new" and name in CLASSES and not isinstance(node, SequenceNode):
        allowed = CLASSES[name]
        extra = [] if allowed is None else [key for key in children(node) if key not in allowed]
        return f"{tag} with {extra[0]}, which could name any file" if extra else ""
    if kind == "!name" and name in NAMES and not isinstance(node, SequenceNode):
        return ""
    if isinstance(node, SequenceNode) and tag == GETATTR:
        attribute = node.value[-1].value if len(node.value) == 2 else None
        if isinstance(attribute, str) and attribute in ATTRIBUTES:
            return ""
        return f"{tag} of something else than {' or '.join(sorted(ATTRIBUTES))}"
    if tag == (MAP if isinstance(node, MappingNode) else SEQUENCE):
        return ""
    return f"{tag.replace(YAML_TAG, '!!')}, expected what the models of sru-asr consist of"


def shown(node: Node) -> str:
    """A node's text, or its kind, short enough for a message."""
    tag = str(node.tag).replace(YAML_TAG, "!!")
    if not isinstance(node, ScalarNode):
        return tag
    text = node.value if len(node.value) <= 60 else f"{node.value[:60]}..."
    return repr(text) if tag in ("!!str", MAKES_TUPLE) else f"{tag} {text}"


class _Constructor(SafeConstructor):
    """Makes the objects of checked nodes; tags that it has no method for, it refuses itself."""

    def new(self, name: str, node: Node) -> Any:
        return _imported(name)(**self._arguments(node))

    def name(self, name: str, node: Node) -> Any:
        arguments = self._arguments(node)
        return partial(_imported(name), **arguments) if arguments else _imported(name)

    def attribute(self, node: Node) -> Any:
        return getattr(*self.construct_sequence(node, deep=True))

    def text(self, node: Node) -> Any:
        # With a comma that makes a tuple of one, too.
        inside = node.value[1:-1].strip().rstrip(",")
        is_tuple = TUPLE.fullmatch(node.value)
        return ast.literal_eval(f"({inside}{',' if inside else ''})") if is_tuple else node.value

    def _arguments(self, node: Node) -> dict[str, Any]:
        is_mapping = isinstance(node, MappingNode)
        return dict(self.construct_mapping(node, deep=True)) if is_mapping else {}


_Constructor.add_multi_constructor("!new:", _Constructor.new)
_Constructor.add_multi_constructor("!name:", _Constructor.name)
_Constructor.add_constructor(GETATTR, _Constructor.attribute)
for _tag in (TEXT, MAKES_TUPLE):
    _Constructor.add_constructor(_tag, _Constructor.text)


def _imported(name: str) -> Any:
    module, _, name = name.rpartition(".")
    return getattr(importlib.import_module(module), name)


def one_line(error: Exception) -> str:
    """Tell the kind of an error and what it says, on one line.

    Examples
    --------
    >>> one_line(ValueError("two\\n  lines"))
    'ValueError: two lines'
    """
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}{'...' if len(text) > 300 else ''}"
