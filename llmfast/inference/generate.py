"""Continuing a text token by token, with the keys and values of the past kept."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

import torch

from llmfast.inference.config import Sampling
from llmfast.inference.sampling import sample
from llmfast.models.cache import KVCache
from llmfast.models.decoder import Decoder
from llmfast.tokenizer import Tokenizer


@torch.no_grad()
def generate_tokens(
    model: Decoder,
    prompt: Sequence[int],
    count: int,
    *,
    sampling: Sampling | None = None,
    seed: int = 0,
    stop: int | Collection[int] = (),
) -> Iterator[int]:
    """Yield up to ``count`` tokens that continue ``prompt``, ending early after a token of ``stop``.

    When the context is full, generation continues from its last half, which is read again.

    Raises:
        ValueError: an empty prompt, or one longer than the model's context.
    """
    context = model.config.context
    if not 0 < len(prompt) <= context:
        raise ValueError(f"the prompt has {len(prompt)} tokens; the model takes 1 to {context}")
    sampling = sampling or Sampling()
    ends = {stop} if isinstance(stop, int) else set(stop)
    parameter = next(model.parameters())
    generator = torch.Generator(parameter.device).manual_seed(seed)
    seen = list(prompt)
    unread = seen
    cache = None
    for _ in range(count):
        if cache is None or cache.length + len(unread) > context:
            if cache is not None:
                unread = seen[-(context // 2 or 1) :]
            cache = KVCache(model.config, 1, parameter.dtype, parameter.device)
        with model.evaluating():
            logits = model(torch.tensor([unread], device=parameter.device), cache=cache)
        token = int(sample(logits[:, -1], sampling, generator))
        yield token
        if token in ends:
            return
        seen.append(token)
        unread = [token]


def stream_text(tokenizer: Tokenizer, tokens: Iterable[int]) -> Iterator[str]:
    """The text of ``tokens`` as it becomes known: a character split over tokens is held back until it is whole."""
    decoder = tokenizer.stream_decoder()
    for token in tokens:
        if text := decoder.push(token):
            yield text
    if text := decoder.finish():
        yield text


def encode_prompt(tokenizer: Tokenizer, text: str) -> list[int]:
    """Tokens of a prompt: the end-of-text token, after which a document begins, then the text."""
    return [tokenizer.eot_token, *tokenizer.encode_ordinary(text)]
