"""``llmfast train``."""

from __future__ import annotations

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

    from llmfast.training.fit import fit
    from llmfast.training.session import new_session, resumed_session

    console = Console(highlight=False, soft_wrap=True)
    if resume is not None:
        session = resumed_session(resume)
    else:
        session = new_session(out, config or RunConfig(), report=console.print)
    folder, trainer = session.run.folder, session.trainer
    try:
        fit(session, console=console)
    except KeyboardInterrupt:
        again = f"llmfast train --resume {folder}"
        raise KeyboardInterrupt(
            f"stopped at step {trainer.steps_done:,} and saved; go on with: {again}"
        ) from None
    final = trainer.evaluate(session.prepared.validation)
    console.print(f"validation  loss {final.loss:.3f}, {final.bits_per_byte:.3f} bits per byte")
    console.print(f"saved in    {folder}; sample it with: llmfast generate {folder}")
