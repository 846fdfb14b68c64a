"""What the dashboard asks of the servers of models, over HTTP."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmfast.app.background import Piece, Token
from llmfast.app.servers import Server

if TYPE_CHECKING:
    from openai import OpenAI

TOP = 5
"""How many of the likeliest tokens are shown."""


@dataclass(frozen=True)
class Settings:
    """How a reply is sampled."""

    temperature: float = 0.8
    top_k: int = 0
    """0 for all tokens."""
    top_p: float = 1.0
    seed: int = 0
    max_tokens: int = 128

    def as_request(self) -> dict[str, Any]:
        """The fields of a request."""
        return {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": self.seed,
            "max_tokens": self.max_tokens,
            "extra_body": {"top_k": self.top_k} if self.top_k else {},
        }


def complete(server: Server, prompt: str, settings: Settings) -> Generator[Piece, None, None]:
    """A text that continues the prompt, with the probabilities of its tokens."""
    with (
        _client(server) as client,
        client.completions.create(
            model=server.name, prompt=prompt, stream=True, logprobs=TOP, **settings.as_request()
        ) as events,
    ):
        for event in events:
            choice = event.choices[0]
            yield Piece(choice.text, _tokens(choice.logprobs), choice.finish_reason)


def chat(server: Server, messages: Sequence[Mapping[str, str]], settings: Settings) -> Generator[Piece, None, None]:
    """The answer to the last message."""
    with (
        _client(server) as client,
        client.chat.completions.create(
            model=server.name, messages=list(messages), stream=True, **settings.as_request()
        ) as events,
    ):
        for event in events:
            choice = event.choices[0]
            yield Piece(choice.delta.content or "", finish_reason=choice.finish_reason)


def classify(server: Server, text: str) -> dict[str, Any]:
    """What a classifier says of a text: the ``data`` of ``/classify``."""
    import httpx

    answer = httpx.post(
        f"{server.url}/classify",
        json={"model": server.name, "input": text},
        headers={"Authorization": f"Bearer {server.key}"},
        timeout=600,
    )
    body = answer.json()
    if answer.status_code != 200:
        raise ValueError(body["error"]["message"])
    return body["data"][0]


def _client(server: Server) -> OpenAI:
    from openai import OpenAI

    return OpenAI(base_url=f"{server.url}/v1", api_key=server.key, max_retries=0, timeout=600)


def _tokens(scores: Any) -> tuple[Token, ...]:
    if scores is None:
        return ()
    tops = scores.top_logprobs or [None] * len(scores.tokens)
    each = zip(scores.tokens, scores.token_logprobs, tops, strict=True)
    return tuple(
        Token(
            text.removeprefix("bytes:"),
            None if logprob is None else math.exp(logprob),
            {name.removeprefix("bytes:"): math.exp(value) for name, value in (top or {}).items()},
        )
        for text, logprob, top in each
    )
