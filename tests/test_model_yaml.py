"""What a model folder's YAML may hold: all recipes' sections, and nothing that runs code."""

import io
import re
from contextlib import suppress
from pathlib import Path

import pytest
from hyperpyyaml import load_hyperpyyaml, resolve_references
from model_folder import CTC, JOINT, SPEECHBRAIN
from ruamel.yaml import YAML

from sru_asr.model_yaml import MOST_CHARACTERS, ModelFolderError, ModelYAML

HPARAMS = Path(__file__).parents[1] / "hparams"
# The plug-ins' are other people's recipes; finetune's section is another folder's.
RECIPES = sorted(
    path for path in HPARAMS.rglob("*.yaml") if "\ninference:\n" in path.read_text("utf-8")
)


def exported(text, overrides=None):
    """What `sru_asr.export` writes of an experiment."""
    section = YAML().load(resolve_references(text, overrides))["inference"]
    stream = io.StringIO()
    YAML().dump(section, stream)
    return stream.getvalue()


def read(folder, text):
    (folder / "hyperparams.yaml").write_text(text, encoding="utf-8")
    return ModelYAML(folder / "hyperparams.yaml")


def refused(folder, text):
    with pytest.raises(ModelFolderError) as caught:
        read(folder, text).build()
    assert str(folder / "hyperparams.yaml") in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_recipes_model_folder_is_let_through(path, tmp_path):
    text = path.read_text(encoding="utf-8")
    placeholders = re.findall(r"^(\w+): !PLACEHOLDER", text, flags=re.MULTILINE)
    read(tmp_path, exported(text, dict.fromkeys(placeholders, 1))).check()


def test_there_are_recipes():
    assert len(RECIPES) >= 9


@pytest.mark.parametrize("text", [CTC, JOINT, SPEECHBRAIN], ids=["ctc", "joint", "speechbrain"])
def test_it_builds_what_hyperpyyaml_builds(text, tmp_path):
    section = exported(text)
    ours, theirs = read(tmp_path, section).build(), load_hyperpyyaml(section)
    assert list(ours) == list(theirs)
    for built in (ours, theirs):
        model, modules = built["pretrainer"].loadables["model"], built["modules"]
        assert modules["encoder"] in (model.encoder, *model.modules()) or (
            modules["encoder"].encoder is model.encoder
        )
        assert built["pretrainer"].loadables["tokenizer"] is built["tokenizer"]
    assert repr(ours["modules"]) == repr(theirs["modules"])
    assert repr(ours.get("decoding_function")) == repr(theirs.get("decoding_function"))


def test_plain_values_are_hyperpyyamls(tmp_path):
    text = (
        "a: (3, 4)\nb: (3)\nc: [1, 2.5, true, null, word, 1e-3, 0x1f]\nd: '17'\ne: (0.1,)\nf: yes\n"
        "g: ()\nh: &h {x: *i}\n".replace("*i", "1")
        + "i: *h\n"
    )
    ours, theirs = read(tmp_path, text).build(), load_hyperpyyaml(text)
    assert ours == theirs
    assert ours["i"] is ours["h"]


# Of these, HyperPyYAML runs the command, or reads the file, without being asked.
ATTACKS = {
    "new": "x: !new:subprocess.Popen {args: [touch, MARK]}",
    "apply": 'x: !apply:os.system ["touch MARK"]',
    "applyref": 'x: !applyref:os.system ["touch MARK"]',
    "python": 'x: !!python/object/apply:os.system ["touch MARK"]',
    "renamed": "%TAG !y! tag:yaml.org,2002:python/\n---\n"
    'x: !y!object/apply:os.system ["touch MARK"]',
    "tuple": 'x: (!!python/object/apply:os.system ["touch MARK"])',
    "quoted tuple": "x: '(!!python/object/apply:os.system [\"touch MARK\"])'",
    "tagged tuple": "x: !tuple '(!!python/object/apply:os.system [\"touch MARK\"])'",
    "referred tuple": "y: '!!python/object/apply:os.system [\"touch MARK\"]'\nx: !ref (<y>)",
    "copied": 'y: !apply:os.system ["touch MARK"]\nx: !copy <y>',
    "key": '? !apply:os.system ["touch MARK"]\n: 1',
    "argument": 'x: !new:torch.nn.Linear\n  in_features: !apply:os.system ["touch MARK"]',
    "beside an alias": 'x: &x !apply:os.system ["touch MARK"]\ny: [*x, *x]',
}

