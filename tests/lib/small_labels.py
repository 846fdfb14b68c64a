"""Labeled texts and a classifier small enough to train in a second."""

import random
from pathlib import Path

from llmfast.data.config import LabeledDataConfig
from llmfast.finetuning.classification import Classification
from llmfast.finetuning.config import ClassificationConfig
from llmfast.finetuning.outputs import outputs_of
from llmfast.models.config import DecoderConfig
from llmfast.training.config import TrainingConfig
from llmfast.training.distribution.world import World
from llmfast.training.session import Session, new_session
from llmfast.training.trainer import Trainer

WORDS = {"good": ["love", "great", "fine", "joy"], "bad": ["hate", "awful", "broken", "pain"]}
FILLER = ["the", "phone", "was", "really", "and", "my", "case", "it", "is"]


def write_labels(file: Path, count: int = 120) -> Path:
    """A TSV file of short texts, all different, whose class a word in them tells; returns it."""
    draw = random.Random(0)
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "w", encoding="utf-8") as out:
        for number in range(count):
            label = ("good", "bad")[number % 2]
            words = draw.choices(FILLER, k=draw.randint(1, 5))
            words.insert(draw.randrange(len(words) + 1), draw.choice(WORDS[label]))
            out.write(f"{number} {' '.join(words)}\t{label}\n")
    return file


def labels_config(file: Path, **settings: object) -> ClassificationConfig:
    """A one-layer classifier of the texts in ``file``; settings of TrainingConfig and of the run, and of ``data``."""
    names = ("start", "adapter", "lora", "freeze", "class_weights")
    run = {name: settings.pop(name) for name in names if name in settings}
    data = settings.pop("data", {})
    training = {
        "steps": 8,
        "batch_size": 8,
        "compile": False,
        "precision": "float32",
        "evaluate_every": 4,
        "sample_every": 4,
        "learning_rate": 1e-2,
    } | settings
    model = {} if "start" in run else {"width": 16, "layers": 1, "heads": 2, "context": 32, "dropout": 0.1}
    return ClassificationConfig(
        data=LabeledDataConfig(sources=(str(file),), vocab_size=280, max_tokens=16, **data),
        model=DecoderConfig(**model),
        training=TrainingConfig(**training),
        **run,
    )


def new_labels_run(folder: Path, **settings: object) -> Session:
    """A classification run in ``folder``/run, ready to fit."""
    config = labels_config(write_labels(folder / "texts.tsv"), **settings)
    return new_session(folder / "run", config, task=Classification, report=lambda line: None)


def classifier_of(session: Session, world: World = World(), **training: object) -> Trainer:  # noqa: B008
    """Another trainer of the same run, at its first step, with other settings of training."""
    config = session.config
    task = Classification.open(config, session.run.data, begins=True, verify=False, report=lambda line: None)
    for name, value in training.items():
        setattr(config.training, name, value)
    return Trainer(task, config.training, config.parallel, world)


def train_classifier(world: World, config: ClassificationConfig, data: Path, steps: int, start=None, run=None):
    """(loss, accuracy) of so many steps and of an evaluation, for ``run_ranks``; saved in ``run`` at the end."""
    from llmfast.training.checkpoints.saver import restore
    from llmfast.training.loop import save
    from llmfast.training.run_folder import RunFolder

    task = Classification.open(config, data, begins=True, verify=False, report=lambda line: None)
    trainer = Trainer(task, config.training, config.parallel, world)
    if start is not None:
        restore(trainer, start)
    found = [(float(step.loss), step.figures["accuracy"]) for step in (trainer.step() for _ in range(steps))]
    final = trainer.evaluate()
    if run is not None:
        save(Session(RunFolder(run), task, trainer))
    return [*found, (final["loss"], final["accuracy"])]


def evaluate_in(world: World, config: ClassificationConfig, data: Path) -> tuple[dict[str, float], list]:
    """The figures of the validation split after one step, and the model's logits."""
    task = Classification.open(config, data, begins=True, verify=False, report=lambda line: None)
    trainer = Trainer(task, config.training, config.parallel, world)
    trainer.step()
    return trainer.evaluate(), outputs_of(task.prepared.validation, trainer).logits.tolist()
