"""The consistency of views, against its definition frame by frame."""

from __future__ import annotations

import pytest
import torch

from sru_asr.consistency import consistency_loss


def expected(log_probs: torch.Tensor, steps: list[int], views: int) -> float:
    """Equation 3 of CR-CTC, one frame and class at a time; any view learns from the one before."""
    batch = len(log_probs) // views
    probs = log_probs.double().exp().tolist()
    total = 0.0
    for row, count in enumerate(steps):
        target = probs[(row - batch) % len(probs)]
        for t in range(count):
            for p, q in zip(target[t], probs[row][t], strict=True):
                total += p * float(torch.tensor(p / q, dtype=torch.double).log())
    return total / len(probs)


@pytest.mark.parametrize("views", [2, 3])
def test_definition(views: int) -> None:
    log_probs = torch.randn(views * 2, 7, 5).log_softmax(-1)
    lengths = torch.tensor([1.0, 3 / 7]).repeat(views)
    found = consistency_loss(log_probs, lengths, views)
    assert found.item() == pytest.approx(expected(log_probs, [7, 3] * views, views), rel=1e-5)


def test_padding_counts_nothing_even_if_it_is_not_finite() -> None:
    log_probs = torch.randn(4, 6, 5).log_softmax(-1)
    lengths = torch.tensor([1.0, 0.5, 1.0, 0.5])
    before = consistency_loss(log_probs, lengths, 2)
    log_probs[1::2, 3:] = torch.nan
    log_probs.requires_grad_()
    after = consistency_loss(log_probs, lengths, 2)
    assert after.item() == before.item() > 0
    after.backward()
    assert log_probs.grad is not None
    assert log_probs.grad[1::2, 3:].eq(0).all()  # NaN would not be
    assert log_probs.grad[::2].ne(0).all() and log_probs.grad[1::2, :3].ne(0).all()


def test_each_view_learns_from_the_other_which_stands_still() -> None:
    logits = torch.randn(2, 4, 3, requires_grad=True)
    log_probs = logits.log_softmax(-1)
    consistency_loss(log_probs, torch.ones(2), 2).backward()
    # Of KL(p || softmax(x)) the gradient is softmax(x) - p.
    probs = log_probs.detach().exp()
    torch.testing.assert_close(logits.grad, (probs - probs.flip(0)) / 2)


def test_empty_batch_and_bad_views() -> None:
    assert consistency_loss(torch.zeros(0, 5, 4), torch.zeros(0), 2) == 0
    with pytest.raises(ValueError, match="views: found 1 in a batch of 4"):
        consistency_loss(torch.zeros(4, 5, 4), torch.ones(4), 1)
    with pytest.raises(ValueError, match="views: found 2 in a batch of 3"):
        consistency_loss(torch.zeros(3, 5, 4), torch.ones(3), 2)
