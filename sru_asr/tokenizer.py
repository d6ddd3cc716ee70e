"""Training the sentencepiece tokenizer of a recipe."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from pathlib import Path

import sentencepiece

# One layout for every model: 0 is CTC's blank, the padding and the unknown piece.
BLANK, BOS, EOS = 0, 1, 2


def train_tokenizer(
    path: str | Path, texts: Iterable[str], vocab_size: int, model_type: str = "char"
) -> sentencepiece.SentencePieceProcessor:
    """Train a sentencepiece model on transcripts, or load it when it is there already.

    Piece 0 is the unknown piece (and CTC's blank), 1 begins and 2 ends a sentence.

    Parameters
    ----------
    path : str or Path
        Where the model is stored.
    texts : iterable of str
        Transcripts.
    vocab_size : int
        Number of pieces; for characters the number of distinct ones (the space included) plus 3.
    model_type : {"char", "bpe", "unigram"}
        Kind of pieces.

    Returns
    -------
    sentencepiece.SentencePieceProcessor

    Raises
    ------
    ValueError
        When the transcripts do not give that many pieces; the message says how many they give.

    Examples
    --------
    >>> import tempfile
    >>> from sru_asr.tokenizer import train_tokenizer
    >>> folder = tempfile.mkdtemp()
    >>> tokenizer = train_tokenizer(f"{folder}/char.model", ["ON", "NO ON"], vocab_size=6)
    >>> tokenizer.decode(tokenizer.encode("NO ON"))
    'NO ON'
    """
    path = Path(path)
    if not path.exists():
        texts = [" ".join(text.split()) for text in texts]
        if model_type == "char":
            # Three for blank, beginning and end; the space is the word boundary.
            found = len(set().union(*texts)) + 3
            if found != vocab_size:
                raise ValueError(
                    f"the transcripts need {found} character pieces (blank, beginning, end and "
                    f"{found - 3} characters, the space included), but the vocabulary has "
                    f"{vocab_size}; set output_neurons: {found}"
                )
        buffer = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(texts),
                model_writer=buffer,
                vocab_size=vocab_size,
                model_type=model_type,
                character_coverage=1.0,
                unk_id=BLANK,
                bos_id=BOS,
                eos_id=EOS,
                pad_id=-1,
                normalization_rule_name="identity",
                # A word boundary before the first character would be one more symbol to emit.
                add_dummy_prefix=model_type != "char",
                # In bytes; sentencepiece would leave longer transcripts out without a word.
                max_sentence_length=max([4192, *(len(text.encode()) for text in texts)]),
                minloglevel=2,
            )
        except RuntimeError as error:
            raise ValueError(
                f"sentencepiece cannot make {vocab_size} {model_type} pieces (output_neurons) of "
                f"these transcripts: {error}"
            ) from error
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_bytes(buffer.getvalue())
        os.replace(temporary, path)
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(path))
    if tokenizer.vocab_size() != vocab_size:
        raise ValueError(
            f"{path} has {tokenizer.vocab_size()} pieces, but output_neurons is {vocab_size}"
        )
    return tokenizer
