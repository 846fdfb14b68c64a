"""Runs that train adapters of a language model small enough to train in a second."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

from small_run import small_config, write_corpus

from llmfast.finetuning.config import FinetuningConfig
from llmfast.finetuning.model import finetuned_decoder, freeze_parameters
from llmfast.models.adapters.config import LoraConfig
from llmfast.models.config import DecoderConfig
from llmfast.training.checkpoints.saver import restore
from llmfast.training.config import RunConfig
from llmfast.training.distribution.world import World
from llmfast.training.loop import fit, save
from llmfast.training.pretraining import NextToken, Pretraining
from llmfast.training.run_folder import RunFolder
from llmfast.training.session import Session, new_session
from llmfast.training.trainer import Trainer


@dataclass
class AdapterConfig(RunConfig):
    """Pretraining goes on with adapters."""

    adapter: str = "lora"
    lora: LoraConfig = field(default_factory=LoraConfig)
    freeze: tuple[str, ...] = ()

    keeps_base = FinetuningConfig.keeps_base


class AdapterPretraining(Pretraining):
    """Next tokens by adapters of a trained model, or by a part of it."""

    config_class = AdapterConfig

    @classmethod
    def open(cls, config, folder, *, begins, verify, report):
        return super().open(config, folder, begins=True, verify=verify, report=report)

    def objective(self):
        model = finetuned_decoder(self.config, self.start, self.config.model)
        freeze_parameters(model, self.config.freeze)
        return NextToken(model)

    def base(self):
        return str(self.start.folder) if self.config.keeps_base else None


def pretrained_run(folder: Path, **model: object) -> Path:
    """A pretraining run of a few steps, to start from."""
    config = small_config(
        write_corpus(folder / "corpus"), steps=3, evaluate_every=0, sample_every=0, learning_rate=1e-2
    )
    settings = {"width": 32, "heads": 4, "kv_heads": 2, "layers": 2, "context": 16}
    config.model = DecoderConfig(**settings | model)
    session = new_session(folder / "run", config, report=lambda line: None)
    fit(session)
    return session.run.folder


def adapter_config(start: Path, *, adapter="lora", lora=None, freeze=(), **training: object) -> AdapterConfig:
    plain = small_config(start.parent / "corpus", **{"learning_rate": 1e-2, "sample_every": 0} | training)
    return AdapterConfig(
        data=dataclasses.replace(plain.data, vocab_size=300),
        model=DecoderConfig(),
        training=plain.training,
        start=str(start),
        adapter=adapter,
        lora=lora or LoraConfig(rank=4),
        freeze=freeze,
    )


def adapter_run(folder: Path, start: Path, *, report=lambda line: None, **settings: object) -> Session:
    """A run of adapters in ``folder``/run, ready to fit."""
    return new_session(folder / "run", adapter_config(start, **settings), task=AdapterPretraining, report=report)


def train_adapters(world: World, config: AdapterConfig, data: Path, steps: int, start=None, run=None):
    """(loss, gradient norm) of so many steps, for ``run_ranks``; saved in ``run`` at the end."""
    task = AdapterPretraining.open(config, data, begins=True, verify=False, report=lambda line: None)
    trainer = Trainer(task, config.training, config.parallel, world)
    if start is not None:
        restore(trainer, start)
    found = [trainer.step() for _ in range(steps)]
    if run is not None:
        save(Session(RunFolder(run), task, trainer))
    return [(float(step.loss), float(step.gradient_norm)) for step in found]
