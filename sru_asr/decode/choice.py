"""Choosing a loaded model's search: by name, with a beam and a language model of one's own."""

from __future__ import annotations

import inspect
import os
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sru_asr.decode.ctc import CTCBeamSearcher, CTCGreedySearcher
from sru_asr.decode.joint import JointBeamSearcher
from sru_asr.decode.language_model import load as load_language_model
from sru_asr.decode.lookahead import WordLookahead
from sru_asr.decode.scorer import TokenScorer
from sru_asr.decode.searcher import Rescorer, Searcher
from sru_asr.model import CTCPosteriors

DECODERS = ("greedy", "ctc-beam", "joint")
CLASSES: dict[str, type[Searcher]] = {
    "greedy": CTCGreedySearcher,
    "ctc-beam": CTCBeamSearcher,
    "joint": JointBeamSearcher,
}
# With a language model: what served best on the AN4 corpus (recipes/AN4/README.md).
WITH_LM = {"ctc-beam": {"lm_weight": 0.8, "token_bonus": 0.5}, "joint": {"lm_weight": 0.3}}


class DecoderError(ValueError):
    """A model cannot be searched so; the message names the argument and what was expected."""


def choose_decoder(
    model: Any,
    decoder: str | None = None,
    beam_size: int | None = None,
    lm: str | os.PathLike[str] | None = None,
    *,
    trust: bool = False,
) -> None:
    """Put a search into a loaded model, whose ``transcribe_batch`` uses it from then on.

    What is not given stays as the folder has it: with nothing given, all of it. Rescorers of the
    folder stay around another search of the kind that they had.

    Parameters
    ----------
    model : EncoderASR or EncoderDecoderASR
        From `sru_asr.model_folder.load_model`.
    decoder : str, optional
        "greedy": each frame's best token; "ctc-beam": prefix beam search over the CTC output;
        "joint": beam search with the attention decoder and the CTC output.
    beam_size : int, optional
        Hypotheses that go on at each step.
    lm : path, optional
        A word n-gram (ARPA file), or the folder of an SRU language model. Weights are those that
        served best on AN4.
    trust : bool
        Of the language model's folder: let its YAML run any code.

    Raises
    ------
    DecoderError
        When the model has no such search, or beam and language model do not fit it.

    Examples
    --------
    >>> from pathlib import Path
    >>> from sru_asr.decode.choice import choose_decoder
    >>> from sru_asr.model_folder import load_model
    >>> model = load_model(Path("results/demo/model"), "cpu")  # doctest: +SKIP
    >>> choose_decoder(model, "ctc-beam", 20, "words.arpa")  # doctest: +SKIP
    """
    if decoder is None and beam_size is None and lm is None:
        return
    if beam_size is not None and beam_size < 1:
        raise DecoderError(f"beam_size: found {beam_size}, expected at least 1")
    *rescorers, search = _layers(model)
    own_kind = next((kind for kind, cls in CLASSES.items() if isinstance(search, cls)), None)
    kind = decoder or own_kind or ("greedy" if search is None else None)
    if kind is None:
        raise DecoderError(
            f"decoder: found none given, and {type(search).__name__} in the model folder, which "
            f"takes no other beam and language model; expected {', '.join(DECODERS)}"
        )
    options: dict[str, Any] = {}
    if beam_size is not None:
        options["beam_size"] = beam_size
    if lm is not None:
        options["lm"] = lm
    if kind == "greedy" and options:
        name, value = next(iter(options.items()))
        raise DecoderError(
            f"{name}: found {value} with greedy decoding, which has one hypothesis; expected "
            "decoder ctc-beam or joint"
        )
    if lm is not None:
        scorer = read_language_model(lm, model.hparams.tokenizer, trust)
        options |= {"lm": scorer, **WITH_LM.get(kind, {})}
    searcher = make_searcher(model, kind, **options)
    if kind == own_kind and rescorers:
        rescorers[-1].searcher = searcher
        searcher = rescorers[0]
    model.mods["decoder"] = searcher.to(model.device).eval()
    if hasattr(model, "decoding_function"):  # EncoderASR has this in place of a decoder
        model.decoding_function = model.hparams.decoding_function = partial(_tokens, searcher)


