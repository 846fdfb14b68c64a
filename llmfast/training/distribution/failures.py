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


def _add(key: str, count: int = 1) -> int | None:
    """Add to a counter in the store of this start of the processes; the sum, or None without a store."""
    where = os.environ
    start = f"{where.get('TORCHELASTIC_RUN_ID', '')}/{where.get('TORCHELASTIC_RESTART_COUNT', '')}"
    try:
        address = where["MASTER_ADDR"], int(where["MASTER_PORT"])
        store = dist.TCPStore(*address, is_master=False, wait_for_workers=False, timeout=PATIENCE)
        return store.add(f"llmfast/{start}/{key}", count)
    except (KeyError, RuntimeError):  # torch's DistError is a RuntimeError
        return None
