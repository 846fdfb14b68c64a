"""How the processes of a run report failures to each other, so that a person reads each reason once.

They fail together because of one bad setting, or one fails and the rest lose its connection. The store that torchrun
keeps for their rendezvous outlives any of them.
"""

from __future__ import annotations

import hashlib
import os
import time
from datetime import timedelta

import torch.distributed as dist

PATIENCE = timedelta(seconds=10)
GRACE = 2.0  # seconds in which a process whose connection broke waits for another to say why


def is_first_to_fail(reason: str) -> bool:
    """Whether no other process has given this reason; True where the store cannot be asked."""
    announce()
    return _add(hashlib.sha256(reason.encode()).hexdigest()) in (None, 1)


def announce() -> None:
    """Tell the others that this process fails for a reason that it will give."""
    _add("reasons")


def another_failed() -> bool:
    """Whether some process has announced a reason."""
    until = time.monotonic() + GRACE
    while not (found := _add("reasons", 0)) and time.monotonic() < until:
        time.sleep(0.1)
    return bool(found)


class Heartbeat:
    """Tells the processes of a run which step each of them has completed, so that one that is stuck can be named."""

    def __init__(self, rank: int, size: int):
        self.rank, self.size = rank, size
        self._store = _store()
        self._beaten = 0

    def beat(self, step: int) -> None:
        """This process has completed a step, with the evaluations and the saving that came after it."""
        if self._store is not None:
            self._store.add(_key(f"step/{self.rank}"), step - self._beaten)
            self._beaten = step

    def behind(self) -> str | None:
        """Which processes have completed fewer steps than this one, in words; None if none has, or nobody knows."""
        if self._store is None:
            return None
        try:
            done = {rank: self._store.add(_key(f"step/{rank}"), 0) for rank in range(self.size)}
        except RuntimeError:  # the store is gone with the process that held it
            return None
        late = [
            f"rank {rank} has not completed step {step + 1:,}" for rank, step in done.items() if step < self._beaten
        ]
        return " and ".join(late) or None


def _add(key: str, count: int = 1) -> int | None:
    """Add to a counter in the store of this start of the processes; the sum, or None without a store."""
    store = _store()
    try:
        return None if store is None else store.add(_key(key), count)
    except RuntimeError:  # torch's DistError is a RuntimeError
        return None


def _store() -> dist.TCPStore | None:
    try:
        address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        return dist.TCPStore(*address, is_master=False, wait_for_workers=False, timeout=PATIENCE)
    except (KeyError, RuntimeError):
        return None


def _key(name: str) -> str:
    start = f"{os.environ.get('TORCHELASTIC_RUN_ID', '')}/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '')}"
    return f"llmfast/{start}/{name}"
