"""What a request asks for and how an engine works, as data: checked on creation."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Constraint:
    """A form that the text of a reply must have: exactly one of the two. Needs ``llguidance``."""

    json_schema: str | Mapping[str, Any] | None = None
    """A JSON schema; ``{}`` for any JSON. Kept as text."""
    regex: str | None = None
    """A regular expression (Rust's syntax) that the whole text matches."""

    def __post_init__(self) -> None:
        if (self.json_schema is None) == (self.regex is None):
            raise ValueError("constraint takes either json_schema or regex")
        if self.json_schema is not None and not isinstance(self.json_schema, str):
            object.__setattr__(self, "json_schema", json.dumps(self.json_schema))


@dataclass(frozen=True)
class Sampling:
    """How the tokens of a reply are chosen, and when it ends.

    Logits are changed in this order: constraint, ``logit_bias``, ``min_tokens``; then penalties; then ``temperature``;
    then the cuts ``top_k``, ``top_p`` and ``min_p``. A token is drawn of what remains.

    Raises:
        ValueError: a setting out of range; names it.
    """

    temperature: float = 1.0
    """Divides the logits: below 1 sharpens, 0 always takes the likeliest token (greedy)."""
    top_k: int | None = None
    """Only the k likeliest tokens, and those as likely as the last of them."""
    top_p: float | None = None
    """Only the likeliest tokens that together have this probability (Holtzman et al. 2020, nucleus sampling)."""
    min_p: float | None = None
    """Only tokens with at least this share of the likeliest one's probability (Nguyen et al. 2024)."""
    repetition_penalty: float = 1.0
    """Of each token in the prompt or the reply so far, a positive logit is divided by this and a negative one
    multiplied (Keskar et al. 2019; as in vLLM and transformers)."""
    presence_penalty: float = 0.0
    """Subtracted from the logit of each token that the reply has (as in OpenAI's API and vLLM)."""
    frequency_penalty: float = 0.0
    """Subtracted from the logit of a token for each time that the reply has it (as in OpenAI's API and vLLM)."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits of tokens."""
    seed: int | None = None
    """Same seed, same tokens, whoever shares the batch: the noise of a token depends on the seed, the sample and the
    position alone. Drawn at random if left out."""
    stop: Sequence[str] = ()
    """Texts that end the reply, which is cut before them. They may lie across tokens."""
    stop_tokens: Sequence[int] = ()
    """Tokens that end the reply, besides the end tokens of the model."""
    ignore_end: bool = False
    """Do not end at the end tokens of the model."""
    max_tokens: int | None = None
    """Most tokens of the reply; up to the model's context if left out."""
    min_tokens: int = 0
    """Neither stop tokens are drawn nor stop texts looked for before the reply has this many tokens."""
    truncate_prompt: bool = False
    """Read only the last tokens of a prompt that is too long, such that ``max_tokens`` fit behind it (half a context if
    that is left out). If not set, such a prompt is refused."""
    logprobs: int | None = None
    """How many alternatives to report with each token; none if left out. What is drawn always has its
    log-probability."""
    prompt_logprobs: int | None = None
    """Report the log-probability of each token of the prompt, with so many alternatives; not if left out."""
    constraint: Constraint | None = None
    """A form that the reply must have."""

    def __post_init__(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        object.__setattr__(self, "stop", stop)
        object.__setattr__(self, "stop_tokens", tuple(self.stop_tokens))
        object.__setattr__(self, "logit_bias", {int(token): float(bias) for token, bias in self.logit_bias.items()})
        _check(self.temperature >= 0 and math.isfinite(self.temperature), "temperature", "0 or more", self.temperature)
        _check(self.top_k is None or self.top_k >= 1, "top_k", "at least 1", self.top_k)
        _check(self.top_p is None or 0 < self.top_p <= 1, "top_p", "above 0 and at most 1", self.top_p)
        _check(self.min_p is None or 0 <= self.min_p <= 1, "min_p", "from 0 to 1", self.min_p)
        penalty = self.repetition_penalty
        _check(0 < penalty < math.inf, "repetition_penalty", "above 0", penalty)
        for name in ("presence_penalty", "frequency_penalty"):
            _check(math.isfinite(getattr(self, name)), name, "a finite number", getattr(self, name))
        for token, bias in self.logit_bias.items():
            _check(token >= 0 and not math.isnan(bias) and bias < math.inf, "logit_bias", "numbers by token", bias)
        _check(self.seed is None or 0 <= self.seed < 2**64, "seed", "from 0 to 2^64 - 1", self.seed)
        _check(all(isinstance(text, str) and text for text in stop), "stop", "texts that are not empty", stop)
        _check(self.max_tokens is None or self.max_tokens >= 1, "max_tokens", "at least 1", self.max_tokens)
        most = math.inf if self.max_tokens is None else self.max_tokens
        _check(0 <= self.min_tokens <= most, "min_tokens", "from 0 to max_tokens", self.min_tokens)
        if self.constraint is not None and self.min_tokens:
            raise ValueError("constraint says itself how long a reply is: leave out min_tokens")
        for name in ("logprobs", "prompt_logprobs"):
            _check((getattr(self, name) or 0) >= 0, name, "0 or more", getattr(self, name))


@dataclass(frozen=True)
class EngineConfig:
    """How an engine works.

    Raises:
        ValueError: a setting out of range; names it.
    """

    block_size: int = 16
    """Tokens in a block of the cache, which is what sequences share."""
    cache_blocks: int | None = None
    """Blocks of the cache; as many as ``memory`` holds if left out."""
    memory: int | None = None
    """Bytes of the cache, if ``cache_blocks`` is left out: enough for ``max_batch`` sequences of full length, but at
    most 1 GiB on a CPU and half of what is free on a GPU."""
    cache_dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = "auto"
    """Of the keys and values that are held; auto: that of the model. int8 has a scale per token and head."""
    max_batch: int = 16
    """Most sequences that are generated at once; others wait."""
    prefill_chunk: int = 512
    """Most tokens that are read in one step: long prompts are read in parts, between the tokens of others."""
    prefix_sharing: bool = True
    """Keep the keys and values of finished sequences, and use them for prompts that begin alike."""
    batch_invariant: bool = False
    """Compute every row by itself in a fixed order (``llmfast.kernels.batch_invariant``): log-probabilities have the
    bits that training in that mode computes, whoever shares the batch. Slow."""
    speculation: int = 0
    """How many tokens to guess ahead for each sequence, by the draft model or, without one, by looking up where the
    last tokens occurred before. The replies are the same."""
    lookup_tokens: int = 3
    """How many last tokens are looked up at most."""
    cuda_graphs: bool = True
    """Replay the steps that only generate from CUDA graphs, on a GPU."""

    def __post_init__(self) -> None:
        for name in ("block_size", "max_batch", "prefill_chunk", "lookup_tokens"):
            _check(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        for name in ("cache_blocks", "memory"):
            value = getattr(self, name)
            _check(value is None or value >= 1, name, "at least 1", value)
        _check(self.speculation >= 0, "speculation", "0 or more", self.speculation)
        dtypes = ("auto", "float32", "bfloat16", "float16", "int8")
        _check(self.cache_dtype in dtypes, "cache_dtype", f"one of {', '.join(dtypes)}", self.cache_dtype)


def _check(holds: bool, name: str, wanted: str, value: object) -> None:
    if not holds:
        raise ValueError(f"{name} must be {wanted}, got {value!r}")
