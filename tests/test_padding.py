"""Relative lengths become steps in one way, and wrong lengths are refused by name."""

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from sru_asr.padding import padding_mask, steps_of


def test_padding_mask_is_true_from_each_length_on():
    mask = padding_mask(torch.tensor([0, 2, 3]), 3)
    assert mask.tolist() == [[True, True, True], [False, False, True], [False, False, False]]


@pytest.mark.parametrize(("batch", "steps"), [(0, 3), (2, 0), (0, 0)])
def test_padding_mask_of_nothing(batch, steps):
    assert padding_mask(torch.zeros(batch, dtype=torch.long), steps).shape == (batch, steps)


@given(st.integers(0, 16_000_000), st.integers(1, 16_000_000))
@example(5_000_005, 10_000_001)  # rounded away where the product is float32, too
def test_every_number_of_steps_survives_float32(steps, total):
    steps = min(steps, total)
    relative = torch.tensor([steps, total]) / total
    assert relative.dtype == torch.float32
    assert steps_of(relative, 2, total).tolist() == [steps, total]


def test_rounds_to_the_nearest_step_like_speechbrain():
    lengths = torch.tensor([0.0, 0.26, 0.24, 0.5, 1.0])
    assert steps_of(lengths, 5, 10).tolist() == torch.round(lengths * 10).long().tolist()


def test_a_rounding_error_above_one_is_clamped():
    assert steps_of(torch.tensor([1 + 5e-5]), 1, 100_000).tolist() == [100_000]


def test_none_stays_none():
    assert steps_of(None, 3, 5) is None


@pytest.mark.parametrize(
    ("lengths", "error", "message"),
    [
        (torch.tensor([3, 5]), TypeError, "wav_len must be relative"),
        (torch.tensor([True, False]), TypeError, "wav_len must be relative"),
        (torch.tensor([3.0, 5.0]), ValueError, "between 0 and 1, got values from 3 to 5"),
        (torch.tensor([-0.5, 1.0]), ValueError, "between 0 and 1"),
        (torch.tensor([float("nan"), 1.0]), ValueError, "between 0 and 1"),
        (torch.tensor([1.0]), ValueError, r"wav_len must have shape \(2,\)"),
        (torch.tensor([[1.0], [1.0]]), ValueError, r"wav_len must have shape \(2,\)"),
    ],
)
def test_lengths_that_are_not_relative_are_refused_by_name(lengths, error, message):
    with pytest.raises(error, match=message):
        steps_of(lengths, 2, 5, "wav_len")
