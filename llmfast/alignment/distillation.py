"""Distillation: the task of answering as a teacher does, token by token."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from torch import Tensor

from llmfast.alignment.config import DistillationConfig
from llmfast.alignment.losses.distillation import Kind, divergences
from llmfast.alignment.teacher import Teacher, open_teacher, teacher_folder
from llmfast.data.batch import IGNORED, Batch
from llmfast.finetuning.supervised import SupervisedFinetuning
from llmfast.models.adapters.layers import head_weight
from llmfast.models.decoder import Decoder
from llmfast.training.objective import Loss, Objective, balancing_parts
from llmfast.training.task import Report


class DistillationObjective(Objective):
    """The divergence from a teacher, mixed with the cross entropy, a mean over the targets of a batch."""

    model: Decoder

    def __init__(self, model: Decoder, teacher: Teacher, *, kind: Kind, beta: float, temperature: float, hard: float):
        super().__init__(model)
        self.teacher = teacher
        self.options = {"kind": kind, "beta": beta, "temperature": temperature}
        self.hard = hard

    def weight(self, batch: Batch) -> Tensor:
        return (batch.targets != IGNORED).sum()

    def forward(self, batch: Batch) -> Loss:
        cu_seqlens, is_real = batch.cu_seqlens, batch.columns.get("is_real")
        theirs = self.teacher(batch.tokens, cu_seqlens, is_real)

        def losses(states: Tensor) -> tuple[Tensor, Tensor]:
            weight = head_weight(self.model.head)
            if weight is None:
                raise ValueError("distillation needs an output head without dropout in its adapter: set lora.dropout 0")
            weight = weight[: self.teacher.vocab_size]
            soft = divergences(
                states,
                weight,
                theirs.to(states.dtype),
                self.teacher.head.to(weight.dtype),
                batch.targets,
                **self.options,
            )
            return soft.sum(), self.model.losses_of(states, batch.targets).sum()

        (soft, hard), balancing = self.model(batch.tokens, cu_seqlens=cu_seqlens, is_real=is_real, of_states=losses)
        count = self.weight(batch).clamp(min=1)
        soft, hard = soft / count, hard / count
        loss = (1 - self.hard) * soft + self.hard * hard
        figures = {"divergence": soft.detach(), "cross_entropy": hard.detach()}
        return Loss(loss, figures, balancing_parts(balancing))


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
        super().prepare_data(config, folder, report)

    def objective(self) -> DistillationObjective:
        config = self.config
        teacher = open_teacher(config.teacher, self.tokenizer, packed=config.data.packing != "none")
        return DistillationObjective(
            self.start_decoder(),
            teacher,
            kind=config.divergence,
            beta=config.beta,
            temperature=config.temperature,
            hard=config.hard,
        )
