"""``llmfast classify`` and ``llmfast predict``."""

from __future__ import annotations

import sys
from pathlib import Path

from llmfast.finetuning.config import ClassificationConfig


def classify(
    *,
    config: ClassificationConfig | None = None,
    out: Path | None = None,
    resume: Path | None = None,
    learning_rate: float | None = None,
    profile: bool = False,
) -> None:
    """Train a classifier of texts, from a trained model or from nothing. Under torchrun, on all its processes.

    Args:
        config: What to train, on what, and how.
        out: New folder for the run.
        resume: A run folder to resume exactly at its newest checkpoint; its own configuration is used. auto: resume
            --out if it holds a run, from its newest whole checkpoint, else begin it.
        learning_rate: Resume with this peak learning rate instead (with --resume).
        profile: Write a profiler trace of a few steps to profile.json in the run folder.

    Raises:
        ValueError: a configuration that cannot be, unreadable data, a damaged run folder.
        KeyboardInterrupt: stopped by SIGINT or SIGTERM, after a checkpoint was saved.
    """
    from llmfast.commands.running import run_task
    from llmfast.finetuning.classification import Classification

    with run_task(
        Classification,
        config or ClassificationConfig(),
        out=out,
        resume=resume,
        learning_rate=learning_rate,
        profile=profile,
    ) as (session, console):
        final = session.trainer.evaluate()
        console.print(f"validation  loss {final['loss']:.3f}, accuracy {final['accuracy']:.1%}")
    folder = session.run.folder
    console.print(f"saved in    {folder}; use it with: llmfast predict {folder} --text TEXT")


def predict(
    run: Path,
    /,
    *,
    text: str | None = None,
    file: Path | None = None,
    base: Path | None = None,
) -> None:
    """Name the class of texts: for each, a line with the label, its probability and the text, separated by tabs.

    Args:
        run: A run folder of llmfast classify (its newest checkpoint is used) or a checkpoint folder.
        text: The text to classify; the lines of --file if left out, or of standard input.
        file: A text file with a text in each line.
        base: Where the frozen base of the classifier lies now, if it was moved since the training.

    Raises:
        ValueError: no classifier there, a damaged file, a base that is missing or another one.
    """
    if text is not None and file is not None:
        raise ValueError("give either --text or --file, not both")

    import torch

    from llmfast.finetuning.predict import load_classifier
    from llmfast.finetuning.predict import predict as predictions

    model, tokenizer = load_classifier(run, base=base)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    if text is not None:
        texts = iter([text])
    else:
        lines = sys.stdin if file is None else file.read_text(encoding="utf-8-sig").splitlines()
        texts = (line.strip() for line in lines if line.strip())
    for each in predictions(model, tokenizer, texts):
        print(each.label, f"{each.probability:.4f}", each.text, sep="\t", flush=file is None)