def make_searcher(model: Any, decoder: str, **options: Any) -> Searcher:
    """Make a search over what a model's ``modules.encoder.encode`` gives.

    Parameters
    ----------
    model : EncoderASR or EncoderDecoderASR
        From `sru_asr.model_folder.load_model`.
    decoder : str
        One of `DECODERS`.
    **options
        Of its class, in place of those of the folder's own search of that kind, or the defaults.

    Raises
    ------
    DecoderError
        When the model has no such search, or an option is out of its range.
    """
    if decoder not in CLASSES:
        raise DecoderError(f"decoder: found {decoder!r}, expected {', '.join(DECODERS)}")
    cls, (*_, own) = CLASSES[decoder], _layers(model)
    if isinstance(own, cls):
        settings = {name: getattr(own, name) for name in inspect.signature(cls).parameters}
    elif decoder == "joint":
        raise DecoderError(
            "decoder joint: found a model folder without a joint search, expected one whose model "
            "has an attention decoder; ctc-beam and greedy need none"
        )
    else:
        settings = {"ctc_output": _ctc_output(model)}
    try:
        return cls(**settings | options)
    except ValueError as error:
        raise DecoderError(f"decoder {decoder}: {error}") from None


def read_language_model(
    path: str | os.PathLike[str], tokenizer: Any, trust: bool = False
) -> TokenScorer:
    """Read a word n-gram or a trained SRU language model.

    Parameters
    ----------
    path : path
        An ARPA file, or the model folder that a recipe's ``train_lm.py`` leaves.
    tokenizer : sentencepiece.SentencePieceProcessor
        The recogniser's, whose tokens it will score.
    trust : bool
        Let the folder's YAML make any object: it can run any code.

    Raises
    ------
    DecoderError
        When there is neither, or its words or tokens are not the recogniser's.
    """
    path = Path(path)
    if not path.exists():
        raise DecoderError(
            f"lm {path}: found nothing there, expected an ARPA file or a language model's folder"
        )
    try:
        if path.is_dir():
            # Pieces of the same number in another order would be scored without an error.
            return load_language_model(path, tokenizer, trust)
        scorer = WordLookahead(path, tokenizer)
        scorer.initial(1)  # reads it: now, so that what is wrong shows before the work
        return scorer
    except (ValueError, OSError) as error:
        raise DecoderError(f"lm {path}: {error}") from error


def nbest_texts(
    model: Any, frames: Tensor, lengths: Tensor, count: int
) -> list[list[tuple[str, float]]]:
    """Find the best texts of each sequence with their scores.

    Parameters
    ----------
    model : EncoderASR or EncoderDecoderASR
        With one of sru_asr.decode's searches, of the folder or by `choose_decoder`.
    frames : Tensor, shape (B, T, D)
        From ``model.mods.encoder.encode``.
    lengths : Tensor, shape (B,)
        Relative lengths.
    count : int
        Texts of each sequence, at most; a beam has no more than its size.

    Returns
    -------
    list of list of (str, float)
        Different texts, best first, and what the search ranks by: natural log probabilities,
        weighted, and means over tokens where the search has ``length_normalization``.

    Raises
    ------
    DecoderError
        When the model's search gives only one text.
    """
    searcher = getattr(model.mods, "decoder", None)
    if not isinstance(searcher, Searcher):
        found = "greedy CTC" if searcher is None else type(searcher).__name__
        raise DecoderError(
            f"nbest: found {found} in the model folder, which gives one text; expected decoder "
            "ctc-beam or joint"
        )
    found_texts = []
    for hypotheses in searcher.nbest(frames, lengths):
        best: dict[str, float] = {}
        for hypothesis in hypotheses:
            # Several spellings of a text in pieces: the best of them stands for it.
            text = model.hparams.tokenizer.decode_ids(list(hypothesis.tokens))
            best.setdefault(text, hypothesis.score)
        found_texts.append(list(best.items())[:count])
    return found_texts


def _tokens(searcher: Searcher, frames: Tensor, lengths: Tensor) -> list[list[int]]:
    return searcher(frames, lengths).tokens


def _layers(model: Any) -> list[Any]:
    """The folder's rescorers, from without, and the search inside them; None where it has none."""
    layers = [getattr(model.mods, "decoder", None)]
    while isinstance(layers[-1], Rescorer):
        layers.append(layers[-1].searcher)
    return layers


def _ctc_output(model: Any) -> nn.Module:
    if hasattr(model.mods, "ctc_output"):
        output: nn.Module = model.mods.ctc_output
        return output
    if isinstance(model.mods.encoder, CTCPosteriors):
        return nn.Identity()  # its frames are log posteriors already, which log_softmax leaves
    raise DecoderError(
        "decoder: found no CTC output in the model folder, expected ctc_output among its modules"
    )
