"""Times launch choices on this GPU: ``python -m benchmarks tune OP`` writes ``kernels/tables/OP.json``.

The search is a hill climb. It starts at the choice of the rule in the code and moves to the best neighbor (one
setting halved, doubled or flipped) until no neighbor is better. Neighbors are timed in alternation with the best so
far. Each is checked against float64 first, and dropped if it does not compile, does not fit or is wrong. A row with
everything that was tried is written if the best choice beats the rule by more than a margin; rows of other GPUs stay.
The compile check then checks the new choices as well.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from . import compare, measure
from .results import OURS, ROOT, describe_machine, write_json
from .tune_questions import QUESTIONS, Question

TABLES = ROOT / "kernels" / "tables"
MARGIN = 0.02  # two runs of the same choice differ by this much
ROUNDS = {"cuda": 15, "cpu": 1}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks tune", description="Times launch choices on this GPU.")
    parser.add_argument("op", choices=list(QUESTIONS), help="op to tune")
    parser.add_argument("--out", type=Path, default=TABLES, help="folder of the tables")
    parser.add_argument("--tiny", action="store_true", help="a rehearsal in Triton's interpreter; requires --out")
    options = parser.parse_args(arguments)
    device = "cpu" if options.tiny else "cuda"
    if options.tiny and options.out == TABLES:
        parser.error("--tiny must not write the tables in use: give --out DIR")
    if device == "cuda" and not torch.cuda.is_available():
        print(f"tune {options.op}: skipped: no CUDA device (--tiny --out DIR rehearses without one)")
        return 0
    if options.tiny:
        os.environ.setdefault("TRITON_INTERPRET", "1")
    tune(options.op, device, options.out)
    return 0


def tune(op: str, device: str, folder: Path, say: Callable[[str], None] = print) -> Path:
    """Searches the launch choices of an op and writes its table."""
    from llmfast.kernels import backend

    path = folder / f"{op}.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []
    with backend("triton"):
        for question in QUESTIONS[op](device == "cpu"):
            search = Search(question, device)
            search.run()
            rows = [row for row in rows if not search.answers(row)]
            if search.gain > MARGIN:
                rows.append(search.row())
            verdict = f"{search.best}, {search.gain:.1%} faster than {search.rule}"
            say(f"{question}: {verdict if search.gain > MARGIN else f'the rule stands: {search.rule}'}")
            compare.release_memory(device)
            write_json(path, {"rows": rows})
    return path


# --------------------------------------------------------------------------------------------------- the search


@dataclass
class Search:
    """The search from the rule's choice to the best one."""

    question: Question
    device: str
    seconds: dict[Any, float] = field(default_factory=dict)
    faults: dict[Any, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        from llmfast.kernels.frame.launch import Chip

        self.chip = Chip.of(torch.device(self.device, 0) if self.device == "cuda" else torch.device("cpu"))
        self.rule = self.best = self.question.function.rule(self.chip, *self.question.arguments)
        generator = torch.Generator(self.device)
        self.inputs = self.question.case.inputs(generator.manual_seed(0))
        self.judge = compare.Judge(self.question.case, self.inputs)
        # Several copies of the inputs, so that none is in the L2 cache when it is used.
        copies = measure.input_sets(sum(x.nbytes for x in self.inputs.values()), self.device)
        self.sets = [self.inputs, *(self.question.case.inputs(generator) for _ in range(copies - 1))]

    def run(self) -> None:
        with measure.own_stream(self.device):
            while True:
                around = neighbours(self.best, self.question.fixed)
                others = [each for each in around if each not in self.faults | self.seconds]
                times = self.time([self.best, *others])
                fastest = min(times, key=times.get)
                if times[fastest] > (1 - MARGIN / 2) * times[self.best]:
                    break
                self.best = fastest
            self.seconds |= self.time([self.rule, self.best])

    @property
    def gain(self) -> float:
        return 1 - self.seconds[self.best] / self.seconds[self.rule]

    def time(self, choices: list[Any]) -> dict[Any, float]:
        """Times the choices that run and are correct, in alternation."""
        samplers = {}
        for choice in dict.fromkeys(choices):
            try:
                with self.question.function.forced(self.key, choice):
                    samplers[choice] = self.sampler(choice)
            except Exception as error:  # it does not compile, or needs more than the chip has
                self.faults[choice] = compare.one_line(error)
        if self.rule in self.faults:
            raise ValueError(f"{self.question}: the rule's own choice fails: {self.faults[self.rule]}")
        timings = measure.in_turn(samplers, ROUNDS[self.device])
        times = {choice: timing.median_s for choice, timing in timings.items()}
        self.seconds |= times
        return times

    def sampler(self, choice: Any) -> measure.Sampler:
        case = self.question.case
        ours = next(each for each in case.contenders if each.name == OURS).build()
        error, allowed, worst = self.judge.error(ours)
        if not error <= allowed:
            raise ValueError(f"wrong: {worst} is off by {error:.1e}, allowed is {allowed:.1e}")

        def call_with_choice(inputs: compare.Inputs) -> measure.Call:
            call = compare.call(case, ours, self.question.pass_, compare.leaves(case, inputs))

            def run() -> object:
                with self.question.function.forced(self.key, choice):
                    return call()

            return run

        return measure.Sampler([call_with_choice(inputs) for inputs in self.sets], self.device)

    @property
    def key(self) -> tuple:
        return (self.chip.capability, *self.question.arguments)

    def answers(self, row: dict[str, Any]) -> bool:
        """Whether a row of the table answers this question."""
        key = (row["capability"], *row["arguments"])
        return row["function"] == self.question.function.rule.__name__ and key == self.key

    def row(self) -> dict[str, Any]:
        machine = describe_machine(self.device)
        tried = [asdict(choice) | {"seconds": seconds} for choice, seconds in self.seconds.items()]
        tried += [asdict(choice) | {"fault": fault} for choice, fault in self.faults.items()]
        return {
            "function": self.question.function.rule.__name__,
            "capability": self.chip.capability,
            "arguments": list(self.question.arguments),
            "choice": asdict(self.best),
            "measured": {
                "case": str(self.question.case),
                "pass": self.question.pass_,
                "seconds": self.seconds[self.best],
                "seconds_of_rule": self.seconds[self.rule],
                "rule": asdict(self.rule),
                "tried": tried,
                **{name: machine[name] for name in ("gpu", "time", "revision", "versions")},
            },
        }


def neighbours(choice: Any, fixed: tuple[str, ...] = ()) -> Iterator[Any]:
    """The choices that differ in one setting."""
    for name, value in asdict(choice).items():
        if name in fixed:
            continue
        if isinstance(value, bool):
            yield replace(choice, **{name: not value})
        else:
            yield replace(choice, **{name: 2 * value})
            if name == "stages":
                yield replace(choice, stages=value + 1)
            if value > 1:
                yield replace(choice, **{name: value // 2})
