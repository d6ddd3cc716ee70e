"""Writes constraints.txt: a tested set of exact versions for Python 3.10 and newer.

    python3.11 .ci/constraints.py python3.10 python3.11 > constraints.txt

pip resolves the project's requirements for the oldest supported Python and for the next one
(nothing is installed). A package whose version for the latter does not serve the former gets two
lines with markers. Newer Pythons share the second set: the newest versions of all would leave 3.11
behind as well. The script itself needs Python 3.11.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import tomllib

# Chosen by hand, the rest by pip. torchaudio imports with the torch of the same version alone.
TESTED = ["torch==2.11.0", "torchaudio==2.11.0", "speechbrain==1.1.2", "jiwer==4.0.0"]
HEADER = """\
# The tested set, for Python 3.10 to 3.13. The Makefile installs from it; the package's own metadata
# gives ranges. To write it anew:
#     python3.11 .ci/constraints.py python3.10 python3.11 > constraints.txt
"""


def resolve(python: str, requirements: list[str]) -> dict[str, str]:
    """Name and version of each package that pip would install."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        pip = [python, "-m", "pip", "install", "-q", "--dry-run", "--ignore-installed"]
        subprocess.run(
            [*pip, "--only-binary=:all:", "--report", str(report), *requirements],
            check=True,
            stdout=sys.stderr,
        )
        found = [item["metadata"] for item in json.loads(report.read_text())["install"]]
    return {re.sub(r"[-_.]+", "-", m["name"]).lower(): m["version"] for m in found}


def merge(oldest: dict[str, str], newer: dict[str, str]) -> list[str]:
    """Constraint lines of both sets, with markers where they differ."""
    lines = []
    for name in sorted(oldest.keys() | newer.keys()):
        old, new = oldest.get(name), newer.get(name)
        if old == new or old is None or new is None:
            lines.append(f"{name}=={new or old}")
        else:
            lines.append(f'{name}=={old} ; python_version < "3.11"')
            lines.append(f'{name}=={new} ; python_version >= "3.11"')
    return lines


def main(oldest: str, newer: str) -> None:
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    requirements = [*TESTED, "setuptools", "wheel", *project["dependencies"]]
    for extra in extras:
        requirements += extra
    lines = merge(resolve(oldest, requirements), resolve(newer, requirements))
    print(HEADER + "\n".join(lines))


if __name__ == "__main__":
    main(*sys.argv[1:])
