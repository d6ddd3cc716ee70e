"""The training and evaluation loop that all recipes share, as a SpeechBrain Brain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import speechbrain as sb
import torch
from speechbrain.core import Stage
from speechbrain.decoders.ctc import ctc_greedy_decode
from speechbrain.utils.checkpoints import average_checkpoints
from speechbrain.utils.distributed import if_main_process
from torch import Tensor

from sru_asr.model import Posteriors
from sru_asr.score import Score, WordErrorRate
from sru_asr.tokenizer import BLANK


class SpeechRecognitionBrain(sb.Brain):
    """Trains a `sru_asr.model.SpeechRecognizer` with CTC and, if it has one, its decoder's loss.

    ``modules`` holds the recogniser as ``model``. Hyperparameters used: ``ctc_weight``,
    ``label_smoothing``, ``lr_annealing``, ``epoch_counter``, ``train_logger``, ``tokenizer``,
    ``num_averaged_checkpoints``, ``seed``; optional ``fea_augment`` (SpecAugment), ``search`` (a
    SpeechBrain beam searcher used in tests instead of greedy CTC).
    """

    score: Score

    def compute_forward(self, batch: Any, stage: Stage) -> tuple[Posteriors, list[list[int]]]:
        """Compute log posteriors and, outside training, hypotheses as token lists."""
        batch = batch.to(self.device)
        wavs, lengths = batch.sig
        training = stage == Stage.TRAIN
        posteriors = self.modules.model(
            wavs,
            lengths,
            batch.tokens_bos.data,
            augment=getattr(self.hparams, "fea_augment", None) if training else None,
            epoch=self.hparams.epoch_counter.current,
        )
        hypotheses: list[list[int]] = []
        if stage == Stage.TEST and self._search is not None:
            hypotheses, *_ = self._search(posteriors.encoded, posteriors.lengths)
        elif not training:
            hypotheses = ctc_greedy_decode(posteriors.ctc, posteriors.lengths, blank_id=BLANK)
        return posteriors, hypotheses

    def compute_objectives(
        self, predictions: tuple[Posteriors, list[list[int]]], batch: Any, stage: Stage
    ) -> Tensor:
        """Weigh the CTC and the attention loss; outside training also count word errors."""
        posteriors, hypotheses = predictions
        tokens, token_lengths = batch.tokens
        loss = sb.nnet.losses.ctc_loss(
            posteriors.ctc,
            tokens,
            posteriors.lengths,
            token_lengths,
            blank_index=BLANK,
            reduction="batchmean",  # as the attention loss: both count whole utterances
        )
        if posteriors.attention is not None:
            targets, target_lengths = batch.tokens_eos
            attention_loss = sb.nnet.losses.kldiv_loss(
                posteriors.attention,
                targets,
                length=target_lengths,
                label_smoothing=self.hparams.label_smoothing,
                reduction="batchmean",
            )
            weight = self.hparams.ctc_weight
            loss = weight * loss + (1 - weight) * attention_loss
        if stage != Stage.TRAIN:
            texts = [self.hparams.tokenizer.decode_ids(tokens) for tokens in hypotheses]
            self.word_errors.append(batch.id, texts, batch.wrd)
        return loss

    def on_stage_start(self, stage: Stage, epoch: int | None = None) -> None:
        """Start counting word errors anew."""
        if stage != Stage.TRAIN:
            self.word_errors = WordErrorRate()

    def on_stage_end(self, stage: Stage, stage_loss: float, epoch: int | None = None) -> None:
        """Log the stage; after validation also save a checkpoint ranked by its WER."""
        if stage == Stage.TRAIN:
            self.train_stats = {"loss": stage_loss}
            return
        self.score = self.word_errors.summarize()
        stats = {"loss": stage_loss, "WER": self.score.wer}
        if stage == Stage.VALID:
            self.hparams.train_logger.log_stats(
                stats_meta={"epoch": epoch, "lr": self.optimizer.param_groups[0]["lr"]},
                train_stats=self.train_stats,
                valid_stats=stats,
            )
            self.checkpointer.save_and_keep_only(
                meta={"WER": self.score.wer, "epoch": epoch},
                min_keys=["WER"],
                num_to_keep=self.hparams.num_averaged_checkpoints,
            )

    def on_fit_batch_start(self, batch: Any, should_step: bool) -> None:
        """Set the learning rate of the step to come, the first one's too."""
        if should_step:
            self.hparams.lr_annealing(self.optimizer)

    def load_average(self) -> None:
        """Load the mean of the kept checkpoints' parameters into the model."""
        checkpoints = self.checkpointer.find_checkpoints(
            min_key="WER", max_num_checkpoints=self.hparams.num_averaged_checkpoints
        )
        if not checkpoints:
            raise FileNotFoundError(
                f"no checkpoint to evaluate in {self.checkpointer.checkpoints_dir}: train first"
            )
        self.hparams.model.load_state_dict(average_checkpoints(checkpoints, "model"))

    def on_evaluate_start(self, max_key: str | None = None, min_key: str | None = None) -> None:
        """Evaluate what is in memory: `load_average` has been called before."""

    def evaluate_split(self, split: str, loader: Any, folder: str | Path) -> Score:
        """Score one split and write its score and error listing.

        Parameters
        ----------
        split : str
            Name of the split.
        loader : DataLoader
            Its data.
        folder : str or Path
            Receives ``score_<split>.json`` and ``wer_<split>.txt``.

        Returns
        -------
        Score
        """
        loss = self.evaluate(loader)
        if if_main_process():
            folder = Path(folder)
            self.word_errors.write_stats(folder / f"wer_{split}.txt")
            self.score.to_json(
                folder / f"score_{split}.json",
                decoder="greedy CTC" if self._search is None else "joint CTC/attention beam",
                seed=self.hparams.seed,
                parameters=sum(p.numel() for p in self.hparams.model.parameters()),
            )
        # Called on every process: SpeechBrain's logger waits for all of them.
        self.hparams.train_logger.log_stats(
            stats_meta={"evaluated": split},
            test_stats={"loss": loss, "WER": self.score.wer, "CER": self.score.cer},
        )
        return self.score

    @property
    def _search(self) -> torch.nn.Module | None:
        return getattr(self.hparams, "search", None)
