"""Perplexity and bits per byte of texts: each token predicted once, the first from the beginning-of-text token."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

from llmfast.data.reading.decoding import TextDecoder
from llmfast.data.reading.readers import has_rows, read_content, rows
from llmfast.data.shards import Share
from llmfast.evaluation.likelihood import beginning_of_text, log_likelihoods, windows
from llmfast.models.decoder import Decoder
from llmfast.tokenizer import Tokenizer


def documents(files: Iterable[Path]) -> Iterator[str]:
    """The documents of text files, each one whole, and of JSON Lines and Parquet files, a row each.

    Raises:
        ValueError: a file is missing, damaged or not UTF-8.
    """
    for file in files:
        if not file.is_file():
            raise ValueError(f"data: {file} is not a file")
        if has_rows(file):
            yield from (text for _, text in rows(file, None, Share(), TextDecoder("stop")))
        else:
            yield read_content(file)


def text_figures(
    model: Decoder, tokenizer: Tokenizer, texts: Iterable[str], *, stride: int | None = None
) -> dict[str, float]:
    """``loss`` in nats and ``perplexity`` per token, ``bits_per_byte`` of UTF-8, ``byte_perplexity`` and
    ``word_perplexity`` (words are what white space separates), and how many ``documents``, ``tokens``, ``bytes``.

    Every document is predicted from the token that begins a text on (``beginning_of_text``), each of its tokens once
    and no token that ends it, in windows of the model's context that start every ``stride`` tokens (the context, if
    left out).

    Raises:
        ValueError: there is no text, or the stride is not from 1 to the context.
    """
    context = model.config.context
    start = beginning_of_text(tokenizer)
    nats, count, tokens, size, words = 0.0, 0, 0, 0, 0
    for text in texts:
        ids = tokenizer.encode_ordinary(text)
        pairs = list(windows([start, *ids], context, stride or context))
        nats -= math.fsum(each.log_prob for each in log_likelihoods(model, pairs))
        count, tokens, size, words = count + 1, tokens + len(ids), size + len(text.encode()), words + len(text.split())
    if not tokens:
        raise ValueError("there is no text to predict")
    return {
        "loss": nats / tokens,
        "perplexity": _exp(nats / tokens),
        "bits_per_byte": nats / math.log(2) / size,
        "byte_perplexity": _exp(nats / size),
        "word_perplexity": _exp(nats / max(1, words)),
        "documents": count,
        "tokens": tokens,
        "bytes": size,
    }


def _exp(nats: float) -> float:
    return math.exp(min(nats, 700.0))  # the largest that a float holds
