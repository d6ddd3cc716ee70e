"""Training the sentencepiece tokenizer of a recipe, and what a tokenizer can spell."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import sentencepiece

from sru_asr.files import atomically

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
            found = vocabulary_size(texts)
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
        with atomically(path) as temporary:
            temporary.write_bytes(buffer.getvalue())
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(path))
    if tokenizer.vocab_size() != vocab_size:
        raise ValueError(
            f"{path} has {tokenizer.vocab_size()} pieces, but output_neurons is {vocab_size}"
        )
    return tokenizer


def vocabulary_size(texts: Iterable[str], model_type: str = "char") -> int:
    """Choose a number of pieces that fits transcripts.

    Parameters
    ----------
    texts : iterable of str
        Transcripts.
    model_type : {"char", "bpe", "unigram"}
        Kind of pieces.

    Returns
    -------
    int
        For characters the only number that there is. For other pieces a number that grows with the
        number of distinct words, up to 1000.

    Examples
    --------
    >>> vocabulary_size(["ON", "NO ON"])  # O, N and the space; blank, beginning and end
    6
    """
    words: set[str] = set()
    characters: set[str] = set()
    for text in texts:
        words.update(text.split())
        characters.update(" ".join(text.split()))
    size = len(characters) + 3
    return size if model_type == "char" else max(size, min(1000, size + len(words) // 2))


def unspellable(
    tokenizer: sentencepiece.SentencePieceProcessor, texts: Mapping[str, str]
) -> dict[str, list[str]]:
    """Find the characters that a tokenizer has no piece for.

    Its unknown piece is CTC's blank as well: such a target would be learnt as silence.

    Parameters
    ----------
    tokenizer : sentencepiece.SentencePieceProcessor
        As `train_tokenizer` makes it.
    texts : mapping of str to str
        Transcripts by the utterance's name.

    Returns
    -------
    dict of str to list of str
        For each such character, the most frequent first, the utterance of each occurrence.

    Examples
    --------
    >>> import tempfile
    >>> tokenizer = train_tokenizer(f"{tempfile.mkdtemp()}/char.model", ["ON", "NO ON"], 6)
    >>> unspellable(tokenizer, {"u1": "NÉON", "u2": "ON", "u3": "É ?"})
    {'É': ['u1', 'u3'], '?': ['u3']}
    """
    found: dict[str, list[str]] = defaultdict(list)
    for name, text in texts.items():
        if BLANK in tokenizer.encode(text):
            for piece in tokenizer.encode_as_pieces(text):
                # Neighbouring unknown characters are one piece; "▁" is the space.
                for character in piece if tokenizer.piece_to_id(piece) == BLANK else "":
                    found[character.replace("▁", " ")].append(name)
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))
