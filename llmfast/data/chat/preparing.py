"""Preparing conversations for training: what every kind of examples does alike, from the tokenizer to the last report.

Each kind has a function that reads its records and adds what they become::

    with preparing(config, folder, "judged answers", report) as preparation:
        for where, record in preparation.records():
            ...
            preparation.add(preparation.side(conversation), tokens, mask, conversation)
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from llmfast.data.chat.conversation import Conversation
from llmfast.data.chat.encoder import ChatEncoder, Encoded
from llmfast.data.chat.opening import open_chat
from llmfast.data.chat.records import opened_sources
from llmfast.data.config import ChatDataConfig
from llmfast.data.prepare import SPLITS, load_tokenizer
from llmfast.data.reading.corpus import is_held_out
from llmfast.data.shards import ShardWriter
from llmfast.files import atomic_folder, write_checked_json
from llmfast.tokenizer import Tokenizer

Report = Callable[[str], None]
LABELS = "labels.json"


class Preparation:
    """A folder of examples that is being written, with what was counted and left out so far.

    Attributes:
        folder: where the tokenizer lies, and each side is written.
        chat: how conversations become tokens.
        examples: how many each side has.
        labels: what was said of the examples of each side, in their order, where anything was.
    """

    def __init__(self, config: ChatDataConfig, folder: Path, chat: ChatEncoder):
        self.config, self.folder, self.chat = config, folder, chat
        self.examples: Counter[str] = Counter()
        self.labels: dict[str, list[Any]] = {split: [] for split in SPLITS}
        self._left_out: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def records(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """(where, record) of every record in the sources, in order."""
        for _, records in opened_sources(self.config.sources):
            yield from records

    def with_system(self, conversation: Conversation) -> Conversation:
        """The conversation with the system message of the settings, if it has none of its own."""
        if self.config.system is None or conversation.messages[0]["role"] == "system":
            return conversation
        system = {"role": "system", "content": self.config.system}
        return Conversation((system, *conversation.messages), conversation.tools)

    def encode(self, conversation: Conversation, trained: str, where: str) -> Encoded:
        """The tokens of a conversation, and which are trained.

        Raises:
            ValueError: the template cannot render it; the message begins with ``where``.
        """
        try:
            return self.chat.encode(conversation, trained)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None

    def prompt(self, conversation: Conversation, where: str) -> list[int]:
        """The tokens of a conversation, up to where an answer begins.

        Raises:
            ValueError: the template cannot render it; the message begins with ``where``.
        """
        try:
            return self.chat.prompt(conversation)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None

    def leave_out(self, reason: str, where: str) -> None:
        """Counts a record that cannot be used."""
        self._left_out[reason] += 1
        self._first.setdefault(reason, where)

    def side(self, conversation: Conversation) -> str:
        """The side to which an example belongs, which then counts as one of its examples.

        All up to the first answer decides, so that an instruction with several answers is not on both sides.
        """
        first = next(iter(conversation.answers), len(conversation.messages))
        asked = conversation.messages[:first] or conversation.messages
        held_out = is_held_out(json.dumps(asked, sort_keys=True).encode(), self.config.validation_fraction)
        side = "validation" if held_out else "train"
        self.examples[side] += 1
        return side

    def add(
        self,
        side: str,
        tokens: Sequence[int],
        mask: Sequence[bool] | np.ndarray,
        conversation: Conversation,
        label: Any = None,
    ) -> None:
        """Writes one row of tokens with its mask to the shards of a side, and keeps the label, if there is one, for
        ``labels.json`` beside them. The text of the conversation is the row's size in bytes."""
        size = len("".join(each["content"] for each in conversation.messages).encode("utf-8", "surrogatepass"))
        self._writers[side].add_document(np.array(tokens), size, mask=np.array(mask, bool))
        if label is not None:
            self.labels[side].append(label)

    def finish(self) -> list[str]:
        """Closes the shards, and says what was left out, a line for each reason.

        Raises:
            ValueError: a side has no examples.
        """
        lines = [f"{count:,} {reason} (the first: {self._first[reason]})" for reason, count in self._left_out.items()]
        if not self.examples:
            raise ValueError(f"no example can be trained on: {'; '.join(lines) or 'there are none'}")
        for split in SPLITS:
            if not self.examples[split]:
                raise ValueError(
                    f"of {self.examples.total()} examples none is in the {split} split; data.validation_fraction "
                    "decides how many are"
                )
        if "_writers" in vars(self):
            for split, writer in self._writers.items():
                writer.finish()
                if self.labels[split]:
                    write_checked_json(self.folder / split / LABELS, {"labels": self.labels[split]})
        return lines

    @functools.cached_property
    def _writers(self) -> dict[str, ShardWriter]:
        return {split: masked_writer(self.folder / split, self.chat.tokenizer) for split in SPLITS}


@contextmanager
def preparing(config: ChatDataConfig, folder: Path, what: str, report: Report) -> Iterator[Preparation]:
    """Opens the tokenizer and its template, and writes ``folder`` whole when the block ends, or not at all.

    Args:
        config: what to read.
        folder: where to write.
        what: the kind of examples, for messages.
        report: is called with a line for each reason for which records were left out.

    Raises:
        ValueError: no tokenizer, a template that cannot be used, or a side without an example.
    """
    if config.tokenizer is None:
        raise ValueError(f"{what} need the tokenizer of a model: give start, or data.tokenizer")
    with atomic_folder(folder) as partial:
        chat = open_chat(load_tokenizer(config.tokenizer), config.template)
        chat.tokenizer.save(partial)
        preparation = Preparation(config, partial, chat)
        yield preparation
        for line in preparation.finish():
            report(f"left out    {line}")


def masked_writer(folder: Path, tokenizer: Tokenizer) -> ShardWriter:
    """A writer of shards that say of each token whether it is trained."""
    folder.mkdir()
    return ShardWriter(
        folder,
        vocab_size=tokenizer.n_vocab,
        eot_token=tokenizer.eot_token,
        fingerprint=tokenizer.fingerprint,
        masked=True,
    )
