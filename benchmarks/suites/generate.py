"""Decoding with a cache: reads a prompt, then adds tokens greedily. All of it is timed.

The check compares the logits of some tokens that are read one by one after a prompt, through the cache. Weights are
random, because the speed does not depend on them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llmfast.inference.config import EngineConfig, Sampling
from llmfast.inference.engine import Engine
from llmfast.inference.runner import Chunk
from llmfast.inference.torch_runner import TorchRunner
from llmfast.models.config import DecoderConfig
from llmfast.models.decoder import Decoder

from .. import measure
from ..contenders import Contender
from ..hugging_face import same_model, unfit
from ..jobs import SECONDS, Job, Program
from ..plain import Cache, PlainDecoder
from ..quantized import dequantized, quantize_ours, quantize_theirs
from ..results import OURS, PYTORCH
from .train_step import SHAPES, drawn

CHECKED = 4  # tokens read one by one
Read = Callable[[Tensor], Tensor]  # the next tokens (B, S) -> their logits (B, S, V)


@dataclass(frozen=True)
class Decoding:
    """``batch`` prompts of ``prompt`` tokens, each continued by ``new`` tokens."""

    model: str
    batch: int
    prompt: int
    new: int
    dtype: torch.dtype = torch.bfloat16
    nf4: bool = False  # store the matrices of the blocks in 4 bits


def decodings(size: str) -> tuple[str, list[Decoding]]:
    """The device and the jobs to measure on it."""
    both = torch.float32, torch.bfloat16
    if size == "tiny":
        models = "toy", "toy GPT-2", "toy quickstart"
        tried = [Decoding(model, 2, 8, 4, dtype) for model in models for dtype in both]
        return "cpu", [*tried, Decoding("toy", 2, 8, 4, nf4=True)]
    if size == "cpu-quick":
        return "cpu", [Decoding("quickstart", 1, 16, 16, dtype) for dtype in both]
    if size == "cpu":
        small = [Decoding("quickstart", 1, 16, 112, dtype) for dtype in both]
        return "cpu", small + [Decoding("GPT-2 124M", batch, 32, 32, dtype) for batch in (1, 16) for dtype in both]
    llama = [Decoding("Llama 1B", batch, 128, 128, nf4=nf4) for batch in (1, 16) for nf4 in (False, True)]
    return "cuda", llama if size == "quick" else [*llama, Decoding("GPT-2 124M", 1, 128, 128)]


def cases(size: str) -> Iterator[Job]:
    device, wanted = decodings(size)
    for decoding in wanted:
        yield job(decoding, device)


def job(wanted: Decoding, device: str) -> Job:
    config = SHAPES[wanted.model]
    generator = torch.Generator().manual_seed(0)
    ours = functools.cache(lambda: drawn(config))
    tokens = torch.randint(config.vocab_size, (wanted.batch, wanted.prompt + CHECKED), generator=generator)
    tokens = tokens.to(device)

    def llmfast() -> Program:
        model = Decoder(config)
        model.load_state_dict(ours().state_dict())
        model.to(device, wanted.dtype).eval()
        if wanted.nf4:
            model = quantize_ours(model)
        ours_read = program(wanted, tokens, model, reads_ours)
        engine = Engine(model, config=EngineConfig(max_batch=wanted.batch, prefix_sharing=False))
        sampling = Sampling(temperature=0, max_tokens=wanted.new, ignore_end=True)
        prompts = tokens[:, : wanted.prompt].tolist()
        return Program(ours_read.evidence, lambda: engine.generate(prompts, sampling), ours_read.held)

    def plain(dtype: torch.dtype = wanted.dtype) -> Program:
        """Plain PyTorch with the dequantized weights."""
        weights = ours().state_dict()
        model = PlainDecoder(config)
        model.load_state_dict(dequantized(weights, wanted.dtype) if wanted.nf4 else weights)
        return program(wanted, tokens, model.to(device, dtype), reads_plain)

    def transformers() -> Program:
        model = same_model(config, ours().state_dict()).to(device, wanted.dtype).eval()
        if wanted.nf4:
            model = quantize_theirs(model)
        theirs = program(wanted, tokens, model, reads_transformers)
        options = {"max_new_tokens": wanted.new, "min_new_tokens": wanted.new, "do_sample": False}
        prompt = tokens[:, : wanted.prompt]
        mask = torch.ones_like(prompt)
        return Program(
            theirs.evidence,
            torch.no_grad()(lambda: model.generate(prompt, attention_mask=mask, **options)),
            theirs.held,
        )

    if wanted.nf4:
        theirs = Contender("transformers + bitsandbytes", transformers, "bitsandbytes", gpu_only=True)
    else:
        theirs = Contender("transformers", transformers, "transformers", unfit=unfit(config))
    return Job(
        op=f"{wanted.model}{', NF4' if wanted.nf4 else ''}, decoding",
        shape={"B": wanted.batch, "prompt": wanted.prompt, "new": wanted.new},
        dtype=wanted.dtype,
        pass_="generate",
        exact=lambda: plain(torch.float64).evidence(),
        plain=lambda: plain().evidence(),
        contenders=[
            Contender(OURS, llmfast),
            Contender(f"{PYTORCH} {measure.name_of(wanted.dtype)}" if wanted.nf4 else PYTORCH, plain),
            theirs,
        ],
        work=work(config, wanted),
        tokens=wanted.batch * wanted.new,
        seconds=SECONDS[device],
    )


def work(config: DecoderConfig, wanted: Decoding) -> tuple[int, int]:
    """Each new token reads all weights and the filled part of the cache; the prompt is one pass."""
    kept = 2 * config.layers * config.kv_heads * config.head_width * wanted.batch
    filled = wanted.new * (wanted.prompt + wanted.new // 2)
    table = config.vocab_size * config.width
    matrix_bytes = 0.5 + 4 / 64 if wanted.nf4 else wanted.dtype.itemsize  # a float32 scale for each 64
    weights = int((config.parameters - table) * matrix_bytes) + table * wanted.dtype.itemsize
    moved = wanted.new * weights + kept * filled * wanted.dtype.itemsize
    read = wanted.batch * (wanted.prompt + wanted.new)
    return moved, read * int(config.flops_per_token(wanted.prompt + wanted.new)) // 3


def program(wanted: Decoding, tokens: Tensor, model: nn.Module, reads: Callable[[nn.Module, int], Read]) -> Program:
    """The greedy loop around a model. ``reads(model, batch)`` starts new sequences."""
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
    """Through the runner that the engine reads with."""
    runner = TorchRunner(model)
    size = model.config.context
    runner.allocate(batch, size, "auto")
    past, last = 0, [None] * batch

    def read(tokens: Tensor) -> Tensor:
        nonlocal past, last
        S = tokens.shape[1]
        chunks = [Chunk(row, past, [place], S, last[place]) for place, row in enumerate(tokens.tolist())]
        logits = runner.forward(chunks)
        past, last = past + S, tokens[:, -1].tolist()
        return logits.unflatten(0, tokens.shape)

    return read


def reads_plain(model: PlainDecoder, batch: int) -> Read:
    caches = [Cache(model.config, batch, model.embedding.weight) for _ in model.blocks]
    return lambda tokens: model(tokens, caches=caches)


def reads_transformers(model: nn.Module, batch: int) -> Read:
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    return lambda tokens: model(tokens, past_key_values=cache, use_cache=True).logits
