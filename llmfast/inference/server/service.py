"""A model as a server offers it: its names, its limits, and the engine that runs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llmfast.data.chat.encoder import ChatEncoder
from llmfast.data.chat.opening import own_template, saved_chat
from llmfast.inference.defaults import default_sampling
from llmfast.inference.engine import PLAIN, Engine
from llmfast.inference.server.errors import ApiError
from llmfast.inference.server.metrics import Metrics
from llmfast.inference.server.worker import EngineThread


@dataclass(frozen=True)
class Limits:
    """What a server takes.

    Raises:
        ValueError: a limit out of range; names it.
    """

    max_queue: int = 256
    """Most replies that wait beside those that are generated; more are refused with the status 429."""
    max_prompt: int | None = None
    """Most tokens of a prompt; as many as the model takes if left out."""
    max_body: int = 4 * 2**20
    """Most bytes of a request's body."""
    timeout: float = 600.0
    """Most seconds of a reply."""
    body_timeout: float = 30.0
    """Most seconds until a request's body is there."""

    def __post_init__(self) -> None:
        for name, least in (("max_queue", 0), ("max_prompt", 1), ("max_body", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        for name in ("timeout", "body_timeout"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be a number of seconds above 0, got {getattr(self, name)}")


class Service:
    """What the routes share.

    Args:
        engine: with a tokenizer; nobody else may use it.
        name: of the model.
        adapters: names under which adapters of the engine's model are offered, with the engine's names for them.
        limits: see there.

    Raises:
        ValueError: an engine without a tokenizer, or two models of one name.
    """

    def __init__(
        self, engine: Engine, name: str, *, adapters: Mapping[str, str] | None = None, limits: Limits | None = None
    ):
        if engine.tokenizer is None:
            raise ValueError("a server needs an engine with a tokenizer")
        if name in (adapters or {}):
            raise ValueError(f"the adapter {name!r} has the name of the model: give one of them another")
        self.name, self.limits, self.tokenizer = name, limits or Limits(), engine.tokenizer
        self._adapters: dict[str, str | None] = {name: engine.runner.default_adapter, **(adapters or {})}
        self.worker = EngineThread(engine, max_queue=self.limits.max_queue)
        self.metrics = Metrics(self.worker)
        self.defaults = default_sampling(engine.tokenizer, temperature=1.0)
        self._encoder, self._why_no_chat = _chat(engine)

    @property
    def models(self) -> list[str]:
        """The names of the model and of its adapters."""
        return list(self._adapters)

    @property
    def can_chat(self) -> bool:
        return self._encoder is not None

    @property
    def encoder(self) -> ChatEncoder:
        """The chat template.

        Raises:
            ApiError: the model has none.
        """
        if self._encoder is None:
            raise ApiError(400, f"model: {self.name} cannot chat: {self._why_no_chat}; use /v1/completions", "model")
        return self._encoder

    def adapter(self, model: str) -> str | None:
        """The engine's name of the adapter that a request's model is; None for the model without adapters.

        Raises:
            ApiError: no such model.
        """
        if model not in self._adapters:
            names = ", ".join(map(repr, self._adapters))
            raise ApiError(404, f"model {model!r} is not here; there is {names}", "model", "model_not_found")
        return self._adapters[model]

    def check_length(self, tokens: int, field: str) -> None:
        """Check a prompt's tokens against the limit of the server.

        Raises:
            ApiError: it is longer.
        """
        most = self.limits.max_prompt
        if most is not None and tokens > most:
            raise ApiError(
                400, f"{field} has {tokens} tokens; this server takes up to {most}", field, "prompt_too_long"
            )


def for_engine(adapter: str | None) -> str:
    """An adapter as ``Engine.submit`` takes it."""
    return PLAIN if adapter is None else adapter


def _chat(engine: Engine) -> tuple[ChatEncoder | None, str]:
    """The chat template beside the tokenizer, or why there is none."""
    if own_template(engine.tokenizer) is None:
        return None, "it has no chat template"
    try:
        return saved_chat(engine.tokenizer), ""
    except ValueError as error:
        return None, str(error)
