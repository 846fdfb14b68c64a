"""Which sequences read which tokens in the next step, and which blocks they get for them."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from llmfast.inference.blocks import BlockManager, Hash, block_hash
from llmfast.inference.sequence import Request, Sequence, State


@dataclass
class Work:
    """What a sequence reads in a step: its next ``count`` tokens, guesses included."""

    sequence: Sequence
    count: int
    outputs: int
    """Of how many of them, the last, logits are wanted."""


class Scheduler:
    """Sequences that wait and run.

    Each step, all that generate read their last token (and guesses); what is left of ``prefill_chunk`` tokens goes to
    prompts, in the order in which requests came. A sequence is admitted when blocks for all its tokens are free. If
    one needs a block and there is none, the sequence that was admitted last gives back its blocks and waits to be read
    again from the start.

    Args:
        blocks: the blocks of the cache.
        block_size: tokens in each.
        max_batch: most sequences that run.
        prefill_chunk: most tokens in a step, unless more sequences than that generate.
        shares_prefixes: whether keys and values of equal tokens are equal (see ``Runner``).
        window: how many tokens the next token sees at most, itself included; None for all (see ``Runner``).
    """

    def __init__(
        self,
        blocks: BlockManager,
        *,
        block_size: int,
        max_batch: int,
        prefill_chunk: int,
        shares_prefixes: bool,
        window: int | None,
    ):
        self.blocks, self.block_size, self.max_batch, self.prefill_chunk = blocks, block_size, max_batch, prefill_chunk
        self._shares_prefixes = blocks.sharing and shares_prefixes
        self._window = window
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # in the order in which they were admitted
        self.preemptions = 0
        self.prefix_hits = 0
        """Tokens that need not be read because others had read them."""

    # --- requests -----------------------------------------------------------------------------------------------------

    def submit(self, request: Request) -> None:
        """Queue the first sample; the others fork from it when its prompt is read."""
        self.waiting.append(request.sequences[0])

    def fork(self, first: Sequence) -> list[Sequence]:
        """The other samples of a request whose first has read its prompt, as many as can run, on the same blocks; the
        rest wait."""
        others = first.request.sequences[1:]
        room = max(0, self.max_batch - len(self.running))
        for other in others[:room]:
            other.blocks, other.released = list(first.blocks), first.released
            for block in other.held:
                self.blocks.share(block)
            other.computed, other.hashes, other.state = first.computed, list(first.hashes), State.RUNNING
            self.running.append(other)
        self.waiting.extendleft(reversed(others[room:]))
        return others[:room]

    def finish(self, sequence: Sequence) -> None:
        """Give back the blocks of a sequence that has a ``finish_reason``."""
        if sequence.state is State.RUNNING:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        self._release(sequence)
        sequence.state = State.FINISHED

    def _release(self, sequence: Sequence) -> None:
        # The last block first: what prompts have in common is at the beginning, and is kept longest.
        for block in reversed(sequence.held):
            self.blocks.release(block)
        sequence.blocks, sequence.released, sequence.computed, sequence.remembered, sequence.guesses = [], 0, 0, 0, []

    # --- a step -------------------------------------------------------------------------------------------------------

    def plan(self) -> tuple[list[Work], list[tuple[int, int]]]:
        """What is read in this step, and which blocks are to be copied before, (source, target) each."""
        copies: list[tuple[int, int]] = []
        works = [
            self._work(sequence, 1 + len(sequence.guesses))
            for sequence in list(self.running)
            if sequence.state is State.RUNNING and sequence.unread == 1 and self._reserve(sequence, copies)
        ]
        budget = self.prefill_chunk - sum(work.count for work in works)
        for sequence in self.running:
            if budget > 0 and sequence.unread > 1:
                works.append(self._work(sequence, min(budget, sequence.unread)))
                budget -= works[-1].count
        while budget > 0 and self.waiting and len(self.running) < self.max_batch and self._admit(self.waiting[0]):
            sequence = self.waiting.popleft()
            works.append(self._work(sequence, min(budget, sequence.unread)))
            budget -= works[-1].count
        assert works or not (self.running or self.waiting), "sequences wait, but none can run"
        return works, copies

    def _work(self, sequence: Sequence, count: int) -> Work:
        end = sequence.computed + count
        wanted = end - len(sequence.tokens) + 1  # the last token, and guesses
        if self._wants_prompt(sequence) and sequence.computed < len(sequence.request.prompt):
            wanted = count
        return Work(sequence, count, max(0, wanted))

    @staticmethod
    def _wants_prompt(sequence: Sequence) -> bool:
        """Whether log-probabilities of the prompt are asked for and not all known yet."""
        request = sequence.request
        wants = request.sampling.prompt_logprobs is not None
        return wants and len(request.prompt_logprobs) < len(request.prompt) - 1

    def _reserve(self, sequence: Sequence, copies: list[tuple[int, int]]) -> bool:
        """Blocks that only this sequence holds for its next token and guesses, if need be by taking those of others;
        False if it had to give back its own."""
        needed = self._needed(sequence)
        if needed > self.blocks.free and sequence.guesses:
            sequence.guesses = []
            needed = self._needed(sequence)
        while needed > self.blocks.free:
            last = self.running[-1]
            self._preempt(last)
            if last is sequence:
                return False
            needed = self._needed(sequence)
        at = sequence.computed // self.block_size
        if at < len(sequence.blocks) and self.blocks.is_shared(sequence.blocks[at]):
            shared, own = sequence.blocks[at], self.blocks.allocate()
            copies.append((shared, own))
            self.blocks.release(shared)
            sequence.blocks[at] = own
        self._extend(sequence, len(sequence.tokens) + len(sequence.guesses))
        return True

    def _needed(self, sequence: Sequence) -> int:
        """How many blocks a sequence must get before it writes its next tokens."""
        missing = self._blocks_for(len(sequence.tokens) + len(sequence.guesses)) - len(sequence.blocks)
        at = sequence.computed // self.block_size
        shared = at < len(sequence.blocks) and self.blocks.is_shared(sequence.blocks[at])
        return max(0, missing) + shared

    def _blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_size)

    def _extend(self, sequence: Sequence, tokens: int) -> None:
        while len(sequence.blocks) < self._blocks_for(tokens):
            sequence.blocks.append(self.blocks.allocate())

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._release(sequence)
        sequence.state = State.WAITING
        self.waiting.appendleft(sequence)
        self.preemptions += 1

    def _admit(self, sequence: Sequence) -> bool:
        """Give a waiting sequence blocks for all its tokens and let it run, if there are enough."""
        found = self._known_blocks(sequence)
        needed = self._blocks_for(len(sequence.tokens)) - len(found)
        available = self.blocks.free - sum(self.blocks.is_free(block) for block in found)
        # Those that run will soon need a block each: else this one would be admitted to be preempted.
        if needed + len(self.running) > available and (self.running or needed > available):
            return False
        sequence.blocks = [self.blocks.share(block) for block in found]
        sequence.computed = len(found) * self.block_size
        self.prefix_hits += sequence.computed
        self._extend(sequence, len(sequence.tokens))
        sequence.state = State.RUNNING
        self.running.append(sequence)
        return True

    # --- prefixes -----------------------------------------------------------------------------------------------------

    def _known_blocks(self, sequence: Sequence) -> list[int]:
        """The blocks that hold the beginning of a sequence already. Its last token is always read, for its logits."""
        if not self._shares_prefixes or self._wants_prompt(sequence):
            return []
        found = []
        for hash_ in self._hashes(sequence, (len(sequence.tokens) - 1) // self.block_size):
            block = self.blocks.find(hash_)
            if block is None:
                break
            found.append(block)
        return found

    def _hashes(self, sequence: Sequence, count: int) -> list[Hash]:
        """The hashes of the first ``count`` blocks of a sequence, which are full."""
        hashes, size = sequence.hashes, self.block_size
        while len(hashes) < count:
            # What follows from tokens and weights also depends on the adapter.
            parent = hashes[-1] if hashes else (sequence.request.adapter or "").encode()
            start = len(hashes) * size
            hashes.append(block_hash(parent, sequence.tokens[start : start + size]))
        return hashes[:count]

    def advance(self, sequence: Sequence) -> None:
        """After a sequence has read tokens: let others use the blocks that it has filled, and give back those that no
        later token of it sees."""
        self._remember(sequence)
        if self._window is not None:
            self._release_before(sequence, sequence.computed - self._window + 1)

    def _remember(self, sequence: Sequence) -> None:
        first, last = max(sequence.remembered, sequence.released), sequence.computed // self.block_size
        if self._shares_prefixes and last > first:
            for place, hash_ in enumerate(self._hashes(sequence, last)[first:], first):
                self.blocks.remember(sequence.blocks[place], hash_)
            sequence.remembered = last

    def _release_before(self, sequence: Sequence, position: int) -> None:
        """Give back the blocks that lie before ``position`` as a whole. What is in their place is never read."""
        for place in range(sequence.released, max(0, position) // self.block_size):
            self.blocks.release(sequence.blocks[place])
            sequence.blocks[place] = 0
            sequence.released = place + 1
