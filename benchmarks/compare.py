"""Runs one case: checks every contender against float64, then times all of them in alternation."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from . import measure
from .contenders import Contender, prepare_compiler
from .results import Result

Inputs = dict[str, Tensor]
FORWARD, BACKWARD, BOTH = "forward", "backward", "forward+backward"


def everything(name: str, tensor: Tensor) -> Tensor:
    return tensor


@dataclass(frozen=True)
class Case:
    """An op at one shape, with everything that comparing its implementations needs.

    ``plain`` is PyTorch's own op: the allowed error of the others is a multiple of its error in this dtype. ``exact``
    defines the op in float64. Both compute only a part, because the whole does not fit in memory for some cases:
    ``part`` cuts it out of the inputs by name, such that the same part of the outputs ("output 0", ...) and of the
    gradients depends on nothing else.
    """

    op: str
    shape: dict[str, int]
    dtype: torch.dtype
    inputs: Callable[[torch.Generator], Inputs]
    exact: Callable
    plain: Callable
    contenders: Sequence[Contender]
    work: dict[str, tuple[int, int]]  # pass -> (bytes, floating-point operations)
    constant: frozenset[str] = frozenset()  # inputs that get no gradient
    part: Callable[[str, Tensor], Tensor] = everything

    @property
    def dtype_name(self) -> str:
        return measure.name_of(self.dtype)

    def __str__(self) -> str:
        return f"{self.op} {' '.join(f'{name}={size}' for name, size in self.shape.items())}"

    def wanted(self, inputs: Inputs) -> list[str]:
        return [name for name, x in inputs.items() if x.is_floating_point() and name not in self.constant]

    def run(self, device: str, rounds: int, ceilings: dict[str, float]) -> list[Result]:
        """Returns every contender's result on every pass, including those that cannot take part."""
        return run_case(self, device, rounds, ceilings)


