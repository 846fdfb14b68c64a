"""Everything that decides a training run, as one tree of dataclasses: the file ``config.yaml`` of a run folder."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from llmfast.data.config import DataConfig
from llmfast.models.config import Checkpointing, DecoderConfig
from llmfast.remote import is_address
from llmfast.training.optimizers.registry import OptimizerName

MOST_MINUTES = 60 * 24 * 365  # that processes wait for each other; infinity is no length of time


@dataclass
class TrainingConfig:
    """The optimization: how long, how fast, on what."""

    steps: int = 1000
    """Optimizer steps."""
    batch_size: int = 8
    """Sequences per optimizer step."""
    accumulate: int = 1
    """Split each batch into this many parts to save memory; the result is that of the whole batch."""
    optimizer: OptimizerName = "adamw"
    """adamw8bit: AdamW with moments of 8 bits, a quarter of the memory. muon: Muon for the matrices inside the blocks,
    AdamW for the rest."""
    learning_rate: float = 6e-3
    """Peak learning rate of AdamW."""
    matrix_learning_rate: float = 0.02
    """Peak learning rate of Muon."""
    schedule: Literal["cosine", "wsd", "linear", "constant"] = "cosine"
    """The learning rate after its warm-up: half a cosine, constant with a decay at the end (warm-up, stable, decay), a
    line, or constant."""
    warmup: float = 0.03
    """Share of the steps in which the learning rate rises from 0."""
    decay: float = 0.2
    """Share of the steps in which the learning rate falls at the end (wsd only)."""
    final_learning_rate: float = 0.0
    """Where the learning rate ends, as a share of the peak."""
    batch_warmup: float = 0.0
    """Share of the steps with smaller batches: an eighth, a quarter, half of batch_size for a third of them each."""
    context_warmup: float = 0.0
    """Share of the steps with rows cut into shorter ones: an eighth, a quarter, half of the context for a third of them
    each. The tokens of each step and their order stay the same."""
    layer_decay: float = 1.0
    """Learning rate of a block as a share of that of the block above it; the output head has the full rate, and the
    embedding table one share less than the first block. Below 1 for finetuning: early layers change less."""
    weight_decay: float = 0.1
    """Decay of the matrices (not of norms and the embedding table)."""
    beta1: float = 0.9
    """AdamW's decay of the mean gradient."""
    beta2: float = 0.95
    """AdamW's decay of the mean squared gradient."""
    clip_norm: float = 1.0
    """Largest gradient norm."""
    seed: int = 0
    """Decides the initial weights and the order of the data."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a CUDA GPU if there is one."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto: bfloat16 where the machine computes it in hardware. Parameters stay float32. float16 scales the loss, so
    that small gradients survive."""
    compile: bool = True
    """Compile the model with torch.compile (a C++ compiler is needed on CPU)."""
    activation_checkpointing: Checkpointing = "none"
    """What the backward pass computes again to save memory: nothing, all but matrix products, or whole blocks."""
    evaluate_every: int = 250
    """Steps between evaluations on part of the validation split; 0 leaves them out."""
    checkpoint_every: int = 500
    """Steps between checkpoints."""
    keep_last: int = 2
    """Newest checkpoints to keep."""
    keep_best: bool = True
    """Keep the checkpoint with the lowest validation loss as well."""
    async_checkpoints: bool = False
    """Write checkpoints in the background, from a copy in memory."""
    copy_to: str | None = None
    """Address of a folder, as s3://bucket/run, at which the run is copied after each checkpoint, while training
    continues, and at its end. llmfast copy brings it back, to be resumed on another machine."""
    sample_every: int = 250
    """Steps between samples shown while learning; 0 leaves them out."""
    evaluations: tuple[str, ...] = ()
    """More to evaluate every evaluate_every steps, as module:function: called with (model, tokenizer), it returns
    figures by name. With module:function:FILE it gets the file as its argument ``data``. All processes call it; one
    with an argument ``team`` gets a llmfast.evaluation.team.Team, to divide its work between them."""
    on_bad_step: Literal["stop", "skip"] = "stop"
    """What to do about a step whose loss or gradient is not a finite number, or whose loss is a spike: end the run, or
    continue with the next batch. The batch is saved for study and the weights are not touched in either case."""
    spike: float = 0.0
    """A loss over this many times the median of the last 100 steps is a spike; 0 for none."""
    track: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Where to send the log besides log.jsonl."""
    track_project: str | None = None
    """Project of the run at Weights & Biases and Trackio; WANDB_PROJECT, or else llmfast, if left out."""
    track_group: str | None = None
    """Group of the run at Weights & Biases and Trackio."""
    track_tags: tuple[str, ...] = ()
    """Tags of the run at Weights & Biases."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "checkpoint_every", "keep_last"):
            if getattr(self, name) < 1:
                raise ValueError(f"training.{name} must be at least 1, got {getattr(self, name)}")
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"training.batch_size {self.batch_size} is not a multiple of training.accumulate {self.accumulate}"
            )
        for name in ("weight_decay", "evaluate_every", "sample_every"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"training.{name} must be a number of 0 or more, got {getattr(self, name)}")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"training.{name} must be at least 0 and below 1, got {getattr(self, name)}")
        for name in ("learning_rate", "matrix_learning_rate"):
            if not 0 < getattr(self, name) < math.inf:  # not a NaN either
                raise ValueError(f"training.{name} must be a positive number, got {getattr(self, name)}")
        if not self.clip_norm > 0:  # infinity clips nothing
            raise ValueError(f"training.clip_norm must be positive, got {self.clip_norm}")
        if not -(2**63) <= self.seed < 2**63:
            raise ValueError(f"training.seed must fit into 64 bits, got {self.seed}")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"training.layer_decay must be above 0 and at most 1, got {self.layer_decay}")
        for name in ("warmup", "decay", "final_learning_rate", "batch_warmup", "context_warmup"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"training.{name} is a share, from 0 to 1; got {getattr(self, name)}")
        if self.copy_to is not None and not is_address(self.copy_to):
            raise ValueError(f"training.copy_to is an address, such as s3://bucket/run; got {self.copy_to}")
        if self.spike != 0 and not self.spike > 1:
            raise ValueError(f"training.spike must be above 1, or 0 for none; got {self.spike}")


