"""Blocks of the cache: who holds which, and which hold what a new prompt begins with."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b

Hash = bytes


def block_hash(parent: Hash, tokens: Sequence[int]) -> Hash:
    """The hash of a full block: of its tokens and of all before it. The first one's parent is what else the keys and
    values depend on, such as the adapter."""
    digest = blake2b(parent, digest_size=16)
    digest.update(b"".join(token.to_bytes(4, "little") for token in tokens))
    return digest.digest()


class BlockManager:
    """Hands out blocks and counts who holds each.

    A block that nobody holds but whose content is known by a hash stays as it is until it is needed: the one that was
    freed first is taken first.
    """

    def __init__(self, blocks: int, sharing: bool):
        self.blocks, self.sharing = blocks, sharing
        self._holders = [0] * blocks
        self._empty = list(range(blocks - 1, -1, -1))
        self._kept: OrderedDict[int, None] = OrderedDict()  # held by nobody, in the order in which they were freed
        self._hash_of: dict[int, Hash] = {}
        self._block_of: dict[Hash, int] = {}

    @property
    def free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._empty) + len(self._kept)

    @property
    def used(self) -> int:
        """Blocks that a sequence holds."""
        return self.blocks - self.free

    def allocate(self) -> int:
        """A block for one holder, with any content. There must be a free one."""
        if self._empty:
            block = self._empty.pop()
        else:
            block, _ = self._kept.popitem(last=False)
            self._forget(block)
        self._holders[block] = 1
        return block

    def share(self, block: int) -> int:
        """One more holder of a block; returns it."""
        if not self._holders[block]:
            del self._kept[block]
        self._holders[block] += 1
        return block

    def release(self, block: int) -> None:
        """One holder less."""
        self._holders[block] -= 1
        assert self._holders[block] >= 0, f"block {block} was released more often than it was held"
        if self._holders[block]:
            return
        if block in self._hash_of:
            self._kept[block] = None
        else:
            self._empty.append(block)

    def is_shared(self, block: int) -> bool:
        """Whether several hold a block, so that none may write to it."""
        return self._holders[block] > 1

    # --- blocks by content --------------------------------------------------------------------------------------------

    def find(self, hash_: Hash) -> int | None:
        """The block whose content has this hash."""
        return self._block_of.get(hash_)

    def is_free(self, block: int) -> bool:
        """Whether nobody holds a block."""
        return not self._holders[block]

    def remember(self, block: int, hash_: Hash) -> None:
        """A full block's content is known by its hash from now on, unless another has the same."""
        if self.sharing and hash_ not in self._block_of and block not in self._hash_of:
            self._hash_of[block], self._block_of[hash_] = hash_, block

    def forget_all(self) -> None:
        """Nothing that is held is of use to others any more, as when the weights have changed."""
        for block in list(self._hash_of):
            self._forget(block)
        self._empty.extend(self._kept)
        self._kept.clear()

    def _forget(self, block: int) -> None:
        hash_ = self._hash_of.pop(block, None)
        if hash_ is not None:
            del self._block_of[hash_]
