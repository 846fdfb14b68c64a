"""``llmfast chat``."""

from __future__ import annotations

import contextlib
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llmfast.inference.config import EngineConfig, Sampling

if TYPE_CHECKING:
    from llmfast.inference.chat import Answer, Chat

HELP = """\
/edit          change what you said last, and ask again
/retry         ask again, for another answer
/system TEXT   change the system prompt; without TEXT, show it
/reset         begin a new conversation
/save FILE     write the conversation as JSON
/load FILE     continue a conversation that was saved
/help          this list
/quit          end (so does Ctrl-D)
//...          say something that begins with one slash
Ctrl-C stops an answer; what was written of it stays in the conversation."""


def chat(
    run: Path,
    /,
    *,
    system: str = "",
    tokens: int | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    seed: int | None = None,
    base: Path | None = None,
    device: str | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    weights: Literal["float32", "bfloat16", "int8", "int4", "nf4"] | None = None,
) -> None:
    """Talk to a model in the terminal; /help lists what can be done there.

    Args:
        run: A run folder (its newest checkpoint is used), a checkpoint, a Hugging Face folder, or an adapter. It needs
            a chat template, as llmfast sft and Hugging Face's chat models have one.
        system: What the system says first.
        tokens: Most tokens of an answer; as many as the context holds if left out.
        temperature: Below 1 sharpens the choice towards likely tokens, 0 always takes the likeliest one. If left out,
            what generation_config.json beside the model says, else 0.8.
        top_k: Choose among the k likeliest tokens only.
        top_p: Choose among the likeliest tokens that together have this probability.
        min_p: Choose among tokens with at least this share of the likeliest one's probability.
        repetition_penalty: Above 1, makes tokens less likely that the conversation has already.
        seed: The same seed and messages give the same conversation.
        base: Where the base of an adapter lies now, if it was moved since the training.
        device: cpu or cuda; a GPU if there is one.
        dtype: Compute in PyTorch in this. If left out, bfloat16 on a GPU and float32 on a CPU.
        weights: How the decoder for CPUs keeps the weights; or nf4, 4 bits in PyTorch.

    Raises:
        ValueError: no model there, one without a chat template, a damaged file, or a setting out of range.
    """
    given: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    given |= {"repetition_penalty": repetition_penalty, "max_tokens": tokens, "seed": seed}
    given = {name: value for name, value in given.items() if value is not None}
    Sampling(**given)  # refused before the model is read

    from llmfast.inference.chat import Chat
    from llmfast.inference.defaults import default_sampling
    from llmfast.inference.engine import Engine

    engine = Engine.open(run, base=base, device=device, dtype=dtype, weights=weights, config=EngineConfig(max_batch=1))
    settings = default_sampling(engine.tokenizer, temperature=0.8) | given
    terminal = _Terminal()
    session = _Session(Chat(engine, system, **settings), terminal)
    terminal.note(f"{run.resolve().name}, up to {engine.limit:,} tokens. /help lists the commands; Ctrl-D ends.")
    session.run()


class _Terminal:
    """Lines in, text out, in color if it is a terminal."""

    def __init__(self) -> None:
        self._colors = sys.stdout.isatty()
        self._is_interactive = sys.stdin.isatty()
        with contextlib.suppress(ImportError):  # not on every system; lines can then not be edited
            import readline

            self._readline = readline

    def line(self, start: str = "") -> str | None:
        """What the user writes next, ``start`` being there already; None at the end of the input."""
        prompt = ""
        if self._is_interactive:
            prompt = "\001\033[1;36m\002> \001\033[0m\002" if self._colors else "> "
        edits = getattr(self, "_readline", None) if self._is_interactive else None
        if edits is not None:
            edits.set_startup_hook(lambda: edits.insert_text(start))
        try:
            return input(prompt)
        except EOFError:
            return None
        finally:
            if edits is not None:
                edits.set_startup_hook()

    def show(self, text: str) -> None:
        """A part of an answer, without the control characters with which a model could change the terminal."""
        sys.stdout.write("".join(char for char in text if char in "\n\t" or char.isprintable() or ord(char) > 0x9F))
        sys.stdout.flush()

    def note(self, text: str) -> None:
        """Something about the conversation."""
        print(f"\033[2m{text}\033[0m" if self._colors else text, flush=True)


