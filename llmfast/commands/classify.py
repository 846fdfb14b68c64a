"""``llmfast classify``."""

from __future__ import annotations

from pathlib import Path

from llmfast.finetuning.config import ClassificationConfig


def classify(
    *,
    config: ClassificationConfig | None = None,
    out: Path | None = None,
    resume: Path | None = None,
    learning_rate: float | None = None,
    profile: bool = False,
    dry_run: bool = False,
    overfit_one_batch: bool = False,
) -> None:
    """Train a classifier of texts, from a trained model or from nothing. Under torchrun, on all its processes.

    At the end, the held-out texts are evaluated: figures in the terminal and in evaluation.json, and the plots
    confusion.png and reliability.png.

    Args:
        config: What to train, on what, and how.
        out: New folder for the run.
        resume: A run folder to resume exactly at its newest checkpoint; its own configuration is used. auto: resume
            --out if it holds a run, from its newest whole checkpoint, else begin it.
        learning_rate: Resume with this peak learning rate instead (with --resume).
        profile: Write a profiler trace of a few steps to profile.json in the run folder.
        dry_run: Only say what would be trained: parameters, memory, time, the first batch as text.
        overfit_one_batch: Only check that the model can memorize one batch, in at most training.steps steps.

    Raises:
        ValueError: a configuration that cannot be, unreadable data, a damaged run folder.
        KeyboardInterrupt: stopped by SIGINT or SIGTERM, after a checkpoint was saved.
    """
    from llmfast.commands.running import run_task, try_task
    from llmfast.finetuning.classification import Classification
    from llmfast.finetuning.report import evaluate_classifier

    config = config or ClassificationConfig()
    if dry_run or overfit_one_batch:
        try_task(Classification, config, out=out, resume=resume, dry_run=dry_run)
        return
    with run_task(
        Classification,
        config,
        out=out,
        resume=resume,
        learning_rate=learning_rate,
        profile=profile,
    ) as (session, console, _):
        evaluate_classifier(session, console)
    folder = session.run.folder
    console.print(f"saved in    {folder}; use it with: llmfast predict {folder} --text TEXT")
