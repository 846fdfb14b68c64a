"""A task unlike pretraining: its source samples from the model that is being trained, its loss may be negative."""

from dataclasses import dataclass, field

import torch

from llmfast.data.batch import Batch
from llmfast.data.order import random_integer
from llmfast.models.config import DecoderConfig
from llmfast.models.decoder import Decoder
from llmfast.training.config import ParallelConfig, TrainingConfig
from llmfast.training.distribution.world import World
from llmfast.training.objective import Loss, Maximum, Objective, Ratio
from llmfast.training.trainer import Trainer

LENGTH = 8
REUSED = 2  # batches that are made of the rollouts of one policy


@dataclass
class ToyConfig:
    model: DecoderConfig = DecoderConfig(vocab_size=16, width=16, layers=1, heads=2, context=LENGTH)  # noqa: RUF009
    training: TrainingConfig = field(
        default_factory=lambda: TrainingConfig(
            steps=8, batch_size=8, compile=False, precision="float32", learning_rate=1e-2, evaluate_every=0
        )
    )
    parallel: ParallelConfig = field(default_factory=ParallelConfig)


class PolicyGradient(Objective):
    """REINFORCE on the sampled tokens that count; a mean over them, of which rows have different numbers."""

    def weight(self, batch):
        return batch.counted.sum()

    def forward(self, batch):
        logits = self.model(batch.tokens[:, :-1]).log_softmax(-1)
        chosen = logits.gather(-1, batch.tokens[:, 1:, None])[..., 0]
        wanted = batch.counted[:, 1:] * batch.rewards[:, None]
        count = batch.counted.sum().clamp(min=1)
        figures = {
            "log_probability": (batch.counted[:, 1:] * chosen.detach()).sum() / count,
            "reward": Ratio(batch.rewards.sum(), torch.tensor(batch.rows)),
            "log_probability_max": Maximum(chosen.detach().max()),
        }
        return Loss(-(wanted * chosen).sum() / count, figures)

    def is_spike(self, loss, usual, factor):
        return abs(loss) > factor * abs(usual)


class Rollouts:
    """Rows sampled from the policy, kept for a few batches: they cannot be sampled again once it has changed."""

    fingerprint = "rollouts"

    def __init__(self, share, policy):
        self.share, self.policy = share, policy
        self.position = 0
        self.kept = torch.empty(0, LENGTH, dtype=torch.int64)

    def state(self):
        return {"position": self.position, "kept": self.kept}

    def restore(self, state):
        self.position, self.kept = state["position"], state["kept"]

    def next(self, batch_size, context=None):
        if self.position % (REUSED * batch_size) == 0:
            self.kept = self._sample(batch_size)
        self.position += batch_size
        own = batch_size // self.share.count
        tokens = self.kept[self.share.index * own :][:own]
        counted = (torch.arange(LENGTH) < 2 + tokens[:, :1] % (LENGTH - 2)).long()
        counted[:, 0] = 0
        rewards = (tokens % 3 == 0).float().mean(1) - 0.3
        return Batch(tokens=tokens, counted=counted, rewards=rewards)

    @torch.no_grad()
    def _sample(self, rows):
        generator = torch.Generator().manual_seed(random_integer((7, self.position)) >> 1)
        tokens = torch.zeros(rows, 1, dtype=torch.int64)
        with self.policy.inference() as model:
            for _ in range(LENGTH - 1):
                probabilities = model(tokens)[:, -1].softmax(-1)
                tokens = torch.cat([tokens, torch.multinomial(probabilities, 1, generator=generator)], 1)
        return tokens


class ToyPolicy:
    """The task; ``trained`` says which parameters are, by a part of their name."""

    command, config_class, tokenizer, context = "toy", ToyConfig, None, LENGTH

    def __init__(self, config, trained="", start="somewhere"):
        self.config, self.trained, self.start = config, trained, start

    def fingerprints(self):
        return {}

    def memory(self):
        return {"weights": 1.0}

    def flops_per_token(self):
        return 1.0

    def objective(self):
        model = Decoder(self.config.model, generator=torch.Generator().manual_seed(1))
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(self.trained in name)
        return PolicyGradient(model)

    def base(self):
        return self.start if self.trained else None

    def source(self, share, policy):
        return Rollouts(share, policy)

    def evaluate(self, policy, *, part=False):
        return {"loss": -1.0}

    def sample(self, policy):
        return None

    def units(self, loss):
        return {}

    def save_assets(self, folder):
        (folder / "config.json").write_text("{}")


def toy_trainer(trained="", world=World(), **settings):  # noqa: B008
    config = ToyConfig()
    for name, value in settings.items():
        setattr(config.training, name, value)
    return Trainer(ToyPolicy(config, trained), config.training, config.parallel, world)


def toy_steps(trainer, count):
    """(loss, figures) of so many steps."""
    return [(float(step.loss), step.figures) for step in (trainer.step() for _ in range(count))]


def train_toy(world):
    """Four steps, for ``run_ranks``."""
    return toy_steps(toy_trainer(world=world, accumulate=2), 4)
