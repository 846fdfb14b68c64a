"""A corpus and a configuration small enough to train on in a second, for tests of everything around training."""

from pathlib import Path

from llmfast.data.config import DataConfig
from llmfast.data.prepare import Prepared
from llmfast.models.config import DecoderConfig
from llmfast.training.config import RunConfig, TrainingConfig
from llmfast.training.distribution.world import World
from llmfast.training.pretraining import Pretraining
from llmfast.training.session import Session, new_session
from llmfast.training.trainer import Trainer

SENTENCES = [
    "The {} saw the {} by the river and said nothing about it.",
    "Every morning a {} walks past the old {} and counts the stones.",
    "It was the {} that taught the {} how to read the weather.",
]
NOUNS = [
    "fox",
    "heron",
    "miller",
    "lamp",
    "clock",
    "painter",
    "well",
    "bridge",
    "naïve poet",
    "雪",
    "otter",
    "wheel",
]


def write_corpus(folder: Path, documents: int = 60) -> Path:
    """Write small text files, all different, and return their folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(documents):
        lines = [
            SENTENCES[(index + line) % 3].format(NOUNS[(index * 5 + line) % 12], NOUNS[(index + line * 7) % 12])
            for line in range(12)
        ]
        (folder / f"{index:03d}.txt").write_text(f"Page {index}\n" + "\n".join(lines), encoding="utf-8")
    return folder


def small_config(corpus: Path, **training: object) -> RunConfig:
    """A one-layer model on ``corpus``; ``training`` overrides settings of TrainingConfig."""
    settings = {
        "steps": 6,
        "batch_size": 4,
        "compile": False,
        "precision": "float32",
        "evaluate_every": 3,
    } | training
    return RunConfig(
        data=DataConfig(sources=(str(corpus),), vocab_size=300, validation_fraction=0.2),
        model=DecoderConfig(vocab_size=300, width=16, layers=1, heads=2, kv_heads=1, context=16),
        training=TrainingConfig(**settings),
    )


def new_run(folder: Path, **training: object) -> Session:
    """A run in ``folder``/run, ready to fit."""
    config = small_config(write_corpus(folder / "corpus"), **training)
    return new_session(folder / "run", config, report=lambda line: None)


def trainer_of(config: RunConfig, prepared: Prepared, world: World = World()) -> Trainer:  # noqa: B008
    """A trainer at the first step of pretraining on prepared data."""
    return Trainer(Pretraining(config, prepared), config.training, config.parallel, world)
