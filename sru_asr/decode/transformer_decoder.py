"""SpeechBrain's Transformer decoder one position at a time, for the hypotheses of a beam search."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from speechbrain.lobes.models.transformer.Transformer import PositionalEncoding, TransformerDecoder
from speechbrain.lobes.models.transformer.TransformerASR import TransformerASR
from speechbrain.nnet.attention import MultiheadAttention, PositionalwiseFeedForward
from torch import Tensor, nn

from sru_asr.padding import padding_mask

STEPS = 8  # between two looks for nodes that no hypothesis needs any more


def positions_of(transformer: nn.Module) -> PositionalEncoding:
    """Return the decoder's positional encoding, and refuse what cannot be run incrementally.

    Parameters
    ----------
    transformer : TransformerASR
        SpeechBrain's, or `sru_asr.SRUTransformerASR`.

    Returns
    -------
    PositionalEncoding

    Raises
    ------
    TypeError, ValueError
        When it is no TransformerASR, has no decoder, or a decoder other than SpeechBrain builds.
    """
    if not isinstance(transformer, TransformerASR):
        raise TypeError(f"transformer must be a TransformerASR, got {type(transformer).__name__}")
    decoder = getattr(transformer, "decoder", None)
    if decoder is None:
        raise ValueError("transformer has no decoder: num_decoder_layers must be at least 1")
    if not isinstance(decoder, TransformerDecoder):
        raise TypeError(f"decoder must be a TransformerDecoder, got {type(decoder).__name__}")
    for i, layer in enumerate(decoder.layers):
        for name, kind in (
            ("self_attn", MultiheadAttention),
            ("multihead_attn", MultiheadAttention),
            ("pos_ffn", PositionalwiseFeedForward),
        ):
            module = getattr(layer, name)
            if type(module) is not kind:
                raise TypeError(
                    f"decoder.layers.{i}.{name} must be a {kind.__name__}, "
                    f"got {type(module).__name__}"
                )
            if kind is MultiheadAttention and (
                type(module.att) is not nn.MultiheadAttention
                or module.att.in_proj_weight is None
                or module.att.in_proj_bias is None
                or module.att.bias_k is not None
                or module.att.add_zero_attn
            ):
                raise ValueError(
                    f"decoder.layers.{i}.{name} must be attention as SpeechBrain's decoder has "
                    "it: keys and values as wide as queries, biases, no added keys"
                )
    own = transformer.attention_type in ("RelPosMHAXL", "RoPEMHA")  # as TransformerASR.decode
    name = "positional_encoding_decoder" if own else "positional_encoding"
    positions = getattr(transformer, name, None)
    if not isinstance(positions, PositionalEncoding):
        raise ValueError(
            f"transformer has no {name}: TransformerASR decodes with positional_encoding "
            f"'fixed_abs_sine' or attention_type 'RelPosMHAXL' or 'RoPEMHA' only, got "
            f"{transformer.positional_encoding_type!r} and {transformer.attention_type!r}"
        )
    return positions


def embedding_of(transformer: nn.Module) -> nn.Embedding:
    """Return the decoder's table of token embeddings, as TransformerASR holds it."""
    module: Any = transformer
    table: nn.Embedding = module.custom_tgt_module.layers[0].emb.Embedding
    return table


