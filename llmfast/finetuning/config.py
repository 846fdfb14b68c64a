"""The configurations of finetuning runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from llmfast.data.config import InstructionDataConfig, LabeledDataConfig
from llmfast.models.adapters.config import LoraConfig, check_pattern
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
class FinetuningConfig:
    """What every run that trains a model further has in common; each task adds its data and its model."""

    start: str | None = None
    """Weights to start from instead of random ones: a run (its newest checkpoint), a checkpoint, or a Hugging Face
    folder. The model's settings and its tokenizer come from there. Of a classifier, the decoder below its head."""
    adapter: Literal["none", "lora", "qlora"] = "none"
    """none: train the weights themselves. lora: train low-rank adapters of the frozen weights. qlora: the same with the
    weights of the linear layers in 4 bits."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """The adapters."""
    freeze: tuple[str, ...] = ()
    """Modules and parameters that stay as they are, as patterns: a name, the end of one after a dot, or a regular
    expression that matches one of these (decoder; embedding; blocks.[0-3])."""
    training: TrainingConfig = field(default_factory=_training)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)

    def __post_init__(self) -> None:
        for pattern in self.freeze:
            check_pattern("freeze", pattern)
        if self.start is None and self.keeps_base:
            setting = f"adapter {self.adapter}" if self.adapter != "none" else "freeze"
            raise ValueError(f"{setting} needs start: a frozen base with random weights learns nothing")

    @property
    def keeps_base(self) -> bool:
        """Whether a part of the model of ``start`` stays as it is, and is in no checkpoint."""
        return self.adapter != "none" or bool(self.freeze)


@dataclass
class ClassificationConfig(FinetuningConfig):
    """One run that trains a classifier of texts."""

    class_weights: Literal["equal", "balanced"] | dict[str, float] = "equal"
    """How much the labels count in the loss: all the same, each inversely to the number of its texts, or as given by
    name (1 where none is). With several labels per text, the weight is that of the texts that have the label."""
    calibrate: bool = False
    """Fit a temperature to the validation split after the training, which makes probabilities mean what they say."""
    data: LabeledDataConfig = field(default_factory=LabeledDataConfig)
    model: DecoderConfig = field(default_factory=DecoderConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data.problem == "regression" and (self.calibrate or self.class_weights != "equal"):
            raise ValueError("calibrate and class_weights are for labels: with data.problem regression leave them out")
        if self.training.context_warmup:
            raise ValueError("training.context_warmup is for pretraining: texts are not cut into rows")


@dataclass
class SupervisedConfig(FinetuningConfig):
    """One run that trains a model to answer instructions."""

    data: InstructionDataConfig = field(default_factory=InstructionDataConfig)
    model: DecoderConfig = field(default_factory=DecoderConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.training.context_warmup:
            raise ValueError("training.context_warmup is for pretraining: examples are not cut into rows")
