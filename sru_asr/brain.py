"""The training and evaluation loop that all recipes share, as a SpeechBrain Brain."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import speechbrain as sb
import torch
from speechbrain.core import Stage
from speechbrain.dataio.batch import PaddedData
from speechbrain.decoders.ctc import ctc_greedy_decode
from speechbrain.utils.checkpoints import average_checkpoints
from speechbrain.utils.data_utils import batch_pad_right
from speechbrain.utils.distributed import ddp_all_reduce, if_main_process
from torch import Tensor
from torch.distributed import ReduceOp

from sru_asr.consistency import consistency_loss
from sru_asr.model import Posteriors
from sru_asr.score import Score, WordErrorRate
from sru_asr.tokenizer import BLANK

# Of each search by its name, "" for the main one: token lists of a batch.
Hypotheses = dict[str, list[list[int]]]


class NonFiniteLoss(ValueError):
    """A batch whose loss is not a finite number; the message names its utterances."""


class SpeechRecognitionBrain(sb.Brain):
    """Trains a `sru_asr.model.SpeechRecognizer` with CTC and, if it has one, its decoder's loss.

    ``modules`` holds the recogniser as ``model``. Hyperparameters used: ``ctc_weight``,
    ``label_smoothing``, ``lr_annealing``, ``epoch_counter``, ``train_logger``, ``tokenizer``,
    ``num_averaged_checkpoints``, ``seed``; optional ``fea_augment`` (SpecAugment),
    ``consistency_weight`` (where ``fea_augment`` gives `sru_asr.augment.Views`),
    ``intermediate_ctc_weight``, ``phone_ctc_weight``, ``lexicon`` (a `sru_asr.lexicon.Lexicon`:
    intermediate CTC learns its phones in place of tokens), ``averaged_checkpoints`` ("best", the
    default, or "last"), ``search`` (a searcher used in tests instead of greedy CTC) and
    ``searches`` (a mapping of names to further ones).
    """

    score: Score

    def compute_forward(self, batch: Any, stage: Stage) -> tuple[Posteriors, Hypotheses]:
        """Compute log posteriors and, outside training, each search's hypotheses."""
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
        hypotheses: Hypotheses = {}
        if stage == Stage.TEST:
            for name, search in self._searches.items():
                hypotheses[name], *_ = search(posteriors.encoded, posteriors.lengths)
        if not training and "" not in hypotheses:
            hypotheses[""] = ctc_greedy_decode(posteriors.ctc, posteriors.lengths, blank_id=BLANK)
        return posteriors, hypotheses

    def compute_objectives(
        self, predictions: tuple[Posteriors, Hypotheses], batch: Any, stage: Stage
    ) -> Tensor:
        """Weigh the CTC and the attention loss; outside training also count word errors."""
        posteriors, hypotheses = predictions
        views = len(posteriors.ctc) // len(batch.tokens[0])
        loss = ctc_loss = self._ctc_loss(posteriors.ctc, posteriors.lengths, batch.tokens, views)
        lexicon = getattr(self.hparams, "lexicon", None)
        for name, log_probs in (
            ("intermediate_ctc_weight", posteriors.intermediate),
            ("phone_ctc_weight", posteriors.phones),
        ):
            if log_probs is not None:
                targets = batch.tokens if lexicon is None else self._phones(batch.wrd)
                other = self._ctc_loss(log_probs, posteriors.lengths, targets, views)
                loss = loss + getattr(self.hparams, name) * (other - ctc_loss)
        if posteriors.attention is not None:
            targets, target_lengths = _repeated(batch.tokens_eos, views)
            attention_loss = sb.nnet.losses.kldiv_loss(
                posteriors.attention,
                targets,
                length=target_lengths,
                label_smoothing=self.hparams.label_smoothing,
                reduction="batchmean",
            )
            weight = self.hparams.ctc_weight
            loss = weight * loss + (1 - weight) * attention_loss
        for name, token_lists in hypotheses.items():
            texts = [self.hparams.tokenizer.decode_ids(tokens) for tokens in token_lists]
            self.word_errors[name].append(batch.id, texts, batch.wrd)
        return loss

    def _phones(self, texts: list[str]) -> PaddedData:
        phones = [torch.tensor(self.hparams.lexicon.encode(text)) for text in texts]
        padded, lengths = batch_pad_right(phones)
        return PaddedData(padded.to(self.device), lengths.to(self.device))

    def _ctc_loss(
        self, log_probs: Tensor, lengths: Tensor, targets: PaddedData, views: int
    ) -> Tensor:
        """CTC loss of a batch, and how far its views are apart where there are several."""
        tokens, token_lengths = _repeated(targets, views)
        loss: Tensor = sb.nnet.losses.ctc_loss(
            log_probs,
            tokens,
            lengths,
            token_lengths,
            blank_index=BLANK,
            reduction="batchmean",  # as the attention loss: both count whole utterances
        )
        if views > 1:
            weight = getattr(self.hparams, "consistency_weight", None)
            if weight is None:
                raise ValueError(
                    f"consistency_weight: found none, but fea_augment makes {views} views of each "
                    "utterance; expected a number, such as 0.2"
                )
            loss = loss + weight * consistency_loss(log_probs, lengths, views)
        return loss

    def on_stage_start(self, stage: Stage, epoch: int | None = None) -> None:
        """Start counting word errors anew."""
        self.word_errors: defaultdict[str, WordErrorRate] = defaultdict(WordErrorRate)

    def on_stage_end(self, stage: Stage, stage_loss: float, epoch: int | None = None) -> None:
        """Log the stage; after validation also save a checkpoint ranked by its WER."""
        if stage == Stage.TRAIN:
            self.train_stats = {"loss": stage_loss}
            return
        self.score = self.word_errors[""].summarize()
        stats = {"loss": stage_loss, "WER": self.score.wer}
        if stage == Stage.VALID:
            self.hparams.train_logger.log_stats(
                stats_meta={"epoch": epoch, "lr": self.optimizer.param_groups[0]["lr"]},
                train_stats=self.train_stats,
                valid_stats=stats,
            )
            self.checkpointer.save_and_keep_only(
                meta={"WER": self.score.wer, "epoch": epoch},
                min_keys=["WER"] if self._averages_best else [],
                num_to_keep=self.hparams.num_averaged_checkpoints,
            )

    def on_fit_batch_start(self, batch: Any, should_step: bool) -> None:
        """Set the learning rate of the step to come, the first one's too."""
        self.batch_ids = list(batch.id)
        if should_step:
            self.hparams.lr_annealing(self.optimizer)

    def check_loss_isfinite(self, loss: Tensor) -> None:
        """Stop at a loss that is not finite; parameters are still those of the step before.

        SpeechBrain's patience (``--nonfinite_patience``) would only hide which data is to blame.

        Raises
        ------
        NonFiniteLoss
            Naming the utterances, when a checkpoint has been saved.
        """
        finite = bool(torch.isfinite(loss))
        # All processes stop together: saving waits for them, and they would wait for gradients.
        stopping = torch.tensor(0.0 if finite else 1.0, device=loss.device)
        if not ddp_all_reduce(stopping, ReduceOp.MAX):
            return
        checkpoint = self.checkpointer.save_checkpoint(end_of_epoch=False)
        where = f"; the run so far is in {checkpoint.path}" if checkpoint else ""
        if finite:
            raise NonFiniteLoss(f"the loss of another process's batch is not finite{where}")
        raise NonFiniteLoss(
            f"the loss became {float(loss)} on the batch of {', '.join(self.batch_ids)}{where}: "
            "look at these recordings and transcripts, or lower lr"
        )

    def load_average(self) -> None:
        """Load the mean of the kept checkpoints' parameters into the model.

        The best by validation WER, or, with ``averaged_checkpoints: last``, the last.
        """
        checkpoints = self.checkpointer.find_checkpoints(
            min_key="WER" if self._averages_best else None,
            max_num_checkpoints=self.hparams.num_averaged_checkpoints,
            ckpt_predicate=lambda checkpoint: "WER" in checkpoint.meta,  # ends an epoch
        )
        if not checkpoints:
            raise FileNotFoundError(
                f"no checkpoint to evaluate in {self.checkpointer.checkpoints_dir}: train first"
            )
        self.hparams.model.load_state_dict(average_checkpoints(checkpoints, "model"))

    def on_evaluate_start(self, max_key: str | None = None, min_key: str | None = None) -> None:
        """Evaluate what is in memory: `load_average` has been called before."""
        for search in self._searches.values():
            search.to(self.device)  # with its language model, which ``modules`` does not have

    def evaluate_split(self, split: str, loader: Any, folder: str | Path) -> Score:
        """Score one split and write its score and error listing.

        Parameters
        ----------
        split : str
            Name of the split.
        loader : DataLoader
            Its data.
        folder : str or Path
            Receives ``score_<split>.json``, ``wer_<split>.txt`` and ``utterances_<split>.csv``, and
            the same of every further search as ``score_<split>_<search>.json`` and so on.

        Returns
        -------
        Score
        """
        loss = self.evaluate(loader)
        if if_main_process():
            folder = Path(folder)
            for name, errors in self.word_errors.items():
                label = f"{split}_{name}" if name else split
                errors.write_stats(folder / f"wer_{label}.txt")
                errors.write_csv(folder / f"utterances_{label}.csv")
                search = self._searches.get(name)
                errors.summarize().to_json(
                    folder / f"score_{label}.json",
                    decoder="greedy CTC" if search is None else type(search).__name__,
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
    def _searches(self) -> dict[str, torch.nn.Module]:
        """Searchers by name; the main one's is ""."""
        main = getattr(self.hparams, "search", None)
        return ({} if main is None else {"": main}) | getattr(self.hparams, "searches", {})

    @property
    def _averages_best(self) -> bool:
        choice: str = getattr(self.hparams, "averaged_checkpoints", "best")
        if choice not in ("best", "last"):
            raise ValueError(f"averaged_checkpoints must be best or last, got {choice!r}")
        return choice == "best"


def _repeated(targets: PaddedData, views: int) -> tuple[Tensor, Tensor]:
    """Targets of all views of a batch, in the order of `sru_asr.augment.Views`."""
    data, lengths = targets
    return data.repeat(views, 1), lengths.repeat(views)
