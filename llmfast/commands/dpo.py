"""``llmfast dpo``."""

from __future__ import annotations

from llmfast.alignment.config import PreferenceConfig
from llmfast.commands.running import Finished, training_command


@training_command("dpo", PreferenceConfig)
def dpo(finished: Finished) -> None:
    """Train a model on preference pairs: DPO and its relatives. Under torchrun, on all its processes.

    For example, to go on from a finetuned model with pairs of chosen and rejected answers:

        llmfast dpo --start runs/alpaca --data.sources pairs.json --out runs/polite

        llmfast dpo --start runs/alpaca --data.sources pairs.json --losses simpo 1.0 --out runs/simpo
    """
    console, figures, folder = finished.console, finished.figures, finished.session.run.folder
    console.print(
        f"validation  loss {figures['loss']:.3f}, margin {figures['margin']:+.3f}, "
        f"accuracy {figures['accuracy']:.1%} of held-out pairs"
    )
    console.print(f"saved in    {folder}; talk to it with: llmfast generate {folder} --chat TEXT")