class _Session:
    """A conversation in a terminal."""

    def __init__(self, chat: Chat, terminal: _Terminal):
        self._chat, self._terminal = chat, terminal
        self._commands: dict[str, Callable[[str], str | None]] = {
            "edit": self._edit, "retry": self._retry, "system": self._system, "reset": self._reset,
            "save": self._save, "load": self._load, "help": self._help,
        }  # fmt: skip

    def run(self) -> None:
        """Until the user ends it."""
        while True:
            try:
                line = self._terminal.line()
            except KeyboardInterrupt:
                print()
                self._terminal.note("/quit or Ctrl-D ends")
                continue
            if line is None or line.strip() in ("/quit", "/exit"):
                return
            try:
                text = self._command(line[1:]) if line.startswith("/") and line[1:2] != "/" else line
                if text and text.strip():
                    self._answer(text.removeprefix("/") if text.startswith("//") else text)
            except (ValueError, OSError) as error:
                self._terminal.note(_sentence(error))

    def _command(self, line: str) -> str | None:
        """Do what a command says; returns what is to be asked of the model."""
        name, _, rest = line.strip().partition(" ")
        if name not in self._commands:
            raise ValueError(f"/{name} is not a command; /help lists them")
        return self._commands[name](rest.strip())

    def _answer(self, text: str) -> None:
        with _interruptions() as is_stopped:
            answer = self._chat.answer(text, self._terminal.show, is_stopped)
        if not answer.text.endswith("\n"):
            print()
        self._terminal.note(_about(answer))

    # --- commands -----------------------------------------------------------------------------------------------------

    def _edit(self, _: str) -> str | None:
        before = self._chat.turns.copy()
        text = self._chat.take_back()
        try:
            edited = self._terminal.line(text)
        except KeyboardInterrupt:
            print()
            edited = None
        if not edited or not edited.strip():
            self._chat.turns = before
            self._terminal.note("nothing was changed")
            return None
        return edited

    def _retry(self, _: str) -> str:
        return self._chat.take_back()

    def _system(self, text: str) -> None:
        if text:
            self._chat.set_system(text)
        self._terminal.note(f"system: {self._chat.system or '(none)'}")

    def _reset(self, _: str) -> None:
        self._chat.turns.clear()
        self._terminal.note("a new conversation")

    def _save(self, name: str) -> None:
        file = _file(name, "/save")
        self._chat.save(file)
        self._terminal.note(f"saved in {file}")

    def _load(self, name: str) -> None:
        file = _file(name, "/load")
        self._chat.load(file)
        self._terminal.note(f"{len(self._chat.turns)} turns from {file}")
        for turn in self._chat.turns:
            self._terminal.show(f"{'> ' if turn['role'] == 'user' else ''}{turn['content']}\n")

    def _help(self, _: str) -> None:
        self._terminal.note(HELP)


@contextlib.contextmanager
def _interruptions() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed in a ``with`` block. It must not end a step of the engine in the middle."""
    pressed = False

    def press(*_: Any) -> None:
        nonlocal pressed
        if pressed:  # a step that takes long
            raise KeyboardInterrupt
        pressed = True

    before = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)


def _about(answer: Answer) -> str:
    parts = ["stopped"] if answer.interrupted else []
    parts.append(f"{answer.tokens:,} tokens")
    if answer.tokens > 1 and answer.seconds:
        parts[-1] += f", {(answer.tokens - 1) / answer.seconds:.1f} per second"
    if answer.filled:
        parts.append("the context is full, so the answer is cut off")
    if answer.dropped:
        parts.append(f"the context is full: the model no longer sees the first {answer.dropped} turns")
    return "; ".join(parts)


def _file(name: str, command: str) -> Path:
    words = shlex.split(name)
    if len(words) != 1:
        raise ValueError(f"{command} takes a file, as in {command} talk.json")
    return Path(words[0]).expanduser()


def _sentence(error: ValueError | OSError) -> str:
    from llmfast.cli import sentence

    return sentence(error)
