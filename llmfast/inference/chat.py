"""A conversation with a model: turns, what fits into the context, and answers as they are generated."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmfast.data.chat.conversation import Message, conversation
from llmfast.data.chat.opening import own_template, saved_chat
from llmfast.files import atomic_write
from llmfast.inference.config import Sampling
from llmfast.inference.engine import Engine


@dataclass
class Answer:
    """What a model answered."""

    text: str
    tokens: int
    seconds: float
    """From the first token to the last."""
    interrupted: bool
    dropped: int
    """Turns at the beginning of the conversation that did not fit into the context any more."""
    filled: bool
    """Whether the context is full, so that the answer is cut off."""


class Chat:
    """A conversation.

    Args:
        engine: with a tokenizer that has a chat template beside it.
        system: what the system says first; empty for nothing.
        settings: of ``Sampling`` by name, for all answers.

    Raises:
        ValueError: a model without a chat template, or one that cannot be used.
    """

    def __init__(self, engine: Engine, system: str = "", **settings: Any):
        if engine.tokenizer is None or own_template(engine.tokenizer) is None:
            raise ValueError(
                "this model has no chat template beside its tokenizer: llmfast sft trains a model to answer, and "
                "llmfast generate continues texts"
            )
        self._engine, self._encoder = engine, saved_chat(engine.tokenizer)
        self._settings = {**settings, "stop_tokens": (self._encoder.end_token,)}
        self.system = system
        self.turns: list[Message] = []
        """What user and assistant said, in order."""
        self._answers = 0
        self._check_system()

    def answer(self, text: str, show: Callable[[str], None], is_stopped: Callable[[], bool] = lambda: False) -> Answer:
        """Say something, and get the answer; both become turns.

        Args:
            text: of the user.
            show: called with each part of the answer.
            is_stopped: asked before each step; ends the answer.

        Raises:
            ValueError: the text alone does not fit into the context. The conversation is as before.
        """
        self.turns.append({"role": "user", "content": text})
        try:
            prompt, dropped = self._fitting()
        except ValueError:
            self.turns.pop()
            raise
        parts: list[str] = []
        count, first, last, interrupted, reason = 0, None, 0.0, False, None
        request = self._engine.submit(prompt, Sampling(**self._settings | {"seed": self._seed()}))
        try:
            while not request.finished and not (interrupted := is_stopped()):
                for update in self._engine.step():
                    if update.request is request:
                        last = time.perf_counter()
                        first = first or last
                        count += len(update.tokens)
                        parts.append(update.text)
                        reason = update.finish_reason
                        show(update.text)
        finally:
            self._engine.cancel(request)
            self._engine.step()  # which only confirms it
        said = "".join(parts)
        self.turns.append({"role": "assistant", "content": said})
        limit = self._settings.get("max_tokens")
        filled = reason == "length" and (limit is None or count < limit)
        return Answer(said, count, last - (first or last), interrupted, dropped, filled)

    def take_back(self) -> str:
        """Remove the last question and its answer; returns the question.

        Raises:
            ValueError: nothing was said yet.
        """
        places = [place for place, turn in enumerate(self.turns) if turn["role"] == "user"]
        if not places:
            raise ValueError("nothing was said yet")
        text = self.turns[places[-1]]["content"]
        del self.turns[places[-1] :]
        return text

    def set_system(self, text: str) -> None:
        """Change what the system says, from the next answer on.

        Raises:
            ValueError: the template refuses it; it stays as it was.
        """
        before, self.system = self.system, text
        try:
            self._check_system()
        except ValueError:
            self.system = before
            raise

    def save(self, file: Path) -> None:
        """Write the conversation as JSON: ``messages`` with ``role`` and ``content``, which llmfast sft also reads.

        Raises:
            OSError: the file cannot be written.
        """
        atomic_write(file, json.dumps({"messages": self._messages()}, indent=2, ensure_ascii=False) + "\n")

    def load(self, file: Path) -> None:
        """Continue the conversation of a file that ``save`` wrote.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is no conversation, or not one that can be continued. The conversation is as before.
        """
        try:
            record = json.loads(file.read_bytes().decode("utf-8"))
        except ValueError as error:
            raise ValueError(f"{file} is not JSON in UTF-8: {error}") from None
        if not isinstance(record, dict) or not record.get("messages"):
            raise ValueError(f"{file} has no messages")
        messages = list(conversation(record, "messages", str(file)).messages)
        system = messages.pop(0)["content"] if messages[0]["role"] == "system" else ""
        roles = [turn["role"] for turn in messages]
        if roles != ["user", "assistant"] * (len(roles) // 2):
            raise ValueError(f"{file}: after the system, user and assistant must take turns, got {', '.join(roles)}")
        self.system, self.turns = system, [{"role": each["role"], "content": each["content"]} for each in messages]

    def _messages(self, start: int = 0) -> list[Message]:
        head = [{"role": "system", "content": self.system}] if self.system else []
        return head + self.turns[start:]

    def _prompt(self, start: int) -> list[int]:
        return self._encoder.prompt_of(self._messages(start))

    def _check_system(self) -> None:
        """Some templates have no place for what the system says."""
        self._encoder.prompt_of([*self._messages(len(self.turns)), {"role": "user", "content": "Hello."}])

    def _seed(self) -> int | None:
        """Of the next answer: another one each time, so that a repeated question is answered differently."""
        seed = self._settings.get("seed")
        self._answers += 1
        return None if seed is None else seed + self._answers - 1

    def _fitting(self) -> tuple[list[int], int]:
        """The prompt, and how many turns at the beginning had to be left out so that an answer fits: whole ones."""
        limit = self._engine.limit
        room = min(self._settings.get("max_tokens") or limit // 4, limit // 4)
        last = len(self.turns) - 1
        for start in range(0, last + 1, 2):
            prompt = self._prompt(start)
            if len(prompt) + room <= limit or (start == last and len(prompt) < limit):
                return prompt, start
        raise ValueError(f"that is {len(prompt)} tokens with the system prompt; the model's context holds {limit}")
