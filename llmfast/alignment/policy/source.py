"""Batches that the policy samples itself, kept for as many steps as train on them; and evaluations by sampling."""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from llmfast.alignment.config import PolicyConfig
from llmfast.alignment.policy.log_probabilities import token_log_probabilities
from llmfast.alignment.rewards.build import Rewards
from llmfast.alignment.rewards.functions import Prompt
from llmfast.alignment.rollouts.rollout import Rollout, rollout_columns
from llmfast.alignment.rollouts.sample import prompt_seed, sample_rollouts
from llmfast.alignment.rollouts.tools import TOOLS
from llmfast.data.batch import Batch
from llmfast.data.examples.prompts import PreparedPrompts, PromptRecord, PromptSplit
from llmfast.data.order import random_integer, shuffled
from llmfast.data.shards import Share
from llmfast.evaluation.answers.texts import final_answer
from llmfast.inference.config import EngineConfig, Sampling
from llmfast.inference.engine import Engine
from llmfast.kernels import batch_invariant
from llmfast.models.decoder import Decoder
from llmfast.models.value_head import values_of
from llmfast.training.task import Policy

EVALUATION = 1  # sets the seeds of evaluations apart
TOKENS_AT_ONCE = 8192  # in one pass of the model that scores answers, padding included
KEPT = "rollouts."  # begins the names of their tensors in the state of a source

Columns = dict[str, Tensor]
Advantages = Callable[[Columns], Columns]
"""Adds advantages to the columns of all rollouts of a sampling, and what else the loss needs."""


def sampling_of(config: PolicyConfig) -> Sampling:
    """How the policy is sampled."""
    rollouts = config.rollouts
    return Sampling(
        temperature=rollouts.temperature,
        top_k=rollouts.top_k,
        top_p=rollouts.top_p,
        stop=rollouts.stop,
        max_tokens=rollouts.max_tokens,
    )


class Sampler:
    """Samples answers from the policy as it is, and rewards them.

    Args:
        config: of the run.
        prepared: prompts with right answers.
        policy: the model.
    """

    def __init__(self, config: PolicyConfig, prepared: PreparedPrompts, policy: Policy):
        self.config, self.prepared, self.policy = config, prepared, policy
        self.rewards = Rewards(config.rewards, skip=config.on_bad_reward == "skip")
        self.sampling = sampling_of(config)
        self.tool = TOOLS.get(config.rollouts.tool)

    @functools.cached_property
    def engine(self) -> Engine:
        """The engine, kept for its cache."""
        rollouts = self.config.rollouts
        with self.policy.inference() as model:
            settings = EngineConfig(max_batch=rollouts.max_batch, batch_invariant=rollouts.batch_invariant)
            return Engine(model, self.prepared.tokenizer, settings, ends=self.prepared.chat.end_tokens)

    def __call__(
        self, records: Sequence[PromptRecord], seeds: Sequence[int], samples: int
    ) -> tuple[list[Rollout], Columns]:
        """``samples`` answers to each prompt, one prompt after the other, and columns (B,) of what they are worth."""
        # Keys and values of finished answers are those of older weights.
        self.engine.weights_changed()
        with self.policy.inference(), self.policy.autocast():
            groups = sample_rollouts(
                self.engine, [record.tokens for record in records], self.sampling, samples, seeds, tool=self.tool
            )
        found: dict[str, list[float]] = {"reward": [], "is_skipped": [], "length": [], "is_truncated": []}
        for record, group in zip(records, groups, strict=True):
            prompt = Prompt(self.prepared.tokenizer.decode(record.tokens), record.tokens)
            tokens, texts = [each.tokens for each in group], [each.text for each in group]
            rewarded = self.rewards(prompt, tokens, texts, record.answer, record.where)
            found["reward"] += rewarded.totals
            found["is_skipped"] += map(float, rewarded.skipped)
            found["length"] += (float(each.sampled) for each in group)
            found["is_truncated"] += (float(each.is_truncated) for each in group)
        rollouts = [each for group in groups for each in group]
        return rollouts, {name: torch.tensor(values) for name, values in found.items()}


