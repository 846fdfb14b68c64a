"""What a training row is: a window cut from the stream of tokens, or whole documents packed into one by best fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from llmfast.data.batch import IGNORED
from llmfast.data.order import random_integer, shuffled
from llmfast.data.packing import best_fit
from llmfast.data.shards import TokenShards


@dataclass(frozen=True)
class Rows:
    """Training rows, each field (rows, context)."""

    tokens: np.ndarray
    """int64."""
    targets: np.ndarray
    """int64: the token after each, or IGNORED."""
    begins: np.ndarray
    """bool: whether a document's input begins here, which it does with the end-of-text token before its first."""
    is_real: np.ndarray | None = None
    """bool: false for padding; None where there is none."""

    def columns(self) -> dict[str, np.ndarray]:
        """The fields that there are, by name."""
        return {name: column for name, column in vars(self).items() if column is not None}


class Windows(Protocol):
    """Where training rows come from: ``count`` rows an epoch of ``context`` tokens each."""

    shards: TokenShards
    count: int
    context: int

    def read(self, places: np.ndarray, seed: int, epoch: int) -> Rows:
        """The rows at ``places`` of the epoch's shuffled order."""
        ...


class StreamWindows:
    """The stream of tokens cut every ``context`` tokens: nothing padded, documents cut where the grid falls.

    Each epoch shifts the grid by a random offset: a token is not always seen at the same place of a window.

    Raises:
        ValueError: fewer tokens than one window needs.
    """

    def __init__(self, shards: TokenShards, context: int):
        self.shards, self.context = shards, context
        # One token beyond the window is the last target; the random shift takes up to one window more.
        self.count = (len(shards) - 1) // context - 1
        if self.count < 1:
            raise ValueError(
                f"{shards.folder} holds {len(shards)} tokens; training with a context of {context} "
                f"needs at least {2 * context + 1}"
            )

    def read(self, places: np.ndarray, seed: int, epoch: int) -> Rows:
        shift = random_integer((seed, epoch, 1)) % self.context
        starts = shuffled(places, self.count, (seed, epoch)) * self.context + shift
        rows = self.shards.read_windows(starts, self.context + 1)
        tokens, targets = rows[:, :-1], rows[:, 1:]
        return Rows(tokens.astype(np.int64), targets.astype(np.int64), tokens == self.shards.eot_token)


class PackedWindows:
    """Whole documents side by side in rows, each where it fits best; longer ones are cut at ``context`` tokens.

    The rest of a row, where nothing fits, is padding that is not a target (its share is ``padding``). Where shards have
    a loss mask, tokens that are not trained are no targets either. Source: Ding et al. 2024, "Fewer Truncations Improve
    Language Modeling".

    Args:
        shards: what to read.
        context: tokens in a row.
        pieces: (starts, lengths) of the inputs to pack, at most ``context`` long, each followed by its last target;
            the documents if left out.

    Raises:
        ValueError: no documents.
    """

    def __init__(self, shards: TokenShards, context: int, pieces: tuple[np.ndarray, np.ndarray] | None = None):
        self.shards, self.context = shards, context
        starts, lengths = _pieces(*shards.document_spans, context) if pieces is None else pieces
        if not len(starts):
            raise ValueError(f"{shards.folder} holds no documents to pack")
        rows = best_fit(lengths, context)
        self.count = int(rows.max()) + 1
        # The padding of a row is one more piece at its end, of no document (start −1).
        room = context - np.bincount(rows, weights=lengths).astype(np.int64)
        short = np.flatnonzero(room)
        starts, lengths = np.append(starts, np.full(len(short), -1)), np.append(lengths, room[short])
        rows = np.append(rows, short)
        order = np.argsort(rows, kind="stable")
        # Pieces sorted by the row they are in; row r has those from first[r] to first[r + 1].
        self._starts, self._lengths = starts[order], lengths[order]
        self._first = np.searchsorted(rows[order], np.arange(self.count + 1))
        self.padding = room.sum() / (self.count * context)

    def read(self, places: np.ndarray, seed: int, epoch: int) -> Rows:
        rows = shuffled(places, self.count, (seed, epoch))
        pieces = _ranges(self._first[rows], self._first[rows + 1] - self._first[rows])
        starts, lengths = self._starts[pieces], self._lengths[pieces]
        is_padding = starts < 0
        source = _ranges(np.where(is_padding, 0, starts), lengths)  # of each token, in the order of the rows
        tokens = self.shards.read_at(source).astype(np.int64)
        source += 1
        targets = self.shards.read_at(source).astype(np.int64)
        if self.shards.has_mask:
            targets[~self.shards.read_mask_at(source)] = IGNORED
        places = np.cumsum(lengths) - lengths
        begins = np.zeros(len(tokens), bool)
        begins[places] = True  # also of padding, which sees nothing of the documents before it
        is_real = np.ones(len(tokens), bool)
        if is_padding.any():
            padding = _ranges(places[is_padding], lengths[is_padding])
            tokens[padding], targets[padding], is_real[padding] = self.shards.eot_token, IGNORED, False
        return Rows(*(each.reshape(-1, self.context) for each in (tokens, targets, begins, is_real)))


def _pieces(starts: np.ndarray, lengths: np.ndarray, context: int) -> tuple[np.ndarray, np.ndarray]:
    """Documents as (starts, lengths) of input tokens, at most ``context`` each.

    A document's input begins with the end-of-text token before it, which predicts its first token; its own is only
    ever a target.
    """
    counts = -(-lengths // context)
    document = np.repeat(np.arange(len(starts)), counts)
    offset = _ranges(np.zeros_like(counts), counts) * context
    return starts[document] - 1 + offset, np.minimum(lengths[document] - offset, context)


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """start, start + 1, ... (length of them, at least one) for each pair, joined: the running sum of their steps."""
    steps = np.ones(lengths.sum(), np.int64)
    if len(steps):
        steps[0] = starts[0]
        steps[np.cumsum(lengths[:-1])] = starts[1:] - (starts[:-1] + lengths[:-1] - 1)
    return np.cumsum(steps, out=steps)