class AttentionPrefixes:
    """Log probabilities that an attention decoder gives the hypotheses of a beam search.

    The hypotheses of a sequence form a tree. The self-attention's keys and values of each of its
    nodes are computed and stored once, and a mask says which nodes lie on the way to which
    hypothesis: where hypotheses fork or are dropped, rows of the mask are selected, and what is
    large stays where it is. All hypotheses of a sequence are queries against the same keys, those
    of the encoder's output (computed once for the whole search) as well as those of the tree.

    Parameters
    ----------
    transformer : TransformerASR
        Which `positions_of` accepts.
    output : Module
        Linear layer from decoder states to the vocabulary.
    encoded : Tensor, shape (B, T, D)
        Encoder output; zero in the padding.
    steps : integer Tensor, shape (B,)
        Real steps of each sequence.
    bos : int
        Token that begins every hypothesis.
    temperature : float
        Divides the logits.
    """

    def __init__(
        self,
        transformer: nn.Module,
        output: nn.Module,
        encoded: Tensor,
        steps: Tensor,
        bos: int,
        temperature: float = 1.0,
    ) -> None:
        module: Any = transformer
        self.layers: list[Any] = list(module.decoder.layers)
        self.norm, self.output, self.temperature = module.decoder.norm, output, temperature
        self.positions = positions_of(transformer).pe[0]
        every = torch.arange(embedding_of(transformer).num_embeddings)
        self.embeddings: Tensor = module.custom_tgt_module(every.to(encoded.device))
        size, frames, width = encoded.shape
        attentions = [layer.multihead_attn.att for layer in self.layers]
        self.queries = [
            (att.in_proj_weight[:width], att.in_proj_bias[:width]) for att in attentions
        ]
        # Keys and values of a layer lie side by side.
        self.memory = torch.stack(  # (layers, B, T, 2 D)
            [
                F.linear(encoded, a.in_proj_weight[width:], a.in_proj_bias[width:])
                for a in attentions
            ]
        )
        padded = padding_mask(steps, frames)
        self.memory_mask: Tensor | None = None
        if padded.any():
            self.memory_mask = encoded.new_zeros(padded.shape).masked_fill_(padded, -torch.inf)
            self.memory_mask = self.memory_mask[:, None, None]
        # Nodes of the trees; the mask has a row for each hypothesis: 0 on its way, -inf elsewhere.
        self.nodes = self.memory[:, :, :0]  # (layers, B, N, 2 D)
        self.mask = encoded.new_zeros(size, 1, 0)
        self.tokens = torch.full((size, 1), bos, device=encoded.device)
        self.totals = torch.zeros(size, 1, dtype=torch.float64, device=encoded.device)
        self.position = 0

    def score(self) -> Tensor:
        """Score the hypotheses that are one token longer.

        Returns
        -------
        Tensor of float64, shape (B, K, V)
            Log probability of each hypothesis with each token.
        """
        log_probs = log_softmax(self.output(self._decode()) / self.temperature)
        self.scores = self.totals[:, :, None] + log_probs.view(*self.tokens.shape, -1)
        return self.scores

    def extend(self, rows: Tensor, tokens: Tensor, sequences: Tensor | None = None) -> None:
        """Append a token to the hypotheses that go on; as `CTCPrefixes.extend`."""
        self.totals = self.scores.take(rows * self.scores.shape[2] + tokens)
        self.mask = self.mask.flatten(0, 1).index_select(0, rows.flatten()).unflatten(0, rows.shape)
        self.tokens = tokens
        if sequences is not None:
            self.nodes, self.memory = self.nodes[:, sequences], self.memory[:, sequences]
            if self.memory_mask is not None:
                self.memory_mask = self.memory_mask[sequences]

    def _decode(self) -> Tensor:
        """Run the decoder on the last token of each hypothesis; (B * K, D)."""
        x = F.embedding(self.tokens.flatten(), self.embeddings) + self.positions[self.position]
        self.position += 1
        size, beams = self.tokens.shape
        width = x.shape[1]
        new = self._add_nodes(beams)
        mask = self.mask[:, None]
        nodes, memory = self._heads(self.nodes[:, :, : mask.shape[3]]), self._heads(self.memory)
        for i, layer in enumerate(self.layers):
            before = layer.normalize_before
            y = layer.norm1.norm(x) if before else x
            att = layer.self_attn.att
            query, y = F.linear(y, att.in_proj_weight, att.in_proj_bias).split(
                [width, 2 * width], 1
            )
            new[i].copy_(y.view(size, beams, -1))
            x = x + att.out_proj(_attend(query, *nodes[i], mask))
            if not before:
                x = layer.norm1.norm(x)
            y = layer.norm2.norm(x) if before else x
            y = _attend(F.linear(y, *self.queries[i]), *memory[i], self.memory_mask)
            x = x + layer.multihead_attn.att.out_proj(y)
            if not before:
                x = layer.norm2.norm(x)
            y = layer.norm3.norm(x) if before else x
            first, activation, _, last = layer.pos_ffn.ffn  # no dropout, in training mode neither
            x = x + last(activation(first(y)))
            if not before:
                x = layer.norm3.norm(x)
        return self.norm.norm(x)

    def _heads(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        """View (layers, B, N, 2 D) as keys and values, (B, heads, N, d), of each layer."""
        split = x.view(*x.shape[:3], 2, self.layers[0].nhead, -1).permute(0, 3, 1, 4, 2, 5)
        return [(layer[0], layer[1]) for layer in split.unbind(0)]

    def _add_nodes(self, beams: int) -> tuple[Tensor, ...]:
        """Add a node for each hypothesis; return where each layer's keys and values go."""
        if self.mask.shape[2] + beams > self.nodes.shape[2]:
            self._forget(STEPS * beams)
        start = self.mask.shape[2]
        own = self.mask.new_full((beams, beams), -torch.inf).fill_diagonal_(0)
        self.mask = torch.cat([self.mask, own.expand(len(self.mask), -1, -1)], 2)
        return self.nodes[:, :, start : start + beams].unbind(0)

    def _forget(self, room: int) -> None:
        """Drop the nodes that are on the way to no hypothesis, and make room for others."""
        live = (self.mask == 0).any(1)
        most = int(live.sum(1).max()) if live.shape[1] else 0
        # Live ones first. Where a sequence has fewer, others come along, which all rows mask.
        order = live.byte().argsort(dim=1, descending=True, stable=True)[:, :most]
        self.mask = self.mask.gather(2, order[:, None].expand(-1, self.mask.shape[1], -1))
        layers, size, _, width = self.nodes.shape
        nodes = self.nodes.new_empty(layers, size, most + room, width)
        index = order[None, :, :, None].expand(layers, -1, -1, width)
        nodes[:, :, :most] = self.nodes.gather(2, index)
        self.nodes = nodes


def log_softmax(logits: Tensor) -> Tensor:
    """Normalise over the vocabulary, in float32 at least."""
    return logits.log_softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))


def _attend(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """Attend with the hypotheses (B * K, D) to keys and values (B, heads, N, d)."""
    size, heads, _, width = keys.shape
    query = query.view(size, -1, heads, width).transpose(1, 2)
    x = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
    return x.transpose(1, 2).reshape(-1, heads * width)
