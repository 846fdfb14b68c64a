"""Rows of tokens that begin alike, read by a model so that what they share is computed once."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from llmfast.inference.runner import Chunk
from llmfast.inference.torch_runner import cached_step, order_of
from llmfast.models.cache import CachedStep, PagedCache
from llmfast.models.config import DecoderConfig

SHORTEST = 8
"""Fewer shared tokens save less than another pass through the layers costs."""


@dataclass
class Segment:
    """Tokens of a row, or of several, behind those of ``parent``."""

    tokens: Sequence[int]
    parent: Segment | None = None
    past: int = field(init=False)
    """Tokens before them."""
    level: int = field(init=False)
    """How many segments are before it."""

    def __post_init__(self) -> None:
        self.past = 0 if self.parent is None else self.parent.end
        self.level = 0 if self.parent is None else self.parent.level + 1

    @property
    def end(self) -> int:
        return self.past + len(self.tokens)


@dataclass
class Forest:
    """Rows in segments."""

    rows: Sequence[int]
    """The numbers of the rows."""
    segments: list[Segment]
    paths: list[list[Segment]]
    """Of each row, its segments, in order."""

    def pages(self, size: int) -> int:
        """How many pages of ``size`` tokens they take in a cache: the one that a segment begins in is its own."""
        return sum(-(-segment.end // size) - segment.past // size for segment in self.segments)


class Level(NamedTuple):
    """The segments behind equally many others, to be read in one pass."""

    number: int
    tokens: Tensor
    """(N, 1), of all of them; or (B, S), a segment a row, padded."""
    step: CachedStep | None
    """Where they stand in a cache."""
    first: dict[int, int]
    """The place of the first token of each segment in ``tokens``, row after row, by ``id``."""


def read_levels(cache: PagedCache, forest: Forest, config: DecoderConfig) -> Iterator[Level]:
    """What a model is to read, a level after the other: the keys and values of one are read by the next."""
    size, used = cache.page_size, 0
    pages: dict[int, list[int]] = {}
    for number in range(1 + max(segment.level for segment in forest.segments)):
        level = [segment for segment in forest.segments if segment.level == number]
        copies = []
        for segment in level:
            before = [] if segment.parent is None else pages[id(segment.parent)]
            whole = segment.past // size
            count = -(-segment.end // size) - whole
            own = list(range(used, used + count))
            used += count
            if segment.past % size:
                copies.append((before[whole], own[0]))
            pages[id(segment)] = [*before[:whole], *own]
        if copies:
            cache.copy(copies)
        chunks = [_chunk(segment, pages[id(segment)]) for segment in level]
        order = order_of(chunks)
        step, tokens = cached_step(cache, [chunks[place] for place in order], config)
        first, place = {}, 0
        for segment in (level[place] for place in order):
            first[id(segment)] = place
            place += len(segment.tokens)
        yield Level(number, tokens, step, first)


def read_padded(forest: Forest, device: torch.device) -> Level:
    """Rows that share nothing, in one pass without a cache."""
    longest = max(segment.end for segment in forest.segments)
    tokens = torch.zeros(len(forest.segments), longest, dtype=torch.long)
    for row, segment in enumerate(forest.segments):
        tokens[row, : segment.end] = torch.tensor(segment.tokens)
    first = {id(segment): row * longest for row, segment in enumerate(forest.segments)}
    return Level(0, tokens.to(device), None, first)


def _chunk(segment: Segment, pages: list[int]) -> Chunk:
    previous = None if segment.parent is None else segment.parent.tokens[-1]
    return Chunk(segment.tokens, segment.past, pages, 0, previous, segment.end)


def apart(rows: Sequence[Sequence[int]], most: int) -> Iterator[Forest]:
    """All rows, the longest first, in groups of at most ``most`` tokens with padding (or of one row)."""
    group: list[int] = []
    for number in sorted(range(len(rows)), key=lambda number: -len(rows[number])):
        if group and (len(group) + 1) * len(rows[group[0]]) > most:
            yield _whole(rows, group)
            group = []
        group.append(number)
    if group:
        yield _whole(rows, group)


def _whole(rows: Sequence[Sequence[int]], numbers: list[int]) -> Forest:
    segments = [Segment(rows[number]) for number in numbers]
    return Forest(numbers, segments, [[segment] for segment in segments])


def forests(rows: Sequence[Sequence[int]], most: int) -> Iterator[Forest]:
    """All rows, in groups of at most ``most`` tokens to read (or of one row), where beginnings of at least ``SHORTEST``
    tokens that rows of a group share are read once. No row is empty."""
    order = sorted(range(len(rows)), key=lambda number: rows[number])
    # Rows that share something follow each other; together they are a unit that is not torn without need.
    units: list[list[int]] = []
    for number in order:
        near = units and _common(rows[units[-1][-1]], rows[number]) >= SHORTEST
        units[-1].append(number) if near else units.append([number])
    units = [part for unit in units for part in _parts(rows, unit, most)]
    # Rows of similar length together: attention takes those that are equally long at once.
    units.sort(key=lambda unit: -max(len(rows[number]) for number in unit))
    group: list[int] = []
    size = 0
    for unit in units:
        new = _size(rows, unit)
        if group and size + new > most:
            yield _forest(rows, group)
            group, size = [], 0
        group += unit
        size += new
    if group:
        yield _forest(rows, group)


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two rows share at their beginning."""
    count = 0
    for one, other in zip(a, b, strict=False):
        if one != other:
            break
        count += 1
    return count


