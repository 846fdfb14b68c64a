"""What to train on, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llmfast.data.reading.decoding import InvalidUTF8


@dataclass
class SourceConfig:
    """What to read, and the vocabulary to read it with."""

    sources: tuple[str, ...] = ()
    """Files (text, .jsonl, .parquet; .gz, .zst), folders, globs, hf:NAME[:SPLIT[:COLUMN]], or one of fineweb-edu,
    fineweb, tinystories, openwebtext, tinyshakespeare; Python's own standard library if left out."""
    column: str | None = None
    """Field that holds the text in JSONL, Parquet and datasets; text, or else the first with text, if left out."""
    tokenizer: str | None = None
    """A tokenizer to use: a folder, a file, or a published name such as gpt2; characters: each character of the
    training documents is a token. A byte-pair encoding is trained if left out."""
    vocab_size: int = 4096
    """Size of the vocabulary to train, special tokens included; characters decide it themselves."""
    tokenizer_characters: int = 1_000_000_000
    """The vocabulary is made from this many characters, the first of the training documents."""
    validation_fraction: float = 0.05
    """Share of the documents held out."""
    split: Literal["hash", "tail"] = "hash"
    """Which documents are held out. hash: by a hash of their content, so that a text that occurs twice is on one side;
    tail: the last ones, by characters, as nanoGPT splits TinyShakespeare."""
    invalid_utf8: InvalidUTF8 = "skip"
    """What becomes of documents that are not UTF-8. skip: they are left out; replace: wrong bytes become U+FFFD; stop:
    an error that says where the first wrong byte is. How many there were is reported."""

    def __post_init__(self) -> None:
        if not 0 < self.validation_fraction < 1:
            raise ValueError(f"data.validation_fraction must be between 0 and 1, got {self.validation_fraction}")
        if self.tokenizer_characters < 1:
            raise ValueError(f"data.tokenizer_characters must be at least 1, got {self.tokenizer_characters}")


@dataclass
class DataConfig(SourceConfig):
    """What to train on, and in what rows."""

    prepared: str | None = None
    """A folder that llmfast data prepare wrote: its tokenizer and shards are used, sources are not read."""
    packing: Literal["stream", "best_fit"] = "stream"
    """stream: rows are cut from the stream of tokens; best_fit: whole documents are packed into rows."""
    document_masks: bool = False
    """Attention stays inside documents and positions count from their starts."""


ProblemName = Literal["single_label", "multi_label", "regression"]
"""What is asked about a text: one of several labels, any number of them, or a number."""


@dataclass
class LabeledDataConfig:
    """Texts with labels or numbers."""

    sources: tuple[str, ...] = ()
    """Files with texts and labels: .tsv, .csv, .jsonl or .parquet, or LABEL=FILE with a text in each line."""
    problem: ProblemName = "single_label"
    """single_label: each text has one label; multi_label: any number of them; regression: a number."""
    text: str = "text"
    """Name of the column of texts."""
    label: str = "label"
    """Name of the column of labels, or of numbers."""
    separator: str = ","
    """Stands between the labels of a text in tables (multi_label); in JSON Lines and Parquet they are lists."""
    tokenizer: str | None = None
    """A tokenizer to use: a folder, a file, or a published name such as gpt2; characters: each character of the
    training texts is a token. If left out, it is that of the model to start from, or else a byte-pair encoding is
    trained on the texts."""
    vocab_size: int = 1024
    """Size of the vocabulary to train, special tokens included."""
    validation_fraction: float = 0.1
    """Share of the texts held out for evaluations during training, chosen by a hash of their words."""
    test_fraction: float = 0.1
    """Share of the texts held out for the end, chosen the same way; 0 for none."""
    max_tokens: int = 128
    """Longer texts are cut after this many tokens, counting the one before the text; how many is reported."""

    def __post_init__(self) -> None:
        if not 0 < self.validation_fraction < 1:
            raise ValueError(f"data.validation_fraction must be between 0 and 1, got {self.validation_fraction}")
        if not 0 <= self.test_fraction < 1 - self.validation_fraction:
            raise ValueError(
                f"data.test_fraction must be from 0 to below 1 - data.validation_fraction, got {self.test_fraction}"
            )
        if not self.separator:
            raise ValueError("data.separator must not be empty")
        if self.max_tokens < 2:
            raise ValueError(f"data.max_tokens must be at least 2, got {self.max_tokens}")


