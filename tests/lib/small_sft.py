"""Instructions and a model small enough to finetune in a second."""

import functools
import json
import random
from pathlib import Path

from llmfast.data.config import InstructionDataConfig
from llmfast.finetuning.config import SupervisedConfig
from llmfast.finetuning.supervised import SupervisedFinetuning
from llmfast.models.config import DecoderConfig
from llmfast.models.decoder import Decoder
from llmfast.models.folder import save_model
from llmfast.tokenizer import Tokenizer
from llmfast.training.config import TrainingConfig
from llmfast.training.distribution.world import World
from llmfast.training.session import Session, new_session
from llmfast.training.trainer import Trainer

WORDS = ["red", "green", "blue", "stone", "river", "lamp", "fox", "clock"]


def instruction(number: int) -> dict[str, str]:
    """A record in Alpaca's form; all are different, and of different lengths."""
    draw = random.Random(number)
    words = draw.choices(WORDS, k=draw.randint(1, 6))
    return {
        "instruction": f"Say in capitals, number {number}.",
        "input": " ".join(words) if number % 3 else "",
        "output": " ".join(words).upper(),
    }


def write_instructions(file: Path, count: int = 60) -> Path:
    """Write records to a JSON Lines file; returns it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(instruction(number)) + "\n" for number in range(count)))
    return file


@functools.cache
def small_tokenizer() -> Tokenizer:
    """A tokenizer of 330 tokens that knows no chat template."""
    texts = [f"{record['instruction']} {record['input']} {record['output']}" for record in map(instruction, range(60))]
    return Tokenizer.train([*texts, "user assistant system\n"] * 2, 330, allow_smaller=True)


def write_model(folder: Path, **settings: object) -> Path:
    """A model folder with random weights and the small tokenizer, to start from; returns it."""
    tokenizer = small_tokenizer()
    shape = {"width": 16, "layers": 1, "heads": 2, "kv_heads": 1, "context": 128} | settings
    model = Decoder(DecoderConfig(vocab_size=tokenizer.n_vocab, **shape))
    save_model(folder, model, write_tokenizer=tokenizer.save)
    return folder


def sft_config(file: Path, start: Path | None, *, data: dict | None = None, **training: object) -> SupervisedConfig:
    """A configuration for the instructions in ``file``; settings of TrainingConfig, and adapter and freeze."""
    run = {name: training.pop(name) for name in ("adapter", "freeze") if name in training}
    settings = {
        "steps": 6,
        "batch_size": 4,
        "compile": False,
        "precision": "float32",
        "evaluate_every": 3,
        "sample_every": 3,
        "learning_rate": 1e-2,
    } | training
    return SupervisedConfig(
        start=None if start is None else str(start),
        data=InstructionDataConfig(**({"sources": (str(file),), "validation_fraction": 0.2} | (data or {}))),
        training=TrainingConfig(**settings),
        **run,
    )


def new_sft_run(folder: Path, *, data: dict | None = None, records: int = 60, **training: object) -> Session:
    """A finetuning run in ``folder``/run, ready to fit."""
    start = folder / "start"
    if not start.exists():
        write_model(start)
    config = sft_config(write_instructions(folder / "data.jsonl", records), start, data=data, **training)
    return new_session(folder / "run", config, task=SupervisedFinetuning, report=lambda line: None)


def sft_trainer(session: Session, world: World = World(), **training: object) -> Trainer:  # noqa: B008
    """Another trainer of the same run, at its first step, with other settings of training."""
    config = session.config
    for name, value in training.items():
        setattr(config.training, name, value)
    task = SupervisedFinetuning.open(config, session.run.data, begins=True, verify=False, report=lambda line: None)
    return Trainer(task, config.training, config.parallel, world)
