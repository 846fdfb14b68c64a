"""``llmfast sft``."""

from __future__ import annotations

from pathlib import Path

from llmfast.finetuning.config import SupervisedConfig


def sft(
    *,
    config: SupervisedConfig | None = None,
    out: Path | None = None,
    resume: Path | None = None,
    learning_rate: float | None = None,
    profile: bool = False,
    dry_run: bool = False,
    overfit_one_batch: bool = False,
) -> None:
    """Train a model to answer instructions: supervised finetuning. Under torchrun, on all its processes.

    For example, to train the model in models/gpt2 on instructions in Alpaca's form, look at what is trained first:

        llmfast sft --start models/gpt2 --data.sources alpaca.json --dry_run

        llmfast sft --start models/gpt2 --data.sources alpaca.json --out runs/alpaca

        llmfast generate runs/alpaca --chat "Name three primary colors."

    Args:
        config: What to train, on what, and how.
        out: New folder for the run.
        resume: A run folder to resume exactly at its newest checkpoint; its own configuration is used. auto: resume
            --out if it holds a run, from its newest whole checkpoint, else begin it.
        learning_rate: Resume with this peak learning rate instead (with --resume).
        profile: Write a profiler trace of a few steps to profile.json in the run folder.
        dry_run: Only say what would be trained: parameters, memory, time, and examples with what is trained in color.
        overfit_one_batch: Only check that the model can memorize one batch, in at most training.steps steps.

    Raises:
        ValueError: a configuration that cannot be, unreadable data, a damaged run folder.
        KeyboardInterrupt: stopped by SIGINT or SIGTERM, after a checkpoint was saved.
    """
    from llmfast.commands.running import run_task, try_task
    from llmfast.finetuning.supervised import SupervisedFinetuning

    config = config or SupervisedConfig()
    if dry_run or overfit_one_batch:
        try_task(SupervisedFinetuning, config, out=out, resume=resume, dry_run=dry_run)
        return
    with run_task(
        SupervisedFinetuning,
        config,
        out=out,
        resume=resume,
        learning_rate=learning_rate,
        profile=profile,
    ) as (session, console, final):
        console.print(f"validation  loss {final['loss']:.3f} on answers, perplexity {final['perplexity']:.2f}")
    folder = session.run.folder
    console.print(f"saved in    {folder}; talk to it with: llmfast generate {folder} --chat TEXT")
