"""The configurations of finetuning runs."""

from __future__ import annotations

from dataclasses import dataclass, field

from llmfast.data.config import InstructionDataConfig, LabeledDataConfig
from llmfast.models.config import DecoderConfig
from llmfast.training.config import ParallelConfig, TrainingConfig


def _training() -> TrainingConfig:
    """Fewer steps at a lower rate than pretraining has."""
    return TrainingConfig(
        steps=300,
        batch_size=16,
        learning_rate=1e-3,
        evaluate_every=50,
        checkpoint_every=100,
        sample_every=100,
    )


@dataclass
class ClassificationConfig:
    """One run that trains a classifier of texts."""

    start: str | None = None
    """Weights to start from instead of random ones: a run (its newest checkpoint), a checkpoint, or a Hugging Face
    folder. The model's settings and its tokenizer come from there."""
    freeze_base: bool = False
    """Train the classification head alone; the model of start stays as it is and is not copied into checkpoints."""
    data: LabeledDataConfig = field(default_factory=LabeledDataConfig)
    model: DecoderConfig = field(default_factory=DecoderConfig)
    training: TrainingConfig = field(default_factory=_training)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)

    def __post_init__(self) -> None:
        if self.freeze_base and self.start is None:
            raise ValueError("freeze_base needs start: a frozen base with random weights learns nothing")
        if self.training.context_warmup:
            raise ValueError("training.context_warmup is for pretraining: texts are not cut into rows")


@dataclass
class SupervisedConfig:
    """One run that trains a model to answer instructions."""

    start: str | None = None
    """Weights to start from instead of random ones: a run (its newest checkpoint), a checkpoint, or a Hugging Face
    folder. The model's settings and its tokenizer come from there."""
    data: InstructionDataConfig = field(default_factory=InstructionDataConfig)
    model: DecoderConfig = field(default_factory=DecoderConfig)
    training: TrainingConfig = field(default_factory=_training)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)

    def __post_init__(self) -> None:
        if self.training.context_warmup:
            raise ValueError("training.context_warmup is for pretraining: examples are not cut into rows")
