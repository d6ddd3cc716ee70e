"""Choose synthetic utterances for the words that AN4's training part hardly has.

Two in five of the words that people say in such a corpus occur less than five times in its
training part, DECEMBER and EIGHTEENTH never. No augmentation brings them: somebody has to say them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from sru_asr.manifest import Utterance


def choose_rare(
    candidates: Sequence[Utterance], transcripts: Iterable[str], occurrences: int
) -> list[Utterance]:
    """Choose utterances until each word has occurred so often, as far as there are any.

    Parameters
    ----------
    candidates : sequence of Utterance
        What there is to choose from, looked at once and in order.
    transcripts : iterable of str
        What is heard anyway.
    occurrences : int
        How often each word of the candidates should occur, in transcripts and choice together.

    Returns
    -------
    list of Utterance
        Each one has a word that had not occurred so often before.

    Examples
    --------
    >>> candidates = [Utterance(f"u{i}", 1.0, "", "", text) for i, text in enumerate(["GO", "NO"])]
    >>> [chosen.wrd for chosen in choose_rare(candidates, ["GO ON"], 1)]
    ['NO']
    """
    heard = Counter(word for text in transcripts for word in text.split())
    chosen = []
    for utterance in candidates:
        words = utterance.wrd.split()
        if any(heard[word] < occurrences for word in words):
            chosen.append(utterance)
            heard.update(words)
    return chosen
