"""``llmfast sft``."""

from __future__ import annotations

from llmfast.commands.running import Finished, training_command
from llmfast.finetuning.config import SupervisedConfig


@training_command("sft", SupervisedConfig)
def sft(finished: Finished) -> None:
    """Train a model to answer instructions: supervised finetuning. Under torchrun, on all its processes.

    For example, to train the model in models/gpt2 on instructions in Alpaca's form, look at what is trained first:

        llmfast sft --start models/gpt2 --data.sources alpaca.json --dry_run

        llmfast sft --start models/gpt2 --data.sources alpaca.json --out runs/alpaca

        llmfast generate runs/alpaca --chat "Name three primary colors."
    """
    console, figures, folder = finished.console, finished.figures, finished.session.run.folder
    console.print(f"validation  loss {figures['loss']:.3f} on answers, perplexity {figures['perplexity']:.2f}")
    console.print(f"saved in    {folder}; talk to it with: llmfast generate {folder} --chat TEXT")
