"""Policies that sort digits: small enough to learn by their own answers in seconds."""

import functools
import json
import random
import tempfile
from pathlib import Path

from llmfast.alignment.config import GroupPolicyConfig, ValuePolicyConfig
from llmfast.alignment.policy.task import GroupPolicy, ValuePolicy
from llmfast.config import from_dict
from llmfast.finetuning.config import SupervisedConfig
from llmfast.finetuning.supervised import SupervisedFinetuning
from llmfast.tokenizer import Tokenizer
from llmfast.training.distribution.world import World
from llmfast.training.loop import fit
from llmfast.training.session import Session, new_session
from llmfast.training.trainer import Trainer

TASKS = {"grpo": (GroupPolicy, GroupPolicyConfig), "ppo": (ValuePolicy, ValuePolicyConfig)}
QUIET = {"compile": False, "precision": "float32", "sample_every": 0, "evaluate_every": 0}


def digits_to_sort(count: int, digits: int) -> list[dict[str, str]]:
    """Records with digits to be sorted."""
    draw = random.Random(digits)
    numbers = ["".join(draw.choices("0123456789", k=digits)) for _ in range(count)]
    return [{"prompt": each, "completion": "".join(sorted(each)), "answer": "".join(sorted(each))} for each in numbers]


def sums_by_calls(count: int) -> list[dict[str, str]]:
    """Records with sums of two numbers of three digits, which a calculator finds."""
    draw = random.Random(0)
    pairs = [(draw.randint(100, 999), draw.randint(100, 999)) for _ in range(count)]
    return [
        {"prompt": f"{a}+{b}=", "completion": f"<<{a}+{b}={a + b}>>{a + b}", "answer": str(a + b)} for a, b in pairs
    ]


@functools.cache
def sorter(digits: int = 6, steps: int = 95, width: int = 64, layers: int = 2) -> Path:
    """The folder of a run that learned to sort from examples for a moment."""
    return _learner(digits_to_sort(4000 if steps > 20 else 200, digits), steps, width, layers)


@functools.cache
def adder(steps: int) -> Path:
    """The folder of a run that learned from examples to call a calculator."""
    return _learner(sums_by_calls(4000), steps, 64, 2)


def _learner(records: list[dict[str, str]], steps: int, width: int, layers: int) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="learner-"))
    file = folder / "tasks.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    Tokenizer.train(["0"], 257, allow_smaller=True).save(folder / "tokenizer")
    config = {
        "data": {
            "sources": [str(file)], "form": "prompt", "template": "plain", "tokenizer": str(folder / "tokenizer"),
            "packing": "none",
        },
        "model": {"width": width, "layers": layers, "heads": width // 16, "context": 32},
        "training": QUIET | {"steps": steps, "batch_size": 64, "learning_rate": 3e-3, "schedule": "constant"},
    }  # fmt: skip
    config, task = from_dict(SupervisedConfig, config), SupervisedFinetuning
    fit(new_session(folder / "run", config, task=task, report=lambda line: None))
    return folder


def policy_config(kind: str, start: Path, /, **settings):
    """A configuration of a run that starts from a learner; ``settings`` are those of the run, dictionaries added to."""
    tree = {
        "start": str(start / "run"),
        "data": {"sources": [str(start / "tasks.jsonl")], "template": "plain"},
        "rewards": {"position_match": 1.0},
        "rollouts": {"samples": 4, "max_tokens": 5, "max_batch": 64},
        "training": QUIET
        | {"steps": 6, "batch_size": 16, "learning_rate": 1e-3, "schedule": "constant", "warmup": 0.0, "beta2": 0.99},
    }
    for name, value in settings.items():
        tree[name] = {**tree[name], **value} if name in ("data", "rollouts", "training") else value
    return from_dict(TASKS[kind][1], tree)


def new_policy_run(folder: Path, kind: str, start: Path, /, **settings) -> Session:
    """A run in ``folder``/run, ready to fit."""
    config = policy_config(kind, start, **settings)
    return new_session(folder / "run", config, task=TASKS[kind][0], report=lambda line: None)


def policy_trainer(session: Session, world: World = World(), **training) -> Trainer:  # noqa: B008
    """Another trainer of the same run, at its first step, with other settings of training."""
    for name, value in training.items():
        setattr(session.config.training, name, value)
    return trainer_of(type(session.task), session.config, session.run.data, world)


def trainer_of(task, config, data: Path, world: World) -> Trainer:
    opened = task.open(config, data, begins=True, verify=False, report=lambda line: None)
    return Trainer(opened, config.training, config.parallel, world)


def figures_of_ranks(world: World, kind: str, config, data: Path, steps: int):
    """(loss, reward) of so many steps, and of an evaluation, for ``run_ranks``."""
    trainer = trainer_of(TASKS[kind][0], config, data, world)
    results = [trainer.step() for _ in range(steps)]
    return [(float(each.loss), each.figures["reward"]) for each in results], trainer.evaluate()
