"""Responses and chunks of streams in the shapes of OpenAI's API."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any

from llmfast.inference.server.choices import Choice, Delta, Scored, token_bytes, token_text
from llmfast.tokenizer import Tokenizer


class Shape:
    """The response to one request.

    Args:
        tokenizer: of the model.
        model: its name in the request.
        logprobs: whether log-probabilities are asked for.
        top: of how many of the likeliest tokens.
    """

    prefix: str
    object: str
    chunk_object: str

    def __init__(self, tokenizer: Tokenizer, model: str, *, logprobs: bool, top: int):
        self._tokenizer, self._logprobs, self._top = tokenizer, logprobs, top
        self._head = {"id": f"{self.prefix}-{secrets.token_hex(12)}", "created": int(time.time()), "model": model}

    def whole(self, choices: Sequence[Choice], usage: dict[str, int]) -> dict[str, Any]:
        """All replies at once."""
        return {
            **self._head,
            "object": self.object,
            "choices": [self._choice(choice, choice.whole) for choice in choices],
            "usage": usage,
        }

    def first(self, choice: Choice) -> list[dict[str, Any]]:
        """What a stream begins a reply with."""
        return []

    def chunk(self, choice: Choice, delta: Delta) -> dict[str, Any]:
        """What is new of a reply."""
        return self._chunk([self._part(choice, delta)])

    def last(self, usage: dict[str, int]) -> dict[str, Any]:
        """The end of a stream that is to tell its usage."""
        return self._chunk([]) | {"usage": usage}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self._head, "object": self.chunk_object, "choices": choices}

    def _choice(self, choice: Choice, whole: Delta) -> dict[str, Any]:
        raise AssertionError("a shape has choices")

    def _part(self, choice: Choice, delta: Delta) -> dict[str, Any]:
        raise AssertionError("a shape has parts")


class CompletionShape(Shape):
    prefix, object, chunk_object = "cmpl", "text_completion", "text_completion"

    def _part(self, choice: Choice, delta: Delta) -> dict[str, Any]:
        return {
            "index": choice.index,
            "text": delta.text,
            "logprobs": self._scores(choice, delta.tokens) if self._logprobs else None,
            "finish_reason": delta.finish_reason,
        }

    def _choice(self, choice: Choice, whole: Delta) -> dict[str, Any]:
        return self._part(choice, whole)

    def _scores(self, choice: Choice, tokens: Sequence[Scored]) -> dict[str, Any]:
        texts = [token_text(self._tokenizer, each.token) for each in tokens]
        offsets = []
        for each in tokens:
            found = token_bytes(self._tokenizer, each.token)
            continues = bool(found) and 0x80 <= found[0] < 0xC0
            offsets.append(max(0, choice.offset - continues))
            choice.offset += sum(not 0x80 <= byte < 0xC0 for byte in found)
        tops = [self._alternatives(each) for each in tokens] if self._top else None
        scores = [each.logprob for each in tokens]
        return {"tokens": texts, "token_logprobs": scores, "top_logprobs": tops, "text_offset": offsets}

    def _alternatives(self, scored: Scored) -> dict[str, float] | None:
        """The likeliest tokens, and the one that was taken."""
        if scored.logprob is None:
            return None
        found = scored.top | {scored.token: scored.logprob}
        return {token_text(self._tokenizer, token): logprob for token, logprob in found.items()}


class ChatShape(Shape):
    prefix, object, chunk_object = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def first(self, choice: Choice) -> list[dict[str, Any]]:
        delta = {"role": "assistant", "content": ""}
        return [self._chunk([{"index": choice.index, "delta": delta, "logprobs": None, "finish_reason": None}])]

    def _part(self, choice: Choice, delta: Delta) -> dict[str, Any]:
        new: dict[str, Any] = {}
        if delta.text:
            new["content"] = delta.text
        if delta.calls:
            new["tool_calls"] = delta.calls
        return {"index": choice.index, "delta": new, **self._end(delta)}

    def _choice(self, choice: Choice, whole: Delta) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": whole.text, "refusal": None}
        if whole.calls:
            calls = [{name: value for name, value in call.items() if name != "index"} for call in whole.calls]
            message |= {"content": whole.text or None, "tool_calls": calls}
        return {"index": choice.index, "message": message, **self._end(whole)}

    def _end(self, delta: Delta) -> dict[str, Any]:
        scores = {"content": [self._score(each) for each in delta.tokens]} if self._logprobs else None
        return {"logprobs": scores, "finish_reason": delta.finish_reason}

    def _score(self, scored: Scored) -> dict[str, Any]:
        top = [self._entry(token, logprob) for token, logprob in list(scored.top.items())[: self._top]]
        return {**self._entry(scored.token, scored.logprob), "top_logprobs": top}

    def _entry(self, token: int, logprob: float | None) -> dict[str, Any]:
        found = token_bytes(self._tokenizer, token)
        return {"token": found.decode("utf-8", errors="replace"), "logprob": logprob, "bytes": list(found)}
