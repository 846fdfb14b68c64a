"""Sequence classification: the task of naming the class of a text."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from llmfast.data.batch import Batch
from llmfast.data.labeled import (
    LabeledLoader,
    PreparedLabels,
    describe_labeled,
    open_labeled,
    prepare_labeled,
)
from llmfast.data.shards import Share
from llmfast.finetuning.config import ClassificationConfig
from llmfast.finetuning.model import finetuned_decoder, finetuning_memory, freeze_parameters
from llmfast.integrations.opening import Start, open_start
from llmfast.models.classifier import ClassifierConfig, SequenceClassifier, without_head
from llmfast.models.folder import write_config
from llmfast.models.size import flops_by_part
from llmfast.tokenizer import Tokenizer
from llmfast.training.objective import Loss, Objective
from llmfast.training.start import check_same_tokenizer, started_config
from llmfast.training.task import Policy, Report

EVALUATED_AT_ONCE = 64
PART_TEXTS = 512  # of the validation split, for evaluations during training


class ClassificationObjective(Objective):
    """Cross entropy of the labels, a mean over the texts of a batch; reports the accuracy."""

    model: SequenceClassifier

    def weight(self, batch: Batch) -> Tensor:
        return torch.tensor(batch.rows, device=batch.labels.device)

    def forward(self, batch: Batch) -> Loss:
        logits, balancing = self.model(batch.tokens, batch.lengths)
        loss = F.cross_entropy(logits, batch.labels)
        if balancing is not None:
            loss = loss + balancing
        accuracy = (logits.detach().argmax(1) == batch.labels).float().mean()
        return Loss(loss, {"accuracy": accuracy})


class Classification:
    """The task on prepared labeled texts (see ``llmfast.training.task.Task``).

    Raises:
        ValueError: texts longer than the model's context, or weights to start from that do not go with the data.
    """

    config_class: ClassVar = ClassificationConfig
    command: ClassVar = "classify"

    def __init__(self, config: ClassificationConfig, prepared: PreparedLabels, start: Start | None = None):
        self.config, self.prepared, self.start = config, prepared, start
        self.tokenizer: Tokenizer = prepared.tokenizer
        self.context = config.data.max_tokens
        if self.context > config.model.context:
            raise ValueError(f"data.max_tokens {self.context} is more than the model's context {config.model.context}")
        decoder = dataclasses.replace(config.model, tie_embeddings=True)
        self.classifier = ClassifierConfig(decoder, tuple(prepared.names), self.context)

    @classmethod
    def prepare(cls, config: ClassificationConfig, folder: Path, *, report: Report) -> None:
        cls._use_tokenizer_of_start(config)
        prepare_labeled(config.data, folder, report=report)

    @classmethod
    def open(
        cls, config: ClassificationConfig, folder: Path, *, begins: bool, verify: bool, report: Report
    ) -> Classification:
        cls._use_tokenizer_of_start(config)
        prepared = open_labeled(folder, max_tokens=config.data.max_tokens, verify=verify)
        start = None
        if begins:
            describe_labeled(prepared, report)
        if config.start is None:
            config.model = dataclasses.replace(config.model, vocab_size=prepared.tokenizer.n_vocab)
        elif begins or config.keeps_base:
            start = open_start(config.start)
            check_same_tokenizer(start, prepared.tokenizer)
            config.model = started_config(config.model, start)
        return cls(config, prepared, start)

    @staticmethod
    def _use_tokenizer_of_start(config: ClassificationConfig) -> None:
        if config.start is not None and config.data.tokenizer is None:
            config.data.tokenizer = str(open_start(config.start).folder)

    def fingerprints(self) -> dict[str, str]:
        return {
            "data": self.prepared.train.checksum[:12],
            "tokenizer": self.tokenizer.fingerprint[:12],
        }

    def memory(self) -> dict[str, float]:
        return finetuning_memory(self.config, self.classifier.decoder)

    def flops_per_token(self) -> float:
        """Of the decoder without its output head: forward alone through a frozen base, else three times that."""
        parts = flops_by_part(self.classifier.decoder, self.context)
        flops = sum(count for part, count in parts.items() if part != "head")
        return flops / 3 if self.config.keeps_base else flops

    def objective(self) -> Objective:
        decoder = without_head(finetuned_decoder(self.config, self.start, self.config.model))
        model = SequenceClassifier(decoder, self.classifier)
        freeze_parameters(model, self.config.freeze)
        return ClassificationObjective(model)

    def base(self) -> str | None:
        return str(self.start.folder) if self.config.keeps_base else None

    def source(self, share: Share, policy: Policy) -> LabeledLoader:
        return LabeledLoader(self.prepared.train, seed=self.config.training.seed, share=share)

    def evaluate(self, policy: Policy, *, part: bool = False) -> dict[str, float]:
        """Mean loss and accuracy over held-out texts."""
        split = self.prepared.validation
        count = min(len(split), PART_TEXTS) if part else len(split)
        chosen = np.arange(count) * len(split) // count
        batches = [
            split.batch(chosen[first : first + EVALUATED_AT_ONCE]) for first in range(0, count, EVALUATED_AT_ONCE)
        ]

        def measure(batch: Batch) -> tuple[float, float]:
            batch = batch.to(policy.device)
            with policy.autocast():
                logits, _ = model(batch.tokens, batch.lengths)
            losses = F.cross_entropy(logits, batch.labels, reduction="none")
            return float(losses.double().sum()), float((logits.argmax(1) == batch.labels).sum())

        with policy.inference() as model:
            table = policy.team.figures(measure, batches, 2)
        loss, right = (sum(column) / count for column in zip(*table, strict=True))
        return {"loss": loss, "accuracy": right}

    def sample(self, policy: Policy) -> tuple[str, str]:
        """A held-out text, and the label that the model gives it with its probability."""
        split = self.prepared.validation
        batch = split.batch(np.array([0])).to(policy.device)
        with policy.inference() as model, policy.autocast():
            logits, _ = model(batch.tokens, batch.lengths)
        probabilities = logits[0].softmax(0)
        if not probabilities.isfinite().all():
            raise ValueError("the model's logits hold NaN or infinity: it has diverged")
        best = int(probabilities.argmax())
        text = self.tokenizer.decode(batch.tokens[0, 1 : int(batch.lengths[0])].tolist())
        return text, f" → {self.prepared.names[best]} ({float(probabilities[best]):.0%})"

    def units(self, loss: float) -> dict[str, float]:
        return {}

    def save_assets(self, folder: Path) -> None:
        write_config(folder, self.classifier)
        self.tokenizer.save(folder)