def _alike(rows: Sequence[Sequence[int]], numbers: Sequence[int], least: int) -> int:
    """How many of the rows, from the first on, each share at least so many tokens with the one before."""
    shared = (_common(rows[before], rows[number]) for before, number in itertools.pairwise(numbers))
    return 1 + sum(1 for _ in itertools.takewhile(lambda common: common >= least, shared))


def _new(rows: Sequence[Sequence[int]], before: int, number: int) -> int:
    """How many tokens of a row are to be read after the row before it, in their order."""
    common = _common(rows[before], rows[number])
    return len(rows[number]) - (common if common >= SHORTEST else 0)


def _size(rows: Sequence[Sequence[int]], unit: Sequence[int]) -> int:
    return len(rows[unit[0]]) + sum(_new(rows, before, number) for before, number in itertools.pairwise(unit))


def _parts(rows: Sequence[Sequence[int]], unit: list[int], most: int) -> Iterator[list[int]]:
    """A unit, divided if it is too large."""
    part, size = [unit[0]], len(rows[unit[0]])
    for number in unit[1:]:
        new = _new(rows, part[-1], number)
        if size + new > most:
            yield part
            part, size = [number], len(rows[number])
        else:
            part.append(number)
            size += new
    yield part


def _forest(rows: Sequence[Sequence[int]], numbers: list[int]) -> Forest:
    segments: list[Segment] = []
    last: dict[int, Segment] = {}  # of each row
    # Rows that have the segment ``parent`` in common, in their order, so that any that share more follow each other.
    waiting: list[tuple[list[int], Segment | None]] = [(sorted(numbers, key=lambda number: rows[number]), None)]
    while waiting:
        together, parent = waiting.pop()
        depth = 0 if parent is None else parent.end
        while together:
            first = rows[together[0]]
            count = _alike(rows, together, depth + SHORTEST)
            same, together = together[:count], together[count:]
            if len(first) == depth and parent is not None:
                # Nothing is left of it, so that it shares no more with those behind it.
                last[same[0]] = parent
                continue
            end = _common(first, rows[same[-1]])
            segment = Segment(first[depth:end], parent)
            segments.append(segment)
            if len(same) == 1:
                last[same[0]] = segment
            else:
                waiting.append((same, segment))
    return Forest(numbers, segments, [_path(last[number]) for number in numbers])


def _path(segment: Segment | None) -> list[Segment]:
    path = []
    while segment is not None:
        path.append(segment)
        segment = segment.parent
    return path[::-1]
