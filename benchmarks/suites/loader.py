"""Batches of shuffled windows from a memory-mapped file of tokens: ours, nanoGPT's ``get_batch``, torch's DataLoader.

The tokens count up in steps, so that a batch shows whether its targets are the next tokens.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from llmfast.data.loader import Loader
from llmfast.data.shards import ShardWriter, TokenShards
from llmfast.data.windows import StreamWindows

from ..contenders import Contender
from ..jobs import Job, Program
from ..results import OURS, PYTORCH

V, STEP = 50257, 40503
# Tokens per call. Ours prepares 2**16 tokens at once, and as many ahead while the others take their turns, so that a
# shorter call would find its tokens prepared.
TOKENS = 2**21
Next = Callable[[], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Reading:
    """Batches of B windows of S tokens from a file."""

    tokens: int
    batch: int
    context: int


def cases(size: str) -> Iterator[Job]:
    if size in ("tiny", "cpu-quick"):
        wanted = [Reading(2**20, 32, 256)]
    else:
        wanted = [Reading(2**26, 32, 1024), Reading(2**26, 16, 128)]
    for reading in wanted:
        with tempfile.TemporaryDirectory() as folder:
            yield job(reading, Path(folder))


def write_tokens(count: int, folder: Path) -> Path:
    """Writes a folder with one shard of tokens that count up by STEP; returns the shard's file."""
    writer = ShardWriter(folder, vocab_size=V, eot_token=0, fingerprint="counting")
    part = 2**20
    for start in range(0, count, part):
        tokens = np.arange(start + 1, min(start + part, count) + 1, dtype=np.int64) * STEP % V
        writer.add(tokens, documents=int((tokens == 0).sum()), text_bytes=0)
    writer.finish()
    (file,) = folder.glob("*.bin")
    return file


def job(wanted: Reading, folder: Path) -> Job:
    file = write_tokens(wanted.tokens, folder)
    shape = {"B": wanted.batch, "S": wanted.context}

    def right() -> dict[str, Tensor]:
        return {"steps": torch.full((wanted.batch, wanted.context), float(STEP), dtype=torch.float64)}

    def contender(name: str, build: Callable[[], Next]) -> Contender:
        return Contender(name, lambda: reading(build(), batches))

    batches = max(8, TOKENS // (wanted.batch * wanted.context))
    count = batches * wanted.batch * wanted.context
    return Job(
        op="loader",
        shape={"tokens": wanted.tokens, **shape},
        dtype=torch.int64,
        pass_="batch",
        exact=right,
        plain=right,
        contenders=[
            contender(OURS, lambda: ours(folder, wanted)),
            contender("nanoGPT", lambda: nanogpt(file, wanted)),
            contender(f"{PYTORCH} DataLoader", lambda: data_loader(file, wanted)),
        ],
        # Reads the tokens; writes tokens and targets in 64 bits each.
        work=(count * (2 + 8 + 8), 0),
        tokens=count,
    )


def reading(following: Next, batches: int) -> Program:
    def evidence() -> dict[str, Tensor]:
        tokens, targets = following()
        return {"steps": ((targets - tokens) % V).double()}

    def read() -> None:
        for _ in range(batches):
            following()

    return Program(evidence, read, lambda: 0)


def ours(folder: Path, wanted: Reading) -> Next:
    loader = Loader(StreamWindows(TokenShards(folder), wanted.context), seed=0)

    def following() -> tuple[Tensor, Tensor]:
        batch = loader.next(wanted.batch)
        return batch.tokens, batch.targets

    return following


def nanogpt(file: Path, wanted: Reading) -> Next:
    """As published: windows may repeat, and the file is mapped again for each batch."""

    def get_batch() -> tuple[Tensor, Tensor]:
        data = np.memmap(file, dtype=np.uint16, mode="r")
        starts = torch.randint(len(data) - wanted.context, (wanted.batch,))

        def rows(shift: int) -> Tensor:
            ends = [(start + shift, start + shift + wanted.context) for start in starts]
            return torch.stack([torch.from_numpy(data[i:j].astype(np.int64)) for i, j in ends])

        return rows(0), rows(1)

    return get_batch


def data_loader(file: Path, wanted: Reading) -> Next:
    """A dataset of windows, shuffled, read in this process."""
    data = np.memmap(file, dtype=np.uint16, mode="r")

    class Windows(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return (len(data) - 1) // wanted.context

        def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
            start = index * wanted.context
            window = torch.from_numpy(data[start : start + wanted.context + 1].astype(np.int64))
            return window[:-1], window[1:]

    def endless() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield from torch.utils.data.DataLoader(Windows(), wanted.batch, shuffle=True, drop_last=True)

    batches = endless()
    return lambda: next(batches)
