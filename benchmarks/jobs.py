"""One job, a training step or the decoding of some tokens: every program that does it checked, then timed in turn."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from . import measure
from .compare import one_line, relative_error
from .contenders import Contender
from .results import Result

EPSILONS_OF_A_NUMBER = 8  # Where one number is compared, a loss, PyTorch's own may happen to be exact.
FEWEST_ROUNDS = 3
SECONDS = {"cuda": 60.0, "cpu": 15.0}  # of timing a job, for all contenders together


@dataclass(frozen=True)
class Program:
    """What a contender of a job builds. ``evidence()`` is called once, before anything else: it gives by name what
    tells whether the job is done right, and warms up. ``call()`` does the job once; ``held()`` counts the bytes of
    what it keeps between calls."""

    evidence: Callable[[], dict[str, Tensor]]
    call: Callable[[], object]
    held: Callable[[], int]


@dataclass(frozen=True)
class Job:
    """A job at a size, and the programs that do it.

    ``exact`` gives the evidence in float64, ``plain`` what plain PyTorch finds in this dtype: the error it makes is the
    measure of the others'.
    """

    op: str
    shape: dict[str, int]
    dtype: torch.dtype
    pass_: str
    exact: Callable[[], dict[str, Tensor]]
    plain: Callable[[], dict[str, Tensor]]
    contenders: Sequence[Contender]
    work: tuple[int, int]  # (bytes, floating-point operations) of a call
    tokens: int  # that a call works through
    seconds: float = SECONDS["cuda"]

    def __str__(self) -> str:
        shape = " ".join(f"{name}={size}" for name, size in self.shape.items())
        return f"{self.op} {shape} {measure.name_of(self.dtype)}"

    def run(self, device: str, rounds: int, ceilings: dict[str, float]) -> list[Result]:
        """Every contender's result, those included that cannot take part."""
        if "torch._dynamo" in sys.modules:
            torch.compiler.reset()  # forgets what was compiled for other shapes
        with measure.own_stream(device):
            entrants, results = self._admit(device)
            rounds = self._rounds_in_time(entrants, rounds)
            samplers = {e.name: measure.Sampler([e.program.call], device, long=True) for e in entrants}
            timings = measure.in_turn(samplers, rounds)
        for entrant in entrants:
            timing = timings[entrant.name]
            results.append(
                self._result(
                    entrant.name,
                    entrant.status,
                    entrant.note,
                    **vars(timing),
                    **measure.fractions(ceilings, measure.name_of(self.dtype), self.work, timing.median_s),
                    peak_bytes=entrant.peak,
                    error=entrant.error if math.isfinite(entrant.error) else None,
                    allowed_error=entrant.allowed,
                )
            )
        return results

    def _admit(self, device: str) -> tuple[list[Entrant], list[Result]]:
        """The programs that run, each checked and warm; and the results of the others."""
        judge = Judge(self)
        entrants, absent = [], []
        for contender in self.contenders:
            absence = contender.absence(device)
            if absence:
                absent.append(self._result(contender.name, *absence))
                continue
            try:
                entrants.append(judge.admit(contender, device))
            except ModuleNotFoundError as error:
                absent.append(self._result(contender.name, "missing", str(error)))
            except Exception as error:  # out of memory, most of the time: a result, too
                absent.append(self._result(contender.name, "failed", one_line(error)))
        return entrants, absent

    def _rounds_in_time(self, entrants: list[Entrant], rounds: int) -> int:
        once = sum(entrant.seconds for entrant in entrants)
        return min(rounds, max(FEWEST_ROUNDS, int(self.seconds / max(once, 1e-9))))

    def _result(self, contender: str, status: str, note: str = "", **measured) -> Result:
        moved, operations = self.work
        return Result(
            self.op,
            self.shape,
            measure.name_of(self.dtype),
            self.pass_,
            contender,
            status,
            note,
            bytes=moved,
            flops=operations,
            tokens=self.tokens,
            **measured,
        )


@dataclass
class Entrant:
    """A program that runs, on its way through a job."""

    name: str
    program: Program = field(repr=False)
    status: str
    note: str
    error: float
    allowed: float
    peak: int | None
    seconds: float  # of one call


class Judge:
    """Knows what is right, and how far plain PyTorch is from it."""

    def __init__(self, job: Job):
        self.exact = job.exact()
        plain = job.plain()
        epsilon = torch.finfo(job.dtype).eps if job.dtype.is_floating_point else 0.0

        def allowed(name: str, exact: Tensor) -> float:
            epsilons = EPSILONS_OF_A_NUMBER if exact.numel() == 1 else 1
            return 2 * relative_error(plain[name], exact) + epsilons * epsilon

        self.allowed = {name: allowed(name, exact) for name, exact in self.exact.items()}
        # An infinite allowance would pass everything.
        assert max(self.allowed.values()) < float("inf"), f"{job}: plain PyTorch is not finite"

    def admit(self, contender: Contender, device: str) -> Entrant:
        program = contender.build()
        found = program.evidence()
        errors = {name: relative_error(found[name], exact) for name, exact in self.exact.items()}
        worst = max(errors, key=lambda name: errors[name] - self.allowed[name])
        error, allowed = errors[worst], self.allowed[worst]
        right = error <= allowed
        note = "" if right else f"{worst} is off by {error:.1e}, allowed are {allowed:.1e}"
        del found
        start = time.perf_counter()
        peak = measure.peak_bytes(program.call, device)
        seconds = time.perf_counter() - start
        peak = peak if peak is None else peak + program.held()
        return Entrant(
            contender.name, program, "ok" if right else "wrong", note, error, allowed, peak, seconds
        )
