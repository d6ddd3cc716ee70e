"""From a YAML and transcripts to a language model folder: what the recipes' train_lm.py call."""

from __future__ import annotations

import json
import math
import random
import sys
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import speechbrain as sb
import torch
from sentencepiece import SentencePieceProcessor
from speechbrain.core import Stage
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.utils.checkpoints import average_checkpoints
from speechbrain.utils.distributed import ddp_init_group, if_main_process, run_on_main
from torch import Tensor

from sru_asr.export import export_model
from sru_asr.files import atomically, write_atomically
from sru_asr.model_card import collect_scores, write_card
from sru_asr.padding import padding_mask, steps_of
from sru_asr.plot import plot_training
from sru_asr.text import Normalization
from sru_asr.tokenizer import BOS, EOS, train_tokenizer, unspellable
from sru_asr.training import RecipeError, check_same_run, load_hparams, normalization
from sru_asr.transcripts import enumerate_some, read_transcripts

# Keys of a language model's YAML that this module reads.
REQUIRED = {
    "seed",
    "output_folder",
    "save_folder",
    "train_csv",
    "valid_csv",
    "output_neurons",
    "token_type",
    "tokenizer",
    "tokenizer_file",
    "opt_class",
    "lr_annealing",
    "epoch_counter",
    "train_logger",
    "num_averaged_checkpoints",
    "modules",
    "language_model",
    "checkpointer",
    "train_loader_options",
    "test_loader_options",
    "inference",
}
OPTIONAL = {
    "text_normalization",  # of all sentences: a preset's name, or a sru_asr.text.Normalization
    "word_noise",  # probability of replacing a word in training
}


@dataclass(frozen=True)
class Perplexity:
    """How well a language model predicts sentences: exp(-log probability / count).

    Attributes
    ----------
    token_perplexity : float
        For each token, the end of the sentence counted as one.
    word_perplexity : float
        The same log probability for each word, the end of the sentence counted as one: what a
        word-level n-gram's perplexity compares with.
    tokens, words, sentences : int
        Without the ends of the sentences.

    Examples
    --------
    >>> from sru_asr.language_training import Perplexity
    >>> print(Perplexity.of(-8.0, tokens=15, words=3, sentences=1))
    perplexity 1.65 a token, 7.39 a word, 3 words in 1 sentences
    """

    token_perplexity: float
    word_perplexity: float
    tokens: int
    words: int
    sentences: int

    @classmethod
    def of(cls, log_prob: float, tokens: int, words: int, sentences: int) -> Perplexity:
        """Divide a natural log probability, ends of sentences included, by the counts."""
        return cls(
            math.exp(-log_prob / (tokens + sentences)),
            math.exp(-log_prob / (words + sentences)),
            tokens,
            words,
            sentences,
        )

    def to_json(self, path: str | Path, **extra: Any) -> None:
        """Write the perplexity as JSON, all or nothing, with how it came about."""
        write_atomically(path, json.dumps(asdict(self) | extra, indent=2) + "\n")

    def __str__(self) -> str:
        return (
            f"perplexity {self.token_perplexity:.2f} a token, {self.word_perplexity:.2f} a word, "
            f"{self.words} words in {self.sentences} sentences"
        )


class WordNoise:
    """Replace some words of a sentence by others that were seen after the same word.

    The neural counterpart of an n-gram's smoothing: words that followed are equally likely, as in
    Kneser and Ney's lower orders, however often they did. Xie et al., "Data Noising as Smoothing
    in Neural Network Language Models", ICLR 2017.

    Parameters
    ----------
    sentences : iterable of str
        The training sentences.
    probability : float
        Of replacing a word.

    Examples
    --------
    >>> from sru_asr.language_training import WordNoise
    >>> noise = WordNoise(["GO LEFT", "GO RIGHT"], probability=0.5)
    >>> noise("GO LEFT") in ("GO LEFT", "GO RIGHT")
    True
    """

    def __init__(self, sentences: Iterable[str], probability: float) -> None:
        if not 0 <= probability <= 1:
            raise ValueError(f"word_noise must be a probability, 0 to 1, got {probability}")
        self.probability = probability
        followers: dict[str, set[str]] = defaultdict(set)
        for sentence in sentences:
            for before, word in _with_predecessors(sentence):
                followers[before].add(word)
        self.followers = {before: sorted(words) for before, words in followers.items()}

    def __call__(self, sentence: str) -> str:
        """Draw a sentence in place of one of the training sentences."""
        return " ".join(
            random.choice(self.followers[before]) if random.random() < self.probability else word
            for before, word in _with_predecessors(sentence)
        )


