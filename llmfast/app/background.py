"""Work that goes on while pages are run again: each piece in a thread of its own, which waits for a server or a child.

A page keeps such a piece in its session and draws what is there so far. Running the page again starts nothing anew.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")


class Background(Generic[T]):
    """A function that is called in a thread.

    Args:
        work: what is called; its result is ``result``, and the sentence of its error ``error``.
    """

    def __init__(self, work: Callable[[], T]):
        self.result: T | None = None
        self.error = ""
        self._thread = threading.Thread(target=self._call, args=(work,), daemon=True)
        self._thread.start()

    @property
    def is_done(self) -> bool:
        return not self._thread.is_alive()

    def wait(self, seconds: float | None = None) -> None:
        """Wait until it is done."""
        self._thread.join(seconds)

    def _call(self, work: Callable[[], T]) -> None:
        try:
            self.result = work()
        except Exception as error:
            self.error = message_of(error)


@dataclass(frozen=True)
class Token:
    """A token that was written."""

    text: str
    probability: float | None = None
    alternatives: dict[str, float] = field(default_factory=dict)
    """The likeliest tokens at its place with their probabilities."""


@dataclass(frozen=True)
class Piece:
    """A part of a reply."""

    text: str
    tokens: tuple[Token, ...] = ()
    finish_reason: str | None = None


class Reply(Background[None]):
    """What a model writes, collected as it comes.

    Args:
        stream: called in the thread; yields the pieces. It is closed where ``stop`` ends the reply before its end.
    """

    def __init__(self, stream: Callable[[], Generator[Piece, None, None]]):
        self.text = ""
        self.tokens: list[Token] = []
        self.finish_reason: str | None = None
        self._stop = threading.Event()
        super().__init__(lambda: self._collect(stream()))

    def stop(self) -> None:
        """End it after the piece that comes next."""
        self._stop.set()

    @property
    def was_stopped(self) -> bool:
        return self._stop.is_set()

    def _collect(self, pieces: Generator[Piece, None, None]) -> None:
        for piece in pieces:
            self.text += piece.text
            self.tokens += piece.tokens
            self.finish_reason = piece.finish_reason
            if self._stop.is_set():
                pieces.close()


def message_of(error: Exception) -> str:
    """An error as a sentence; one that is a fault of this program is logged with its traceback."""
    from openai import APIConnectionError, APIStatusError

    from llmfast.cli import sentence

    if isinstance(error, APIStatusError):
        body = error.body if isinstance(error.body, dict) else {}
        return str(body.get("message") or error.message)
    if isinstance(error, APIConnectionError):
        return "the model's server is gone: ask again to load it"
    if not isinstance(error, ValueError | OSError):
        logging.getLogger(__name__).error("a task of the dashboard failed", exc_info=error)
    return sentence(error) or f"{type(error).__name__}: {error}"
