"""A small model trained by a real run of a recipe, shared by this folder's tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from recipe_runs import SMALL_COMMANDS, recipe, run


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``data/commands`` and ``results/demo``, as `make demo` leaves them."""
    pytest.importorskip("espeakng_loader")
    folder = tmp_path_factory.mktemp("trained")
    done = run(recipe("Commands", "commands/srupp_ctc.yaml", SMALL_COMMANDS), folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder
