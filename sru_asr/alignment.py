"""When words were said, and how sure a model is of them: aligning texts with CTC posteriors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchaudio.functional import forced_align

from sru_asr.model import CTCPosteriors, SpeechEncoder
from sru_asr.padding import steps_of
from sru_asr.segments import Word
from sru_asr.tokenizer import BLANK

_SPACE = "▁"  # sentencepiece's space
SHORTEST = 0.01  # seconds of a word, where there is room for all words


class AlignmentError(ValueError):
    """Words cannot be placed in time; the message says what was found and what was expected."""


class WordAligner:
    """Places the words of recognised texts in time, and says how sure the model is of each.

    A text's tokens are aligned with the CTC posteriors (Viterbi). CTC marks a token somewhere in
    its sound and gives blanks to the rest, so a word reaches beyond its tokens: by the constants
    `head` and `tail`, or to the middle between two words that would overlap. Both were measured on
    synthetic speech (``benchmarks/word_times.py``), where a token is marked near the beginning of
    its sound; another model may mark it elsewhere.

    A word's confidence is the geometric mean of its tokens' posteriors, each where it is largest
    in the token's frames: ``exp(mean over tokens of max over frames of log p(token | frame))``. It
    does not fall with the length of a word, and tells right words from wrong ones better than
    their product or least and than entropies of the frames (``docs/formats.md``).

    Whatever the text, its words come in order, each with a beginning before its end, within the
    recording:

    - Characters that the tokenizer does not have match any sound; their words have confidence 0.
    - A text whose tokens need more frames than there are, which CTC cannot have emitted, is spread
      evenly over the recording, with confidence 0.

    Parameters
    ----------
    model : EncoderASR or EncoderDecoderASR
        As `sru_asr.model_folder.load_model` gives it, with a CTC output: an EncoderASR around
        `CTCPosteriors`, or an EncoderDecoderASR with ``modules.ctc_output``.

    Attributes
    ----------
    frame_seconds : float
        Time from one frame to the next.
    head, tail : float
        Seconds by which a word begins before the middle of its first token's first frame, and ends
        after that of its last token's last frame.

    Raises
    ------
    AlignmentError
        When the model has no CTC output, or an encoder whose frames have no known times.

    Examples
    --------
    >>> from pathlib import Path
    >>> from sru_asr.model_folder import load_model
    >>> model = load_model(Path("results/demo/model"), "cpu")  # doctest: +SKIP
    >>> frames, lengths = model.mods.encoder.encode(wavs, torch.ones(1))  # doctest: +SKIP
    >>> WordAligner(model).align(frames, lengths, ["GO NORTH"], [0.0], [1.2])  # doctest: +SKIP
    [(Word(text='GO', start=0.21, end=0.43, confidence=0.99), Word(text='NORTH', ...))]
    """

    head = 0.01
    tail = 0.06

    def __init__(self, model: Any) -> None:
        encoder = model.mods.encoder
        self._posteriors = _ctc_posteriors(model)
        self._tokenizer = model.tokenizer
        front = encoder.encoder if isinstance(encoder, CTCPosteriors) else encoder
        if not isinstance(front, SpeechEncoder):
            raise AlignmentError(
                f"modules.encoder: found {type(front).__name__}, expected SpeechEncoder, the times "
                "of whose frames are known; transcribe without times of words"
            )
        subsampling: Any = front.subsampling
        samples = front.hop_length * subsampling.factor
        self.frame_seconds = samples / int(model.hparams.sample_rate)

    @torch.inference_mode()
    def align(
        self,
        frames: Tensor,
        lengths: Tensor,
        texts: Sequence[str],
        starts: Sequence[float],
        ends: Sequence[float],
    ) -> list[tuple[Word, ...]]:
        """Place words in time.

        Parameters
        ----------
        frames : Tensor, shape (B, T, D)
            What the model's ``encoder.encode`` gave.
        lengths : Tensor, shape (B,)
            Relative lengths, 0 to 1.
        texts : sequence of str
            What was recognised in each; words are what white space separates.
        starts, ends : sequence of float
            The seconds of the recording at which each sequence begins and ends. A sequence's first
            frame is at its beginning.

        Returns
        -------
        list of tuple of Word
            The words of each text, in seconds of the recording.

        Raises
        ------
        AlignmentError
            When a frame gives NaN, or a sequence does not end after it begins.
        """
        steps = steps_of(lengths, *frames.shape[:2])
        assert steps is not None
        found = []
        for i, (count, text, start, end) in enumerate(
            zip(steps.tolist(), texts, starts, ends, strict=True)
        ):
            if not start < end:
                raise AlignmentError(
                    f"sequence {i}: found {start} s to {end} s, expected an end after the beginning"
                )
            words = text.split()
            log_probs = self._posteriors(frames[i : i + 1, :count])[0]
            if log_probs.isnan().any():
                raise AlignmentError(f"frames: found NaN posteriors in sequence {i}")
            found.append(self._place(words, log_probs, start, end) if words else ())
        return found

    def _place(
        self, words: list[str], log_probs: Tensor, start: float, end: float
    ) -> tuple[Word, ...]:
        spelling = spell(self._tokenizer, words)
        path = align_tokens(log_probs, [token for token, _ in spelling])
        if path is None:
            return _evenly(words, start, end)
        tokens: list[list[AlignedToken]] = [[] for _ in words]
        for (_, index), aligned in zip(spelling, path, strict=True):
            if index is not None:
                tokens[index].append(aligned)
        times = _in_order([self._times(own) for own in tokens], start, end)
        confidence = [math.exp(fmean(token.log_prob for token in own)) for own in tokens]
        return tuple(map(Word, words, *zip(*times, strict=True), confidence))

    def _times(self, tokens: list[AlignedToken]) -> tuple[float, float]:
        """Seconds from the sequence's beginning of a word's beginning and end."""
        first, last = tokens[0].first * self.frame_seconds, tokens[-1].last * self.frame_seconds
        return first - self.head, last + self.tail


class AlignedToken(NamedTuple):
    """Where a token is.

    Attributes
    ----------
    first, last : int
        Its first and last frame.
    log_prob : float
        Its largest log posterior there; minus infinity for a token that is not known.
    """

    first: int
    last: int
    log_prob: float


def spell(tokenizer: Any, words: Sequence[str]) -> list[tuple[int | None, int | None]]:
    """Spell words as a tokenizer does.

    Parameters
    ----------
    tokenizer : sentencepiece.SentencePieceProcessor
        As `sru_asr.tokenizer.train_tokenizer` makes it.
    words : sequence of str
        At least one.

    Returns
    -------
    list of (int or None, int or None)
        Each token, None for characters that the tokenizer does not have; and the index of the word
        that it is of, None for a space.

    Examples
    --------
    >>> import tempfile
    >>> from sru_asr.tokenizer import train_tokenizer
    >>> tokenizer = train_tokenizer(f"{tempfile.mkdtemp()}/char.model", ["ON", "NO ON"], 6)
    >>> spell(tokenizer, ["NO", "É"])
    [(3, 0), (4, 0), (5, None), (None, 1)]
    """
    spelling: list[tuple[int | None, int | None]] = []
    for index, word in enumerate(words):
        # Pieces do not go across spaces, so a word is spelled alike alone and in a sentence.
        pieces = tokenizer.encode_as_pieces(word)
        if index and not (pieces and pieces[0].startswith(_SPACE)):
            pieces = [_SPACE, *pieces]
        tokens = [(tokenizer.piece_to_id(piece), piece == _SPACE) for piece in pieces]
        spelling += [
            (None if token == BLANK else token, None if space else index)
            for token, space in tokens
            if not (space and token == BLANK)
        ]
        if all(space for _, space in tokens):
            spelling.append((None, index))
    return spelling


def align_tokens(log_probs: Tensor, tokens: Sequence[int | None]) -> list[AlignedToken] | None:
    """Find the most probable CTC alignment of tokens.

    Parameters
    ----------
    log_probs : Tensor, shape (T, V)
        Log posteriors; the first is the blank's.
    tokens : sequence of int or None
        At least one. None is a token that is not known: it is as probable as the most probable one
        but the blank.

    Returns
    -------
    list of AlignedToken or None
        None when there are fewer frames than the tokens need: one each, and one more between equal
        neighbours.

    Examples
    --------
    >>> frames = torch.tensor([[0.8, 0.2], [0.1, 0.9], [0.9, 0.1], [0.4, 0.6]]).log()
    >>> [(token.first, token.last) for token in align_tokens(frames, [1, 1])]
    [(1, 1), (3, 3)]
    """
    wildcard = log_probs.shape[1]
    targets = [wildcard if token is None else token for token in tokens]
    if len(log_probs) < len(targets) + sum(a == b for a, b in pairwise(targets)):
        return None
    any_token = log_probs[:, BLANK + 1 :].amax(1, keepdim=True)
    path, scores = forced_align(
        torch.cat([log_probs, any_token], 1)[None].float(),
        torch.tensor([targets], dtype=torch.int32, device=log_probs.device),
        blank=BLANK,
    )
    scores = torch.where(path == wildcard, -math.inf, scores).clamp(max=0)
    aligned: list[AlignedToken] = []
    before = BLANK
    for frame, (token, score) in enumerate(zip(path[0].tolist(), scores[0].tolist(), strict=True)):
        if token != BLANK and token == before:
            first, _, best = aligned.pop()
            aligned.append(AlignedToken(first, frame, max(best, score)))
        elif token != BLANK:
            aligned.append(AlignedToken(frame, frame, score))
        before = token
    return aligned


def _in_order(
    spans: list[tuple[float, float]], start: float, end: float
) -> list[tuple[float, float]]:
    """Make neighbours that overlap meet halfway, and keep all within a sequence.

    Parameters
    ----------
    spans : list of (float, float)
        Beginnings and ends from the sequence's beginning. Of two words, the first has the earlier
        beginning and the earlier end.
    start, end : float
        The sequence's own.
    """
    bounds = [spans[0][0]]
    for (_, before), (after, _) in pairwise(spans):
        middle = (before + after) / 2
        bounds += [min(before, middle), max(after, middle)]
    bounds.append(spans[-1][1])
    # So much is left for each of the words before and after.
    least = min(SHORTEST, (end - start) / len(spans))
    times = [
        # The beginning last: rounding may leave less than nothing between the two.
        max(min(start + bound, end - least * (len(spans) - before)), start + least * before)
        for bound, before in zip(bounds, ((i + 1) // 2 for i in range(len(bounds))), strict=True)
    ]
    return list(zip(times[::2], times[1::2], strict=True))


def _evenly(words: list[str], start: float, end: float) -> tuple[Word, ...]:
    """Give each character the same time."""
    bounds = list(accumulate((len(word) for word in words), initial=0))
    times = [start + (end - start) * bound / bounds[-1] for bound in bounds]
    return tuple(
        Word(word, begin, finish, 0.0)
        for word, (begin, finish) in zip(words, pairwise(times), strict=True)
    )


def _ctc_posteriors(model: Any) -> Callable[[Tensor], Tensor]:
    """What gives the log posteriors of encoded frames."""
    if isinstance(model.mods.encoder, CTCPosteriors):
        return lambda frames: frames.float()
    if not hasattr(model.mods, "ctc_output"):
        raise AlignmentError(
            f"model: found a {type(model).__name__} without a CTC output, expected one with "
            "modules.ctc_output; transcribe without times of words"
        )
    output = model.mods.ctc_output
    return lambda frames: output(frames).float().log_softmax(-1)
