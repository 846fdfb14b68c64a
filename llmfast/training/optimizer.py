"""Optimizers of a run, and their state as named tensors."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from llmfast.training.adamw import AdamW
from llmfast.training.adamw_8bit import AdamW8bit
from llmfast.training.config import TrainingConfig
from llmfast.training.muon import Muon


def build_optimizers(model: nn.Module, config: TrainingConfig) -> list[Optimizer]:
    """AdamW for everything, or Muon for the matrices inside the blocks and AdamW for the rest.

    Matrices decay; norms and the embedding table do not: a norm's scale has no reason to be small, and decay would
    shrink the rows of rare tokens between their few gradients.
    """
    parameters = dict(model.named_parameters())
    matrices = [
        parameter
        for name, parameter in parameters.items()
        if name.startswith("blocks.") and parameter.ndim == 2
    ]
    inside = set(map(id, matrices))
    rest = [parameter for parameter in parameters.values() if id(parameter) not in inside]
    adamw = {"lr": config.learning_rate, "betas": (config.beta1, config.beta2), "seed": config.seed}
    if config.optimizer == "muon":
        return [
            Muon(matrices, lr=config.matrix_learning_rate, weight_decay=config.weight_decay),
            AdamW(rest, weight_decay=0.0, **adamw),
        ]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    return [(AdamW8bit if config.optimizer == "adamw8bit" else AdamW)(groups, **adamw)]


def set_learning_rate(optimizers: list[Optimizer], factor: float) -> None:
    """Set every group's rate to ``factor`` times its peak, the rate it was built with."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = factor * group.setdefault("peak_lr", group["lr"])


def optimizer_tensors(optimizers: list[Optimizer], model: nn.Module) -> dict[str, Tensor]:
    """The state of all optimizers as tensors named PARAMETER/ENTRY, as in ``blocks.0.attention.out.weight/exp_avg``."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        f"{names[id(parameter)]}/{entry}": value
        for optimizer in optimizers
        for parameter, entries in optimizer.state.items()
        for entry, value in entries.items()
    }


def load_optimizer_tensors(optimizers: list[Optimizer], model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Put back what ``optimizer_tensors`` gave."""
    parameters = dict(model.named_parameters())
    owner = {
        id(parameter): optimizer
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    for key, value in tensors.items():
        name, _, entry = key.rpartition("/")
        if name not in parameters:
            raise ValueError(f"the optimizer state holds {name!r}, which the model does not have")
        parameter = parameters[name]
        # AdamW's step counter stays on the CPU in float32 unless fused on CUDA; torch keeps it where it was made.
        device = parameter.device if value.ndim or parameter.is_cuda else torch.device("cpu")
        owner[id(parameter)].state[parameter][entry] = value.to(device)
