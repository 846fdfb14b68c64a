"""Signals that ask a run to save or to stop."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass

STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SAVE = (signal.SIGUSR1,)


@dataclass
class Requests:
    """What signals have asked for."""

    stop: bool = False
    save: bool = False


@contextlib.contextmanager
def requests_by_signal(on_stop: Callable[[], object] | None = None) -> Iterator[Requests]:
    """What SIGINT, SIGTERM, SIGHUP (stop) and SIGUSR1 (save) ask for, so that steps always complete.

    A second signal of those that stop acts at once. SIGHUP stays ignored where it is, as under ``nohup``. The first one
    calls ``on_stop`` as well.
    """
    requests = Requests()
    previous = {}

    def stop(number: int, frame: object) -> None:
        requests.stop = True
        for each in STOP:
            if each in previous:
                signal.signal(each, previous[each])
        if on_stop is not None:
            on_stop()

    def save(number: int, frame: object) -> None:
        requests.save = True

    handlers = dict.fromkeys(STOP, stop) | dict.fromkeys(SAVE, save)
    try:
        for each, handler in handlers.items():
            if each != signal.SIGHUP or signal.getsignal(each) != signal.SIG_IGN:
                previous[each] = signal.signal(each, handler)
    except ValueError:  # not the main thread: signals are the caller's business
        pass
    try:
        yield requests
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)
