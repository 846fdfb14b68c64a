"""The commands that align a model: ``llmfast dpo``, ``reward``, ``grpo``, ``ppo`` and ``distill``."""

from __future__ import annotations

from llmfast.alignment.config import (
    DistillationConfig,
    GroupPolicyConfig,
    PreferenceConfig,
    RewardConfig,
    ValuePolicyConfig,
)
from llmfast.commands.running import Finished, training_command


@training_command("dpo", PreferenceConfig)
def dpo(finished: Finished) -> None:
    """Train a model on preference pairs: DPO and its relatives. Under torchrun, on all its processes.

    For example, to train a finetuned model further with pairs of chosen and rejected answers:

        llmfast dpo --start runs/alpaca --data.sources pairs.json --out runs/polite

        llmfast dpo --start runs/alpaca --data.sources pairs.json --losses simpo 1.0 --out runs/simpo
    """
    _report_pairs(finished)
    finished.report_chat()


@training_command("reward", RewardConfig)
def reward(finished: Finished) -> None:
    """Train a reward model on preference pairs, or on judged answers or steps. Under torchrun, on all its processes.

    For example, from a finetuned model:

        llmfast reward --start runs/alpaca --data.sources pairs.json --out runs/judge

        llmfast reward --start runs/alpaca --data.sources steps.jsonl --data.form steps --out runs/steps
    """
    _report_pairs(finished)
    finished.console.print(f"saved in    {finished.folder}")


@training_command("grpo", GroupPolicyConfig)
def grpo(finished: Finished) -> None:
    """Train a model on the rewards of its own answers, compared with others to the same prompt: GRPO and its relatives.
    Under torchrun, on all its processes.

    For example, from a finetuned model, with prompts whose answers are known:

        llmfast grpo --start runs/sft --data.sources gsm8k.jsonl --rewards number 1.0 --out runs/grpo

        llmfast grpo --start runs/sft --data.sources gsm8k.jsonl --method dapo --clip_high 0.28 --out runs/dapo
    """
    _report_policy(finished)


@training_command("ppo", ValuePolicyConfig)
def ppo(finished: Finished) -> None:
    """Train a model on the rewards of its own answers with a value function: PPO. Under torchrun, on all its processes.

    For example, from a finetuned model, with prompts whose answers are known:

        llmfast ppo --start runs/sft --data.sources gsm8k.jsonl --rewards number 1.0 --out runs/ppo
    """
    _report_policy(finished)


@training_command("distill", DistillationConfig)
def distill(finished: Finished) -> None:
    """Train a model to answer as a teacher does: distillation. Under torchrun, on all its processes.

    For example, a smaller model from a finetuned one with the same tokenizer:

        llmfast distill --teacher runs/alpaca --data.sources alpaca.json --model.layers 2 --out runs/small
    """
    finished.report_answers()


def _report_pairs(finished: Finished) -> None:
    figures = finished.figures
    if "margin" not in figures:  # answers or steps that were each judged by themselves
        _report_figures(finished)
        return
    finished.console.print(
        f"validation  loss {figures['loss']:.3f}, margin {figures['margin']:+.3f}, "
        f"accuracy {figures['accuracy']:.1%} of held-out pairs"
    )


def _report_policy(finished: Finished) -> None:
    _report_figures(finished)
    finished.report_chat()


def _report_figures(finished: Finished) -> None:
    shown = ", ".join(f"{name} {value:.3f}" for name, value in finished.figures.items() if name != "loss")
    finished.console.print(f"validation  {shown}")
