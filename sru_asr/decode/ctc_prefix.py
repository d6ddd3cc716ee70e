"""How probable CTC finds each prefix, kept up to date for many hypotheses at once."""

from __future__ import annotations

import torch
from torch import Tensor

from sru_asr.padding import padding_mask

# Natural log of a probability that stands for none at all, and still has finite sums over time.
IMPOSSIBLE = -1e6


class CTCPrefixes:
    """CTC prefix probabilities of the hypotheses of a beam search.

    The probability of a prefix h is that of all sequences which begin with it (Watanabe et al.,
    "Hybrid CTC/attention architecture for end-to-end speech recognition", 2017, algorithm 2). With
    n(t, h) and b(t, h) the probabilities that the first t frames spell h and end with its last
    token or with blank,

        n(t+1, hc) = (n(t, hc) + phi(t)) x_c(t)
        b(t+1, hc) = (n(t, hc) + b(t, hc)) x_blank(t)
        p(hc...)   = sum over t of phi(t) x_c(t)

    where phi = n(., h) + b(., h), or b(., h) alone if c repeats the last token of h. So to score
    every token is one matrix product of phi with the posteriors, and the two recurrences are
    needed only for the hypotheses that go on. Divided by the product of all x up to t, each is a
    cumulative sum. All is done in float64, where it loses nothing that matters: the recurrences
    in logarithms, the product relative to the largest phi of a hypothesis.

    Parameters
    ----------
    log_probs : Tensor, shape (B, T, V)
        Natural logarithms of the frames' posteriors.
    steps : integer Tensor, shape (B,)
        Real frames of each sequence; what stands in the others has no effect.
    blank, eos : int
        Tokens that no prefix has: the blank, and the one that says that nothing follows.

    Examples
    --------
    >>> import torch
    >>> from sru_asr.decode.ctc_prefix import CTCPrefixes
    >>> posteriors = torch.tensor([[[0.5, 0.5, 0.0], [0.5, 0.5, 0.0]]])  # blank, "a", end
    >>> prefixes = CTCPrefixes(posteriors.log(), torch.tensor([2]), blank=0, eos=2)
    >>> prefixes.score().exp()  # "a" begins 3 of the 4 paths; one of them is empty
    tensor([[[0.0000, 0.7500, 0.2500]]], dtype=torch.float64)
    >>> prefixes.extend(torch.tensor([[0]]), torch.tensor([[1]]))
    >>> prefixes.score().exp()  # two frames are too few for "a a", and all three paths end so
    tensor([[[0.0000, 0.0000, 0.7500]]], dtype=torch.float64)
    """

    def __init__(self, log_probs: Tensor, steps: Tensor, blank: int, eos: int) -> None:
        self.blank, self.eos = blank, eos
        padded = padding_mask(steps, log_probs.shape[1])
        # Padding is blank for certain, so that at the last frame all is as at the last real one.
        x = log_probs.double().clamp_min(IMPOSSIBLE).masked_fill(padded[:, :, None], IMPOSSIBLE)
        x[:, :, blank].masked_fill_(padded, 0)
        self.posteriors = x.exp()  # (B, T, V)
        self.emissions = x.transpose(1, 2).contiguous()  # (B, V, T)
        self.blanks = self.emissions[:, blank].cumsum(1)  # (B, T)
        # The empty prefix of each sequence: phi and b after 0 to T frames, (B, K, 2, T + 1).
        size, frames = self.blanks.shape
        self.ends = x.new_zeros(size, 1, 2, frames + 1)
        self.ends[..., 1:] = self.blanks[:, None, None]
        self.last = torch.full((size, 1), blank, device=x.device)

    def score(self) -> Tensor:
        """Score the prefixes that are one token longer.

        Returns
        -------
        Tensor of float64, shape (B, K, V)
            Log probability of each hypothesis with each token; at ``eos``, that the sequence is
            the hypothesis as it stands; at ``blank``, minus infinity.
        """
        size, beams = self.last.shape
        before = self.ends[..., :-1]
        largest = before[:, :, :1].amax(-1, keepdim=True).clamp_min_(torch.finfo(before.dtype).min)
        sums = (before - largest).exp_().view(size, 2 * beams, -1) @ self.posteriors
        sums = sums.view(size, beams, 2, -1).log_().add_(largest)
        scores, after_blank = sums.unbind(2)
        last = self.last[:, :, None]
        scores.scatter_(2, last, after_blank.gather(2, last))
        scores[..., self.eos] = self.ends[:, :, 0, -1]
        scores[..., self.blank] = -torch.inf
        return scores

    def extend(self, rows: Tensor, tokens: Tensor, sequences: Tensor | None = None) -> None:
        """Append a token to the hypotheses that go on.

        Parameters
        ----------
        rows : integer Tensor, shape (B', K')
            The hypotheses, as numbers of rows of (B, K).
        tokens : integer Tensor, shape (B', K')
        sequences : integer Tensor, shape (B',), optional
            The sequences that go on; all by default.
        """
        repeats = tokens == self.last.take(rows)
        if sequences is not None:
            self.posteriors = self.posteriors[sequences]
            self.emissions = self.emissions[sequences]
            self.blanks = self.blanks[sequences]
        size, vocabulary, frames = self.emissions.shape
        shape = *tokens.shape, -1
        first = torch.arange(0, size * vocabulary, vocabulary, device=tokens.device)[:, None]
        x = _rows(self.emissions, first + tokens).view(shape)
        phi = _rows(self.ends, 2 * rows + repeats).view(shape)[..., :-1]
        total = x.cumsum(2)
        by_token = torch.logcumsumexp((phi - total).add_(x), 2).add_(total)
        blanks = self.blanks[:, None]
        self.ends = x.new_full((*tokens.shape, 2, frames + 1), -torch.inf)
        by_blank = self.ends[:, :, 1, 1:]
        by_blank[..., 1:] = torch.logcumsumexp((by_token - blanks)[..., :-1], 2) + blanks[..., 1:]
        self.ends[:, :, 0, 1:] = torch.logaddexp(by_token, by_blank)
        self.last = tokens


def _rows(x: Tensor, rows: Tensor) -> Tensor:
    """Take rows of the last dimension, numbered through all others."""
    return x.view(-1, x.shape[-1]).index_select(0, rows.flatten())
