"""The likeliest tokens of a teacher at each target of the examples, computed once and kept beside them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

from llmfast.alignment.teacher import Teacher
from llmfast.data.batch import IGNORED, Batch
from llmfast.data.examples.instructions import ExampleSplit
from llmfast.files import atomic_write

TABLE = "teacher.safetensors"
AT_ONCE = 8  # examples


@torch.no_grad()
def write_teacher_table(file: Path, split: ExampleSplit, teacher: Teacher, *, k: int, temperature: float) -> None:
    """Write what a teacher says of all targets of a split.

    The file has, for all targets of all examples one after the other, ``tokens`` (targets, k) int32, the likeliest
    ones; ``log_probabilities`` (targets, k) float32, of them, at the temperature; and ``counts`` (examples,), how many
    targets each example has.
    """
    device = teacher.head.device
    parts: dict[str, list[Tensor]] = {"tokens": [], "log_probabilities": [], "counts": []}
    for first in range(0, len(split), AT_ONCE):
        batch = split.batch(np.arange(first, min(first + AT_ONCE, len(split)))).to(device)
        counted = batch.targets != IGNORED
        states = teacher(batch.tokens, None, batch.is_real)[counted]
        logits = (states @ teacher.head.T.to(states.dtype)).float() / temperature
        found = logits.log_softmax(-1).topk(k)
        parts["tokens"].append(found.indices.int().cpu())
        parts["log_probabilities"].append(found.values.cpu())
        parts["counts"].append(counted.sum(1).cpu())
    atomic_write(file, save({name: torch.cat(tensors) for name, tensors in parts.items()}))


class TaughtExamples:
    """Examples whose batches have columns ``teacher_tokens`` and ``teacher_log_probabilities`` (B, S, k).

    They are 0 where there is no target. It takes the place of the split for a ``LabeledLoader``.

    Raises:
        ValueError: the file is missing, or is not of these examples.
    """

    def __init__(self, split: ExampleSplit, file: Path):
        self.split, self.checksum, self.max_tokens = split, split.checksum, split.max_tokens
        try:
            table = load(file.read_bytes())
        except FileNotFoundError:
            raise ValueError(f"{file} with the teacher's log-probabilities is missing: begin the run again") from None
        self.tokens, self.log_probabilities = table["tokens"], table["log_probabilities"]
        self.ends = np.cumsum(table["counts"].numpy())
        if len(self.ends) != len(split) or self.ends[-1] != split.targets:
            raise ValueError(f"{file} is not of the examples in {split.shards.folder}: begin the run again")

    def __len__(self) -> int:
        return len(self.split)

    def batch(self, places: Sequence[int] | np.ndarray) -> Batch:
        """See ``ExampleSplit.batch``."""
        batch = self.split.batch(np.asarray(places))
        counted = batch.targets != IGNORED
        starts = np.concatenate([[0], self.ends[:-1]])
        rows = torch.from_numpy(np.concatenate([np.arange(starts[each], self.ends[each]) for each in places]))
        columns = dict(batch.columns)
        for name, table in (("tokens", self.tokens.long()), ("log_probabilities", self.log_probabilities)):
            column = table.new_zeros(*counted.shape, table.shape[1])
            column[counted] = table[rows]
            columns[f"teacher_{name}"] = column
        return Batch(**columns)
