"""Runs one job, such as a training step: checks every program that does it, then times them in alternation."""

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

EPSILONS_OF_A_NUMBER = 8  # A single number, such as a loss, may be exact in PyTorch by chance.
FEWEST_ROUNDS = 3
SECONDS = {"cuda": 60.0, "cpu": 15.0}  # for timing a job, all contenders together


@dataclass(frozen=True)
class Program:
    """What a contender of a job builds. ``evidence()`` is called once, first: it warms up and returns by name the
    tensors that show whether the job is computed correctly. ``call()`` does the job once. ``held()`` returns the
    bytes that are kept between calls."""

    evidence: Callable[[], dict[str, Tensor]]
    call: Callable[[], object]
    held: Callable[[], int]


@dataclass(frozen=True)
class Job:
    """A job at one size and the programs that do it.

    ``exact`` returns the evidence in float64 and ``plain`` that of plain PyTorch in this dtype. The allowed error of
    the others is a multiple of the error of ``plain``.
    """

    op: str
    shape: dict[str, int]
    dtype: torch.dtype
    pass_: str
    exact: Callable[[], dict[str, Tensor]]
    plain: Callable[[], dict[str, Tensor]]
    contenders: Sequence[Contender]
    work: tuple[int, int]  # (bytes, floating-point operations) of a call
    tokens: int  # per call
    samples: int | None = None  # per call: answers or pairs, of a job whose speed is that of these
    seconds: float = SECONDS["cuda"]

    def __str__(self) -> str:
        shape = " ".join(f"{name}={size}" for name, size in self.shape.items())
        return f"{self.op} {shape} {measure.name_of(self.dtype)}"

    def run(self, device: str, rounds: int, ceilings: dict[str, float]) -> list[Result]:
        """Returns every contender's result, including those that cannot take part."""
        if "torch._dynamo" in sys.modules:
            torch.compiler.reset()  # clears what was compiled for other shapes
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
        """Returns the programs that passed the check, warmed up, and the results of the others."""
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
            except Exception as error:  # usually out of memory, which is a result as well
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
            samples=self.samples,
            **measured,
        )


@dataclass
class Entrant:
    """A program that passed the check, with its timer."""

    name: str
    program: Program = field(repr=False)
    status: str
    note: str
    error: float
    allowed: float
    peak: int | None
    seconds: float  # of one call


class Judge:
    """Holds the exact evidence and the error of plain PyTorch."""

    def __init__(self, job: Job):
        self.exact = job.exact()
        plain = job.plain()
        epsilon = torch.finfo(job.dtype).eps if job.dtype.is_floating_point else 0.0

        def allowed(name: str, exact: Tensor) -> float:
            epsilons = EPSILONS_OF_A_NUMBER if exact.numel() == 1 else 1
            return 2 * relative_error(plain[name], exact) + epsilons * epsilon

        self.allowed = {name: allowed(name, exact) for name, exact in self.exact.items()}
        # An infinite allowed error would accept everything.
        assert max(self.allowed.values()) < float("inf"), f"{job}: plain PyTorch is not finite"

    def admit(self, contender: Contender, device: str) -> Entrant:
        program = contender.build()
        found = program.evidence()
        errors = {name: relative_error(found[name], exact) for name, exact in self.exact.items()}
        worst = max(errors, key=lambda name: errors[name] - self.allowed[name])
        error, allowed = errors[worst], self.allowed[worst]
        right = error <= allowed
        note = "" if right else f"{worst} is off by {error:.1e}, allowed is {allowed:.1e}"
        del found
        start = time.perf_counter()
        peak = measure.peak_bytes(program.call, device)
        seconds = time.perf_counter() - start
        peak = peak if peak is None else peak + program.held()
        return Entrant(contender.name, program, "ok" if right else "wrong", note, error, allowed, peak, seconds)
