"""``llmfast quickstart``: from real text to a trained model that writes, in one command on any machine."""

from __future__ import annotations

import itertools
import json
import os
import platform
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rich.console import Console

    from llmfast.training.config import RunConfig
    from llmfast.training.session import Session
    from llmfast.training.trainer import Trainer

Preset = Literal["auto", "mini", "midi", "base"]
DEFAULT_FOLDER = Path("runs/quickstart")


def quickstart(
    *,
    data: tuple[str, ...] = (),
    minutes: float = 2.0,
    steps: int | None = None,
    preset: Preset = "auto",
    vocab_size: int = 4096,
    out: Path | None = None,
    resume: bool = False,
    seed: int = 0,
) -> None:
    """Train a small model on real text, now, and sample it. Needs no GPU, no network and no settings.

    Args:
        data: Files, folders, globs or hf:NAME[:SPLIT[:COLUMN]]; Python's own standard library if left out.
        minutes: Time to train for, after a short measurement of the speed.
        steps: Train for exactly this many steps instead.
        preset: Size of the model; auto picks mini on a CPU and base on a GPU.
        vocab_size: Size of the byte-level BPE vocabulary.
        out: New folder for the run; runs/quickstart, or the next free name like it, if left out.
        resume: Resume the newest run (or the one in --out) exactly where it stopped.
        seed: Same seed, same losses on a CPU.

    Raises:
        ValueError: unreadable data, impossible settings, or a damaged run folder.
        KeyboardInterrupt: stopped by SIGINT or SIGTERM, after a checkpoint was saved.
    """
    if minutes <= 0:
        raise ValueError(f"minutes must be positive, got {minutes}")

    from rich.console import Console

    from llmfast.training.loop import fit
    from llmfast.training.session import new_session, resumed_session

    console = Console(highlight=False, soft_wrap=True)
    if resume:
        session = resumed_session(out or _newest_run())
    else:
        config = quickstart_config(preset, data=data, vocab_size=vocab_size, seed=seed)
        console.print(f"reading     {', '.join(data) or 'the standard library of this Python'}")
        session = new_session(
            out or _free_folder(),
            config,
            report=console.print,
            plan=lambda trainer: _plan(trainer, minutes, steps, console),
        )
    trainer = session.trainer
    _describe(trainer, console)
    try:
        fit(session, console=console)
    except KeyboardInterrupt:
        where = f"stopped at step {trainer.steps_done:,} of {trainer.training.steps:,} and saved"
        again = f"llmfast quickstart --resume --out {session.run.folder}"
        raise KeyboardInterrupt(f"{where}; resume with: {again}") from None
    _correct_speed(session)
    _finish(session, console)


def quickstart_config(preset: Preset, *, data: tuple[str, ...], vocab_size: int, seed: int) -> RunConfig:
    """The configuration of a preset: model and batch sized for about two minutes on the machine it is meant for."""
    import torch

    from llmfast.data.config import DataConfig
    from llmfast.models.config import DecoderConfig
    from llmfast.training.config import RunConfig, TrainingConfig

    if preset == "auto":
        preset = "base" if torch.cuda.is_available() else "mini"
    size = PRESETS[preset]
    model = DecoderConfig(
        vocab_size=vocab_size,
        width=size.width,
        layers=size.layers,
        heads=size.width // 32 if size.width < 512 else size.width // 64,
        context=size.context,
        scale_embedding=True,
        smear=True,
    )
    training = TrainingConfig(
        batch_size=size.batch,
        optimizer="muon",
        learning_rate=size.learning_rate,
        matrix_learning_rate=0.02,
        seed=seed,
    )
    return RunConfig(DataConfig(sources=data, vocab_size=vocab_size), model, training)


@dataclass(frozen=True)
class Size:
    """The shape of a quickstart model and its batch."""

    width: int
    layers: int
    context: int
    batch: int
    learning_rate: float


PRESETS = {
    "mini": Size(width=128, layers=3, context=128, batch=16, learning_rate=2e-2),
    "midi": Size(width=256, layers=6, context=256, batch=16, learning_rate=6e-3),
    "base": Size(width=512, layers=8, context=512, batch=64, learning_rate=3e-3),
}


