"""Long recordings in windows: cut at quiet places, and put together again by the times of words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sru_asr.segments import Word

Signal = npt.NDArray[np.float32]
Levels = npt.NDArray[np.float64]

FRAME = 0.01  # seconds
# Levels of so many seconds tell noise from speech, so that both may change in a recording.
MEMORY = 60.0
# Noise and speech are these percentiles of the levels, and noise at most so many dB below speech:
# silence that a computer has made says nothing of the noise between words.
NOISE, SPEECH, RANGE = 10, 95, 60.0
# Quiet is what lies under the noise and this share of the way to the speech, within these dB.
SHARE, LEAST_DB, MOST_DB = 0.3, 3.0, 15.0
# Where levels differ by less, it may all be speech, or none; only silence below this is sure then.
CONTRAST, SILENCE = 10.0, -90.0
# Frames beside a pause that are louder only for their neighbours.
SMOOTHED = 1
# A window ends at a pause of so many seconds: longer than people make within a phrase.
PAUSE = 0.7
# Where it has to end before, at the longest that is at least so long; a closed mouth ("t") is not.
SHORTEST_PAUSE = 0.25
# Of a long pause, so many seconds stay on each side: what a model makes of silence is no words.
MARGIN = 0.15
# Where there is no pause at all, the next window begins so many seconds before the end of the last.
OVERLAP = 4.0
# The same word in two windows begins and ends within so many seconds of itself.
SAME_PLACE = 0.25


@dataclass(frozen=True)
class Window:
    """A piece of a recording.

    Attributes
    ----------
    start : int
        Samples of the recording before it.
    samples : array of float32, shape (N,)
        Its signal.
    before, after : int
        So many of its first and last samples are in the window before and after, too.
    """

    start: int
    samples: Signal
    before: int = 0
    after: int = 0


class _Pause(NamedTuple):
    """A stretch of quiet frames, ``end`` not counted, and how much of it belongs to its sides."""

    first: int
    end: int
    left: int
    right: int


def cut(
    blocks: Iterable[Signal], sample_rate: int, longest: float = 30.0, overlap: float = OVERLAP
) -> Iterator[Window]:
    """Cut a recording into windows, each where it is quiet.

    A recording that is no longer than ``longest`` is one window, untouched. Of others, a window
    ends at the first pause that is long enough to end a phrase; or, before it gets too long, in the
    middle of its longest pause; or, where nobody pauses, anywhere, and then the next one begins
    ``overlap`` before, so that every word is whole in one of them. Long silence is in no window.

    What is quiet is found by comparing levels with those of the noise and of the speech in the last
    minute. The lowest frequencies hardly count: hum and rumble are no speech.

    Parameters
    ----------
    blocks : iterable of array of float32, shape (N,)
        The signal in pieces of any lengths, which make no difference.
    sample_rate : int
        Samples per second.
    longest : float
        Seconds in a window, at most.
    overlap : float
        Seconds, less than half of ``longest``.

    Yields
    ------
    Window
        In order. Never more than ``longest`` of the signal and a block is kept.

    Raises
    ------
    ValueError
        When ``longest`` or ``overlap`` is out of its range.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> speech = rng.standard_normal(8 * 16000).astype(np.float32)
    >>> silence = np.zeros(2 * 16000, np.float32)
    >>> windows = cut([speech, silence, speech], sample_rate=16000, longest=10)
    >>> [(round(w.start / 16000, 1), round(len(w.samples) / 16000, 1)) for w in windows]
    [(0.0, 8.0), (10.0, 8.0)]
    """
    if not longest >= 2 * PAUSE:
        raise ValueError(f"longest: found {longest:g} s, expected at least {2 * PAUSE:g} s")
    if not 0 <= overlap < longest / 2:
        raise ValueError(f"overlap: found {overlap:g} s, expected 0 to less than half of longest")
    recording = _Buffer(blocks, sample_rate)
    if not recording.fill(longest):
        if len(recording.samples):
            yield Window(0, recording.samples)
        return
    shared = 0  # frames that are in the window before, too
    while recording.fill(longest) or len(recording.samples):
        frames = recording.frames_of(longest)
        pauses = recording.pauses(frames)
        whole = recording.ended and len(recording.levels) <= frames
        lead = next((p for p in pauses if p.first <= shared + SMOOTHED < p.end), None)
        if lead is not None and whole and lead.end >= len(recording.levels):
            return
        if lead is not None and lead.end - shared > 2 * _frames(MARGIN):
            recording.drop(lead.end - lead.right)
            shared = 0
            continue
        end, following, shares = _first_end(pauses, frames, shared, whole, overlap)
        yield Window(
            recording.start,
            # A copy: a view would keep all that was read with it.
            recording.samples[: None if end is None else end * recording.hop].copy(),
            shared * recording.hop,
            shares * recording.hop,
        )
        recording.drop(following)
        shared = shares


def _first_end(
    pauses: Sequence[_Pause], frames: int, shared: int, whole: bool, overlap: float
) -> tuple[int | None, int | None, int]:
    """Frames where a window ends and where the next begins (None: the end), and what both share."""
    inner = [pause for pause in pauses if pause.first > shared + SMOOTHED]
    for pause in inner:
        if pause.end - pause.first >= _frames(PAUSE):
            return pause.first + pause.left, pause.end - pause.right, 0
    if whole:
        return None, None, 0
    late = [
        pause
        for pause in inner
        if pause.end - pause.first >= _frames(SHORTEST_PAUSE) and pause.end > frames // 3
    ]
    if late:
        longest = max(late, key=lambda pause: pause.end - pause.first)
        middle = (longest.first + longest.end) // 2
        return middle, middle, 0
    return frames, frames - _frames(overlap), _frames(overlap)


class _Buffer:
    """The part of a recording that waits to be cut, and how loud it is."""

    def __init__(self, blocks: Iterable[Signal], sample_rate: int) -> None:
        self._blocks = iter(blocks)
        self._sample_rate = sample_rate
        self.hop = max(1, round(FRAME * sample_rate))
        self.start = 0  # samples of the recording before it; a multiple of `hop`
        self.samples: Signal = np.empty(0, np.float32)
        self.levels: Levels = np.empty(0)  # of its frames; the last one may be incomplete
        self._before: Levels = np.empty(0)  # of frames that are gone
        self._last = np.float32(0)  # the sample before the next frame
        self.ended = False

    def fill(self, seconds: float) -> bool:
        """Read until there is more than so much; whether there is."""
        wanted = seconds * self._sample_rate
        waiting = [self.samples]
        count = len(self.samples)
        while count <= wanted and not self.ended:
            block = next(self._blocks, None)
            if block is None:
                self.ended = True
            else:
                waiting.append(block)
                count += len(block)
        if len(waiting) > 1 or self.ended:
            self.samples = np.concatenate(waiting)
            self._measure()
        return count > wanted

    def frames_of(self, seconds: float) -> int:
        """The frames in so many seconds."""
        return int(seconds * self._sample_rate) // self.hop

    def pauses(self, frames: int) -> list[_Pause]:
        """Where it is quiet among the first so many frames."""
        known = np.concatenate([self._before, self.levels[:frames]])
        # Three frames together: less left to chance, and a closed mouth is still seen.
        power = 10 ** (np.pad(known, 1, mode="edge") / 10)
        smooth = 10 * np.log10((power[:-2] + power[1:-1] + power[2:]) / 3)
        noise, speech = np.percentile(smooth, [NOISE, SPEECH])
        noise = max(noise, speech - RANGE)
        limit = noise + np.clip(SHARE * (speech - noise), LEAST_DB, MOST_DB)
        if speech - noise < CONTRAST:
            limit = SILENCE
        quiet = smooth[len(self._before) :] <= limit
        edges = np.flatnonzero(np.diff(np.concatenate([[False], quiet, [False]])))
        return [self._pause(int(first), int(end)) for first, end in edges.reshape(-1, 2)]

    def _pause(self, first: int, end: int) -> _Pause:
        margin = min(_frames(MARGIN), (end - first) // 2)
        # No microphone records perfect silence, and a model that has never heard it may be put out
        # by a single frame: none of it stays, nor of what was smoothed away.
        before = np.flatnonzero(self.levels[max(0, first - SMOOTHED) : first + margin] < SILENCE)
        after = np.flatnonzero(self.levels[end - margin : end + SMOOTHED] < SILENCE)
        left = int(before[0]) - min(first, SMOOTHED) if len(before) else margin
        right = margin - 1 - int(after[-1]) if len(after) else margin
        return _Pause(first, end, left, right)

    def drop(self, frames: int | None) -> None:
        """Let go of the first so many frames; of all for None."""
        count = len(self.samples) if frames is None else frames * self.hop
        known = np.concatenate([self._before, self.levels[:frames]])
        self._before = known[-_frames(MEMORY) :]
        self.levels = self.levels[len(self.levels) if frames is None else frames :]
        self.samples = self.samples[count:]
        self.start += count

    def _measure(self) -> None:
        """Find the levels of the frames that have become complete, of all at the end."""
        done = len(self.levels) * self.hop
        new = self.samples[done:]
        count = -(-len(new) // self.hop) if self.ended else len(new) // self.hop
        if not count:
            return
        new = new[: count * self.hop]
        # Differences between samples: low frequencies nearly vanish, consonants stay.
        change = new - 0.97 * np.concatenate([[self._last], new[:-1]])
        self._last = new[-1]
        change = np.pad(change, (0, count * self.hop - len(change)))
        power = np.square(change, dtype=np.float64).reshape(count, self.hop).mean(1)
        self.levels = np.concatenate([self.levels, 10 * np.log10(power + 1e-12)])


def _frames(seconds: float) -> int:
    return round(seconds / FRAME)


def join(
    before: Sequence[Word], after: Sequence[Word], begin: float, end: float
) -> tuple[int, int]:
    """Find where to go over from one window to the next, which overlap.

    At a word that both have at the same time, the one nearest to the middle of the overlap, since
    words near the edge of a window may be cut. Where they have none in common, in the middle.

    Parameters
    ----------
    before, after : sequence of Word
        The words of both windows, in seconds of the recording.
    begin, end : float
        What is in both windows, in seconds.

    Returns
    -------
    stop, first : int
        ``before[:stop]`` and ``after[first:]`` are all words, each once.

    Examples
    --------
    >>> before = [Word("GO", 7.0, 7.4, 1.0), Word("NORTH", 8.0, 8.5, 1.0), Word("A", 9.8, 10, 0.3)]
    >>> after = [Word("NORTH", 8.0, 8.5, 1.0), Word("AND", 9.7, 10.0, 1.0)]
    >>> join(before, after, 6.0, 10.0)
    (2, 1)
    """
    middle = (begin + end) / 2
    shared = [
        (abs(_middle(left) + _middle(right) - 2 * middle), i + 1, j + 1)
        for i, left in enumerate(before)
        for j, right in enumerate(after)
        if left.text == right.text
        and begin <= _middle(left) <= end
        and max(abs(left.start - right.start), abs(left.end - right.end)) <= SAME_PLACE
    ]
    if shared:
        _, stop, first = min(shared)
        return stop, first
    stop = sum(_middle(word) < middle for word in before)
    first = sum(_middle(word) < middle for word in after)
    if stop > 0 and first < len(after):
        left, right = before[stop - 1], after[first]
        common = min(left.end, right.end) - max(left.start, right.start)
        if common > 0.5 * min(left.end - left.start, right.end - right.start):
            # One sound, which they heard as two words.
            return (stop, first + 1) if left.confidence >= right.confidence else (stop - 1, first)
    return stop, first


def _middle(word: Word) -> float:
    return (word.start + word.end) / 2
