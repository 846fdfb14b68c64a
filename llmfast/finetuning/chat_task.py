"""The base of tasks that train a decoder on conversations, whatever they learn of them."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmfast.data.chat.opening import open_chat
from llmfast.finetuning.config import FinetuningConfig
from llmfast.finetuning.model import finetuned_decoder, finetuning_memory, freeze_parameters
from llmfast.inference.config import EngineConfig, Sampling
from llmfast.inference.engine import Engine
from llmfast.integrations.opening import Start, open_start
from llmfast.models.adapters.config import matches_any
from llmfast.models.decoder import Decoder
from llmfast.tokenizer import Tokenizer
from llmfast.training.decoder_task import DecoderTask
from llmfast.training.start import check_same_tokenizer, started_config
from llmfast.training.task import Policy, Report

SAMPLING = Sampling(temperature=0, max_tokens=60)


class ChatTask(DecoderTask, abc.ABC):
    """Those parts of a task on conversations that do not depend on what is learned of them.

    Subclasses say how their data are prepared, opened and described; the rest of ``llmfast.training.task.Task`` is
    theirs as well.

    Raises:
        ValueError: rows longer than the model's context, or weights to start from that do not go with the data.
    """

    def __init__(self, config: Any, prepared: Any, start: Start | None, folder: Path, *, begins: bool):
        self.config, self.prepared, self.start = config, prepared, start
        self.folder, self.begins = folder, begins
        self.tokenizer: Tokenizer = prepared.tokenizer
        self.context = config.data.max_tokens
        self.check_context()

    @classmethod
    @abc.abstractmethod
    def prepare_data(cls, config: Any, folder: Path, report: Report) -> None:
        """Write what ``open_data`` reads."""

    @classmethod
    @abc.abstractmethod
    def open_data(cls, config: Any, folder: Path, verify: bool) -> Any:
        """The prepared data."""

    @classmethod
    @abc.abstractmethod
    def describe_data(cls, prepared: Any, report: Report) -> None:
        """Report what there is to train on, a line for each part."""

    @classmethod
    def longest_row(cls, config: Any) -> int:
        """Tokens in the longest row that the model takes."""
        return (config.model if config.start is None else open_start(config.start).config).context

    @classmethod
    def prepare(cls, config: Any, folder: Path, *, report: Report) -> None:
        cls.use_tokenizer_of_start(config)
        cls.prepare_data(config, folder, report)

    @classmethod
    def open(cls, config: Any, folder: Path, *, begins: bool, verify: bool, report: Report) -> Any:
        cls.use_tokenizer_of_start(config)
        needs_start = config.start is not None and (begins or config.keeps_base or cls.keeps_start(config))
        start = open_start(config.start) if needs_start else None
        if start is not None:
            # The size of the vocabulary follows from the tokenizer, which may have got special tokens for the template.
            plain = dataclasses.replace(config.model, vocab_size=start.config.vocab_size)
            config.model = started_config(plain, start)
        if config.data.max_tokens is None:
            config.data.max_tokens = config.model.context
        prepared = cls.open_data(config, folder, verify)
        if begins:
            cls.describe_data(prepared, report)
        if start is not None:
            template = config.data.template
            check_same_tokenizer(start, prepared.tokenizer, prepared=lambda own: open_chat(own, template).tokenizer)
            if config.adapter != "none" and (tokens := _growth(start, prepared.tokenizer)):
                _train_embeddings(config, tokens[1] - tokens[0], report)
        size = prepared.tokenizer.n_vocab
        fitting = size if config.start is None else max(size, config.model.vocab_size)
        config.model = dataclasses.replace(config.model, vocab_size=fitting)
        return cls(config, prepared, start, folder, begins=begins)

    @classmethod
    def keeps_start(cls, config: Any) -> bool:
        """Whether the weights of ``start`` are needed for as long as the run lasts, as those of a frozen copy are."""
        return False

    def memory(self) -> dict[str, float]:
        held = finetuning_memory(self.config, self.decoder_config)
        return held | {"frozen copy": held["weights"]} if self.keeps_start(self.config) else held

    def flops_per_token(self) -> float:
        """Without the gradients of the weights, a third, where they are frozen below adapters."""
        flops = self.config.model.flops_per_token(self.context)
        return flops if self.config.adapter == "none" else flops * 2 / 3

    def start_decoder(self) -> Decoder:
        """The decoder as the run starts, with what is frozen in it."""
        tokens = None if self.start is None else _growth(self.start, self.tokenizer)
        decoder = finetuned_decoder(self.config, self.start, self.config.model, tokens=tokens)
        freeze_parameters(decoder, self.config.freeze)
        if tokens is not None:
            _check_rows_are_trained(decoder)
        return decoder

    def answer(self, policy: Policy, prompt: Sequence[int]) -> tuple[str, str]:
        """A prompt as text, and what the model answers at present, its likeliest token each time."""
        with policy.inference() as model:
            engine = Engine(model, self.tokenizer, EngineConfig(max_batch=1), ends=self.prepared.chat.end_tokens)
            ((reply,),) = engine.generate([prompt], SAMPLING)
        return self.tokenizer.decode(prompt), reply.text


def _growth(start: Start, tokenizer: Tokenizer) -> tuple[int, int] | None:
    """How many tokens the model was trained with, and how many it gets for the template; None if they are as many."""
    known = Tokenizer.load(start.folder).n_vocab
    return (known, tokenizer.n_vocab) if tokenizer.n_vocab > known else None


def _train_embeddings(config: FinetuningConfig, added: int, report: Report) -> None:
    """Train the embedding table and the head beside an adapter: equal rows of new tokens cannot be told apart."""
    wanted = ("embedding",) if config.model.tie_embeddings else ("embedding", "head")
    missing = [name for name in wanted if not matches_any(config.lora.modules_to_save, name)]
    if missing:
        saved = (*config.lora.modules_to_save, *missing)
        config.lora = dataclasses.replace(config.lora, modules_to_save=saved)
        report(
            f"adapter     the template adds {added} special tokens, so that {' and '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} trained in full beside it (lora.modules_to_save)"
        )


def _check_rows_are_trained(decoder: Decoder) -> None:
    """Check that the rows of new tokens are trained, in the embedding table and in the output head.

    Raises:
        ValueError: they are frozen, all with the same values.
    """
    tables = [
        name
        for name, parameter in decoder.named_parameters()
        if parameter.requires_grad and parameter.ndim == 2 and len(parameter) == decoder.config.table_rows
    ]
    if len(tables) < (1 if decoder.config.tie_embeddings else 2):
        raise ValueError(
            "the template adds special tokens, whose rows in the embedding table and the output head must be trained: "
            "leave them out of freeze, or choose a data.template with tokens that the model knows, such as plain"
        )