# Only where HyperPyYAML has loaded nothing before in the same process.
FIRST = {"quoted tuple", "referred tuple"}


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_runs_code_is_refused_before_it_runs(attack, tmp_path):
    mark = tmp_path / "mark"
    text = ATTACKS[attack].replace("MARK", str(mark))
    message = refused(tmp_path, text)
    assert not mark.exists()
    assert re.search(r"hyperparams.yaml, line \d: found ", message)
    assert "--trust-model" in message
    if attack not in FIRST:
        with suppress(
            TypeError, AttributeError
        ):  # of what the command's result is passed to: it has run by then
            getattr(load_hyperpyyaml(text)["x"], "wait", int)()
        assert mark.exists(), "this is no attack, so the test above shows nothing"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a: 1\nx: !name:os.system", "line 2: found !name:os.system, expected"),
        ("x: !module:os", "found !module:os"),
        ("x: !include:/etc/passwd", "found !include:/etc/passwd"),
        ("x: !ref <a>", "found !ref"),
        ("x: !PLACEHOLDER", "found !PLACEHOLDER"),
        ("x: !name:torch.load {f: y}", "found !name:torch.load"),
        ("x: !new:torch.nn.GELU", "found !new:torch.nn.GELU"),
        ("x: !new:sru_asr.SRUEncoder [1, 2]", "found !new:sru_asr.SRUEncoder"),
        ("x: !apply:getattr [a, __class__]", "found !apply:getattr of something else than"),
        ("x: !apply:getattr [a]", "found !apply:getattr of something else"),
        ("x: /etc/passwd", "found the text '/etc/passwd', expected a single word"),
        ("x: 'import os'", "found the text 'import os'"),
        (f"x: '{'a b' * 99}'", "a ba b...'"),
        ("<<: {a: 1}", "found the key !!merge <<"),
        ("x: {a/b: 1}", "found the key 'a/b', expected a word"),
        ("1: 2", "found the key !!int 1"),
        ("x: 2001-01-01", "found !!timestamp"),
        ("x: !!binary aGk=", "found !!binary"),
        ("x: !!set {a, b}", "found !!set"),
        ("x: !!python/name:os.system", "found !!python/name:os.system"),
        (
            "x: !new:sentencepiece.SentencePieceProcessor {model_file: secret}",
            "found !new:sentencepiece.SentencePieceProcessor with model_file",
        ),
        ("x: !new:sru_asr.lexicon.Lexicon {path: secret}", "Lexicon with path, which could name"),
        (
            "x: !new:speechbrain.utils.parameter_transfer.Pretrainer {paths: {model: secret}}",
            "Pretrainer with paths",
        ),
        (
            "x: !new:speechbrain.utils.parameter_transfer.Pretrainer {collect_in: folder}",
            "Pretrainer with collect_in",
        ),
        ("x: !new:sru_asr.decode.WordLookahead {ngram: secret}", "WordLookahead"),
    ],
)
def test_everything_else_is_refused_with_its_line(text, found, tmp_path):
    assert found in refused(tmp_path, text)


def test_documents_made_to_exhaust_memory_or_stack_are_refused(tmp_path):
    laughs = "a0: &a0 [1, 1]\n"
    laughs += "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30))
    assert "aliases that stand for more than" in refused(tmp_path, laughs)
    assert "aliases that stand for more than" in refused(tmp_path, "x: &x [*x]")
    assert "RecursionError" in refused(tmp_path, "x: " + "[" * 3000)
    assert "more than" in refused(tmp_path, "#" * (MOST_CHARACTERS + 1))
    with pytest.raises(ModelFolderError, match="IsADirectoryError"):
        ModelYAML(tmp_path)


def test_what_is_written_out_again_has_no_comments(tmp_path):
    text = "a: 1 # one\n# two\nb: &b [x, '(3, 4)'] # three\n\nc: *b\n"
    again = read(tmp_path, text).without_comments()
    assert "#" not in again
    assert load_hyperpyyaml(again) == load_hyperpyyaml(text)
