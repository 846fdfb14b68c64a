"""Preference pairs and runs on them, small enough for a second."""

import json
import random
from pathlib import Path

from small_sft import WORDS, small_tokenizer, write_model

from llmfast.alignment.config import PreferenceConfig, RewardConfig
from llmfast.alignment.preference import Preference
from llmfast.alignment.reward_model import RewardModeling
from llmfast.data.config import PreferenceDataConfig
from llmfast.data.examples.preferences import open_pairs, prepare_pairs
from llmfast.training.config import TrainingConfig
from llmfast.training.distribution.world import World
from llmfast.training.session import Session, new_session
from llmfast.training.trainer import Trainer


def pair(number: int) -> dict[str, str]:
    """A record: capitals are preferred to what was said before."""
    words = " ".join(random.Random(number).choices(WORDS, k=1 + number % 5))
    asked = f"Say in capitals, number {number}: {words}"
    return {"prompt": asked, "chosen": words.upper(), "rejected": f"{words} {words}"}


def write_pairs(file: Path, records: list | int = 40) -> Path:
    """Write records to a JSON Lines file; returns it."""
    records = [pair(number) for number in range(records)] if isinstance(records, int) else records
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


def prepared_pairs(folder: Path, records: list, *, max_tokens: int = 100, mismatched: bool = False, **settings: object):
    """Records prepared and opened; and the lines reported."""
    small_tokenizer().save(folder / "tokenizer")
    options = {"tokenizer": str(folder / "tokenizer"), "validation_fraction": 0.3, "template": "chatml"} | settings
    config = PreferenceDataConfig(sources=(str(write_pairs(folder / "pairs.jsonl", records)),), **options)
    lines = []
    prepare_pairs(config, folder / "data", max_tokens=max_tokens, report=lines.append)
    return open_pairs(folder / "data", max_tokens=max_tokens, mismatched=mismatched), lines


TASKS = {"dpo": (Preference, PreferenceConfig), "reward": (RewardModeling, RewardConfig)}


def pairs_config(folder: Path, kind: str = "dpo", *, model: dict | None = None, data: dict | None = None, **settings):
    """A configuration of a run on 40 pairs; settings of TrainingConfig, and of the run."""
    start = folder / "start"
    if not start.exists():
        write_model(start, **(model or {}))
    file = folder / "pairs.jsonl"
    if not file.exists():
        write_pairs(file)
    run = {name: settings.pop(name) for name in list(settings) if name not in TrainingConfig.__dataclass_fields__}
    training = {
        "steps": 6,
        "batch_size": 4,
        "compile": False,
        "precision": "float32",
        "evaluate_every": 3,
        "sample_every": 3,
        "learning_rate": 1e-2,
    } | settings
    sources = {"sources": (str(file),), "validation_fraction": 0.3, "template": "chatml"}
    return TASKS[kind][1](
        start=str(start),
        data=PreferenceDataConfig(**(sources | (data or {}))),
        training=TrainingConfig(**training),
        **run,
    )


def new_pairs_run(folder: Path, kind: str = "dpo", **settings) -> Session:
    """A run in ``folder``/run, ready to fit."""
    return new_session(
        folder / "run", pairs_config(folder, kind, **settings), task=TASKS[kind][0], report=lambda line: None
    )


def pairs_trainer(session: Session, world: World = World(), **training) -> Trainer:  # noqa: B008
    """Another trainer of the same run, at its first step, with other settings of training."""
    for name, value in training.items():
        setattr(session.config.training, name, value)
    return trainer_of(type(session.task), session.config, session.run.data, world)


def trainer_of(task: type, config: object, data: Path, world: World) -> Trainer:
    opened = task.open(config, data, begins=True, verify=False, report=lambda line: None)
    return Trainer(opened, config.training, config.parallel, world)


def losses_of_ranks(world: World, kind: str, config: object, data: Path, steps: int) -> list[float]:
    """Losses of so many steps, and of an evaluation, for ``run_ranks``."""
    trainer = trainer_of(TASKS[kind][0], config, data, world)
    return [float(trainer.step().loss) for _ in range(steps)] + [trainer.evaluate()["loss"]]
