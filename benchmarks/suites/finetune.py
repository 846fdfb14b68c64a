"""Steps of supervised finetuning: ours, a plain PyTorch loop, and trl's ``SFTTrainer``.

All have the same weights and see the same examples, in which only answers are targets; their lengths are drawn as
those of short instructions are. Ours lays them side by side in rows with document masks, as ``llmfast sft`` does; the
others pad each to the longest, which is what trl does on a CPU (its own packing needs FlashAttention to keep examples
apart). trl's step is its collator and ``training_step``, with clipping and AdamW; once with its default of computing
activations again in the backward pass, and once without. Tokens are those of examples, without padding. The check
compares the loss, the gradient of the embedding table, and the table after a step.

On a CPU that does not multiply in bfloat16, that dtype is left out. Last comes a QLoRA step (``qlora``) of the
small model in float32, beside peft and bitsandbytes on a CPU.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from llmfast.data.batch import IGNORED
from llmfast.data.packing import best_fit
from llmfast.models.config import DecoderConfig

from ..contenders import Contender
from ..hugging_face import same_model, unfit
from ..jobs import SECONDS, Job, Program
from ..plain import PlainDecoder
from ..results import OURS, PYTORCH, has_bfloat16
from ..trl_trainers import TRL, arguments, collated, padding_tokenizer, stepping
from . import qlora
from .train_step import SHAPES, decoder, drawn, training

# A model that transformers has, too.
MODELS = SHAPES | {"small": DecoderConfig(vocab_size=4096, width=256, layers=4, heads=4, context=256)}
PROMPT_SHARE = 0.6


@dataclass(frozen=True)
class Finetuning:
    """A model by name, the number of examples per step, and the width of packed rows."""

    model: str
    examples: int
    width: int
    dtype: torch.dtype


def cases(size: str) -> Iterator[Job]:
    both = size == "tiny" or (size != "cpu-quick" and has_bfloat16())
    for dtype in (torch.float32, torch.bfloat16) if both else (torch.float32,):
        if size == "tiny":
            yield job(Finetuning("toy", 4, 32, dtype))
        else:
            yield job(Finetuning("small", 16, 128, dtype))
            if size != "cpu-quick":
                yield job(Finetuning("GPT-2 124M", 8, 256, dtype))
    name, rows, width = ("toy", 2, 16) if size == "tiny" else ("small", 4, 128)
    yield qlora.job(name, MODELS[name], rows, width, "cpu", torch.float32)


def lengths_of(count: int, longest: int) -> list[int]:
    """Lengths of examples: log-normal, as those of instruction data are; most are far below the longest."""
    drawn = np.random.default_rng(0).lognormal(np.log(longest / 3), 0.6, count)
    return [int(min(max(length, 4), longest)) for length in drawn]


def job(step: Finetuning) -> Job:
    config = MODELS[step.model]
    lengths = lengths_of(step.examples, step.width)
    generator = torch.Generator().manual_seed(0)
    examples = [torch.randint(config.vocab_size, (length + 1,), generator=generator) for length in lengths]
    ours = functools.cache(lambda: drawn(config))
    padded = padded_rows(examples)
    tokens, targets, cu_seqlens = packed_rows(examples, step.width)

    def plain(dtype: torch.dtype = torch.float32) -> nn.Module:
        model = PlainDecoder(config)
        model.load_state_dict(ours().state_dict())
        return model.to(dtype)

    def packed() -> Program:
        model = decoder(ours)()
        return training(OURS, Packed(model, cu_seqlens), tokens, targets, step.dtype, whole=True)

    def evidence(dtype: torch.dtype) -> dict[str, Tensor]:
        model = plain(torch.float64 if dtype == torch.float64 else torch.float32)
        return training(PYTORCH, model, *padded, dtype, whole=True).evidence()

    def theirs(checkpointing: bool) -> Callable[[], Program]:
        return lambda: trl_program(config, ours().state_dict(), examples, step.dtype, checkpointing)

    count = sum(lengths)
    sequence = count // len(lengths)
    return Job(
        op=f"{step.model}, finetuning",
        shape={"B": step.examples, "S": step.width},
        dtype=step.dtype,
        pass_="training step",
        exact=lambda: evidence(torch.float64),
        plain=lambda: evidence(step.dtype),
        contenders=[
            Contender(OURS, packed),
            Contender(PYTORCH, lambda: training(PYTORCH, plain(), *padded, step.dtype, whole=True)),
            Contender(TRL, theirs(False), module="trl", unfit=unfit(config)),
            Contender(f"{TRL}, checkpointing", theirs(True), module="trl", unfit=unfit(config)),
        ],
        work=(4 * config.parameters * (2 + 2 + 6), int(count * config.flops_per_token(sequence))),
        tokens=count,
        seconds=SECONDS["cpu"],
    )


def targets_of(example: Tensor) -> Tensor:
    """The token after each, where it is part of the answer."""
    targets = example[1:].clone()
    targets[: int(PROMPT_SHARE * len(targets))] = IGNORED
    return targets


def padded_rows(examples: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Tokens and targets, one example in each row."""
    pad = torch.nn.utils.rnn.pad_sequence
    tokens = pad([each[:-1] for each in examples], batch_first=True)
    return tokens, pad([targets_of(each) for each in examples], batch_first=True, padding_value=IGNORED)


def packed_rows(examples: list[Tensor], width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, targets and where documents start, of examples side by side in as few rows as best fit needs."""
    places = best_fit(np.array([len(each) - 1 for each in examples]), width)
    rows = int(places.max()) + 1
    tokens, targets = torch.zeros(rows, width, dtype=torch.long), torch.full((rows, width), IGNORED)
    starts = []
    for row in range(rows):
        place = 0
        for number in np.flatnonzero(places == row):
            size = len(examples[number]) - 1
            tokens[row, place : place + size] = examples[number][:-1]
            targets[row, place : place + size] = targets_of(examples[number])
            starts.append(row * width + place)
            place += size
        if place < width:
            starts.append(row * width + place)
    return tokens, targets, torch.tensor([*starts, rows * width], dtype=torch.int32)


class Packed(nn.Module):
    """Our model on rows in which each example sees itself alone."""

    def __init__(self, model: nn.Module, cu_seqlens: Tensor):
        super().__init__()
        self.model, self.embedding, self.cu_seqlens = model, model.embedding, cu_seqlens

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        return self.model(tokens, targets, cu_seqlens=self.cu_seqlens)


def trl_program(
    config: DecoderConfig, weights: dict[str, Tensor], examples: list[Tensor], dtype: torch.dtype, checkpointing: bool
) -> Program:
    """A step of trl's trainer on a batch that its own collator makes."""
    trainer = trl_trainer(same_model(config, weights), examples, dtype, checkpointing)
    return stepping(trainer, collated(trainer))


def trl_trainer(model: nn.Module, examples: list[Tensor], dtype: torch.dtype, checkpointing: bool) -> Any:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    records = [{"input_ids": each.tolist(), "labels": [IGNORED, *targets_of(each).tolist()]} for each in examples]
    settings = SFTConfig(
        **arguments(dtype, rows=len(examples), checkpointing=checkpointing),
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    return SFTTrainer(model, settings, train_dataset=Dataset.from_list(records), processing_class=padding_tokenizer())
