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

        llmfast chat runs/alpaca
    """
    finished.report_answers()