@dataclass
class ParallelConfig:
    """How the processes that torchrun starts divide the work."""

    strategy: Literal["ddp", "fsdp", "hsdp"] = "ddp"
    """ddp: every process has the whole model; fsdp: parameters, gradients and optimizer state are divided between all;
    hsdp: divided inside groups, which hold copies."""
    group: int = 0
    """Processes in one group of hsdp, those of its tensor groups included; those of one machine if 0."""
    tensor: int = 1
    """Processes that divide each matrix product (tensor parallel) and see the same part of a batch. The strategy holds
    between such groups: ddp copies what they divide, fsdp and hsdp divide it further. Not compiled, and without samples
    on the way."""
    experts: int = 1
    """Processes that divide the experts of each layer and send each other tokens (expert parallel); each has its own
    part of a batch. The strategy holds for the rest, and between processes with the same experts. Not compiled, and
    without samples on the way."""
    cpu_offload: bool = False
    """Keep parameters and optimizer state in CPU memory between their uses (fsdp and hsdp)."""
    timeout: float = 10.0
    """Minutes that a process waits for the others in a step before the run ends and says which one is behind. The
    preparation of data and the writing of checkpoints by the first process take as long as they take."""

    def __post_init__(self) -> None:
        for name, least in (("tensor", 1), ("experts", 1), ("group", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"parallel.{name} must be at least {least}, got {getattr(self, name)}")
        if self.tensor > 1 and self.experts > 1:
            raise ValueError("parallel.tensor does not divide a mixture of experts; use parallel.experts alone")
        if self.cpu_offload and self.strategy == "ddp":
            raise ValueError("parallel.cpu_offload needs the strategy fsdp or hsdp")
        if not 0 < self.timeout <= MOST_MINUTES:
            raise ValueError(f"parallel.timeout must be above 0 and at most {MOST_MINUTES} minutes, got {self.timeout}")

    def check_experts(self, count: int) -> None:
        """Check that the ``count`` experts of a model can be divided as ``experts`` says.

        Raises:
            ValueError: they cannot.
        """
        if self.experts > 1 and (not count or count % self.experts):
            raise ValueError(f"parallel.experts {self.experts} does not divide model.experts.count {count}")


@dataclass
class RunConfig:
    """One pretraining run."""

    data: DataConfig = field(default_factory=DataConfig)
    model: DecoderConfig = field(default_factory=DecoderConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    start: str | None = None
    """Weights to start from instead of random ones: a run (its newest checkpoint), a checkpoint, or a Hugging Face
    folder. The model's settings and, unless data.tokenizer names another, the tokenizer come from there."""

    def __post_init__(self) -> None:
        if self.start is None:  # otherwise the model's settings are not known yet
            self.parallel.check_experts(self.model.experts.count)
