"""``llmfast grpo`` and ``llmfast ppo``."""

from __future__ import annotations

from llmfast.alignment.config import GroupPolicyConfig, ValuePolicyConfig
from llmfast.commands.running import Finished, training_command


@training_command("grpo", GroupPolicyConfig)
def grpo(finished: Finished) -> None:
    """Train a model on the rewards of its own answers, compared with others to the same prompt: GRPO and its relatives.
    Under torchrun, on all its processes.

    For example, from a finetuned model, with prompts whose answers are known:

        llmfast grpo --start runs/sft --data.sources gsm8k.jsonl --rewards number 1.0 --out runs/grpo

        llmfast grpo --start runs/sft --data.sources gsm8k.jsonl --method dapo --clip_high 0.28 --out runs/dapo
    """
    _report(finished)


@training_command("ppo", ValuePolicyConfig)
def ppo(finished: Finished) -> None:
    """Train a model on the rewards of its own answers with a value function: PPO. Under torchrun, on all its processes.

    For example, from a finetuned model, with prompts whose answers are known:

        llmfast ppo --start runs/sft --data.sources gsm8k.jsonl --rewards number 1.0 --out runs/ppo
    """
    _report(finished)


def _report(finished: Finished) -> None:
    console, figures, folder = finished.console, finished.figures, finished.session.run.folder
    shown = ", ".join(f"{name} {value:.3f}" for name, value in figures.items() if name != "loss")
    console.print(f"validation  {shown}")
    console.print(f"saved in    {folder}; talk to it with: llmfast generate {folder} --chat TEXT")
