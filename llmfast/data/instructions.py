"""Instructions with answers prepared for training: token shards with a loss mask, and rows of them.

A prepared folder holds ``train`` and ``validation``, each token shards in which a document is one conversation and each
token says whether it is trained (``llmfast.data.shards``), and the tokenizer with its chat template. What is trained is
decided here, once: packing, padding and cutting move tokens together with their mask.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from llmfast.data.batch import IGNORED, Batch
from llmfast.data.chat.conversation import Conversation, is_empty
from llmfast.data.chat.encoder import ChatEncoder
from llmfast.data.chat.opening import open_chat
from llmfast.data.chat.prepared import PreparedChat, check_shards
from llmfast.data.chat.records import read_conversations
from llmfast.data.config import InstructionDataConfig
from llmfast.data.corpus import is_held_out
from llmfast.data.prepare import SPLITS, load_tokenizer
from llmfast.data.shards import ShardWriter, TokenShards
from llmfast.data.windows import PackedWindows
from llmfast.files import atomic_folder
from llmfast.tokenizer import Tokenizer

ROUNDED = 16  # rows are padded to a multiple of this: few lengths, so that little is compiled
Report = Callable[[str], None]


class ExampleSplit:
    """One side of prepared data: conversations as rows of tokens, each with what is trained of it.

    A row is a conversation's tokens but the last, which is only ever predicted. Longer ones are cut after
    ``max_tokens``; one of which nothing is left to train is left out.

    Attributes:
        cut: conversations that are longer than a row.
        lost: those of them that are left out, because their answers lie behind the cut.
        targets: tokens that are trained, in all.
    """

    def __init__(self, folder: Path, *, max_tokens: int, verify: bool = True):
        self.shards = TokenShards(folder, verify=verify)
        if not self.shards.has_mask:
            raise ValueError(f"{folder} says not which tokens are trained: it was prepared for pretraining")
        starts, lengths = self.shards.document_spans
        rows = np.minimum(lengths - 1, max_tokens)
        targets = [int(self.shards.read_mask(start + 1, row).sum()) for start, row in zip(starts, rows, strict=True)]
        trained = np.array(targets, np.int64) > 0
        self.max_tokens = max_tokens
        self.cut = int((lengths - 1 > max_tokens).sum())
        self.lost = int((~trained).sum())
        self.targets = sum(targets)
        self.starts, self.lengths = starts[trained], rows[trained]
        self.checksum = hashlib.sha256(f"{self.shards.checksum} {max_tokens}".encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.starts)

    def batch(self, places: np.ndarray) -> Batch:
        """Examples as ``tokens`` and ``targets`` (B, S), int64, padded at the end; padding is no target.

        ``is_real`` (B, S) is false for padding.
        """
        lengths = self.lengths[places]
        width = min(-(-int(lengths.max()) // ROUNDED) * ROUNDED, self.max_tokens)
        columns = np.arange(width)
        at = self.starts[places][:, None] + columns
        # What is read behind the end of an example is the next one; padding replaces it.
        inside = columns < lengths[:, None]
        # Signed, because IGNORED is negative and shards are not.
        tokens, targets = (
            self.shards.read_at(each.ravel()).reshape(-1, width).astype(np.int64) for each in (at, at + 1)
        )
        trained = self.shards.read_mask_at((at + 1).ravel()).reshape(-1, width) & inside
        return Batch(
            tokens=torch.from_numpy(np.where(inside, tokens, self.shards.eot_token)),
            targets=torch.from_numpy(np.where(trained, targets, IGNORED)),
            is_real=torch.from_numpy(inside),
        )

    def packed(self) -> PackedWindows:
        """Rows of ``max_tokens`` in which examples lie side by side."""
        return PackedWindows(self.shards, self.max_tokens, pieces=(self.starts, self.lengths))

    def tokens(self, place: int) -> tuple[list[int], list[bool]]:
        """The whole of one example, and what of it is trained."""
        start, count = int(self.starts[place]), int(self.lengths[place]) + 1
        return self.shards.read(start, count).tolist(), self.shards.read_mask(start, count).tolist()


PreparedInstructions = PreparedChat[ExampleSplit]


def prepare_instructions(config: InstructionDataConfig, folder: Path, *, report: Report = lambda line: None) -> None:
    """Read conversations, render and encode them, and write both sides under ``folder``, whole or not at all.

    Conversations without an answer, and those with an empty one where answers are trained, are left out and counted.

    Raises:
        ValueError: nothing to read, a record or a template that cannot be used, or a side without a conversation.
    """
    if config.tokenizer is None:
        raise ValueError("instructions need the tokenizer of a model: give start, or data.tokenizer")
    with atomic_folder(folder) as partial:
        chat = open_chat(load_tokenizer(config.tokenizer), config.template)
        chat.tokenizer.save(partial)
        report(f"template    {chat.template.name}; answers end with {_shown(chat)}")
        writers = {split: masked_writer(partial / split, chat.tokenizer) for split in SPLITS}
        left_out = LeftOut()
        documents = Counter()
        for where, conversation in read_conversations(
            config.sources, form=None if config.form == "auto" else config.form, report=report
        ):
            conversation = with_system(conversation, config.system)
            if reason := _unfit(conversation, config):
                left_out.add(reason, where)
                continue
            split = "validation" if is_held_out(identity(conversation), config.validation_fraction) else "train"
            documents[split] += 1
            _add(writers[split], chat, conversation, config, where)
        check_sides(documents, left_out)
        for writer in writers.values():
            writer.finish()
        for line in left_out.lines():
            report(f"left out    {line}")


def open_instructions(folder: Path, *, max_tokens: int, verify: bool = True) -> PreparedInstructions:
    """Open what ``prepare_instructions`` wrote.

    Raises:
        ValueError: something is missing or damaged, or no example of a side has anything to train.
    """
    tokenizer = Tokenizer.load(folder)
    splits = [ExampleSplit(folder / split, max_tokens=max_tokens, verify=verify) for split in SPLITS]
    for split in splits:
        check_shards(split.shards, tokenizer)
        if not len(split):
            raise ValueError(
                f"of the {split.lost:,} examples in {split.shards.folder} none has an answer within the first "
                f"{max_tokens} tokens: data.max_tokens is too small"
            )
    return PreparedInstructions(tokenizer, *splits)


def describe_instructions(prepared: PreparedInstructions, report: Report) -> None:
    """What there is to train and to evaluate on, a line for each side."""
    for name, split in (("train", prepared.train), ("validation", prepared.validation)):
        tokens = int(split.lengths.sum()) + len(split)
        cut = f"; {split.cut:,} are cut at data.max_tokens {split.max_tokens}" if split.cut else ""
        lost = f", {split.lost:,} of them left out because nothing to train is left" if split.lost else ""
        report(f"{name:<11} {len(split):,} examples, {tokens:,} tokens, {split.targets:,} trained{cut}{lost}")


# --- what is left out ------------------------------------------------------------------------------------------------


class LeftOut:
    """Records that are left out, by reason, with the first of each."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.first: dict[str, str] = {}

    def add(self, reason: str, where: str) -> None:
        self.counts[reason] += 1
        self.first.setdefault(reason, where)

    def lines(self) -> list[str]:
        return [f"{count:,} {reason} (the first: {self.first[reason]})" for reason, count in self.counts.items()]


