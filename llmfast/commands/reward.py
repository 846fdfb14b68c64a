"""``llmfast reward``."""

from __future__ import annotations

from llmfast.alignment.config import RewardConfig
from llmfast.commands.running import Finished, training_command


@training_command("reward", RewardConfig)
def reward(finished: Finished) -> None:
    """Train a reward model on preference pairs. Under torchrun, on all its processes.

    For example, from a finetuned model:

        llmfast reward --start runs/alpaca --data.sources pairs.json --out runs/judge
    """
    console, figures, folder = finished.console, finished.figures, finished.session.run.folder
    console.print(
        f"validation  loss {figures['loss']:.3f}, margin {figures['margin']:+.3f}, "
        f"accuracy {figures['accuracy']:.1%} of held-out pairs"
    )
    console.print(f"saved in    {folder}")