def _with_predecessors(sentence: str) -> Iterator[tuple[str, str]]:
    """Each word with the one before, "" at the beginning."""
    return pairwise(["", *sentence.split()])


class LanguageModelBrain(sb.Brain):
    """Trains a language model to predict each next token.

    ``modules`` holds it as ``language_model``. Hyperparameters used: ``lr_annealing``,
    ``train_logger``, ``num_averaged_checkpoints``.
    """

    perplexity: Perplexity

    def compute_forward(self, batch: Any, stage: Stage) -> Tensor:
        """Compute log probabilities, shape (B, U, V)."""
        batch = batch.to(self.device)
        log_probs: Tensor = self.modules.language_model(*batch.tokens_bos)
        return log_probs

    def compute_objectives(self, predictions: Tensor, batch: Any, stage: Stage) -> Tensor:
        """Average over the batch's tokens; outside training also sum up what perplexity needs."""
        targets, lengths = batch.tokens_eos
        steps = steps_of(lengths, *targets.shape)
        assert steps is not None
        log_probs = predictions.gather(-1, targets[:, :, None])[:, :, 0]
        log_probs = log_probs[~padding_mask(steps, targets.shape[1])]
        if stage != Stage.TRAIN:
            self.log_prob += log_probs.sum(dtype=torch.float64).item()
            self.tokens += int(steps.sum()) - len(steps)
            self.words += sum(len(wrd.split()) for wrd in batch.wrd)
            self.sentences += len(steps)
        return -log_probs.mean()

    def on_stage_start(self, stage: Stage, epoch: int | None = None) -> None:
        """Start counting anew."""
        self.log_prob = 0.0
        self.tokens = self.words = self.sentences = 0

    def on_stage_end(self, stage: Stage, stage_loss: float, epoch: int | None = None) -> None:
        """Log the stage; after validation also save a checkpoint ranked by its perplexity."""
        if stage == Stage.TRAIN:
            self.train_stats = {"loss": stage_loss}
            return
        counts = (self.tokens, self.words, self.sentences)
        self.perplexity = Perplexity.of(self.log_prob, *counts)
        if stage == Stage.VALID:
            perplexity = self.perplexity.word_perplexity
            self.hparams.train_logger.log_stats(
                stats_meta={"epoch": epoch, "lr": self.optimizer.param_groups[0]["lr"]},
                train_stats=self.train_stats,
                valid_stats={"loss": stage_loss, "perplexity": perplexity},
            )
            self.checkpointer.save_and_keep_only(
                meta={"perplexity": perplexity, "epoch": epoch},
                min_keys=["perplexity"],
                num_to_keep=self.hparams.num_averaged_checkpoints,
            )

    def on_fit_batch_start(self, batch: Any, should_step: bool) -> None:
        """Set the learning rate of the step to come, the first one's too."""
        if should_step:
            self.hparams.lr_annealing(self.optimizer)

    def load_average(self) -> None:
        """Load the mean of the kept checkpoints' parameters into the model."""
        checkpoints = self.checkpointer.find_checkpoints(
            min_key="perplexity", max_num_checkpoints=self.hparams.num_averaged_checkpoints
        )
        self.hparams.language_model.load_state_dict(
            average_checkpoints(checkpoints, "language_model")
        )

    def on_evaluate_start(self, max_key: str | None = None, min_key: str | None = None) -> None:
        """Evaluate what is in memory: `load_average` has been called before."""


