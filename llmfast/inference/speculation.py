"""Guessing the next tokens of sequences, which the model then verifies in one step.

Each token is drawn from the model's own distribution with the noise of its place (``distribution.draw``); guesses that
are what was drawn save steps, and others are thrown away. So replies are the same tokens with and without speculation,
greedy or not. A draft model draws with the noise of the model itself, which makes its guesses agree more often.
"""

from __future__ import annotations

from collections.abc import Sequence as Tokens
from dataclasses import dataclass, field
from typing import Any, Protocol

from llmfast.inference.blocks import BlockManager
from llmfast.inference.config import EngineConfig
from llmfast.inference.distribution import distribution, draw
from llmfast.inference.runner import Chunk, Runner
from llmfast.inference.sequence import Sequence
from llmfast.inference.torch_runner import TorchRunner


class Guesser(Protocol):
    """Guesses what follows."""

    def guess(self, sequences: Tokens[Sequence], counts: Tokens[int]) -> list[list[int]]:
        """For each sequence up to so many tokens that may follow."""
        ...

    def forget(self, sequence: Sequence) -> None:
        """The sequence is finished."""
        ...


class LookupGuesser:
    """Guesses what followed the last time that the last tokens occurred in the sequence (Saxena 2023, prompt lookup).

    Args:
        longest: how many last tokens to look up; fewer if they have not occurred before.
    """

    def __init__(self, longest: int):
        self._longest = longest
        self._places: dict[int, tuple[int, dict[tuple[int, ...], int]]] = {}

    def guess(self, sequences: Tokens[Sequence], counts: Tokens[int]) -> list[list[int]]:
        return [self._of(sequence, count) for sequence, count in zip(sequences, counts, strict=True)]

    def _of(self, sequence: Sequence, count: int) -> list[int]:
        tokens = sequence.tokens
        known, places = self._places.get(id(sequence), (0, {}))
        for end in range(known, len(tokens)):  # where each run of tokens ended last, the present end left out
            for length in range(1, min(self._longest, end) + 1):
                places[tuple(tokens[end - length : end])] = end
        self._places[id(sequence)] = len(tokens), places
        for length in range(min(self._longest, len(tokens) - 1), 0, -1):
            place = places.get(tuple(tokens[-length:]))
            if place is not None:
                repeats = len(tokens) - place  # past the end, as if what follows repeats itself
                return [tokens[place + step % repeats] for step in range(count)]
        return []

    def forget(self, sequence: Sequence) -> None:
        self._places.pop(id(sequence), None)


def make_guesser(draft: Any, vocab_size: int, config: EngineConfig) -> Guesser | None:
    """What guesses by ``config``: the model ``draft``, looking up where there is none, or nothing.

    Raises:
        ValueError: a draft model with another vocabulary, or without speculation.
    """
    if draft is None:
        return LookupGuesser(config.lookup_tokens) if config.speculation else None
    if not config.speculation:
        raise ValueError("draft guesses for speculation, which is 0: set speculation in the EngineConfig")
    runner = TorchRunner(draft, cuda_graphs=config.cuda_graphs)
    if runner.vocab_size != vocab_size:
        raise ValueError(f"draft has {runner.vocab_size} tokens, and the model {vocab_size}: they must be the same")
    return DraftGuesser(
        runner,
        block_size=config.block_size,
        prefill_chunk=config.prefill_chunk,
        sequences=config.max_batch,
        memory=config.memory,
    )


def guess_for(running: Tokens[Sequence], guesser: Guesser, *, config: EngineConfig) -> None:
    """Set the guesses of the sequences that generate."""
    sequences = [sequence for sequence in running if sequence.unread == 1]
    counts = []
    for sequence in sequences:
        request = sequence.request
        most = request.sampling.max_tokens or request.limit
        # The last token that a reply may have is drawn, and not guessed.
        room = min(most - len(sequence.drawn), request.limit - len(sequence.tokens)) - 1
        counts.append(max(0, min(config.speculation, room)))
    for sequence, guesses in zip(sequences, guesser.guess(sequences, counts), strict=True):
        sequence.guesses = guesses


