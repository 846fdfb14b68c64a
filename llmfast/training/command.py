"""``llmfast train``."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from llmfast.training.config import RunConfig


def train(*, config: RunConfig | None = None, out: Path | None = None, resume: Path | None = None) -> None:
    """Train a model by a configuration, or go on with a run that was stopped.

    Args:
        config: What to train, on what, and how.
        out: New folder for the run.
        resume: A run folder to go on with, exactly where its newest checkpoint is; its own configuration is used.

    Raises:
        ValueError: a configuration that cannot be, unreadable data, a damaged run folder.
        KeyboardInterrupt: stopped by SIGINT or SIGTERM, after a checkpoint was saved.
    """
    if (out is None) == (resume is None):
        raise ValueError("give either --out FOLDER for a new run or --resume FOLDER to go on with one")

    from rich.console import Console

    from llmfast.data.prepare import open_prepared, prepare
    from llmfast.training.fit import fit, restore_newest
    from llmfast.training.run import Run
    from llmfast.training.trainer import Trainer

    console = Console(highlight=False, soft_wrap=True)
    if resume is not None:
        run = Run.existing(resume)
        config = run.load_config()
        prepared = open_prepared(run.data)
    else:
        run = Run.new(out)
        config = config or RunConfig()
        prepared = prepare(config.data, run.data, report=console.print)
        config.model = dataclasses.replace(config.model, vocab_size=prepared.tokenizer.n_vocab)
        run.save_config(config)
    trainer = Trainer(config, prepared.train)
    restore_newest(trainer, run)
    try:
        fit(trainer, prepared, run, console=console)
    except KeyboardInterrupt:
        console.print(
            f"stopped at step {trainer.steps_done:,}; go on with: llmfast train --resume {run.folder}"
        )
        raise
    final = trainer.evaluate(prepared.validation)
    console.print(f"validation  loss {final.loss:.3f}, {final.bits_per_byte:.3f} bits per byte")
    console.print(f"saved in    {run.folder}; sample it with: llmfast generate {run.folder}")
