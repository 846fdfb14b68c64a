"""trl's trainers with models and data of a benchmark: what they have in common."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .jobs import Program
from .suites.train_step import BETAS, CLIP, LEARNING_RATE, held, table_of

TRL = "trl"


def arguments(dtype: torch.dtype, *, rows: int, checkpointing: bool) -> dict[str, Any]:
    """Settings that the configurations of all its trainers have."""
    return {
        "output_dir": tempfile.gettempdir(),
        "per_device_train_batch_size": rows,
        "max_steps": 1,
        "bf16": dtype == torch.bfloat16,
        "gradient_checkpointing": checkpointing,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }


def padding_tokenizer() -> Any:
    """A tokenizer for trainers that are given ids and only pad them."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(WordLevel({"<pad>": 0}, "<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<pad>")


def collated(trainer: Any) -> Callable[[], Any]:
    """The whole data set of a trainer as one batch, made by its own collator."""
    return lambda: trainer.data_collator(list(trainer.train_dataset))


def stepping(trainer: Any, inputs: Callable[[], Any], checked: Callable[[Any], Tensor] | None = None) -> Program:
    """A step of a trainer on ``inputs``: its ``training_step``, with clipping and AdamW.

    The evidence is that of such a step, or of ``checked``, which gives a loss of the model and its gradients.
    """
    model, optimizer = trainer.accelerator.prepare(
        trainer.model,
        torch.optim.AdamW(trainer.model.parameters(), lr=LEARNING_RATE, betas=BETAS, weight_decay=0.0, fused=True),
    )
    model.train()
    trainer.current_gradient_accumulation_steps = 1  # which its own loop sets

    def gradients() -> Tensor:
        with torch.enable_grad():
            return trainer.training_step(model, inputs(), None)

    def update() -> None:
        trainer.accelerator.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()

    def evidence() -> dict[str, Tensor]:
        loss = gradients() if checked is None else checked(model)
        found = {"loss": loss, "gradient of the embedding": table_of(model).grad.clone()}
        update()
        return found | {"embedding after a step": table_of(model).detach().clone()}

    def step() -> Tensor:
        loss = gradients()
        update()
        return loss

    return Program(evidence, step, lambda: held(model, [optimizer.optimizer]))
