"""Batch-invariant mode: whether the bits of a row may depend on the rows that share its batch."""

import threading

_lock = threading.Lock()
_holders = 0
_active = False  # torch.compile guards on this; the number of holders would compile again for each


def hold(change: int) -> None:
    """Adds or removes holders of the mode, which is on while there are any."""
    global _holders, _active
    with _lock:
        _holders += change
        assert _holders >= 0, "batch_invariant was left more often than entered"
        _active = _holders > 0


def is_batch_invariant() -> bool:
    """Whether batch-invariant mode is on; see ``batch_invariant``."""
    return _active