class RolloutSource:
    """A source of sampled answers (see ``llmfast.data.batch.Source``).

    Each sampling makes ``minibatches`` batches, which are used ``epochs`` times. Noise depends on the seed, the
    place of the prompt in the run and the sample, so that any number of processes samples the same. The state has the
    rollouts that are still in use: they cannot be sampled again once the policy has changed.

    Args:
        config: of the run.
        prepared: prompts with right answers.
        share: this process and the number of processes.
        policy: the model, which samples.
        advantages: see ``Advantages``.
        reference: gives the log-probabilities of the model that the run started with; None if they are not needed.
        has_values: whether the model has a value head, whose values are then columns.
    """

    def __init__(
        self,
        config: PolicyConfig,
        prepared: PreparedPrompts,
        share: Share,
        policy: Policy,
        *,
        advantages: Advantages,
        reference: Callable[[], contextlib.AbstractContextManager[Decoder]] | None = None,
        has_values: bool = False,
    ):
        self.config, self.prepared, self.share, self.policy = config, prepared, share, policy
        self.advantages, self.reference, self.has_values = advantages, reference, has_values
        prompts = config.training.batch_size * config.rollouts.minibatches // config.rollouts.samples
        if prompts % share.count:
            raise ValueError(
                f"{prompts} prompts per sampling (training.batch_size times rollouts.minibatches over "
                f"rollouts.samples) cannot be shared equally by {share.count} processes"
            )
        self.sample, self.sampling = Sampler(config, prepared, policy), sampling_of(config)
        self.steps = 0
        self.kept: Columns = {}

    @property
    def fingerprint(self) -> str:
        return self.prepared.train.checksum

    @property
    def rows(self) -> int:
        """Answers in a pass over the prompts."""
        return len(self.prepared.train) * self.config.rollouts.samples

    def state(self) -> Mapping[str, Any]:
        return {"position": self.steps} | {f"{KEPT}{name}": column for name, column in self.kept.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.steps = state["position"]
        self.kept = {name.removeprefix(KEPT): each for name, each in state.items() if name.startswith(KEPT)}

    def next(self, batch_size: int, context: int | None = None) -> Batch:
        """This process's rows of the next batch; answers are not cut by ``context``, which must be full."""
        rollouts = self.config.rollouts
        used = self.steps % (rollouts.minibatches * rollouts.epochs)
        if used == 0:
            self.kept = self._collect(self.steps // (rollouts.minibatches * rollouts.epochs), batch_size)
        self.steps += 1
        first = used % rollouts.minibatches * batch_size
        own = batch_size // self.share.count
        rows = slice(first + self.share.index * own, first + (self.share.index + 1) * own)
        columns = {name: column[rows] for name, column in self.kept.items()}
        return Batch(**columns, fresh=torch.full((own,), float(used == 0)))

    # --- one sampling -------------------------------------------------------------------------------------------------

    def _collect(self, number: int, batch_size: int) -> Columns:
        """The columns of all answers of the ``number``-th sampling, the same in every process."""
        samples = self.config.rollouts.samples
        prompts = batch_size * self.config.rollouts.minibatches // samples
        positions = number * prompts + np.arange(prompts)
        mine = positions[self.share.index :: self.share.count]
        columns = self._shared(mine, self._scored(mine, samples), positions)
        return self.advantages(columns)

    def _scored(self, positions: np.ndarray, samples: int) -> Columns:
        """Answers to the prompts at ``positions`` of the run, rewarded and scored by this process."""
        train, seed = self.prepared.train, self.config.training.seed
        epochs, places = np.divmod(positions, len(train))
        places = [
            int(shuffled(np.array([place]), len(train), (seed, int(epoch)))[0])
            for epoch, place in zip(epochs, places, strict=True)
        ]
        seeds = [prompt_seed(seed, int(position)) for position in positions]
        rollouts, worth = self.sample([train[place] for place in places], seeds, samples)
        width = self.config.data.max_tokens
        columns = rollout_columns(rollouts, self.prepared.tokenizer.eot_token, width) | worth
        trimmed = _trimmed(columns)
        rows = max(1, TOKENS_AT_ONCE // trimmed["tokens"].shape[1])
        scored = [self._score(Batch(**part)) for part in _parts(trimmed, rows)]
        # All processes have columns of one width, whatever the length of their own answers.
        missing = columns["tokens"].shape[1] - trimmed["tokens"].shape[1]
        return columns | {name: F.pad(torch.cat([each[name] for each in scored]), (0, missing)) for name in scored[0]}

    @torch.no_grad()
    def _score(self, batch: Batch) -> Columns:
        """What models say of the tokens of answers, before the policy changes."""
        found: Columns = {}
        wants_own = self.config.importance_cap is not None
        batch = batch.to(self.policy.device)
        invariant = self.config.rollouts.batch_invariant
        with self.policy.inference() as model, self.policy.autocast():
            with batch_invariant(model) if invariant else contextlib.nullcontext():
                if wants_own or self.has_values:
                    own, values = _of_states(model, batch, self.sampling, self.has_values)
                    found |= {"trainer": own} if wants_own else {}
                    found |= {"old_values": values} if self.has_values else {}
            if self.reference is not None:
                with self.reference() as reference:
                    found["reference"] = _of_states(reference, batch, self.sampling, False)[0]
        return {name: column.float().cpu() for name, column in found.items()}

    def _shared(self, mine: np.ndarray, columns: Columns, positions: np.ndarray) -> Columns:
        """The columns of all processes, in the order of prompts: each gives its rows, and zeros for the others."""
        if self.share.count == 1:
            return _trimmed(columns)
        samples = self.config.rollouts.samples
        rows = torch.from_numpy(((mine - positions[0])[:, None] * samples + np.arange(samples)).ravel())
        whole = {}
        for name, column in columns.items():
            table = torch.zeros(len(positions) * samples, *column.shape[1:], dtype=torch.float64)
            table[rows] = column.double()
            whole[name] = self.policy.team.sum(table).to(column.dtype)
        return _trimmed(whole)


def _of_states(model: Decoder, batch: Batch, sampling: Sampling, with_values: bool) -> tuple[Tensor, Tensor | None]:
    def scores(states: Tensor) -> tuple[Tensor, Tensor | None]:
        values = values_of(model, states) if with_values else None
        return token_log_probabilities(model, states, batch.targets, sampling), values

    return model(batch.tokens, is_real=batch.is_real, of_states=scores).result


def _parts(columns: Columns, rows: int) -> list[Columns]:
    count = len(next(iter(columns.values())))
    return [{name: column[first : first + rows] for name, column in columns.items()} for first in range(0, count, rows)]


def _trimmed(columns: Columns) -> Columns:
    """Without the places behind the longest row, but for a multiple of 16."""
    width = min(-(-int(columns["lengths"].max()) // 16) * 16, columns["tokens"].shape[1])
    return {name: column[:, :width] if column.ndim == 2 else column for name, column in columns.items()}


EVALUATED_AT_ONCE = 16  # prompts


def evaluated(sampler: Sampler, split: PromptSplit, policy: Policy, *, samples: int, most: int) -> dict[str, float]:
    """What answers to held-out prompts are worth, by all processes; with several samples, pass@k and maj@k as well.

    pass@k is the mean reward of the best of k answers, maj@k that of the answer that most of them come to. With rewards
    of 0 and 1 these are the usual shares.
    """
    count = min(len(split), most)
    places = [int(place) for place in np.arange(count) * len(split) // count]
    groups = [places[first : first + EVALUATED_AT_ONCE] for first in range(0, count, EVALUATED_AT_ONCE)]
    seed = sampler.config.training.seed

    def measure(some: list[int]) -> list[float]:
        seeds = [random_integer((seed, EVALUATION, place)) >> 1 for place in some]
        rollouts, worth = sampler([split[place] for place in some], seeds, samples)
        rewards = worth["reward"].view(-1, samples)
        finals = [final_answer(each.text) for each in rollouts]
        majorities = [
            _of_majority(finals[row * samples : (row + 1) * samples], of_row.tolist())
            for row, of_row in enumerate(rewards)
        ]
        sums = [rewards.mean(1).sum(), rewards.amax(1).sum(), sum(majorities), worth["length"].sum() / samples]
        return [*map(float, sums), float(len(some))]

    totals = np.array(policy.team.figures(measure, groups, 5)).sum(0)
    reward, best, majority, length = (totals[:4] / totals[4]).tolist()
    found = {"loss": -reward, "reward": reward, "length": length}
    return found if samples == 1 else found | {f"pass@{samples}": best, f"maj@{samples}": majority}


def _of_majority(answers: Sequence[str], rewards: Sequence[float]) -> float:
    """The reward of the commonest answer, the first of them where several are as common."""
    commonest = Counter(answers).most_common(1)[0][0]
    return rewards[answers.index(commonest)]
