"""A decoder with a head for labels or a number in place of its output head."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from llmfast.models.config import DecoderConfig
from llmfast.models.decoder import Decoder
from llmfast.models.experts import Balancing


@dataclass(frozen=True)
class ClassifierConfig:
    """What a classifier is made of."""

    decoder: DecoderConfig
    """The decoder below the head."""
    labels: tuple[str, ...]
    """Names of the classes, in the order of the outputs; none for regression."""
    max_tokens: int
    """Texts are cut after this many tokens, as in training."""
    problem: Literal["single_label", "multi_label", "regression"] = "single_label"
    """What the outputs are: logits of labels of which each text has one, or any number; or a number."""
    offset: float = 0.0
    """regression: the mean of the training numbers, where the output starts."""
    scale: float = 1.0
    """regression: their standard deviation, the unit of the head."""

    def __post_init__(self) -> None:
        fewest = {"single_label": 2, "multi_label": 1, "regression": 0}[self.problem]
        if len(self.labels) < fewest:
            raise ValueError(f"a {self.problem} classifier needs at least {fewest} labels, got {self.labels}")

    @property
    def outputs(self) -> int:
        return 1 if self.problem == "regression" else len(self.labels)


class Classified(NamedTuple):
    """What a classifier says of a batch."""

    logits: Tensor
    """(B, outputs), float32, or (N, outputs) of the N tokens that were asked for; of a regression, the numbers."""
    balancing: Balancing | None
    """What a mixture of experts adds to the loss while training; None otherwise."""


class SequenceClassifier(nn.Module):
    """Labels or numbers for sequences, read from the hidden state of each sequence's last token.

    Attention is causal, so that the last token alone has seen the whole sequence, and what follows it, such as padding,
    changes nothing. The head starts at zero: all classes are equally likely, and the first step moves the head alone.

    >>> decoder = Decoder(DecoderConfig(vocab_size=100, width=32, layers=1))
    >>> model = SequenceClassifier(decoder, ClassifierConfig(decoder.config, ("no", "yes"), max_tokens=128))
    >>> model(torch.randint(100, (3, 16)), torch.tensor([16, 4, 9])).logits.shape
    torch.Size([3, 2])
    """

    def __init__(self, decoder: Decoder, config: ClassifierConfig):
        super().__init__()
        self.config, self.decoder = config, decoder
        self.head = nn.Linear(config.decoder.width, config.outputs)
        if not self.head.weight.is_meta:
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def forward(
        self,
        tokens: Tensor,
        lengths: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        ends: Tensor | None = None,
    ) -> Classified:
        """Classify sequences ``tokens`` (B, S) int64.

        Args:
            tokens: rows padded to one length; what the padding is, and on which side, changes nothing.
            lengths: (B,) int64, if the first so many tokens of each row are real.
            mask: (B, S) instead, true or 1 where a token is real (an ``attention_mask``): padding on any side.
            ends: (B, S) bool, with ``lengths``: read at these tokens, row by row, instead of each row's last one.

        Raises:
            ValueError: rows longer than the decoder's context, a row without a real token, or not one of ``lengths``
                and ``mask``.
        """
        if (lengths is None) == (mask is None):
            raise ValueError("give either lengths or mask, which say what is padding")
        if lengths is None:
            tokens, lengths = without_padding(tokens, mask)
        is_real = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
        states, balancing = self.decoder.hidden(tokens, is_real=is_real)
        last = states[torch.arange(len(tokens), device=tokens.device), lengths - 1] if ends is None else states[ends]
        outputs = self.head(last).float()
        if self.config.problem == "regression":
            outputs = outputs * self.config.scale + self.config.offset
        return Classified(outputs, balancing)


def without_padding(tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Rows padded anywhere as a ``SequenceClassifier`` takes them: real tokens first, in their order, and their number.

    With padding on the left, as Hugging Face tokenizers give it to decoders, real tokens would otherwise see the
    padding, and stand at other positions than in training.

    >>> without_padding(torch.tensor([[0, 0, 7, 8]]), torch.tensor([[0, 0, 1, 1]]))
    (tensor([[7, 8, 0, 0]]), tensor([2]))

    Args:
        tokens: (B, S) int64.
        mask: (B, S), true or 1 where a token is real: an ``attention_mask``.

    Raises:
        ValueError: shapes that differ, or a row without a real token.
    """
    if mask.shape != tokens.shape:
        raise ValueError(f"mask has the shape {tuple(mask.shape)} and tokens {tuple(tokens.shape)}")
    is_real = mask.bool()
    lengths = is_real.sum(1)
    if len(lengths) and int(lengths.min()) == 0:
        raise ValueError(f"mask: row {int(lengths.argmin())} has no real token")
    order = (~is_real).to(torch.uint8).argsort(dim=1, stable=True)
    return tokens.gather(1, order), lengths


def without_head(decoder: Decoder) -> Decoder:
    """The decoder, its output head tied to the embedding table in place: one of its own would be kept for nothing."""
    decoder.head.weight = decoder.embedding.weight
    decoder.config = replace(decoder.config, tie_embeddings=True)
    return decoder
