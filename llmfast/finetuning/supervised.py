"""Supervised finetuning: the task of answering instructions as the examples do."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import ClassVar

import numpy as np

from llmfast.data.batch import IGNORED, Source
from llmfast.data.chat.opening import open_chat
from llmfast.data.instructions import (
    PreparedInstructions,
    describe_instructions,
    open_instructions,
    prepare_instructions,
)
from llmfast.data.labeled import LabeledLoader
from llmfast.data.loader import Loader
from llmfast.data.shards import Share
from llmfast.finetuning.config import SupervisedConfig
from llmfast.finetuning.model import finetuned_decoder, finetuning_memory, freeze_parameters
from llmfast.inference.config import EngineConfig, Sampling
from llmfast.inference.engine import Engine
from llmfast.integrations.opening import Start, open_start
from llmfast.models.adapters.config import matches_any
from llmfast.models.decoder import Decoder
from llmfast.tokenizer import Tokenizer
from llmfast.training.decoder_task import DecoderTask
from llmfast.training.objective import Objective
from llmfast.training.pretraining import NextToken
from llmfast.training.start import started_config
from llmfast.training.task import Policy, Report

EVALUATED_AT_ONCE = 16
PART_EXAMPLES = 256  # of the validation split, for evaluations during training
SAMPLING = Sampling(temperature=0, max_tokens=60)


class SupervisedFinetuning(DecoderTask):
    """The task on prepared instructions (see ``llmfast.training.task.Task``).

    Its objective is that of pretraining: the cross entropy of the tokens that are targets, which are those of answers.

    Raises:
        ValueError: examples longer than the model's context, or weights to start from that do not go with the data.
    """

    config_class: ClassVar = SupervisedConfig
    command: ClassVar = "sft"

    def __init__(self, config: SupervisedConfig, prepared: PreparedInstructions, start: Start | None = None):
        self.config, self.prepared, self.start = config, prepared, start
        self.tokenizer: Tokenizer = prepared.tokenizer
        self.context = prepared.train.max_tokens
        self.check_context()

    @classmethod
    def prepare(cls, config: SupervisedConfig, folder: Path, *, report: Report) -> None:
        cls.use_tokenizer_of_start(config)
        prepare_instructions(config.data, folder, report=report)

    @classmethod
    def open(
        cls, config: SupervisedConfig, folder: Path, *, begins: bool, verify: bool, report: Report
    ) -> SupervisedFinetuning:
        cls.use_tokenizer_of_start(config)
        needs_start = config.start is not None and (begins or config.keeps_base)
        start = open_start(config.start) if needs_start else None
        if start is not None:
            # The size of the vocabulary follows from the tokenizer, which may have got special tokens for the template.
            plain = dataclasses.replace(config.model, vocab_size=start.config.vocab_size)
            config.model = started_config(plain, start)
        if config.data.max_tokens is None:
            config.data.max_tokens = config.model.context
        prepared = open_instructions(folder, max_tokens=config.data.max_tokens, verify=verify)
        if begins:
            describe_instructions(prepared, report)
        if start is not None:
            _check_tokenizer(start, config, prepared.tokenizer)
            if config.adapter != "none" and (tokens := _growth(start, prepared.tokenizer)):
                _train_embeddings(config, tokens[1] - tokens[0], report)
        size = prepared.tokenizer.n_vocab
        fitting = size if config.start is None else max(size, config.model.vocab_size)
        config.model = dataclasses.replace(config.model, vocab_size=fitting)
        return cls(config, prepared, start)

    def memory(self) -> dict[str, float]:
        return finetuning_memory(self.config, self.decoder_config)

    def flops_per_token(self) -> float:
        """Without the gradients of the weights, a third, where they are frozen below adapters."""
        flops = self.config.model.flops_per_token(self.context)
        return flops if self.config.adapter == "none" else flops * 2 / 3

    def objective(self) -> Objective:
        tokens = None if self.start is None else _growth(self.start, self.tokenizer)
        decoder = finetuned_decoder(self.config, self.start, self.config.model, tokens=tokens)
        freeze_parameters(decoder, self.config.freeze)
        if tokens is not None:
            _check_rows_are_trained(decoder)
        return NextToken(decoder)

    def source(self, share: Share, policy: Policy) -> Source:
        seed = self.config.training.seed
        if self.config.data.packing == "none":
            return LabeledLoader(self.prepared.train, seed=seed, share=share)
        return Loader(self.prepared.train.packed(), seed=seed, share=share, document_masks=True)

    def evaluate(self, policy: Policy, *, part: bool = False) -> dict[str, float]:
        """The mean loss of what is trained in held-out examples, in nats per token, and its exponential."""
        split = self.prepared.validation
        count = min(len(split), PART_EXAMPLES) if part else len(split)
        chosen = np.arange(count) * len(split) // count
        # Examples of like length together: little padding.
        chosen = chosen[np.argsort(split.lengths[chosen], kind="stable")]
        groups = [chosen[first : first + EVALUATED_AT_ONCE] for first in range(0, count, EVALUATED_AT_ONCE)]

        def measure(places: np.ndarray) -> tuple[float, int]:
            batch = split.batch(places).to(policy.device)
            with policy.autocast():
                loss = model(batch.tokens, batch.targets)
            targets = int((batch.targets != IGNORED).sum())
            return float(loss) * targets, targets

        with policy.inference() as model:
            table = policy.team.figures(measure, groups, 2)
        nats, targets = map(sum, zip(*table, strict=True))
        loss = nats / targets
        return {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}

    def sample(self, policy: Policy) -> tuple[str, str]:
        """A held-out instruction as the template renders it, and what the model answers."""
        tokens, trained = self.prepared.validation.tokens(0)
        prompt = tokens[: max(1, trained.index(True))]
        with policy.inference() as model:
            engine = Engine(model, self.tokenizer, EngineConfig(max_batch=1), ends=self.prepared.chat.end_tokens)
            ((reply,),) = engine.generate([prompt], SAMPLING)
        return self.tokenizer.decode(prompt), reply.text


def _growth(start: Start, tokenizer: Tokenizer) -> tuple[int, int] | None:
    """How many tokens the model was trained with, and how many it gets for the template; None if they are as many."""
    known = Tokenizer.load(start.folder).n_vocab
    return (known, tokenizer.n_vocab) if tokenizer.n_vocab > known else None


def _train_embeddings(config: SupervisedConfig, added: int, report: Report) -> None:
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


def _check_tokenizer(start: Start, config: SupervisedConfig, tokenizer: Tokenizer) -> None:
    """Check that data were prepared with the tokenizer of the model, and the special tokens of the template.

    Raises:
        ValueError: they were not, or the model's folder has no tokenizer that llmfast can use.
    """
    try:
        theirs = Tokenizer.load(start.folder)
    except (ValueError, OSError) as error:
        raise ValueError(f"start: {start.folder} has no tokenizer that llmfast can use: {error}") from None
    if open_chat(theirs, config.data.template).tokenizer.fingerprint != tokenizer.fingerprint:
        raise ValueError(f"start: the model of {start.folder} has another tokenizer than the data were prepared with")
