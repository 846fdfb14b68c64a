"""``llmfast distill``."""

from __future__ import annotations

from llmfast.alignment.config import DistillationConfig
from llmfast.commands.running import Finished, training_command


@training_command("distill", DistillationConfig)
def distill(finished: Finished) -> None:
    """Train a model to answer as a teacher does: distillation. Under torchrun, on all its processes.

    For example, a smaller model from a finetuned one with the same tokenizer:

        llmfast distill --teacher runs/alpaca --data.sources alpaca.json --model.layers 2 --out runs/small
    """
    console, figures, folder = finished.console, finished.figures, finished.session.run.folder
    console.print(f"validation  loss {figures['loss']:.3f} on answers, perplexity {figures['perplexity']:.2f}")
    console.print(f"saved in    {folder}; talk to it with: llmfast generate {folder} --chat TEXT")