@dataclass
class ChatDataConfig:
    """What all kinds of conversations have in common."""

    sources: tuple[str, ...] = ()
    """Files (.json, .jsonl, .parquet; .gz, .zst), folders, globs, or hf:NAME[:SPLIT]."""
    template: str = "auto"
    """How conversations become text: chatml, llama-3, alpaca, zephyr, plain, tokenizer (its own chat template), or a
    file in Jinja. auto: the tokenizer's own if it has one, else chatml."""
    system: str | None = None
    """A system message for conversations that have none."""
    max_tokens: int | None = None
    """Tokens in a row; the model's context if left out."""
    tokenizer: str | None = None
    """A tokenizer to use: a folder, a file, or a published name such as gpt2; that of the model to start from if left
    out."""
    validation_fraction: float = 0.05
    """Share of the conversations held out, chosen by a hash of what is asked."""

    def __post_init__(self) -> None:
        if not 0 < self.validation_fraction < 1:
            raise ValueError(f"data.validation_fraction must be between 0 and 1, got {self.validation_fraction}")
        if self.max_tokens is not None and self.max_tokens < 2:
            raise ValueError(f"data.max_tokens must be at least 2, got {self.max_tokens}")


@dataclass
class InstructionDataConfig(ChatDataConfig):
    """Instructions with answers, or conversations."""

    form: Literal["auto", "alpaca", "dolly", "sharegpt", "messages", "prompt", "question"] = "auto"
    """What a record looks like. auto: recognized by its columns, and reported. alpaca: instruction, input, output;
    dolly: instruction, context, response; sharegpt: conversations with from and value; messages: role and content, as
    in OpenAI's library, tool calls included; prompt: prompt and completion; question: question and answer, as in
    GSM8K."""
    trained: Literal["answers", "last", "everything"] = "answers"
    """What the loss counts: all that the assistant says, its last answer, or the whole text."""
    packing: Literal["none", "best_fit"] = "best_fit"
    """best_fit: examples side by side in rows of max_tokens, each seeing itself alone; none: one example in each row,
    padded to the longest of its batch."""
    max_tokens: int | None = None
    """Tokens in a row; longer examples are cut, and left out if nothing to train remains. The model's context if left
    out."""


@dataclass
class PreferenceDataConfig(ChatDataConfig):
    """Prompts with a chosen and a rejected answer, or with an answer that was judged, as a whole or step by step."""

    sources: tuple[str, ...] = ()
    """Files (.json, .jsonl, .parquet; .gz, .zst), folders, globs, or hf:NAME[:SPLIT], with chosen and rejected answers
    to a prompt: texts, or lists of messages."""
    form: Literal["pairs", "judged", "steps"] = "pairs"
    """pairs: chosen and rejected. judged: completion, one answer, and label, true if it is good; for the loss kto and
    for reward. steps: completions, a list of steps, and labels, true, false or a probability for each; for reward."""
    max_tokens: int | None = None
    """Tokens in a row. Longer answers are cut; pairs of which nothing is left to compare are left out and reported. The
    model's context if left out."""
    validation_fraction: float = 0.1
    """Share of the pairs held out, chosen by a hash of their prompt."""


@dataclass
class PromptDataConfig(ChatDataConfig):
    """Prompts with the right answers."""

    sources: tuple[str, ...] = ()
    """Files (.json, .jsonl, .parquet; .gz, .zst), folders, globs, or hf:NAME[:SPLIT], with prompts and answers; or
    gym:NAME[:COUNT], tasks of reasoning-gym, whose own scores the reward gym gives with data.answer gym."""
    prompt: str = "auto"
    """Column of the prompt, a text or a list of messages. auto: prompt, question or instruction (with input)."""
    answer: str = "auto"
    """Column of the right answer, which rewards get. auto: answer, solution or output."""
    max_tokens: int | None = None
    """Tokens of a prompt with its answer. Prompts that leave no room for rollouts.max_tokens are left out and reported.
    The model's context if left out."""
    validation_fraction: float = 0.05
    """Share of the prompts held out, chosen by a hash of their text."""