def _plan(trainer: Trainer, minutes: float, steps: int | None, console: Console) -> None:
    """Set the number of steps, which the schedule needs from the start, and the intervals that go with it."""
    training = trainer.training
    if steps is None:
        speed = remembered_speed(trainer)
        known = "as measured here before" if speed else "measured"
        if not speed:
            console.print(
                "measuring   the speed of a training step" + (" (compiling first)" if trainer.compiled else "")
            )
            speed = 1 / trainer.seconds_per_step()
            remember_speed(trainer, speed)
        steps = max(10, round(minutes * 60 * speed))
        console.print(f"plan        {steps:,} steps, {minutes:g} minutes at {speed:.1f} steps/s ({known})")
    training.steps = steps
    training.evaluate_every = training.sample_every = max(1, steps // 6)
    training.checkpoint_every = max(1, steps // 4)


# --- the speed of this machine, remembered so that the same command plans the same number of steps ------------------


def remembered_speed(trainer: Trainer) -> float | None:
    """Steps per second of this configuration on this machine, if it was measured before."""
    return _speeds().get(_speed_key(trainer))


def remember_speed(trainer: Trainer, speed: float) -> None:
    """Keep a measured speed; where the cache folder cannot be written, the next run measures again."""
    from llmfast.files import atomic_write

    speeds = _speeds() | {_speed_key(trainer): speed}
    try:
        atomic_write(_speed_file(), json.dumps(speeds, indent=2) + "\n")
    except OSError:
        return


def _correct_speed(session: Session) -> None:
    """Remember the speed that a run had, if the remembered one is wrong by half or more: it was measured beside other
    programs."""
    from llmfast.training.summary import read_summary

    trainer = session.trainer
    summary, planned = read_summary(session.run.folder), remembered_speed(trainer)
    if summary is None or summary.tokens_per_second is None or planned is None:
        return
    speed = summary.tokens_per_second / (trainer.training.batch_size * trainer.task.config.model.context)
    if not 2 / 3 < speed / planned < 3 / 2:
        remember_speed(trainer, speed)


def _speeds() -> dict[str, float]:
    try:
        return json.loads(_speed_file().read_text())
    except (OSError, ValueError):
        return {}


def _speed_file() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "llmfast" / "speed.json"


def _speed_key(trainer: Trainer) -> str:
    import torch

    model, training = trainer.task.config.model, trainer.training
    device = torch.cuda.get_device_name() if trainer.device.type == "cuda" else f"{os.cpu_count()} cores"
    shape = f"{model.width}x{model.layers}x{model.context}x{model.vocab_size}x{training.batch_size}"
    return f"{platform.node()} {device} torch {torch.__version__} {trainer.precision} {trainer.compiled} {shape}"


# --- messages -------------------------------------------------------------------------------------------------------


def _describe(trainer: Trainer, console: Console) -> None:
    model, training = trainer.task.config.model, trainer.training
    console.print(
        f"model       {model.parameters / 1e6:.2f} M parameters: {model.layers} layers of width {model.width}, "
        f"{model.heads} heads, context {model.context}"
    )
    console.print(
        f"training    {training.steps:,} steps of {trainer.tokens_per_step:,} tokens on {trainer.device.type}, "
        f"{str(trainer.precision).removeprefix('torch.')}{', compiled' if trainer.compiled else ''}"
    )


def _finish(session: Session, console: Console) -> None:
    from llmfast.commands.generate import generate
    from llmfast.data.prepare import compression_baselines
    from llmfast.training.summary import add_figures
    from llmfast.visualization.curves import plot_losses

    run, task, trainer = session.run, session.task, session.trainer
    prepared = task.prepared
    # Overlapping windows: every held-out token is predicted from at least half a context, as in real use.
    final = task.evaluate(trainer, stride=max(1, task.context // 2))
    run.log(step=trainer.steps_done, **{f"final_{name}": figure for name, figure in final.items()})
    add_figures(run.folder, final)
    baselines = compression_baselines(prepared.validation, prepared.tokenizer)
    plot_losses(run.records(), run.loss_plot, units=task.units(1.0), marks=baselines)

    console.print(
        f"\nheld-out text, {prepared.validation.text_bytes / 1e6:.1f} MB: loss {final['loss']:.3f} nats per token"
    )
    for name, bits in {
        "gzip -9": baselines["gzip"],
        "xz -9": baselines["xz"],
        "this model": final["bits_per_byte"],
    }.items():
        console.print(f"  {name:<10} {bits:.3f} bits per byte")
    prompt = task.prompt()
    console.print(f"\na sample, from {prompt!r}:\n")
    generate(run.folder, prompt, tokens=120, temperature=0.7, top_p=0.95, seed=0, output=console.file)
    console.print(f"\nsaved in {run.folder}: checkpoints, tokenizer, log.jsonl, loss.png\nnext:")
    console.print(f"  llmfast generate {run.folder} --prompt {shlex.quote(prompt)}")
    console.print(f"  llmfast quickstart --resume --out {run.folder}      (after Ctrl-C: resumes exactly)")
    console.print("  llmfast quickstart --preset midi --minutes 20      (bigger)")


def _free_folder() -> Path:
    names = (DEFAULT_FOLDER, *map(_numbered, range(2, 1000)))
    return next(folder for folder in names if not folder.exists())


def _newest_run() -> Path:
    if not DEFAULT_FOLDER.exists():
        raise ValueError(f"no run to resume in {DEFAULT_FOLDER}; name one with --out")
    following = itertools.takewhile(Path.exists, map(_numbered, itertools.count(2)))
    return [DEFAULT_FOLDER, *following][-1]


def _numbered(number: int) -> Path:
    return DEFAULT_FOLDER.with_name(f"{DEFAULT_FOLDER.name}-{number}")
