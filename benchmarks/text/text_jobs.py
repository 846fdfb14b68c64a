"""Libraries that do the same to the same text, or take the same call: first compared, then timed in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .. import measure
from ..compare import one_line
from ..results import TEXT, Result
from .tokenizers import Absent

FEWEST_ROUNDS = 3


@dataclass(frozen=True)
class TextJob:
    """``entrants()`` makes the libraries; ``expected()`` is what their calls must give. ``bytes`` of text make the
    figure a rate."""

    op: str
    pass_: str
    entrants: Callable[[], Mapping[str, Callable[[], Any] | Absent]]
    expected: Callable[[], Any]
    bytes: int | None = None
    repeats: int = 1  # of what is timed, in a sample
    seconds: float = 12.0  # of timing, for all of them together
    shape: dict[str, int] = field(default_factory=dict)
    read: Callable[[Any], Any] = lambda found: found  # what is compared of what a call gives

    def __str__(self) -> str:
        return f"{self.op}, {self.pass_}"

    def run(self, device: str, rounds: int, ceilings: dict[str, float]) -> list[Result]:
        calls, results, once, verdicts = {}, [], {}, {}
        expected = self.expected()
        for name, call in self.entrants().items():
            if isinstance(call, Absent):
                results.append(self.result(name, call.status, call.reason))
                continue
            try:
                once[name], found = timed(call)
                verdicts[name] = verdict(self.read(found), expected)
                calls[name] = call
            except Exception as error:  # whatever a peer raises is its result
                results.append(self.result(name, "failed", one_line(error)))
        samplers = {name: measure.Sampler([self.repeated(call)], "cpu", long=True) for name, call in calls.items()}
        longest = max(1e-9, self.repeats * sum(once[name] for name in calls))
        timings = measure.in_turn(samplers, min(rounds, max(FEWEST_ROUNDS, int(self.seconds / longest))))
        for name, timing in timings.items():
            times = [each / self.repeats for each in (timing.median_s, timing.p20_s, timing.p80_s)]
            results.append(self.result(name, *verdicts[name], times))
        return results

    def repeated(self, call: Callable[[], Any]) -> Callable[[], None]:
        def calls() -> None:
            for _ in range(self.repeats):
                call()

        return calls

    def result(self, name: str, status: str, note: str = "", times: list[float] | None = None) -> Result:
        median, p20, p80 = times or 3 * [None]
        return Result(
            self.op, self.shape, TEXT, self.pass_, name, status, note,
            method="clock" if times else "", median_s=median, p20_s=p20, p80_s=p80, bytes=self.bytes,
        )  # fmt: skip


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    found = call()
    return time.perf_counter() - start, found


def verdict(found: Any, expected: Any) -> tuple[str, str]:
    """(status, note)"""
    found, expected = flat(found), flat(expected)
    if np.array_equal(found, expected):
        return "ok", ""
    length = min(len(found), len(expected))
    differ = [index for index in range(length) if found[index] != expected[index]]
    return "wrong", f"differs from tiktoken at {differ[0] if differ else length:,} of {len(expected):,}"


def flat(found: Any) -> Any:
    """One sequence of ids, or of characters or bytes."""
    if isinstance(found, list) and found and isinstance(found[0], list):
        return np.array([token for one in found for token in one])
    return found
