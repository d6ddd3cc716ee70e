"""SpeechBrain's CTC beam search with kenlm, an optional extra, as one of our searches."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor
from torch import Tensor, nn

from sru_asr.decode.ctc import CTCSearcher
from sru_asr.decode.result import Hypothesis


class KenlmCTCSearcher(CTCSearcher):
    """Search with SpeechBrain's ``CTCBeamSearcher`` and a word n-gram that kenlm reads.

    A word counts once it is complete; until then it is only checked to begin a known one. The end
    of the sentence does not count, and SpeechBrain takes ``unk_score_offset`` (10 by default, of
    base 10) from unknown words' logarithms. The hypotheses are texts, which come back in the
    tokenizer's own spelling.

    Parameters
    ----------
    ctc_output : Module
        Linear layer from encoded frames to the vocabulary.
    ngram : path
        An ARPA file, or a file of kenlm's own; it is read at first use.
    tokenizer : sentencepiece.SentencePieceProcessor
        Loaded by the time of first use.
    beam_size : int
        Hypotheses kept after each frame.
    lm_weight : float
        The language model's weight, above 0.
    word_bonus : float
        Added for each word.
    blank_index : int
        CTC's blank.
    **options
        Further options of ``speechbrain.decoders.ctc.CTCBeamSearcher``.

    Raises
    ------
    ImportError
        When the extra is not installed.

    Examples
    --------
    >>> search = KenlmCTCSearcher(ctc_output, "words.arpa", tokenizer)  # doctest: +SKIP
    >>> search(encoded, lengths).tokens  # doctest: +SKIP
    [[7, 12, 4]]
    """

    def __init__(
        self,
        ctc_output: nn.Module,
        ngram: str | os.PathLike[str],
        tokenizer: SentencePieceProcessor,
        beam_size: int = 100,
        lm_weight: float = 0.5,
        word_bonus: float = 1.5,
        blank_index: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(ctc_output)
        missing = [name for name in ("kenlm", "pygtrie") if find_spec(name) is None]
        if missing:
            raise ImportError(
                f"KenlmCTCSearcher needs {' and '.join(missing)}: pip install sru-asr[kenlm]"
            )
        if not lm_weight > 0:
            raise ValueError(f"lm_weight: found {lm_weight}, expected one above 0")
        self.ngram = ngram
        self.tokenizer = tokenizer
        self.lm_weight = lm_weight
        self.word_bonus = word_bonus
        self.options = {
            "beam_size": beam_size,
            "topk": beam_size,
            "alpha": lm_weight,
            "beta": word_bonus,
            "blank_index": blank_index,
        } | options
        self._searcher: Any = None

    def search(self, log_probs: Tensor) -> list[Hypothesis]:
        """See `CTCSearcher.search`.

        Raises
        ------
        FileNotFoundError
            At first use, when the n-gram is not there.
        """
        frames = log_probs.float().cpu().numpy()
        found = self.searcher.decode_log_probs(frames, len(frames))
        return [self._hypothesis(one.text, float(one.score), float(one.lm_score)) for one in found]

    def _hypothesis(self, text: str, ctc: float, score: float) -> Hypothesis:
        lm = (score - ctc - self.word_bonus * len(text.split())) / self.lm_weight
        return Hypothesis(tuple(self.tokenizer.encode(text)), score, {"ctc": ctc, "lm": lm})

    @property
    def searcher(self) -> Any:
        """SpeechBrain's search, made at first use."""
        if self._searcher is None:
            from speechbrain.decoders.ctc import CTCBeamSearcher

            if not Path(self.ngram).is_file():
                raise FileNotFoundError(f"{self.ngram}: no such file, expected an n-gram")
            pieces = [self.tokenizer.id_to_piece(i) for i in range(self.tokenizer.vocab_size())]
            self._searcher = CTCBeamSearcher(
                vocab_list=pieces, kenlm_model_path=os.fspath(self.ngram), **self.options
            )
        return self._searcher
