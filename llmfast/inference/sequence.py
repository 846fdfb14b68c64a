"""Requests, their sequences, and what is reported of them."""

from __future__ import annotations

import enum
from collections.abc import Sequence as Tokens
from dataclasses import dataclass, field
from typing import Literal

from llmfast.inference.blocks import Hash
from llmfast.inference.config import Sampling
from llmfast.inference.controls import Controls
from llmfast.inference.sampler import Drawn, Row
from llmfast.inference.text import ReplyText

FinishReason = Literal["stop", "length", "cancelled"]
"""stop: an end token, a stop token or a stop text; length: ``max_tokens``, or a full context or cache."""


@dataclass
class Completion:
    """One reply."""

    tokens: list[int]
    """All that were drawn, a stop token or those of a stop text included."""
    text: str
    """Their text, up to a stop token or stop text; empty without a tokenizer."""
    finish_reason: FinishReason | None
    """None while it is not finished."""
    stop_reason: int | str | None
    """The stop token or text that ended it."""
    logprobs: list[float]
    """Log-probability of each token by the plain logits (at temperature 1)."""
    sampling_logprobs: list[float]
    """Log-probability of each token in the distribution that it was drawn from (see ``sampling_log_probs``)."""
    top_logprobs: list[dict[int, float]] | None
    """The likeliest tokens at each place, if ``Sampling.logprobs`` asks for them."""
    prompt_tokens: list[int]
    prompt_logprobs: list[float | None] | None
    """Log-probability of each token of the prompt (None for the first), if ``prompt_logprobs`` asks for them."""
    prompt_top_logprobs: list[dict[int, float] | None] | None
    seed: int
    """Of the request, drawn if it named none."""
    sample: int
    ends: frozenset[int]
    """The tokens that could end it."""


@dataclass
class Update:
    """What one step added to one sample of a request."""

    request: Request
    sample: int
    tokens: list[int]
    text: str
    """The text that has become certain."""
    logprobs: list[float]
    sampling_logprobs: list[float]
    top_logprobs: list[dict[int, float]] | None
    finish_reason: FinishReason | None
    """Set in the last update of a sample."""
    stop_reason: int | str | None = None


@dataclass(eq=False)
class Request:
    """A prompt with its settings and samples."""

    id: int
    prompt: list[int]
    sampling: Sampling
    seed: int
    adapter: str | None
    ends: frozenset[int]
    limit: int
    """Most tokens of a sequence, prompt included."""
    sequences: list[Sequence] = field(default_factory=list)
    prompt_logprobs: list[tuple[float, dict[int, float]]] = field(default_factory=list)
    """Of the prompt's tokens from the second on."""

    @property
    def finished(self) -> bool:
        return all(sequence.finish_reason is not None for sequence in self.sequences)

    @property
    def completions(self) -> list[Completion]:
        """The replies so far, by sample."""
        return [sequence.completion() for sequence in self.sequences]


class State(enum.Enum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(eq=False)
class Sequence:
    """One sample of a request: prompt and reply, and the blocks that hold its keys and values."""

    request: Request
    sample: int
    controls: Controls
    reply: ReplyText
    tokens: list[int]
    state: State = State.WAITING
    blocks: list[int] = field(default_factory=list)
    released: int = 0
    """How many of its first blocks lie outside of all windows and are no longer its own."""
    computed: int = 0
    """How many of its tokens have keys and values in its blocks."""
    hashes: list[Hash] = field(default_factory=list)
    """Of its first full blocks."""
    remembered: int = 0
    """How many of its full blocks others can find."""
    guesses: list[int] = field(default_factory=list)
    """Tokens that may follow, to be verified in this step."""
    drawn: list[Drawn] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None

    @property
    def held(self) -> list[int]:
        """The blocks that it holds."""
        return self.blocks[self.released :]

    @property
    def unread(self) -> int:
        """Tokens without keys and values."""
        return len(self.tokens) - self.computed

    @property
    def generated(self) -> Tokens[int]:
        return self.tokens[len(self.request.prompt) :]

    def next_row(self) -> Row:
        """The place of the token to be drawn next."""
        request = self.request
        return Row(request.sampling, self.controls, request.seed, self.sample, len(self.drawn))

    def add(self, drawn: Drawn) -> str:
        """Append a token; returns the text that has become certain. Sets ``finish_reason`` if it is the last."""
        sampling, request = self.request.sampling, self.request
        self.tokens.append(drawn.token)
        self.drawn.append(drawn)
        self.controls.advance(drawn.token)
        if drawn.token in request.ends:
            self.finish_reason, self.stop_reason = "stop", drawn.token
            return self.reply.finish()
        text = self.reply.push(drawn.token, may_stop=len(self.drawn) >= sampling.min_tokens)
        if self.reply.stopped_by is not None:
            self.finish_reason, self.stop_reason = "stop", self.reply.stopped_by
        elif self.controls.matcher is not None and self.controls.matcher.is_complete:
            self.finish_reason = "stop"
            text += self.reply.finish()
        elif len(self.drawn) == sampling.max_tokens or len(self.tokens) >= request.limit:
            self.finish_reason = "length"
            text += self.reply.finish()
        return text

    def completion(self) -> Completion:
        request, sampling, n = self.request, self.request.sampling, self.drawn
        wants_prompt = sampling.prompt_logprobs is not None
        return Completion(
            tokens=list(self.generated),
            text=self.reply.text,
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
            logprobs=[each.logprob for each in n],
            sampling_logprobs=[each.sampling_logprob for each in n],
            top_logprobs=None if sampling.logprobs is None else [each.alternatives or {} for each in n],
            prompt_tokens=list(request.prompt),
            prompt_logprobs=[None, *(each for each, _ in request.prompt_logprobs)] if wants_prompt else None,
            prompt_top_logprobs=[None, *(each for _, each in request.prompt_logprobs)] if wants_prompt else None,
            seed=request.seed,
            sample=self.sample,
            ends=request.ends,
        )
