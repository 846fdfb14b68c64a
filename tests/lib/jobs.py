"""What tests run in several processes (see ranks.py)."""

import dataclasses

from llmfast.data.prepare import open_prepared
from llmfast.training.fit import save
from llmfast.training.run import Run
from llmfast.training.saving import Saver, restore
from llmfast.training.session import Session
from llmfast.training.trainer import Trainer


def session(world, folder, config):
    """A session on data prepared before, in ``folder``/run."""
    prepared = open_prepared(config.data.prepared)
    config.model = dataclasses.replace(config.model, vocab_size=prepared.tokenizer.n_vocab)
    return Session(Run(folder / "run"), prepared, Trainer(config, prepared.train, world))


def train(world, folder, config, steps, start=None):
    """The (loss, gradient norm) of ``steps`` steps, from a checkpoint if ``start`` names one; saved at the end."""
    this = session(world, folder, config)
    if start is not None:
        restore(this.trainer, start)
    results = [this.trainer.step() for _ in range(steps)]
    save(this)
    return [(float(result.loss), float(result.gradient_norm)) for result in results]


def train_on_while_saving(world, folder, config):
    """Save in the background after 2 steps and train 3 more meanwhile."""
    this = session(world, folder, config)
    saver = Saver(this.run, this.trainer, this.prepared.tokenizer)
    losses = []
    for step in range(5):
        losses.append(float(this.trainer.step().loss))
        saver.poll()
        if step == 1:
            saver.save()
    saver.wait()
    return losses


def overflow(world, folder, config):
    """The loss scale after a step whose gradient overflows in the last rank alone, and whether weights changed."""
    this = session(world, folder, config).trainer
    this.step()
    before = [parameter.detach().clone() for parameter in this.model.parameters()]
    forward = this.forward

    def overflowing(batch):
        loss = forward(batch)
        if world.rank == world.size - 1:
            loss.register_hook(lambda gradient: gradient * float("inf"))
        return loss

    this.forward = overflowing
    result = this.step()
    same = all(bool((a == b).all()) for a, b in zip(before, this.model.parameters(), strict=True))
    return this.scaler.scale, same, result.fault


def disagree(world):
    world.check_agreement(data="abc", tokenizer="x" if world.rank == 0 else "y")


def fail_first(world):
    def fail():
        raise ValueError("the disk is on fire")

    world.first(fail)
