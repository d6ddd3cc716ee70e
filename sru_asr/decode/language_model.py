"""The self-attentive SRU language model: causal SRU++ layers over tokens."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from sru_asr.decode.scorer import TokenScorer
from sru_asr.padding import padding_mask, steps_of
from sru_asr.sru import check_dropout
from sru_asr.srupp import SRUppLayer

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor


class State(NamedTuple):
    """What the model remembers of n token sequences of equal length.

    Attributes
    ----------
    c : Tensor, shape (layers, n, hidden_size)
        States of the recurrences.
    past : tuple of Tensor, shape (steps, n, 2 * projection_size)
        Each layer's keys and values; empty where a layer has no attention.
    """

    c: Tensor
    past: tuple[Tensor, ...]


class SRULanguageModel(TokenScorer):
    """Predict the next token with a causal stack of SRU++ layers.

    Every layer runs the recurrence in one direction; layer ``i`` (from 0) has self-attention to
    the steps up to its own where ``(i + 1) % attention_every == 0``. There is no positional
    encoding. Lei, "When Attention Meets Fast Recurrence: Training Language Models with Reduced
    Compute", EMNLP 2021.

    `forward` takes whole sentences, for training; `score` appends one token to each of many
    hypotheses and computes that step alone. Both give the same numbers. Searches want the model in
    evaluation mode: dropout would draw anew at each step.

    Parameters
    ----------
    vocab_size : int
        Tokens, V.
    embedding_size : int
        Features of a token.
    hidden_size : int
        Hidden dimensions of each layer.
    num_layers : int
        Layers of the stack.
    projection_size : int
        Width d' of each projection's bottleneck.
    num_heads : int
        Attention heads; must divide ``projection_size``.
    attention_every : int
        Attention in every so-manieth layer; 0 for none.
    dropout : float
        Dropout probability of embeddings, of each layer's output (inside the highway, none in the
        last) and of the stack's: one mask for a whole sentence.
    attention_dropout : float
        Dropout probability of the attention weights.
    tied : bool
        Use the embedding's matrix for the output as well (Press and Wolf, EACL 2017); needs
        ``embedding_size`` equal to ``hidden_size``.
    highway_bias : float
        Initial bias of the reset gate.

    Raises
    ------
    ValueError
        When sizes are not positive or do not fit one another.

    Examples
    --------
    >>> import torch
    >>> from sru_asr.decode import SRULanguageModel
    >>> model = SRULanguageModel(30, 16, 32, num_layers=2, projection_size=16).eval()
    >>> model(torch.tensor([[1, 5, 7]])).shape  # after <s>, after 5 and after 7
    torch.Size([1, 3, 30])
    >>> state = model.initial(2)
    >>> log_probs, state = model.score(torch.tensor([1, 1]), state)
    >>> log_probs, state = model.score(torch.tensor([5, 6]), state)
    >>> log_probs.shape
    torch.Size([2, 30])
    """

    def __init__(
        self,
        vocab_size: int,
        embedding_size: int,
        hidden_size: int,
        num_layers: int,
        projection_size: int,
        num_heads: int = 1,
        attention_every: int = 2,
        dropout: float = 0.0,
        *,
        attention_dropout: float = 0.0,
        tied: bool = False,
        highway_bias: float = -2.0,
    ) -> None:
        super().__init__()
        sizes = {
            "vocab_size": vocab_size,
            "embedding_size": embedding_size,
            "hidden_size": hidden_size,
            "num_layers": num_layers,
            "projection_size": projection_size,
            "num_heads": num_heads,
        }
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        if attention_every < 0:
            raise ValueError(f"attention_every must be 0 (none) or more, got {attention_every}")
        if tied and embedding_size != hidden_size:
            raise ValueError(
                "tied needs embedding_size equal to hidden_size, "
                f"got {embedding_size} and {hidden_size}"
            )
        check_dropout(dropout)
        check_dropout(attention_dropout)
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.projection_size = projection_size
        self.embedding = nn.Embedding(vocab_size, embedding_size)
        self.layers = nn.ModuleList(
            SRUppLayer(
                embedding_size if i == 0 else hidden_size,
                hidden_size,
                projection_size,
                num_heads if attention_every and (i + 1) % attention_every == 0 else 0,
                bidirectional=False,
                dropout=dropout if i < num_layers - 1 else 0.0,
                attention_dropout=attention_dropout,
                highway_bias=highway_bias,
            )
            for i in range(num_layers)
        )
        self.norm = nn.LayerNorm(hidden_size)
        self.output = nn.Linear(hidden_size, vocab_size)
        # Scaled up on the way in, so that one matrix has the right size on the way out as well.
        self.scale = math.sqrt(embedding_size)
        nn.init.normal_(self.embedding.weight, std=1 / self.scale)
        if tied:
            self.output.weight = self.embedding.weight
        # Drops whole columns of (U, B, features) given as (B, features, U).
        self.dropout = nn.Dropout1d(dropout)

    def forward(self, tokens: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Score what follows each token of whole sentences.

        Parameters
        ----------
        tokens : integer Tensor, shape (B, U)
            Sentences that start with the beginning-of-sentence token; what stands in the padding
            has no effect.
        lengths : Tensor, shape (B,), optional
            Relative lengths, 0 to 1; ``round(lengths * U)`` tokens are real.

        Returns
        -------
        Tensor, shape (B, U, V)
            Natural logarithms of the next token's probabilities.

        Raises
        ------
        ValueError, TypeError
            When tokens or lengths have the wrong shape or type.
        """
        if tokens.dim() != 2 or tokens.is_floating_point():
            raise ValueError(
                "tokens must be integers of shape (B, U), got "
                f"{tokens.dtype} of shape {tuple(tokens.shape)}"
            )
        batch, size = tokens.shape
        steps = steps_of(lengths, batch, size)
        if steps is not None:
            tokens = tokens.masked_fill(padding_mask(steps, size), 0)
        h = self._drop(self._embed(tokens.T))
        # No padding mask: what is padded lies behind everything that is not.
        causal = torch.ones(size, size, dtype=torch.bool, device=tokens.device).tril()
        for layer in self.layers:
            h, _ = layer(h, None, steps, causal)
        return self._log_probs(self._drop(h)).transpose(0, 1)

    def initial(self, size: int, device: Any = None) -> State:
        """See `TokenScorer.initial`; on the parameters' device by default."""
        options: dict[str, Any] = {
            "device": self.norm.weight.device if device is None else device,
            "dtype": self.norm.weight.dtype,
        }
        past = torch.empty(0, size, 2 * self.projection_size, **options)
        c = torch.zeros(len(self.layers), size, self.hidden_size, **options)
        return State(c, (past,) * len(self.layers))

    def score(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """See `TokenScorer.score`."""
        h = self._embed(tokens)[None]
        c, past = [], []
        layers: Any = self.layers
        for layer, layer_c, layer_past in zip(layers, state.c, state.past, strict=True):
            h, layer_c, layer_past = layer.extend(h, layer_c, layer_past)
            c.append(layer_c)
            past.append(layer_past)
        return self._log_probs(h[0]), State(torch.stack(c), tuple(past))

    def select(self, state: State, rows: Tensor) -> State:
        """See `TokenScorer.select`."""
        past = tuple(past.index_select(1, rows) for past in state.past)
        return State(state.c.index_select(1, rows), past)

    def _embed(self, tokens: Tensor) -> Tensor:
        return self.embedding(tokens) * self.scale

    def _drop(self, h: Tensor) -> Tensor:
        return self.dropout(h.permute(1, 2, 0)).permute(2, 0, 1)

    def _log_probs(self, h: Tensor) -> Tensor:
        logits = self.output(self.norm(h))
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


def load(
    folder: str | Path, tokenizer: SentencePieceProcessor | None = None, trust: bool = False
) -> TokenScorer:
    """Load the language model of a model folder, ready to score.

    Parameters
    ----------
    folder : str or Path
        As a recipe's ``train_lm.py`` leaves it: ``results/.../model``.
    tokenizer : sentencepiece.SentencePieceProcessor, optional
        The recogniser's, to make sure that both mean the same by their tokens.
    trust : bool
        Let the YAML make any object, as HyperPyYAML does: it can run any code.

    Raises
    ------
    ValueError
        When files are missing or do not fit one another, or the pieces are not the tokenizer's.
    ModelFolderError
        When the YAML is not trusted with what it asks for.

    Examples
    --------
    >>> model = load("results/an4_sru_lm/1/model")  # doctest: +SKIP
    """
    # Here, so that the model itself needs torch alone.
    from hyperpyyaml import load_hyperpyyaml
    from sentencepiece import SentencePieceProcessor

    from sru_asr.model_yaml import ModelYAML

    folder = Path(folder)
    names = ["hyperparams.yaml", "language_model.ckpt"]
    if tokenizer is not None:
        names.append("tokenizer.ckpt")
    files = [folder / name for name in names]
    if missing := [str(file) for file in files if not file.is_file()]:
        raise ValueError(
            f"found no {' and no '.join(missing)}, expected a language model's folder as training "
            "leaves it (results/.../model)"
        )
    if tokenizer is not None:
        ours, theirs = (
            each.id_to_piece(list(range(each.vocab_size())))
            for each in (SentencePieceProcessor(model_file=str(files[2])), tokenizer)
        )
        if ours != theirs:
            raise ValueError(
                f"{folder} was trained with other pieces than the recogniser's; train it with "
                "the recogniser's tokenizer.ckpt as tokenizer_file"
            )
    yaml = ModelYAML(files[0])
    hparams = load_hyperpyyaml(yaml.text) if trust else yaml.build()
    if "language_model" not in hparams:
        raise ValueError(f"{files[0]}: found no language_model, expected that of a train_lm.py")
    model = hparams["language_model"]
    try:
        model.load_state_dict(torch.load(files[1], map_location="cpu", weights_only=True))
    except RuntimeError as error:
        raise ValueError(f"{files[1]} does not fit {files[0]}: {error}") from error
    return model.eval()
