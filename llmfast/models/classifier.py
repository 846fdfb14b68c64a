"""A decoder with a classification head in place of its output head."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from llmfast.models.config import DecoderConfig
from llmfast.models.decoder import Decoder


@dataclass(frozen=True)
class ClassifierConfig:
    """What a classifier is made of."""

    decoder: DecoderConfig
    """The decoder below the head."""
    labels: tuple[str, ...]
    """Names of the classes, in the order of the outputs."""
    max_tokens: int
    """Texts are cut after this many tokens, as in training."""

    def __post_init__(self) -> None:
        if len(self.labels) < 2:
            raise ValueError(f"a classifier needs at least two labels, got {self.labels}")


class Classified(NamedTuple):
    """What a classifier says of a batch."""

    logits: Tensor
    """(B, labels), float32."""
    balancing: Tensor | None
    """What a mixture of experts adds to the loss while training, a scalar; None otherwise."""


class SequenceClassifier(nn.Module):
    """Classes of sequences, read from the hidden state of each sequence's last token.

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
        self.head = nn.Linear(config.decoder.width, len(config.labels))
        if not self.head.weight.is_meta:
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Classified:
        """Classify sequences ``tokens`` (B, S) int64, of which the first ``lengths`` (B,) tokens of each row count.

        Raises:
            ValueError: rows longer than the decoder's context.
        """
        states, balancing = self.decoder.hidden(tokens)
        last = states[torch.arange(len(tokens), device=tokens.device), lengths - 1]
        return Classified(self.head(last).float(), balancing)


def without_head(decoder: Decoder) -> Decoder:
    """The decoder, its output head tied to the embedding table in place: one of its own would be kept for nothing."""
    decoder.head.weight = decoder.embedding.weight
    decoder.config = replace(decoder.config, tie_embeddings=True)
    return decoder