def run_recipe(
    arguments: list[str],
    prepare: Callable[[dict[str, Any]], None],
    corpus_options: Collection[str] = (),
) -> Perplexity:
    """Prepare transcripts, train, evaluate and export, as far as it has not been done already.

    Killed at any moment and called again with the same arguments, it goes on from the last
    checkpoint. Leaves ``perplexity_valid.json``, ``training.png`` and the folder ``model``.

    Parameters
    ----------
    arguments : list of str
        Command line: the YAML, then SpeechBrain's options and ``--key=value`` overrides.
    prepare : callable
        Given the hyperparameters, writes the transcripts they name; called on one process.
    corpus_options : collection of str
        YAML keys that only ``prepare`` reads.

    Returns
    -------
    Perplexity
        Of the validation sentences.

    Raises
    ------
    RecipeError
        When YAML, transcripts or tokenizer do not fit; before training starts.
    """
    hparams_file, run_opts, overrides = sb.parse_arguments(arguments)
    hparams = load_hparams(hparams_file, overrides, corpus_options, REQUIRED, OPTIONAL)
    ddp_init_group(run_opts)
    folder, save = Path(hparams["output_folder"]), Path(hparams["save_folder"])
    tokenizer_file = save / "tokenizer.model"
    try:
        experiment = "/".join(Path(hparams_file).absolute().parts[-2:])
        run_on_main(check_same_run, [hparams, save / "settings.json", experiment])
        sb.create_experiment_directory(str(folder), hparams_file, overrides)
        run_on_main(prepare, [hparams])
        sentences = {
            "train": read_sentences(hparams["train_csv"], normalization(hparams)),
            "valid": read_sentences(hparams["valid_csv"], normalization(hparams)),
        }
        load_tokenizer(hparams, tokenizer_file, sentences)
        brain = LanguageModelBrain(
            modules=hparams["modules"],
            opt_class=hparams["opt_class"],
            hparams=hparams,
            run_opts=run_opts,
            checkpointer=hparams["checkpointer"],
        )
        noise = WordNoise(sentences["train"].values(), hparams.get("word_noise") or 0.0)
        train = brain.make_dataloader(
            make_text_dataset(sentences["train"], hparams["tokenizer"], noise),
            Stage.TRAIN,
            **hparams["train_loader_options"],
        )
        valid = brain.make_dataloader(
            make_text_dataset(sentences["valid"], hparams["tokenizer"]),
            Stage.VALID,
            ckpt_prefix=None,
            **hparams["test_loader_options"],
        )
    except (ValueError, TypeError, OSError, ModuleNotFoundError) as error:
        raise RecipeError(str(error)) from error
    brain.fit(hparams["epoch_counter"], train, valid)
    run_on_main(
        plot_training, [folder / "train_log.txt", folder / "training.png", "perplexity", ""]
    )
    brain.load_average()
    run_on_main(
        export_model,
        [folder / "hyperparams.yaml", folder / "model", hparams["inference"], tokenizer_file],
    )
    brain.evaluate(valid)
    if if_main_process():
        brain.perplexity.to_json(
            folder / "perplexity_valid.json",
            seed=hparams["seed"],
            parameters=sum(p.numel() for p in hparams["language_model"].parameters()),
        )
        write_card(
            folder / "model",
            experiment=experiment,
            seed=hparams["seed"],
            training={"sentences": len(sentences["train"])},
            scores=collect_scores(folder, "perplexity_*.json"),
        )
    return brain.perplexity


