"""The device that a user names."""

import pytest
import torch

from sru_asr.device import DeviceError, find_device


@pytest.fixture
def devices(monkeypatch):
    def set_number(count):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return set_number


@pytest.mark.parametrize(
    ("name", "count", "found"),
    [
        ("cpu", 0, "cpu"),
        ("cpu", 2, "cpu"),
        ("auto", 0, "cpu"),
        ("auto", 2, "cuda:0"),
        ("cuda", 1, "cuda:0"),
        ("cuda:1", 2, "cuda:1"),
    ],
)
def test_devices_that_are_there(devices, name, count, found):
    devices(count)
    assert find_device(name) == found


@pytest.mark.parametrize(
    ("name", "count", "words"),
    [
        ("cuda", 0, "device cuda: found 0 CUDA devices .* expected one; --device cpu"),
        ("cuda:2", 2, "device cuda:2: found 2 CUDA devices .* expected at least 3"),
        ("gpu", 1, "device: found 'gpu', expected cpu or cuda, or auto"),
        ("cuda:x", 1, "device: found 'cuda:x', expected"),
        ("", 1, "device: found '', expected"),
    ],
)
def test_others_are_refused(devices, name, count, words):
    devices(count)
    with pytest.raises(DeviceError, match=words):
        find_device(name)
