"""The changes to SpeechBrain's recipes, as far as they can be checked without the recipes."""

import pydoc
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DIFFS = sorted((ROOT / "hparams" / "plug-in").glob("*.diff"))


def lines(diff, sign):
    return [
        line[1:] for line in diff.read_text().splitlines()[2:] if re.match(rf"\{sign}.*\S", line)
    ]


def test_there_is_one_for_each_recipe_and_the_document_counts_its_lines():
    document = (ROOT / "docs" / "plug-in.md").read_text()
    assert len(DIFFS) == 5
    for diff in DIFFS:
        row = re.search(rf"^\| \[{diff.stem}\]\(\S+{diff.name}\).*$", document, re.M)
        assert row and f"| -{len(lines(diff, '-'))} +{len(lines(diff, '+'))} |" in row[0]


@pytest.mark.parametrize("diff", DIFFS, ids=lambda diff: diff.stem)
def test_everything_it_names_exists(diff):
    names = re.findall(r"!\w+:(sru_asr\S+)", "\n".join(lines(diff, "+")))
    assert names
    for name in names:
        assert callable(pydoc.locate(name))


@pytest.mark.parametrize("diff", DIFFS, ids=lambda diff: diff.stem)
def test_its_hunks_count_right(diff):
    """`patch` refuses a file whose headers and lines disagree."""
    hunks = re.split(r"^@@ -\d+,(\d+) \+\d+,(\d+) @@\n", diff.read_text(), flags=re.M)[1:]
    for removed, added, body in zip(hunks[::3], hunks[1::3], hunks[2::3], strict=True):
        body = body.splitlines()
        assert int(removed) == sum(line[0] in "- " for line in body)
        assert int(added) == sum(line[0] in "+ " for line in body)
