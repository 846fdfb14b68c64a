"""Replies as they grow: what each update adds, which a stream sends at once and a response collects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from llmfast.inference.sequence import Request
from llmfast.inference.server.tools import ToolCallReader
from llmfast.inference.server.worker import Piece
from llmfast.tokenizer import Tokenizer

LEAST = -9999.0


@dataclass(frozen=True)
class Scored:
    """A token with its log-probability, and those of the likeliest tokens at its place."""

    token: int
    logprob: float | None
    top: dict[int, float]


@dataclass
class Delta:
    """What is new of a choice."""

    text: str = ""
    tokens: list[Scored] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)
    finish_reason: str | None = None

    @property
    def is_empty(self) -> bool:
        return not (self.text or self.tokens or self.calls or self.finish_reason)


@dataclass(frozen=True)
class Echo:
    """A prompt that is part of the reply."""

    prompt: list[int]
    text: str | None
    """As it was sent; None if it was sent as tokens."""
    added: int
    """How many tokens before the text the client did not send."""

    def begin(self, request: Request, tokenizer: Tokenizer) -> Delta:
        """The prompt, with log-probabilities where they are asked for."""
        truncated = len(request.prompt) < len(self.prompt)
        added = 0 if truncated else self.added
        text = tokenizer.decode(request.prompt) if truncated or self.text is None else self.text
        if request.sampling.prompt_logprobs is None:
            return Delta(text)
        scores: list[tuple[float | None, dict[int, float]]] = [(None, {}), *request.prompt_logprobs]
        tokens = [scored(token, *score) for token, score in zip(request.prompt, scores, strict=True)]
        return Delta(text, tokens[added:])


class Choice:
    """One reply."""

    def __init__(self, index: int, tokenizer: Tokenizer, *, echo: Echo | None = None, reads_tools: bool = False):
        self.index, self._tokenizer, self._echo = index, tokenizer, echo
        self._tools = ToolCallReader() if reads_tools else None
        self.generated = 0
        """Tokens so far, one that ends the reply included."""
        self.whole = Delta()
        self.offset = 0
        """Characters of the tokens whose place has been told (see ``text_offset`` of completions)."""

    def take(self, piece: Piece) -> Delta:
        """What a piece adds."""
        delta = Delta()
        if self._echo is not None:
            delta, self._echo = self._echo.begin(piece.request, self._tokenizer), None
        self.generated += len(piece.tokens)
        delta.text += piece.text if self._tools is None else self._without_calls(piece, delta)
        if piece.request.sampling.logprobs is not None:
            delta.tokens += _scored(piece)
        if piece.finish_reason is not None:
            called = self._tools is not None and self._tools.calls
            delta.finish_reason = "tool_calls" if called and piece.finish_reason == "stop" else piece.finish_reason
        self._collect(delta)
        return delta

    def _without_calls(self, piece: Piece, delta: Delta) -> str:
        before = len(self._tools.calls)
        text = self._tools.push(piece.text)
        if piece.finish_reason is not None:
            text += self._tools.finish()
        new = self._tools.calls[before:]
        delta.calls += [{"index": place, **call} for place, call in enumerate(new, before)]
        return text

    def _collect(self, delta: Delta) -> None:
        whole = self.whole
        whole.text += delta.text
        whole.tokens += delta.tokens
        whole.calls += delta.calls
        whole.finish_reason = delta.finish_reason


def _scored(piece: Piece) -> list[Scored]:
    """The tokens of a piece, without one that ends the reply, which has no text."""
    ended = piece.finish_reason == "stop" and isinstance(piece.stop_reason, int)
    shown = len(piece.tokens) - ended
    each = zip(piece.tokens[:shown], piece.logprobs, piece.top_logprobs, strict=False)
    return [scored(*one) for one in each]


def scored(token: int, logprob: float | None, top: dict[int, float]) -> Scored:
    """As JSON can hold it: it has no minus infinity, which is ``LEAST`` there."""
    own = None if logprob is None else max(logprob, LEAST)
    return Scored(token, own, {each: max(value, LEAST) for each, value in top.items()})


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """A token as text; as OpenAI's API writes it where its bytes are not whole characters."""
    found = token_bytes(tokenizer, token)
    try:
        return found.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in found)


def token_bytes(tokenizer: Tokenizer, token: int) -> bytes:
    try:
        return tokenizer.decode_single_token_bytes(token)
    except KeyError:  # an id of the model that the tokenizer does not have
        return b""


def usage(requests: Sequence[Request], choices: Sequence[Choice]) -> dict[str, int]:
    prompt = sum(len(request.prompt) for request in requests)
    completion = sum(choice.generated for choice in choices)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
