"""Everything that decides a training run, as one tree of dataclasses: the file ``config.yaml`` of a run folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from llmfast.data.config import DataConfig
from llmfast.models.config import DecoderConfig


@dataclass
class TrainingConfig:
    """The optimisation: how long, how fast, on what."""

    steps: int = 1000
    """Optimizer steps."""
    batch_size: int = 8
    """Sequences per optimizer step."""
    accumulate: int = 1
    """Split each batch into this many parts to save memory; the result is that of the whole batch."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon: Muon for the matrices inside the blocks, AdamW for the rest."""
    learning_rate: float = 6e-3
    """Peak learning rate of AdamW."""
    matrix_learning_rate: float = 0.02
    """Peak learning rate of Muon."""
    warmup: float = 0.03
    """Share of the steps in which the learning rate rises from 0."""
    final_learning_rate: float = 0.0
    """Where the cosine ends, as a share of the peak."""
    weight_decay: float = 0.1
    """Decay of the matrices (not of norms and the embedding table)."""
    beta1: float = 0.9
    """AdamW's decay of the mean gradient."""
    beta2: float = 0.95
    """AdamW's decay of the mean squared gradient."""
    clip_norm: float = 1.0
    """Largest gradient norm."""
    seed: int = 0
    """Decides initialisation and the order of the data."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a CUDA GPU if there is one."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 where the machine computes it in hardware. Parameters stay float32."""
    compile: bool = True
    """Compile the model with torch.compile (a C++ compiler is needed on CPU)."""
    evaluate_every: int = 250
    """Steps between evaluations on part of the validation split; 0 leaves them out."""
    checkpoint_every: int = 500
    """Steps between checkpoints; the last two are kept."""
    sample_every: int = 250
    """Steps between samples shown while learning; 0 leaves them out."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"training.{name} must be at least 1, got {getattr(self, name)}")
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"training.batch_size {self.batch_size} is not a multiple of training.accumulate {self.accumulate}"
            )
        for name in ("learning_rate", "matrix_learning_rate"):
            if getattr(self, name) <= 0:
                raise ValueError(f"training.{name} must be positive, got {getattr(self, name)}")


@dataclass
class RunConfig:
    """One training run."""

    data: DataConfig = field(default_factory=DataConfig)
    model: DecoderConfig = field(default_factory=DecoderConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
