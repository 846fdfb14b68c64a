"""The kinds of training by the names of their commands: the one place that says what ``sweep`` can train."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from llmfast.training.task import Task

TaskName = Literal["train", "classify", "sft", "dpo", "reward", "distill", "grpo", "ppo"]
TASKS = {
    "train": "llmfast.training.pretraining:Pretraining",
    "classify": "llmfast.finetuning.classification:Classification",
    "sft": "llmfast.finetuning.supervised:SupervisedFinetuning",
    "dpo": "llmfast.alignment.preference:Preference",
    "reward": "llmfast.alignment.reward_model:RewardModeling",
    "distill": "llmfast.alignment.distillation:Distillation",
    "grpo": "llmfast.alignment.policy.task:GroupPolicy",
    "ppo": "llmfast.alignment.policy.task:ValuePolicy",
}
assert tuple(TASKS) == get_args(TaskName)


def task_named(name: str) -> type[Task]:
    """The task of a command, imported only when it is asked for."""
    module, _, cls = TASKS[name].partition(":")
    return getattr(importlib.import_module(module), cls)