def _unfit(conversation: Conversation, config: InstructionDataConfig) -> str | None:
    """Why a conversation cannot be trained on; None if it can."""
    answers = conversation.answers
    if not answers:
        return "without an answer"
    trained = answers[-1:] if config.trained == "last" else answers
    if any(is_empty(conversation.messages[place]) for place in trained):
        return "with an empty answer"
    return None


def check_sides(documents: Counter[str], left_out: LeftOut) -> None:
    missing = [split for split in SPLITS if not documents[split]]
    if not missing:
        return
    if not documents:
        reasons = "; ".join(left_out.lines()) or "there are none"
        raise ValueError(f"no example can be trained on: {reasons}")
    raise ValueError(
        f"of {documents.total()} examples none is in the {missing[0]} split; data.validation_fraction decides how many "
        "are"
    )


# --- writing ---------------------------------------------------------------------------------------------------------


def masked_writer(folder: Path, tokenizer: Tokenizer) -> ShardWriter:
    folder.mkdir()
    return ShardWriter(
        folder,
        vocab_size=tokenizer.n_vocab,
        eot_token=tokenizer.eot_token,
        fingerprint=tokenizer.fingerprint,
        masked=True,
    )


def _add(
    writer: ShardWriter, chat: ChatEncoder, conversation: Conversation, config: InstructionDataConfig, where: str
) -> None:
    try:
        tokens, trained = chat.encode(conversation, config.trained)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    size = len("".join(message["content"] for message in conversation.messages).encode("utf-8", "surrogatepass"))
    writer.add_document(np.array(tokens), size, mask=np.array(trained, bool))


def with_system(conversation: Conversation, system: str | None) -> Conversation:
    if system is None or conversation.messages[0]["role"] == "system":
        return conversation
    return Conversation(({"role": "system", "content": system}, *conversation.messages), conversation.tools)


def identity(conversation: Conversation) -> bytes:
    """What decides the side of a conversation: all up to the first answer.

    An instruction that occurs with several answers is not on both sides.
    """
    first = next(iter(conversation.answers), len(conversation.messages))
    asked = conversation.messages[:first] or conversation.messages
    return json.dumps(asked, sort_keys=True).encode()


def _shown(chat: ChatEncoder) -> str:
    return repr(chat.tokenizer.decode([chat.end_token]))
