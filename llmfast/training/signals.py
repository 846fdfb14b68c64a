"""Signals that ask a run to stop."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator


@contextlib.contextmanager
def stop_requests() -> Iterator[list[int]]:
    """A list that SIGINT or SIGTERM fills, so that steps always complete; a second signal acts at once."""
    received: list[int] = []
    previous = {}

    def remember(number: int, frame: object) -> None:
        received.append(number)
        for each, handler in previous.items():
            signal.signal(each, handler)

    try:
        for each in (signal.SIGINT, signal.SIGTERM):
            previous[each] = signal.signal(each, remember)
    except ValueError:  # not the main thread: signals are the caller's business
        pass
    try:
        yield received
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)
