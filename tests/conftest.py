"""Fixtures that all tests share."""

import sys

import pytest


def keep_lazy_modules_asleep():
    """Answer hypothesis's question for the ``__file__`` of each module in SpeechBrain's place.

    SpeechBrain leaves stand-ins for moved modules in ``sys.modules``, which import on any question
    and fail where that needs k2.
    """
    if (importutils := sys.modules.get("speechbrain.utils.importutils")) is not None:
        importutils.LazyModule.__file__ = None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems():
    keep_lazy_modules_asleep()


@pytest.fixture(autouse=True)
def _reproducible():
    """Same random numbers for every test, one thread (sizes are small); no import of torch."""
    keep_lazy_modules_asleep()
    if (torch := sys.modules.get("torch")) is not None:
        torch.manual_seed(0)
        torch.set_num_threads(1)
