"""What the reference of preference training says: the model as it was at the start, without dropout or gradients."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from llmfast.alignment.log_probabilities import answer_log_probabilities
from llmfast.data.batch import Batch
from llmfast.data.examples.judged import JudgedSplit
from llmfast.data.examples.preferences import PairSplit
from llmfast.files import atomic_write
from llmfast.models.adapters.switch import switches, use_adapter
from llmfast.training.task import Policy

AT_ONCE = 8  # pairs

Reference = Callable[[Batch], Tensor]
"""Log-probabilities (B, sides) of a batch of pairs."""


def without_adapter(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """The model as it started: its adapter, if it has one, is left out for a ``with`` block."""
    return use_adapter(model, None) if switches(model) else contextlib.nullcontext()


def by_start(policy: Policy) -> Reference:
    """The model itself without its adapter: the reference, as long as all else in it is frozen, or nothing is trained
    yet."""

    def log_probabilities(batch: Batch) -> Tensor:
        with policy.inference() as model, without_adapter(model), policy.autocast():
            return answer_log_probabilities(model, batch.to(policy.device)).sums.cpu()

    return log_probabilities


def by_copy(copy: nn.Module, policy: Policy) -> Reference:
    """A frozen copy of the model."""
    copy = copy.to(policy.device).eval().requires_grad_(False)

    @torch.no_grad()
    def log_probabilities(batch: Batch) -> Tensor:
        with policy.autocast():
            return answer_log_probabilities(copy, batch.to(policy.device)).sums.cpu()

    return log_probabilities


def log_probability_table(split: PairSplit | JudgedSplit, reference: Reference, policy: Policy) -> np.ndarray:
    """(pairs, sides) float64: what ``reference`` says of every pair, computed by all processes."""
    order = np.argsort(split.lengths, kind="stable")  # pairs of like length together: little padding
    groups = [order[first : first + AT_ONCE] for first in range(0, len(order), AT_ONCE)]

    def measure(places: np.ndarray) -> list[float]:
        found = reference(split.batch(places)).double().flatten().tolist()
        return found + [0.0] * (AT_ONCE * split.sides - len(found))

    table = np.empty((len(split), split.sides))
    measured = policy.team.figures(measure, groups, AT_ONCE * split.sides)
    for places, found in zip(groups, measured, strict=True):
        table[places] = np.reshape(found, (AT_ONCE, split.sides))[: len(places)]
    return table


def save_tables(path: Path, tables: Mapping[str, np.ndarray]) -> None:
    """Write tables by split, whole or not at all."""
    atomic_write(path, save({name: torch.from_numpy(table) for name, table in tables.items()}))


def load_tables(path: Path) -> dict[str, np.ndarray]:
    """Tables by split.

    Raises:
        ValueError: the file is missing.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{path} with the reference's log-probabilities is missing: begin the run again") from None
    return {name: tensor.numpy() for name, tensor in load(content).items()}


class ReferencedPairs:
    """A split of pairs whose batches have a column ``reference``, the log-probabilities of the reference.

    Args:
        split: the pairs.
        reference: a table for all pairs, or what to ask for each batch.
    """

    def __init__(self, split: PairSplit | JudgedSplit, reference: np.ndarray | Reference):
        self.split, self.reference = split, reference
        self.max_tokens, self.checksum, self.lengths = split.max_tokens, split.checksum, split.lengths

    def __len__(self) -> int:
        return len(self.split)

    def batch(self, places: np.ndarray) -> Batch:
        """See ``PairSplit.batch``."""
        batch = self.split.batch(places)
        if isinstance(self.reference, np.ndarray):
            return Batch(**batch.columns, reference=torch.from_numpy(self.reference[places]).float())
        return Batch(**batch.columns, reference=self.reference(batch))
