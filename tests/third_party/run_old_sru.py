"""Run the old ``sru`` repository's own tests and models on this package.

    python tests/third_party/run_old_sru.py DIR

DIR is a checkout of https://github.com/asappresearch/sru, branch master or 3.0.0-dev; nothing is
written there. Its tests, and two models that it holds, the text classifier and the DrQA reader,
meet `sru_asr.compat` when they ``import sru``. Then the same models meet `sru_asr.SRU`, which takes
the place of nn.LSTM by its name. Prints what passed and why the rest did not. The exit status is 1
when less than 90 % of the tests that ran passed, or a model did not learn its batch.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import os
import platform
import re
import runpy
import shutil
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sru_asr
from sru_asr import compat

STEPS = 12  # of training
Edit = tuple[str, str, str]  # file, what stands there, what shall

# Only names change, but where a model has lost its nn.LSTM: there its own commented-out call comes
# back, and its handling of padding, which packs sequences.
CLASSIFIER = [
    ("train_classifier.py", "nn.LSTM(", "sru_asr.SRU("),
    ("train_classifier.py", "import torch\n", "import sru_asr, torch\n"),
]
READER = [
    ("drqa/rnn_reader.py", "'lstm': nn.LSTM", "'lstm': sru_asr.SRU"),
    ("drqa/rnn_reader.py", "import torch\n", "import sru_asr, torch\n"),
    ("drqa/layers.py", r"self\.rnns\.append\(sru\.SRUCell\([^)]*\)\)", "pass"),
    ("drqa/layers.py", r"#(self\.rnns.*\n)\s*#(.*\n)\s*#(.*\n)", r"\1\2\3"),
    ("drqa/layers.py", r"#(if self\.padding.*\n\s*)#", r"\1"),
]


class Outcomes:
    """A pytest plugin that counts outcomes by file and by reason."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        self.reasons: Counter[tuple[str, str, str]] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.passed:
            return
        file = report.nodeid.partition("::")[0]
        self.counts[file, report.outcome] += 1
        if report.skipped and isinstance(report.longrepr, tuple):
            self.reasons[file, "skipped", report.longrepr[2].removeprefix("Skipped: ")] += 1
        elif report.failed:
            self.reasons[file, "failed", report.longreprtext.strip().splitlines()[-1]] += 1

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.counts[report.nodeid, "failed"] += 1
            line = report.longreprtext.strip().splitlines()[-1]
            self.reasons[report.nodeid, "failed", line] += 1


def run_tests(checkout: Path) -> bool:
    """Run the repository's tests and print a table; return whether enough of them passed."""
    outcomes = Outcomes()
    tests = [str(path) for path in (checkout / "test", checkout / "misc/test_sru.py")]
    options = ["-q", "--no-header", "--tb=line", "-p", "no:cacheprovider", "-W", "ignore"]
    options += ["--import-mode=importlib"]  # two files have the same name
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(checkout)  # some read files by relative path
        pytest.main([*options, "-c", os.devnull, f"--rootdir={checkout}", *tests], [outcomes])
    for script in sorted(checkout.glob("test/test_ts_*.py")):
        for arguments in ([], ["--normalize-after"]):
            outcome = "passed" if same_scripted(script, arguments) else "failed"
            outcomes.counts[f"{script.relative_to(checkout)}", outcome] += 1
    print(f"\n{'tests of the old repository':42}{'passed':>8}{'failed':>8}{'skipped':>9}")
    columns = ("passed", "failed", "skipped")
    for file in sorted({file for file, _ in outcomes.counts}):
        numbers = [outcomes.counts[file, column] for column in columns]
        print(f"{file:42}{numbers[0]:8}{numbers[1]:8}{numbers[2]:9}")
    passed, failed, skipped = (
        sum(count for (_, outcome), count in outcomes.counts.items() if outcome == column)
        for column in columns
    )
    share = passed / max(1, passed + failed)
    print(f"{'all':42}{passed:8}{failed:8}{skipped:9}   {share:.1%} of those that ran")
    for (file, outcome, reason), count in outcomes.reasons.items():
        print(f"  {count} {outcome} in {file}: {reason}")
    return share >= 0.9


def same_scripted(script: Path, arguments: list[str]) -> bool:
    """Let a script save a module and print its output, which the saved module must print too.

    The repository's test.sh compares with a C++ program; here, the saved module is read in Python.
    """
    printed = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", [str(script), *arguments])
        with contextlib.redirect_stdout(printed):
            runpy.run_path(str(script), run_name="__main__")
        (saved,) = Path(folder).glob("*.pt")
        outputs = torch.jit.load(saved)(torch.ones(3, 2, 4))[:2]
    lines = ["".join(f"{number.item():.4f} " for number in t.flatten()) for t in outputs]
    return printed.getvalue().splitlines() == lines


