"""The training loop's losses."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from speechbrain.core import Stage

from sru_asr.brain import SpeechRecognitionBrain
from sru_asr.consistency import consistency_loss
from sru_asr.lexicon import Lexicon
from sru_asr.model import Posteriors


def objective(posteriors: Posteriors, batch: Any, **hparams: Any) -> torch.Tensor:
    brain = SpeechRecognitionBrain(hparams=hparams)
    return brain.compute_objectives((posteriors, {}), batch, Stage.TRAIN)


def test_intermediate_ctc_learns_tokens_or_the_lexicons_phones(tmp_path: Path) -> None:
    (tmp_path / "lexicon.txt").write_text("NO N OW\nTEN T EH N\n", encoding="utf-8")
    lexicon = Lexicon(tmp_path / "lexicon.txt")
    batch = SimpleNamespace(
        tokens=(torch.tensor([[3, 4, 5], [3, 4, 0]]), torch.tensor([1.0, 2 / 3])),
        wrd=["NO TEN", "TEN"],
    )
    lengths = torch.tensor([1.0, 0.75])
    ctc, intermediate = torch.randn(2, 12, 7), torch.randn(2, 12, lexicon.size)
    ctc, intermediate = ctc.log_softmax(-1), intermediate.log_softmax(-1)
    posteriors = Posteriors(ctc, None, torch.empty(0), lengths, intermediate)

    def expected(log_probs: torch.Tensor, targets: list[list[int]]) -> float:
        losses = [
            torch.nn.functional.ctc_loss(
                row[:steps], torch.tensor(target), [steps], [len(target)], reduction="sum"
            )
            for row, steps, target in zip(log_probs, (12, 9), targets, strict=True)
        ]
        return sum(loss.item() for loss in losses) / 2

    tokens = [[3, 4, 5], [3, 4]]
    phones = [lexicon.encode(text) for text in batch.wrd]
    weights = {"intermediate_ctc_weight": 0.3}
    assert objective(posteriors, batch, **weights, lexicon=lexicon).item() == pytest.approx(
        0.7 * expected(ctc, tokens) + 0.3 * expected(intermediate, phones)
    )
    both = posteriors._replace(phones=intermediate.flip(2))
    weights |= {"phone_ctc_weight": 0.2}
    assert objective(both, batch, **weights, lexicon=lexicon).item() == pytest.approx(
        0.5 * expected(ctc, tokens)
        + 0.3 * expected(intermediate, phones)
        + 0.2 * expected(intermediate.flip(2), phones)
    )
    same = posteriors._replace(intermediate=ctc.flip(1))
    assert objective(same, batch, **weights).item() == pytest.approx(
        0.7 * expected(ctc, tokens) + 0.3 * expected(ctc.flip(1), tokens)
    )


def test_views_share_targets_and_are_held_together() -> None:
    batch = SimpleNamespace(
        tokens=(torch.tensor([[3, 4, 5], [3, 4, 0]]), torch.tensor([1.0, 2 / 3])),
        tokens_eos=(torch.tensor([[3, 4, 5, 2], [3, 4, 2, 0]]), torch.tensor([1.0, 0.75])),
        wrd=["NO TEN", "TEN"],
    )
    lengths = torch.tensor([1.0, 0.75])
    views = [
        Posteriors(
            torch.randn(2, 12, 7).log_softmax(-1),
            torch.randn(2, 4, 7).log_softmax(-1),
            torch.empty(0),
            lengths,
            torch.randn(2, 12, 7).log_softmax(-1),
        )
        for _ in range(2)
    ]
    together = Posteriors(
        *(torch.cat(pair) for pair in zip(*(view[:5] for view in views), strict=True))
    )
    options = {"ctc_weight": 0.5, "label_smoothing": 0.1, "intermediate_ctc_weight": 0.3}
    apart = sum(objective(view, batch, **options).item() for view in views) / 2
    found = objective(together, batch, **options, consistency_weight=0.2).item()
    final, intermediate = (
        consistency_loss(log_probs, lengths.repeat(2), 2).item()
        for log_probs in (together.ctc, together.intermediate)
        if log_probs is not None
    )
    expected = apart + 0.5 * 0.2 * (0.7 * final + 0.3 * intermediate)
    assert found == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="consistency_weight: found none.* 2 views"):
        objective(together, batch, **options)
