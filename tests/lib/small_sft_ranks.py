"""What several processes do with a finetuning run, for ``run_ranks``."""

from llmfast.finetuning.supervised import SupervisedFinetuning
from llmfast.training.trainer import Trainer


def losses(world, config, data, steps):
    """Losses of so many steps, and of an evaluation."""
    task = SupervisedFinetuning.open(config, data, begins=True, verify=False, report=lambda line: None)
    trainer = Trainer(task, config.training, config.parallel, world)
    return [float(trainer.step().loss) for _ in range(steps)] + [trainer.evaluate()["loss"]]