def as_tuple(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def grads_for(outputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Random gradients in the layout of their output, equal for all dtypes except for rounding; 1 for a loss."""
    generator = torch.Generator(outputs[0].device).manual_seed(1)

    def grad_for(output: Tensor) -> Tensor:
        if output.dim() == 0:
            return torch.ones_like(output)
        values = torch.randn(output.shape, generator=generator, device=output.device)
        return torch.empty_like(output, requires_grad=False).copy_(values)

    return [grad_for(output) for output in outputs]


def leaves(case: Case, inputs: Inputs) -> Inputs:
    """Copies of the inputs, with gradients. They are copied because some peers overwrite their inputs."""
    wanted = case.wanted(inputs)
    return {name: x.clone().requires_grad_(name in wanted) for name, x in inputs.items()}


def evaluate(
    case: Case, function: Callable, inputs: Inputs, grads: list[Tensor] | None = None
) -> tuple[Inputs, list[Tensor]]:
    """Returns outputs and gradients by name, and the gradients of the outputs that were used."""
    inputs = leaves(case, inputs)
    outputs = as_tuple(function(**inputs))
    grads = grads_for(outputs) if grads is None else grads
    found = {f"output {index}": output.detach() for index, output in enumerate(outputs)}
    wanted = case.wanted(inputs)
    if not wanted:
        return found, grads
    copies = [grad.to(output.dtype, copy=True) for grad, output in zip(grads, outputs, strict=True)]
    by_input = torch.autograd.grad(outputs, [inputs[name] for name in wanted], copies)
    return found | {f"gradient of {name}": grad for name, grad in zip(wanted, by_input, strict=True)}, grads


def relative_error(found: Tensor, exact: Tensor) -> float:
    """‖found − exact‖ / ‖exact‖; infinite if a value is not finite or the shapes differ."""
    if found.shape != exact.shape:
        return float("inf")
    error = (torch.linalg.vector_norm(found.double() - exact) / torch.linalg.vector_norm(exact)).item()
    return error if error == error else float("inf")


class Judge:
    """Holds the exact results of a case and the error of PyTorch's own op."""

    def __init__(self, case: Case, inputs: Inputs):
        self.case, self.inputs = case, inputs
        part = {name: case.part(name, x) for name, x in inputs.items()}
        plain, part_grads = evaluate(case, case.plain, part)
        wide = {name: x.double() if x.is_floating_point() else x for name, x in part.items()}
        self.exact, _ = evaluate(case, case.exact, wide, part_grads)
        epsilon = torch.finfo(case.dtype).eps
        self.allowed = {name: 2 * relative_error(plain[name], exact) + epsilon for name, exact in self.exact.items()}
        # An infinite allowed error would accept everything.
        assert max(self.allowed.values()) < float("inf"), f"{case}: PyTorch's own op is not finite"
        self.part_grads = part_grads

    def grads(self, outputs: tuple[Tensor, ...]) -> list[Tensor]:
        """Gradients of the part; if the outputs are larger, with zeros around them."""
        grads = []
        for index, (output, part_grad) in enumerate(zip(outputs, self.part_grads, strict=True)):
            grad = torch.zeros_like(output)
            self.case.part(f"output {index}", grad).copy_(part_grad)
            grads.append(grad)
        return grads

    def error(self, function: Callable) -> tuple[float, float, str]:
        """(error, allowed error, tensor) of the tensor with the largest ratio of the two."""
        with torch.no_grad():
            outputs = as_tuple(function(**leaves(self.case, self.inputs)))
        found, _ = evaluate(self.case, function, self.inputs, self.grads(outputs))
        errors = []
        for name, exact in self.exact.items():
            part = self.case.part(name.removeprefix("gradient of "), found[name])
            errors.append((relative_error(part, exact), self.allowed[name], name))
        return max(errors, key=lambda each: each[0] / each[1])


@dataclass
class Entrant:
    """A contender that passed the check, with its timers."""

    name: str
    function: Callable
    status: str = "ok"
    note: str = ""
    error: float | None = None
    allowed: float | None = None
    host: dict[str, float | None] = field(default_factory=dict)
    peak: int | None = None


def run_case(case: Case, device: str, rounds: int, ceilings: dict[str, float]) -> list[Result]:
    if device == "cuda":
        prepare_compiler()
    generator = torch.Generator(device)
    inputs = case.inputs(generator.manual_seed(0))
    with measure.own_stream(device):
        entrants, absent = _admit(case, inputs, device)
        size = sum(x.nbytes for x in inputs.values())
        sets = [inputs]
        sets += [case.inputs(generator) for _ in range(measure.input_sets(size, device) - 1)]
        results = []
        for pass_ in case.work:
            results += _time_pass(case, pass_, entrants, sets, device, rounds, ceilings)
            results += [_result(case, pass_, name, status, note) for name, (status, note) in absent.items()]
    return results


def release_memory(device: str) -> None:
    """Collects garbage: CUDA graphs and autograd's reference cycles hold memory until then."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def _admit(case: Case, inputs: Inputs, device: str) -> tuple[list[Entrant], dict[str, tuple[str, str]]]:
    """Returns the contenders that run and their checks; for the others (status, reason)."""
    judge = Judge(case, inputs)
    entrants, absent = [], {}
    for contender in case.contenders:
        absence = contender.absence(device)
        if absence:
            absent[contender.name] = absence
            continue
        try:
            entrant = Entrant(contender.name, contender.build())
            entrant.error, entrant.allowed, worst = judge.error(entrant.function)
            whole = BOTH if case.wanted(inputs) else FORWARD
            run = call(case, entrant.function, whole, leaves(case, inputs))
            run()
            entrant.peak = measure.peak_bytes(run, device)
        except ModuleNotFoundError as error:
            absent[contender.name] = "missing", str(error)
            continue
        except Exception as error:  # whatever a contender raises is recorded as its result
            absent[contender.name] = "failed", one_line(error)
            continue
        if not entrant.error <= entrant.allowed:
            entrant.status = "wrong"
            entrant.note = f"{worst} is off by {entrant.error:.1e}, allowed is {entrant.allowed:.1e}"
        entrants.append(entrant)
    return entrants, absent


def call(case: Case, function: Callable, pass_: str, inputs: Inputs) -> measure.Call:
    """The work of a pass on these inputs, as a function without arguments."""

    def forward() -> object:
        with torch.no_grad():
            return function(**inputs)

    if pass_ == FORWARD:
        return forward
    wanted = [inputs[name] for name in case.wanted(inputs)]
    if pass_ == BACKWARD:
        outputs = as_tuple(function(**inputs))
        grads = grads_for(outputs)
        return lambda: torch.autograd.grad(outputs, wanted, grads, retain_graph=True)
    grads = grads_for(as_tuple(forward()))
    return lambda: torch.autograd.grad(as_tuple(function(**inputs)), wanted, grads)


def _time_pass(
    case: Case,
    pass_: str,
    entrants: list[Entrant],
    sets: list[Inputs],
    device: str,
    rounds: int,
    ceilings: dict[str, float],
) -> list[Result]:
    samplers, failed = {}, {}
    for entrant in entrants:
        try:
            calls = [call(case, entrant.function, pass_, leaves(case, inputs)) for inputs in sets]
            entrant.host[pass_] = measure.host_seconds(calls[0], device)
            samplers[entrant.name] = measure.Sampler(calls, device)
        except Exception as error:  # usually out of memory
            failed[entrant.name] = one_line(error)
    timings = measure.in_turn(samplers, rounds)
    results = [_result(case, pass_, name, "failed", note) for name, note in failed.items()]
    timed = [entrant for entrant in entrants if entrant.name in timings]
    return results + [_timed(case, pass_, each, timings[each.name], ceilings) for each in timed]


def _timed(case: Case, pass_: str, entrant: Entrant, timing: measure.Timing, ceilings: dict[str, float]) -> Result:
    return _result(
        case,
        pass_,
        entrant.name,
        entrant.status,
        entrant.note,
        **vars(timing),
        **measure.fractions(ceilings, case.dtype_name, case.work[pass_], timing.median_s),
        peak_bytes=entrant.peak,
        host_s=entrant.host[pass_],
        error=entrant.error if entrant.error < float("inf") else None,
        allowed_error=entrant.allowed,
    )


def _result(case: Case, pass_: str, name: str, status: str, note: str = "", **measured) -> Result:
    moved, operations = case.work[pass_]
    return Result(
        case.op,
        case.shape,
        case.dtype_name,
        pass_,
        name,
        status,
        note,
        bytes=moved,
        flops=operations,
        **measured,
    )


def one_line(error: Exception) -> str:
    return without_paths(f"{type(error).__name__}: {' '.join(str(error).split())}")[:300]


def without_paths(message: str) -> str:
    """Removes the folders of this machine from the message, because result files are published."""
    return re.sub(r"(?<![\w:/])/(?:[^\s/:'\"]+/)+", ".../", message)
