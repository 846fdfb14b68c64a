"""``llmfast classify``."""

from __future__ import annotations

from llmfast.commands.running import Finished, training_command
from llmfast.finetuning.config import ClassificationConfig


@training_command("classify", ClassificationConfig)
def classify(finished: Finished) -> None:
    """Train a classifier of texts, from a trained model or from nothing. Under torchrun, on all its processes.

    At the end, the held-out texts are evaluated: figures in the terminal and in evaluation.json, and the plots
    confusion.png and reliability.png.
    """
    from llmfast.finetuning.report import evaluate_classifier

    evaluate_classifier(finished.session, finished.console)
    folder = finished.folder
    finished.console.print(f"saved in    {folder}; use it with: llmfast predict {folder} --text TEXT")
