"""Decoding with a cache: a prompt is read, then tokens are added greedily; the whole of it is timed.

Checked are the logits of some tokens read one after another behind a prompt, through the cache. Weights are random: the
speed does not depend on them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llmfast.models.cache import KVCache
from llmfast.models.config import DecoderConfig
from llmfast.models.decoder import Decoder

from ..contenders import Contender
from ..hugging_face import same_model
from ..jobs import Job, Program
from ..plain import Cache, PlainDecoder
from ..results import OURS, PYTORCH
from .train_step import SHAPES

CHECKED = 4  # tokens read one by one
Read = Callable[[Tensor], Tensor]  # the next tokens (B, S) of what was read before -> their logits (B, S, V)


@dataclass(frozen=True)
class Decoding:
    """``batch`` prompts of ``prompt`` tokens, each continued by ``new`` tokens."""

    model: str
    batch: int
    prompt: int
    new: int
    dtype: torch.dtype = torch.bfloat16


def decodings(size: str) -> tuple[str, list[Decoding]]:
    """The device, and what is measured there."""
    both = torch.float32, torch.bfloat16
    if size == "tiny":
        models = "toy", "toy GPT-2"
        return "cpu", [Decoding(model, 2, 8, 4, dtype) for model in models for dtype in both]
    if size == "cpu-quick":
        return "cpu", [Decoding("quickstart", 1, 16, 16, dtype) for dtype in both]
    if size == "cpu":
        small = [Decoding("quickstart", 1, 16, 112, dtype) for dtype in both]
        return "cpu", small + [
            Decoding("GPT-2 124M", batch, 32, 32, dtype) for batch in (1, 16) for dtype in both
        ]
    models = ("Llama 1B",) if size == "quick" else ("Llama 1B", "GPT-2 124M")
    return "cuda", [Decoding(model, batch, 128, 128) for model in models for batch in (1, 16)]


def cases(size: str) -> Iterator[Job]:
    device, wanted = decodings(size)
    for decoding in wanted:
        yield job(decoding, device)


def job(wanted: Decoding, device: str) -> Job:
    config = SHAPES[wanted.model]
    generator = torch.Generator().manual_seed(0)
    ours = functools.cache(lambda: Decoder(config, generator=torch.Generator().manual_seed(0)))
    tokens = torch.randint(config.vocab_size, (wanted.batch, wanted.prompt + CHECKED), generator=generator)
    tokens = tokens.to(device)

    def llmfast(dtype: torch.dtype = wanted.dtype) -> Program:
        model = Decoder(config)
        model.load_state_dict(ours().state_dict())
        return program(wanted, tokens, model.to(device, dtype), reads_ours)

    def plain(dtype: torch.dtype = wanted.dtype) -> Program:
        model = PlainDecoder(config)
        model.load_state_dict(ours().state_dict())
        return program(wanted, tokens, model.to(device, dtype), reads_plain)

    def transformers() -> Program:
        model = same_model(config, ours().state_dict()).to(device, wanted.dtype).eval()
        theirs = program(wanted, tokens, model, reads_transformers)
        options = {"max_new_tokens": wanted.new, "min_new_tokens": wanted.new, "do_sample": False}
        prompt = tokens[:, : wanted.prompt]
        mask = torch.ones_like(prompt)
        return Program(
            theirs.evidence,
            torch.no_grad()(lambda: model.generate(prompt, attention_mask=mask, **options)),
            theirs.held,
        )

    return Job(
        op=f"{wanted.model} decoding",
        shape={"B": wanted.batch, "prompt": wanted.prompt, "new": wanted.new},
        dtype=wanted.dtype,
        pass_="generate",
        exact=lambda: plain(torch.float64).evidence(),
        plain=lambda: plain().evidence(),
        contenders=[
            Contender(OURS, llmfast),
            Contender(PYTORCH, plain),
            Contender("transformers", transformers, module="transformers"),
        ],
        work=work(config, wanted),
        tokens=wanted.batch * wanted.new,
    )


def work(config: DecoderConfig, wanted: Decoding) -> tuple[int, int]:
    """All weights and the filled part of the cache are read for each new token; the prompt is read at once."""
    kept = 2 * config.layers * config.kv_heads * config.head_width * wanted.batch
    filled = wanted.new * (wanted.prompt + wanted.new // 2)
    moved = (wanted.new * config.parameters + kept * filled) * wanted.dtype.itemsize
    read = wanted.batch * (wanted.prompt + wanted.new)
    return moved, read * int(config.flops_per_token(wanted.prompt + wanted.new)) // 3


def program(
    wanted: Decoding, tokens: Tensor, model: nn.Module, reads: Callable[[nn.Module, int], Read]
) -> Program:
    """The greedy loop around a model; ``reads(model, batch)`` begins new sequences."""
    prompt, following = tokens.split([wanted.prompt, CHECKED], dim=1)

    @torch.no_grad()
    def evidence() -> dict[str, Tensor]:
        read = reads(model, wanted.batch)
        logits = [read(prompt)[:, -1:], *(read(token) for token in following.split(1, dim=1))]
        return {"logits": torch.cat(logits, dim=1)}

    @torch.no_grad()
    def generate() -> Tensor:
        read = reads(model, wanted.batch)
        new = [read(prompt)[:, -1:].argmax(-1)]
        while len(new) < wanted.new:
            new.append(read(new[-1]).argmax(-1))
        return torch.cat(new, dim=1)

    return Program(evidence, generate, lambda: sum(p.nbytes for p in model.parameters()))


def reads_ours(model: Decoder, batch: int) -> Read:
    weight = model.embedding.weight
    cache = KVCache(model.config, batch, weight.dtype, weight.device)
    return lambda tokens: model(tokens, cache=cache)


def reads_plain(model: PlainDecoder, batch: int) -> Read:
    caches = [Cache(model.config, batch, model.embedding.weight) for _ in model.blocks]
    return lambda tokens: model(tokens, caches=caches)


def reads_transformers(model: nn.Module, batch: int) -> Read:
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    return lambda tokens: model(tokens, past_key_values=cache, use_cache=True).logits
