"""Search a trained model's utterances again, with other searches, language models and weights.

    python recipes/decode.py results/an4_srupp_ctc_attention/1/model data/valid.csv \\
        --search joint --ctc_weight 0.3 --ctc_weight 0.5 \\
        --lm results/an4_sru_lm/1/model --lm_weight 0.2 --lm_weight 0.4

Options that are given several times make a grid; every combination is a row of the table. The
utterances are encoded once. Choose on validation data, then score the test data with that alone.

Where a recording begins decides some of its words, and in a small corpus some words are a percent.
With ``--draws 8`` each recording is also heard as eight others of the same words would be, a little
shorter at the beginning and a little faster or slower: the mean tells models apart sooner.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch
import torchaudio
from torch import Tensor, nn
from tqdm import tqdm

from sru_asr.audio import read_audio
from sru_asr.decode import NBestRescorer, PhoneRescorer
from sru_asr.decode.choice import DECODERS, DecoderError, make_searcher, read_language_model
from sru_asr.decode.scorer import TokenScorer
from sru_asr.device import DeviceError, find_device
from sru_asr.manifest import ManifestError, Utterance, check_manifest
from sru_asr.model_folder import ModelFolderError, load_model
from sru_asr.score import WordErrorRate

CUT = 0.03  # seconds that a draw leaves out at the beginning, at most
PACE = (94, 96, 98, 100, 102, 104, 106)  # percent, of which a draw has one


Batch = tuple[list[Utterance], Tensor, Tensor]  # with encoded frames and relative lengths


class Setting(NamedTuple):
    """One row of the grid."""

    search: str
    ctc_weight: float
    lm_weight: float
    phone_weight: float
    token_bonus: float


def encode(
    model: Any, utterances: list[Utterance], batch_size: int, draw: int = 0
) -> Iterator[Batch]:
    """Encode utterances in batches of like length; as they are, or as one of the draws."""
    encoder = model.mods.encoder
    random = torch.Generator().manual_seed(draw)
    ordered = sorted(utterances, key=lambda utterance: utterance.duration)
    for start in tqdm(range(0, len(ordered), batch_size), desc="encoding", delay=3):
        batch = ordered[start : start + batch_size]
        rate = model.hparams.sample_rate
        signals = [read_audio(utterance.wav, rate) for utterance in batch]
        if draw:
            signals = [vary(signal, rate, random) for signal in signals]
        samples = torch.tensor([len(signal) for signal in signals])
        wavs = nn.utils.rnn.pad_sequence(signals, batch_first=True).to(model.device)
        encoded, lengths = encoder.encode(wavs, (samples / wavs.shape[1]).to(model.device))
        yield batch, encoded, lengths


def vary(signal: Tensor, sample_rate: int, random: torch.Generator) -> Tensor:
    """The same words a little shorter at the beginning, and a little faster or slower."""
    cut = int(torch.rand((), generator=random) * CUT * sample_rate)
    pace = PACE[int(torch.randint(len(PACE), (), generator=random))]
    # Not all of it: a recording can be shorter than what is cut.
    return torchaudio.functional.resample(signal[min(cut, len(signal) // 2) :], pace, 100)


def search_of(
    model: Any, setting: Setting, beam_size: int, lm: TokenScorer | None, rescore: bool
) -> nn.Module:
    """Make the search of a setting from the modules of a model folder."""
    if setting.search == "greedy":
        return make_searcher(model, "greedy")
    options: dict[str, Any] = {"beam_size": beam_size, "token_bonus": setting.token_bonus}
    if lm is not None and not rescore:
        options |= {"lm": lm, "lm_weight": setting.lm_weight}
    if setting.search == "joint":
        # Sums of log probabilities can be added to; means cannot.
        summed = rescore or setting.phone_weight or setting.token_bonus
        options |= {"ctc_weight": setting.ctc_weight, "length_normalization": not summed}
    searcher: nn.Module = make_searcher(model, setting.search, **options)
    if setting.phone_weight:
        phones = getattr(model.mods, "decoder", None)
        if not isinstance(phones, PhoneRescorer):
            raise click.BadParameter("--phone_weight: this model has no PhoneRescorer")
        searcher = PhoneRescorer(
            searcher, phones.phone_output, phones.lexicon, phones.tokenizer, setting.phone_weight
        )
    if lm is not None and rescore:
        searcher = NBestRescorer(searcher, lm, setting.lm_weight)
    return searcher


def score_batches(
    searcher: nn.Module, batches: list[Batch], tokenizer: Any, name: str
) -> WordErrorRate:
    """Search encoded batches and count the errors."""
    errors = WordErrorRate()
    for batch, frames, lengths in tqdm(batches, desc=name, delay=3, leave=False):
        hypotheses, *_ = searcher(frames, lengths)
        texts = [tokenizer.decode_ids(list(tokens)) for tokens in hypotheses]
        errors.append([u.ID for u in batch], texts, [u.wrd for u in batch])
    return errors


@click.command()
@click.argument("model_folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("manifest", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--data_root", default=None, help="What relative paths of the manifest start from.")
@click.option(
    "--search",
    "searches",
    multiple=True,
    default=["joint"],
    show_default=True,
    type=click.Choice(DECODERS),
)
@click.option("--beam_size", default=10, show_default=True)
@click.option("--ctc_weight", "ctc_weights", multiple=True, default=[0.4], show_default=True)
@click.option(
    "--lm",
    "lm_path",
    default=None,
    type=click.Path(exists=True, path_type=Path),
    help="An ARPA file of a word n-gram, or the model folder of an SRU language model.",
)
@click.option("--lm_weight", "lm_weights", multiple=True, default=[0.3], show_default=True)
@click.option("--rescore", is_flag=True, help="Re-rank the N best, instead of shallow fusion.")
@click.option(
    "--phone_weight",
    "phone_weights",
    multiple=True,
    default=[0.0],
    show_default=True,
    help="Re-rank the N best by their phones, too.",
)
@click.option(
    "--token_bonus",
    "token_bonuses",
    multiple=True,
    default=[0.0],
    show_default=True,
    help="For each token; the joint search then ranks by sums, not by means over tokens.",
)
@click.option(
    "--draws",
    default=0,
    show_default=True,
    type=click.IntRange(min=0),
    help="Also score so many variations of each recording; prints the mean of their scores.",
)
@click.option("--batch_size", default=8, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option(
    "--trust-model",
    is_flag=True,
    help="Load folders whose YAML runs any code.",
)
@click.option(
    "--output",
    default=None,
    type=click.Path(path_type=Path),
    help="With one setting: writes score_NAME.json, wer_NAME.txt and utterances_NAME.csv there.",
)
@click.option("--name", default="decoded", show_default=True, help="The NAME of these files.")
def main(
    model_folder: Path,
    manifest: Path,
    data_root: str | None,
    searches: tuple[str, ...],
    beam_size: int,
    ctc_weights: tuple[float, ...],
    lm_path: Path | None,
    lm_weights: tuple[float, ...],
    rescore: bool,
    phone_weights: tuple[float, ...],
    token_bonuses: tuple[float, ...],
    draws: int,
    batch_size: int,
    device: str,
    trust_model: bool,
    output: Path | None,
    name: str,
) -> None:
    """Score MANIFEST with the model of MODEL_FOLDER under one or many search settings."""
    grid = []
    for search in dict.fromkeys(searches):
        # Weights that a search does not use would only repeat its row.
        ctc = ctc_weights if search == "joint" else (0.0,)
        fused = lm_path is not None and search != "greedy"
        lm = lm_weights if fused else (0.0,)
        beam = search != "greedy"
        phones, bonus = (phone_weights, token_bonuses) if beam else ((0.0,), (0.0,))
        grid += [Setting(search, *weights) for weights in itertools.product(ctc, lm, phones, bonus)]
    if output is not None and len(grid) > 1:
        raise click.BadParameter(f"--output needs a single setting, found {len(grid)}")
    try:
        model = load_model(model_folder, find_device(device), trust_model)
        utterances = check_manifest(manifest, data_root)
        tokenizer, scorer = model.hparams.tokenizer, None
        if lm_path is not None:
            scorer = read_language_model(lm_path, tokenizer, trust_model).eval()
        searchers = [search_of(model, setting, beam_size, scorer, rescore) for setting in grid]
    except (DecoderError, DeviceError, ModelFolderError, ManifestError) as error:
        raise click.ClickException(str(error)) from error
    with torch.inference_mode():
        encoded = [list(encode(model, utterances, batch_size, draw)) for draw in range(draws + 1)]
        click.echo(f"{'search':8}{'CTC':>6}{'LM':>6}{'phones':>8}{'bonus':>7}{'seconds':>9}  score")
        for setting, searcher in zip(grid, searchers, strict=True):
            searcher.to(model.device).eval()
            start = time.perf_counter()
            errors = score_batches(searcher, encoded[0], tokenizer, setting.search)
            seconds = time.perf_counter() - start
            score = errors.summarize()
            click.echo(
                f"{setting.search:8}{setting.ctc_weight:6.2f}{setting.lm_weight:6.2f}"
                f"{setting.phone_weight:8.2f}{setting.token_bonus:7.2f}{seconds:9.1f}  {score}"
            )
            if draws:
                drawn = [
                    score_batches(searcher, batches, tokenizer, f"draw {i}").summarize().wer
                    for i, batches in enumerate(encoded[1:], 1)
                ]
                click.echo(
                    f"{'':44}  mean of {draws} draws: WER {statistics.mean(drawn):.2f} %, "
                    f"{min(drawn):.2f} to {max(drawn):.2f}"
                )
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        errors.write_stats(output / f"wer_{name}.txt")
        errors.write_csv(output / f"utterances_{name}.csv")
        decoder = f"{type(searcher).__name__} {setting._asdict()}, beam {beam_size}, LM {lm_path}"
        score.to_json(output / f"score_{name}.json", decoder=decoder)


if __name__ == "__main__":
    main()