@contextlib.contextmanager
def edited(folder: Path, edits: list[Edit], modules: list[str]) -> Iterator[None]:
    """Copy a folder of foreign code, edit the copy and make its modules importable."""
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(shutil.copytree(folder, Path(temporary) / folder.name))
        for name, pattern, replacement in edits:
            text = (copy / name).read_text()
            if "\\" not in pattern:
                pattern, replacement = re.escape(pattern), replacement.replace("\\", r"\\")
            text, count = re.subn(pattern, replacement, text, count=1)
            if not count:
                raise SystemExit(f"{folder / name} has no {pattern!r}: is this the old repository?")
            (copy / name).write_text(text)
        sys.path.insert(0, str(copy))
        try:
            yield
        finally:
            sys.path.remove(str(copy))
            for name in [name for name in sys.modules if name.partition(".")[0] in modules]:
                del sys.modules[name]


def learn(model: nn.Module, loss_of: Callable[[], Tensor]) -> str:
    """Take some steps on one batch; say what became of the loss, or what is wrong."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=0.01)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 10.0, error_if_nonfinite=True)
        optimizer.step()
        losses.append(loss.item())
    verdict = "" if losses[-1] < losses[0] else "DID NOT LEARN, "
    return f"{verdict}loss {losses[0]:.3f} -> {losses[-1]:.3f}"


def train_classifier(folder: Path, edits: list[Edit]) -> str:
    """Train the text classifier on random sentences, with its own loop for one epoch of it."""
    with edited(folder, edits, ["train_classifier", "dataloader", "modules"]):
        code = importlib.import_module("train_classifier")
        words = [f"w{i}" for i in range(50)]
        embedding = code.modules.EmbeddingLayer(24, words)
        options = argparse.Namespace(cnn=False, lstm=bool(edits), d=24, depth=2, dropout=0.2)
        model = code.Model(options, embedding, 2)
        x, y = torch.randint(0, 50, (9, 16)), torch.randint(0, 2, (16,))
        optimizer = torch.optim.Adam(p for p in model.parameters() if p.requires_grad)
        with contextlib.redirect_stdout(io.StringIO()):
            code.train_model(0, model, optimizer, *[[x], [y]] * 3, 1e8, 1e8)
        encoder = type(model.encoder)
        result = learn(model, lambda: F.cross_entropy(model(x), y))
    return f"{encoder.__module__}.{encoder.__name__}: {result}"


def train_reader(folder: Path, edits: list[Edit]) -> str:
    """Train the reader of questions and documents on a random batch with padding."""
    with edited(folder, edits, ["drqa"]):
        code = importlib.import_module("drqa.rnn_reader")
        options: dict[str, Any] = {
            "pretrained_words": False,
            "vocab_size": 60,
            "embedding_dim": 20,
            "pos": True,
            "pos_size": 5,
            "pos_dim": 3,
            "ner": True,
            "ner_size": 4,
            "ner_dim": 2,
            "num_features": 4,
            "use_qemb": True,
            "hidden_size": 12,
            "doc_layers": 2,
            "question_layers": 2,
            "dropout_emb": 0.1,
            "dropout_rnn": 0.1,
            "dropout_rnn_output": True,
            "concat_rnn_layers": True,
            "rnn_type": "lstm",
            "rnn_padding": True,
            "question_merge": "self_attn",
        }
        reader = code.RnnDocReader(options)
        steps, batch = 14, 6
        document, question = torch.randint(1, 60, (batch, steps)), torch.randint(1, 60, (batch, 5))
        masks = []
        for t in (document, question):
            lengths = torch.randint(2, t.shape[1] + 1, (batch, 1))
            lengths[0] = t.shape[1]  # the reader relies on a sequence without padding
            masks.append(torch.arange(t.shape[1]) >= lengths)
        features, pos = torch.randn(batch, steps, 4), torch.randint(0, 5, document.shape)
        ner, target = torch.randint(0, 4, document.shape), torch.zeros(batch, dtype=torch.long)
        inputs = document, features, pos, ner, masks[0], question, masks[1]

        def loss() -> Tensor:
            start, end = reader(*inputs)
            return F.nll_loss(start, target) + F.nll_loss(end, target)

        result = learn(reader, loss)
        encoder = type(reader.doc_rnn.rnns[0])
    return f"{encoder.__module__}.{encoder.__name__}: {result}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path, metavar="DIR", help="a checkout of the repository")
    checkout = parser.parse_args().checkout.resolve()
    version_file = checkout / "sru/version.py"
    if not version_file.is_file():
        parser.error(f"{checkout} is no checkout of the old repository: no sru/version.py")
    sys.dont_write_bytecode = True
    version = "3.0-dev" if "3.0" in version_file.read_text() else "2.6"
    sru = compat.install(version)
    print(
        f"sru {sru.__version__} served by sru_asr.compat {sru_asr.__version__}; "
        f"torch {torch.__version__}, Python {platform.python_version()}"
    )
    warnings.simplefilter("ignore")
    succeeded = run_tests(checkout)
    models = checkout if version == "2.6" else checkout / "experiments/old"
    print("\nmodels of the old repository, on a random batch")
    for train, folder, edits in (
        (train_classifier, "classification", CLASSIFIER),
        (train_reader, "DrQA", READER),
    ):
        for how, changes in (("import sru", []), ("nn.LSTM -> sru_asr.SRU", edits)):
            torch.manual_seed(0)
            result = train(models / folder, changes)
            print(f"  {folder:16}{how:24}{result}")
            succeeded &= "NOT" not in result
    return 0 if succeeded else 1


if __name__ == "__main__":
    sys.exit(main())
