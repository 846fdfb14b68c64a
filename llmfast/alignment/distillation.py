"""Distillation: the task of answering as a teacher does, token by token or by its own answers."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from torch import Tensor

from llmfast.alignment.config import DistillationConfig
from llmfast.alignment.losses.distillation import Kind, divergences, top_k_divergences
from llmfast.alignment.own_answers import StudentAnswers, write_teacher_answers
from llmfast.alignment.teacher import Teacher, open_teacher, teacher_folder
from llmfast.alignment.teacher_table import TABLE, TaughtExamples, write_teacher_table
from llmfast.data.batch import IGNORED, Batch, Source
from llmfast.data.examples.instructions import open_instructions
from llmfast.data.examples.labeled import LabeledLoader
from llmfast.data.shards import Share
from llmfast.files import atomic_folder
from llmfast.finetuning.supervised import SupervisedFinetuning
from llmfast.models.adapters.layers import head_weight
from llmfast.models.decoder import Decoder
from llmfast.training.objective import Loss, Objective, balancing_parts
from llmfast.training.preflight.hardware import choose_device
from llmfast.training.task import Policy, Report


class DistillationObjective(Objective):
    """The divergence from a teacher, mixed with the cross entropy, a mean over the targets of a batch.

    Without ``teacher``, batches have its likeliest tokens (``TaughtExamples``).
    """

    model: Decoder

    def __init__(
        self,
        model: Decoder,
        teacher: Teacher | None,
        vocab_size: int,
        *,
        kind: Kind,
        beta: float,
        temperature: float,
        hard: float,
    ):
        super().__init__(model)
        self.teacher, self.vocab_size = teacher, vocab_size
        self.kind, self.beta, self.temperature, self.hard = kind, beta, temperature, hard
        self._check_caps()

    def weight(self, batch: Batch) -> Tensor:
        return (batch.targets != IGNORED).sum()

    def forward(self, batch: Batch) -> Loss:
        cu_seqlens, is_real = batch.cu_seqlens, batch.columns.get("is_real")
        theirs = None if self.teacher is None else self.teacher(batch.tokens, cu_seqlens, is_real)

        def losses(states: Tensor) -> tuple[Tensor, Tensor]:
            soft = self._divergences(states, theirs, batch)
            return soft.sum(), self.model.losses_of(states, batch.targets).sum()

        (soft, hard), balancing = self.model(batch.tokens, cu_seqlens=cu_seqlens, is_real=is_real, of_states=losses)
        count = self.weight(batch).clamp(min=1)
        soft, hard = soft / count, hard / count
        loss = (1 - self.hard) * soft + self.hard * hard
        figures = {"divergence": soft.detach(), "cross_entropy": hard.detach()}
        return Loss(loss, figures, balancing_parts(balancing))

    def _check_caps(self) -> None:
        models = {"the student": self.model, "the teacher": self.teacher.model if self.teacher is not None else None}
        for who, model in models.items():
            if isinstance(model, Decoder) and model.config.logit_softcap is not None:
                raise ValueError(
                    f"distillation multiplies by the output head alone, but {who} has model.logit_softcap "
                    f"{model.config.logit_softcap}"
                )

    def _divergences(self, states: Tensor, theirs: Tensor | None, batch: Batch) -> Tensor:
        weight = head_weight(self.model.head)
        if weight is None:
            raise ValueError("distillation needs an output head without dropout in its adapter: set lora.dropout 0")
        weight, states = weight[: self.vocab_size], self.model.scaled(states)
        if self.teacher is None or theirs is None:
            return top_k_divergences(
                states,
                weight,
                batch.teacher_tokens,
                batch.teacher_log_probabilities,
                batch.targets,
                temperature=self.temperature,
            )
        return divergences(
            states,
            weight,
            theirs.to(states.dtype),
            self.teacher.head.to(weight.dtype),
            batch.targets,
            kind=self.kind,
            beta=self.beta,
            temperature=self.temperature,
        )


class Distillation(SupervisedFinetuning):
    """The task on prepared instructions (see ``llmfast.training.task.Task``), evaluated as supervised finetuning is."""

    config_class: ClassVar = DistillationConfig
    command: ClassVar = "distill"
    config: DistillationConfig

    @classmethod
    def prepare_data(cls, config: DistillationConfig, folder: Path, report: Report) -> None:
        if config.teacher is None:
            raise ValueError("distill needs teacher: the model to learn from")
        if config.start is None and config.data.tokenizer is None:
            # A student from nothing has the teacher's.
            config.data.tokenizer = str(teacher_folder(config.teacher))
        if config.answers == "data" and config.top_k is None:
            super().prepare_data(config, folder, report)
            return
        if config.data.max_tokens is None:
            config.data.max_tokens = cls.longest_row(config)
        with atomic_folder(folder) as partial:
            super().prepare_data(config, partial / "given", report)
            for each in (partial / "given").iterdir():
                each.rename(partial / each.name)
            (partial / "given").rmdir()
            _prepare_with_teacher(config, partial, report)

    def objective(self) -> DistillationObjective:
        config, teacher = self.config, None
        if config.top_k is None:
            teacher = open_teacher(config.teacher, self.tokenizer, packed=config.data.packing != "none")
        return DistillationObjective(
            self.start_decoder(),
            teacher,
            self.tokenizer.n_vocab,
            kind=config.divergence,
            beta=config.beta,
            temperature=config.temperature,
            hard=config.hard,
        )

    def source(self, share: Share, policy: Policy) -> Source:
        config, prepared = self.config, self.prepared
        if config.top_k is not None:
            examples = TaughtExamples(prepared.train, self.folder / TABLE)
            return LabeledLoader(examples, seed=config.training.seed, share=share)
        if not config.on_policy:
            return super().source(share, policy)
        examples = LabeledLoader(prepared.train, seed=config.training.seed, share=share)
        return StudentAnswers(examples, prepared, policy, on_policy=config.on_policy, max_answer=config.max_answer)


def _prepare_with_teacher(config: DistillationConfig, folder: Path, report: Report) -> None:
    """What the teacher does once, before the first step: write answers, or judge those that there are."""
    assert config.data.max_tokens is not None
    max_tokens, device = config.data.max_tokens, choose_device(config.training.device)
    prepared = open_instructions(folder, max_tokens=max_tokens)
    teacher = open_teacher(config.teacher, prepared.tokenizer, packed=False).to(device)
    if config.answers == "teacher":
        if not isinstance(teacher.model, Decoder):
            raise ValueError(
                f"answers teacher needs a teacher that llmfast itself runs, and {config.teacher} runs in transformers "
                "alone: write its answers there and give them as data"
            )
        count = write_teacher_answers(folder, prepared, teacher.model, config.max_answer)
        report(f"teacher     has written {count:,} answers")
        prepared = open_instructions(folder, max_tokens=max_tokens)
    if config.top_k is not None:
        if config.top_k > prepared.tokenizer.n_vocab:
            raise ValueError(f"top_k {config.top_k} is more than the {prepared.tokenizer.n_vocab:,} tokens there are")
        file = folder / TABLE
        write_teacher_table(file, prepared.train, teacher, k=config.top_k, temperature=config.temperature)
        report(f"teacher     its {config.top_k} likeliest tokens at {prepared.train.targets:,} targets, in {TABLE}")