@dataclass
class _Read:
    """What the draft model has read of a sequence."""

    tokens: list[int] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    agreed: int = 0
    """How many of the tokens are known to be those of the sequence."""


class DraftGuesser:
    """Guesses by a smaller model with a cache of its own.

    Args:
        runner: of the draft model.
        block_size, prefill_chunk, sequences: as of the engine.
        memory: bytes of the cache of the draft model.
    """

    def __init__(self, runner: Runner, *, block_size: int, prefill_chunk: int, sequences: int, memory: int | None):
        self._runner, self._size, self._part = runner, block_size, prefill_chunk
        count = runner.default_blocks(block_size, "auto", sequences, memory)
        runner.allocate(count, block_size, "auto")
        self.blocks = BlockManager(count, sharing=False)
        self._read: dict[int, _Read] = {}

    def forget(self, sequence: Sequence) -> None:
        read = self._read.pop(id(sequence), None)
        for block in read.blocks if read else ():
            self.blocks.release(block)

    def guess(self, sequences: Tokens[Sequence], counts: Tokens[int]) -> list[list[int]]:
        guesses: list[list[int]] = [[] for _ in sequences]
        fitting = [
            place
            for place, (sequence, count) in enumerate(zip(sequences, counts, strict=True))
            if count > 0 and self._reserve(sequence, len(sequence.tokens) + count)
        ]
        for step in range(max((counts[place] for place in fitting), default=0)):
            rows = [place for place in fitting if counts[place] > step]
            new = [sequences[place].tokens if step == 0 else guesses[place][-1:] for place in rows]
            logits = self._logits([sequences[place] for place in rows], new, step == 0)
            for place, row in zip(rows, logits, strict=True):
                guesses[place].append(self._drawn(sequences[place], row, step))
        return guesses

    def _drawn(self, sequence: Sequence, logits, step: int) -> int:
        row = sequence.next_row()
        if row.sampling.temperature == 0:
            return int(logits.argmax())
        changed = distribution(logits[None], row.sampling)[0]
        return int(draw(changed[None], [(row.seed, row.sample, row.position + step)]))

    def _logits(self, sequences: list[Sequence], new: list[Tokens[int]], from_start: bool):
        """Logits of the last of the new tokens, which are whole sequences at first and single tokens later."""
        chunks = []
        for sequence, tokens in zip(sequences, new, strict=True):
            read = self._read[id(sequence)]
            past = self._agree(read, tokens) if from_start else len(read.tokens)
            unread = list(tokens[past:]) if from_start else list(tokens)
            while len(unread) > self._part:
                self._runner.forward([self._chunk(read, unread[: self._part], past, 0)])
                past, unread = past + self._part, unread[self._part :]
            chunks.append(self._chunk(read, unread, past, 1))
        return self._runner.forward(chunks)

    def _chunk(self, read: _Read, tokens: list[int], past: int, outputs: int) -> Chunk:
        del read.tokens[past:]
        read.tokens += tokens
        previous = read.tokens[past - 1] if past else None
        return Chunk(tokens, past, read.blocks, outputs, previous, adapter=self._runner.default_adapter)

    @staticmethod
    def _agree(read: _Read, tokens: Tokens[int]) -> int:
        """How many tokens need not be read: those before the first that was guessed wrongly, and not the last."""
        agreed, most = read.agreed, min(len(read.tokens), len(tokens) - 1)
        while agreed < most and read.tokens[agreed] == tokens[agreed]:
            agreed += 1
        read.agreed = min(agreed, most)
        return read.agreed

    def _reserve(self, sequence: Sequence, tokens: int) -> bool:
        """Blocks for so many tokens; if there are not enough, the sequence is not guessed for."""
        if tokens > self._runner.context:
            return False
        read = self._read.setdefault(id(sequence), _Read())
        needed = -(-tokens // self._size) - len(read.blocks)
        if needed > self.blocks.free:
            return False
        read.blocks += [self.blocks.allocate() for _ in range(needed)]
        return True
