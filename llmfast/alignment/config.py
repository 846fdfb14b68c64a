"""The configurations of alignment runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from llmfast.data.config import PreferenceDataConfig
from llmfast.finetuning.config import FinetuningConfig, SupervisedConfig
from llmfast.models.config import DecoderConfig
from llmfast.training.config import TrainingConfig

PairLossName = Literal[
    "sigmoid", "sigmoid_norm", "robust", "hinge", "ipo", "exo", "nca", "bco", "sppo", "apo_zero", "apo_down",
    "discopop", "aot", "aot_unpaired", "kto", "sft", "simpo", "cpo", "orpo",
]  # fmt: skip
Divergence = Literal["reverse_kl", "forward_kl", "js", "alpha"]


def _preference_training() -> TrainingConfig:
    """Few steps at a low rate: the model is to change little."""
    return TrainingConfig(
        steps=200,
        batch_size=16,
        learning_rate=1e-4,
        weight_decay=0.0,
        evaluate_every=50,
        checkpoint_every=100,
        sample_every=100,
    )


@dataclass
class PreferenceConfig(FinetuningConfig):
    """One run that trains a model on preference pairs: DPO and its relatives."""

    losses: dict[PairLossName, float] = field(default_factory=lambda: {"sigmoid": 1.0})
    """Losses by name, each with its weight in the sum. sigmoid (DPO), sigmoid_norm (per token), robust, hinge, ipo,
    exo, nca, bco, sppo, apo_zero, apo_down, discopop, aot, aot_unpaired and kto compare with the reference; simpo, cpo
    and orpo need none; sft is the cross entropy of the chosen answers."""
    beta: float = 0.1
    """How strongly the model is held to the reference."""
    smoothing: float = 0.0
    """Share of pairs taken to be labeled the wrong way round (sigmoid, robust, exo, aot, simpo, cpo)."""
    margin: float = 0.5
    """By how much the reward of the chosen answer shall exceed the other (simpo)."""
    temperature: float = 0.05
    """Of the blend of discopop."""
    divergence: Divergence = "reverse_kl"
    """The f-divergence that holds the model to the reference, other than DPO's reverse_kl (f-DPO)."""
    alpha: float = 0.5
    """Of the divergence alpha."""
    reference: Literal["precompute", "adapter", "copy"] = "precompute"
    """Where the reference's log-probabilities come from. precompute: computed for all pairs before the first step, and
    kept with the data. adapter: the model without its adapter, at each step. copy: a frozen copy, at each step."""
    data: PreferenceDataConfig = field(default_factory=PreferenceDataConfig)
    model: DecoderConfig = field(default_factory=DecoderConfig)
    training: TrainingConfig = field(default_factory=_preference_training)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.losses:
            raise ValueError("losses is empty: name at least one, such as sigmoid")
        if self.reference == "adapter" and self.adapter == "none":
            raise ValueError("reference adapter needs adapter lora or qlora, which is left out for the reference")
        if self.training.context_warmup:
            raise ValueError("training.context_warmup is for pretraining: pairs are not cut into rows")


@dataclass
class RewardConfig(FinetuningConfig):
    """One run that trains a reward model on preference pairs."""

    centering: float = 0.01
    """Weight of the loss that keeps rewards around 0; 0 for none."""
    margin: float = 0.0
    """By how much the reward of the chosen answer shall exceed the other."""
    data: PreferenceDataConfig = field(default_factory=PreferenceDataConfig)
    model: DecoderConfig = field(default_factory=DecoderConfig)
    training: TrainingConfig = field(default_factory=_preference_training)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.centering < 0 or self.margin < 0:
            raise ValueError(f"centering {self.centering} and margin {self.margin} must be 0 or more")
        if self.training.context_warmup:
            raise ValueError("training.context_warmup is for pretraining: pairs are not cut into rows")


@dataclass
class DistillationConfig(SupervisedConfig):
    """One run that trains a model to answer as another one does."""

    teacher: str | None = None
    """The model to learn from, with the same tokenizer: a run (its newest checkpoint), a checkpoint, or a Hugging Face
    folder."""
    divergence: Literal["forward", "reverse", "js"] = "forward"
    """What is minimized for each token of an answer. forward: KL(teacher ‖ student), which covers all that the teacher
    may say; reverse: KL(student ‖ teacher), which keeps to what it mostly says; js: between both."""
    beta: float = 0.5
    """js: the teacher's share of the mixture that both are compared with."""
    temperature: float = 1.0
    """Softens both distributions; the divergence is multiplied by its square."""
    hard: float = 0.0
    """Share of the loss that is the cross entropy of the examples' own answers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.beta < 1:
            raise ValueError(f"beta must be between 0 and 1, got {self.beta}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")
        if not 0 <= self.hard <= 1:
            raise ValueError(f"hard is a share, from 0 to 1; got {self.hard}")
