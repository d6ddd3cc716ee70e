"""The transducer loss against its definition."""

import pytest
import torch

from sru_asr.transducer import transducer_loss


def definition(logits, targets, frames, tokens, blank):
    """Sum over all alignments of one sequence, step by step (Graves 2012, equations 16 to 18)."""
    logp = logits.log_softmax(-1)
    alpha = {(0, 0): torch.zeros((), dtype=logits.dtype)}
    for t in range(frames):
        for u in range(tokens + 1):
            ways = []
            if t:
                ways.append(alpha[t - 1, u] + logp[t - 1, u, blank])
            if u:
                ways.append(alpha[t, u - 1] + logp[t, u - 1, targets[u - 1]])
            if ways:
                alpha[t, u] = torch.logsumexp(torch.stack(ways), 0)
    return -(alpha[frames - 1, tokens] + logp[frames - 1, tokens, blank])


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(
    ("frames", "tokens"), [([5, 3, 1], [3, 0, 2]), ([4, 4, 2], [1, 2, 2])], ids=["full", "shorter"]
)
def test_loss_and_gradient_are_the_definitions(reduction, frames, tokens):
    steps, positions = 5, 3
    logits = torch.randn(3, steps, positions + 1, 6, requires_grad=True)
    targets = torch.randint(0, 5, (3, positions))
    blank = 5
    found = transducer_loss(
        logits,
        targets,
        torch.tensor(frames) / steps,
        torch.tensor(tokens) / positions,
        blank,
        reduction,
    )
    costs = torch.stack(
        [definition(logits[b].double(), targets[b], frames[b], tokens[b], blank) for b in range(3)]
    )
    expected = costs if reduction == "none" else getattr(costs, reduction)()
    torch.testing.assert_close(found, expected.float())
    weight = torch.tensor([1.0, 2.0, 3.0]) if reduction == "none" else torch.ones(())
    (gradient,) = torch.autograd.grad((found * weight).sum(), logits)
    (reference,) = torch.autograd.grad((expected * weight).sum(), logits)
    torch.testing.assert_close(gradient, reference)


def test_half_precision_logits_are_summed_in_float32():
    logits = torch.randn(1, 3, 2, 4).bfloat16()
    arguments = torch.tensor([[1]]), torch.ones(1), torch.ones(1), 0
    loss = transducer_loss(logits, *arguments)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, transducer_loss(logits.float(), *arguments))


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"logits": torch.zeros(2, 3, 4)}, ValueError, "logits must have shape"),
        ({"targets": torch.ones(2, 2, dtype=torch.long)}, ValueError, "belong to targets of shape"),
        ({"input_lens": torch.tensor([3, 2])}, TypeError, "input_lens must be relative"),
        ({"target_lens": torch.tensor([1.0, 2.0])}, ValueError, "target_lens must be relative"),
        ({"input_lens": torch.tensor([1.0, 0.0])}, ValueError, "a frame"),
        ({"reduction": "batchmean"}, ValueError, "reduction"),
    ],
)
def test_wrong_arguments_are_named(changed, error, message):
    arguments = {
        "logits": torch.zeros(2, 3, 2, 4),
        "targets": torch.ones(2, 1, dtype=torch.long),
        "input_lens": torch.ones(2),
        "target_lens": torch.ones(2),
        "blank_index": 0,
    }
    with pytest.raises(error, match=message):
        transducer_loss(**{**arguments, **changed})
