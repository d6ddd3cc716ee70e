"""Local attention against a softmax over exactly the steps of each window."""

import math

import pytest
import torch

from sru_asr.attention import LEAST, local_attention


def by_hand(query, key, value, window, visible=None):
    """One query after another, and nothing but the keys that it may see."""
    output = torch.zeros_like(query)
    batch, _, steps, width = query.shape
    for b in range(batch):
        for t in range(steps):
            seen = [
                s
                for s in range(max(0, t - window), min(steps, t + window + 1))
                if s == t or visible is None or visible[b, s]
            ]
            scores = query[b, :, None, t] @ key[b, :, seen].transpose(1, 2) / math.sqrt(width)
            output[b, :, t] = (scores.softmax(-1) @ value[b, :, seen])[:, 0]
    return output


# Windows of one step, on both sides of a block's least size, and longer than the sequence; lengths
# that fill blocks exactly, and leave one step over.
@pytest.mark.parametrize(
    ("steps", "window"),
    [(1, 1), (5, 1), (LEAST, 3), (LEAST + 1, 3), (150, LEAST + 1), (2 * LEAST, LEAST), (9, 500)],
)
@pytest.mark.parametrize("padded", [False, True])
def test_steps_see_their_window_and_nothing_else(steps, window, padded):
    torch.manual_seed(steps)
    tensors = [torch.randn(2, 2, steps, 3, dtype=torch.float64) for _ in range(3)]
    theirs, ours = ([t.clone().requires_grad_() for t in tensors] for _ in range(2))
    visible = None
    if padded:
        visible = torch.arange(steps) < torch.tensor([steps, steps // 3])[:, None]
    expected = by_hand(*theirs, window, visible)
    found = local_attention(*ours, window, None if visible is None else visible[:, None, None])
    torch.testing.assert_close(found, expected)
    weight = torch.randn_like(expected)
    for output in (expected, found):
        (output * weight).sum().backward()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_dropout_acts_on_the_weights():
    q, k, v = torch.randn(3, 1, 1, 100, 4)
    dropped = local_attention(q, k, v, 10, dropout=0.5)
    assert not torch.allclose(dropped, local_attention(q, k, v, 10))
    assert torch.equal(local_attention(q, k, v, 10, dropout=1.0), torch.zeros_like(q))
