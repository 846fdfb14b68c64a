"""Sequence classification: the task of naming the labels of a text, or its number."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from llmfast.data.batch import Batch
from llmfast.data.examples.labeled import (
    LabeledLoader,
    LabeledSplit,
    PreparedLabels,
    describe_labeled,
    open_labeled,
    prepare_labeled,
)
from llmfast.data.shards import Share
from llmfast.finetuning.config import ClassificationConfig
from llmfast.finetuning.model import finetuned_decoder, finetuning_memory, freeze_parameters, headless_flops
from llmfast.finetuning.outputs import outputs_of
from llmfast.finetuning.predict import predict_one
from llmfast.finetuning.problems import Problem, make_problem
from llmfast.integrations.opening import Start, open_start
from llmfast.models.classifier import ClassifierConfig, SequenceClassifier, without_head
from llmfast.models.config import DecoderConfig
from llmfast.tokenizer import Tokenizer
from llmfast.training.decoder_task import DecoderTask
from llmfast.training.objective import Loss, Objective, balancing_parts
from llmfast.training.start import check_same_tokenizer, started_config
from llmfast.training.task import Policy, Report

PART_TEXTS = 512  # of the validation split, for evaluations during training


class ClassificationObjective(Objective):
    """The loss of a problem, a mean over the texts of a batch by their weights."""

    model: SequenceClassifier

    def __init__(self, model: SequenceClassifier, problem: Problem):
        super().__init__(model)
        self.problem = problem

    def weight(self, batch: Batch) -> Tensor:
        return self.problem.weights(batch.labels).sum()

    def forward(self, batch: Batch) -> Loss:
        outputs, balancing = self.model(batch.tokens, batch.lengths)
        loss = self.problem.losses(outputs, batch.labels).sum() / self.weight(batch)
        figures = self.problem.training_figures(outputs.detach(), batch.labels)
        return Loss(loss, figures, balancing_parts(balancing))


class Classification(DecoderTask):
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
        self.check_context()
        decoder = dataclasses.replace(config.model, tie_embeddings=True)
        self.classifier = ClassifierConfig(
            decoder, tuple(prepared.names), self.context, prepared.train.problem, *_offset_and_scale(prepared.train)
        )
        # Evaluations use this one, on the CPU; that of the objective goes where the model is.
        self.problem = make_problem(self.classifier, config.class_weights, prepared.train)

    @classmethod
    def prepare(cls, config: ClassificationConfig, folder: Path, *, report: Report) -> None:
        cls.use_tokenizer_of_start(config)
        prepare_labeled(config.data, folder, report=report)

    @classmethod
    def open(
        cls, config: ClassificationConfig, folder: Path, *, begins: bool, verify: bool, report: Report
    ) -> Classification:
        cls.use_tokenizer_of_start(config)
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

    @property
    def decoder_config(self) -> DecoderConfig:
        return self.classifier.decoder

    @property
    def model_config(self) -> ClassifierConfig:
        return self.classifier

    def memory(self) -> dict[str, float]:
        return finetuning_memory(self.config, self.decoder_config)

    def flops_per_token(self) -> float:
        return headless_flops(self.config, self.decoder_config, self.context)

    def objective(self) -> Objective:
        decoder = without_head(finetuned_decoder(self.config, self.start, self.config.model))
        model = SequenceClassifier(decoder, self.classifier)
        freeze_parameters(model, self.config.freeze)
        return ClassificationObjective(model, copy.deepcopy(self.problem))

    def source(self, share: Share, policy: Policy) -> LabeledLoader:
        return LabeledLoader(self.prepared.train, seed=self.config.training.seed, share=share)

    def evaluate(self, policy: Policy, *, part: bool = False) -> dict[str, float]:
        """The loss and the problem's figures over held-out texts, each a figure of all of them at once."""
        outputs = outputs_of(self.prepared.validation, policy, most=PART_TEXTS if part else None)
        return outputs.figures(self.problem)

    def sample(self, policy: Policy) -> tuple[str, str]:
        """A held-out text, and what the model says of it."""
        split = self.prepared.validation
        logits = torch.from_numpy(outputs_of(split, policy, most=1).logits[0])
        if not logits.isfinite().all():
            raise ValueError("the model's outputs hold NaN or infinity: it has diverged")
        prediction = predict_one(split.decode(self.tokenizer, 0), logits, self.classifier)
        return prediction.text, f" → {prediction.described()}"


def _offset_and_scale(train: LabeledSplit) -> tuple[float, float]:
    """Mean and standard deviation of the numbers to learn; 0 and 1 where there are labels."""
    if train.problem != "regression":
        return 0.0, 1.0
    numbers = train.targets.astype(np.float64)
    return float(numbers.mean()), float(numbers.std())