def read_sentences(path: str | Path, normalize: Normalization | None = None) -> dict[str, str]:
    """Read sentences from a manifest or any file of transcripts, a text with one a line included.

    Parameters
    ----------
    path : str or Path
        What `sru_asr.transcripts.read_transcripts` reads. Empty sentences are left out.
    normalize : Normalization, optional
        Applied to each sentence.

    Returns
    -------
    dict of str to str
        Sentences by name; of a text, by the number of the line.

    Raises
    ------
    ValueError
        When there is no such file, or no sentence in it.
    """
    if not Path(path).is_file():
        raise ValueError(
            f"{path}: found no such file, expected a manifest or a text, a sentence on each line; "
            "train_csv and valid_csv name them, and data_folder makes a corpus's"
        )
    texts = read_transcripts(path).texts
    if normalize is not None:
        texts = {name: normalize(text) for name, text in texts.items()}
    sentences = {name: text for name, text in texts.items() if text}
    if not sentences:
        raise ValueError(f"{path}: found no words, expected sentences")
    return sentences


def load_tokenizer(
    hparams: dict[str, Any], path: Path, sentences: dict[str, dict[str, str]]
) -> None:
    """Load the run's tokenizer: its own, an existing model's, or one trained on its sentences.

    Raises
    ------
    ValueError
        When it does not fit the vocabulary, or cannot spell a sentence.
    """
    if hparams["tokenizer_file"]:
        run_on_main(copy_tokenizer, [hparams["tokenizer_file"], path])
    texts = list(sentences["train"].values())
    run_on_main(train_tokenizer, [path, texts, hparams["output_neurons"], hparams["token_type"]])
    tokenizer = hparams["tokenizer"]
    tokenizer.load(str(path))
    for split, texts_by_name in sentences.items():
        if unknown := unspellable(tokenizer, texts_by_name):
            character, names = next(iter(unknown.items()))
            raise ValueError(
                f"{split}_csv {hparams[f'{split}_csv']}: found characters that the tokenizer "
                f"{path} has no piece for, {enumerate_some(map(repr, unknown))}; {character!r} in "
                f"{enumerate_some(dict.fromkeys(names), 3)}"
            )


def copy_tokenizer(source: str | Path, target: Path) -> None:
    """Take an existing model's tokenizer for this run.

    Raises
    ------
    ValueError
        When there is no such file, or this run had another one before.
    """
    source = Path(source)
    if not source.is_file():
        raise ValueError(f"tokenizer_file {source}: found no such file, expected a tokenizer")
    if not target.exists():
        with atomically(target) as temporary:
            temporary.write_bytes(source.read_bytes())
    elif target.read_bytes() != source.read_bytes():
        raise ValueError(
            f"tokenizer_file {source}: the run in this output_folder has another tokenizer, "
            f"{target}; choose another output_folder, or delete it"
        )


def make_text_dataset(
    sentences: Mapping[str, str],
    tokenizer: SentencePieceProcessor,
    noise: Callable[[str], str] | None = None,
) -> DynamicItemDataset:
    """Make a dataset of sentences as tokens.

    Parameters
    ----------
    sentences : mapping of str to str
        From `read_sentences`.
    tokenizer : sentencepiece.SentencePieceProcessor
        Turns them into tokens.
    noise : callable, optional
        Applied to each sentence whenever it is asked for.

    Returns
    -------
    DynamicItemDataset
        With items ``id, wrd, tokens_bos, tokens_eos``.
    """

    @sb.utils.data_pipeline.takes("wrd")
    @sb.utils.data_pipeline.provides("tokens_bos", "tokens_eos")
    def text_pipeline(wrd: str) -> Any:
        tokens = tokenizer.encode(wrd if noise is None else noise(wrd))
        yield torch.LongTensor([BOS, *tokens])
        yield torch.LongTensor([*tokens, EOS])

    dataset = DynamicItemDataset({name: {"wrd": wrd} for name, wrd in sentences.items()})
    dataset.add_dynamic_item(text_pipeline)
    dataset.set_output_keys(["id", "wrd", "tokens_bos", "tokens_eos"])
    return dataset


def main(
    prepare: Callable[[dict[str, Any]], None],
    corpus_options: Collection[str] = (),
) -> None:
    """Run a recipe from the command line; bad input ends in one sentence and exit code 2."""
    try:
        perplexity = run_recipe(sys.argv[1:], prepare, corpus_options)
    except RecipeError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    print(f"valid: {perplexity}")
