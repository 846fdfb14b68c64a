"""The questions of ``tune`` for each op: which case times the choices of which launch function."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING

import torch

from . import compare
from .compare import BACKWARD, BOTH, FORWARD
from .contenders import given
from .results import OURS

if TYPE_CHECKING:
    from llmfast.kernels.frame.tuned import Tuned


@dataclass(frozen=True)
class Question:
    """Which choice of a launch function is the fastest for these arguments, timed by a pass of a case that uses it?
    Settings in ``fixed`` cannot change, because callers rely on them."""

    function: Tuned
    arguments: tuple
    case: compare.Case
    pass_: str
    fixed: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.function.rule.__name__}{self.arguments}"


def of_kernels(name: str) -> ModuleType:
    return importlib.import_module(f"llmfast.kernels.{name}")


def suite_of(name: str, tiny: bool) -> ModuleType:
    suite = importlib.import_module(f"{__package__}.suites.{name}")
    if tiny and hasattr(suite, "DTYPE"):
        suite.DTYPE = torch.float16  # the interpreter computes wrong bfloat16 products
    return suite


def attention(tiny: bool) -> Iterator[Question]:
    launch, suite = of_kernels("attention.launch"), suite_of("attention", tiny)
    if tiny:
        dense = [suite.dense(1, 1, 1, 32, 16, True)]
    else:
        dense = [suite.dense(2, 2048 // D, 2048 // D, 8192, D, True) for D in (128, 64)]
    # Where time may run out: first what takes most of a training step.
    for function, pass_ in (
        (launch.keys_gradient_tile, BACKWARD),
        (launch.forward_tile, FORWARD),
        (launch.queries_gradient_tile, BACKWARD),
    ):
        for case in dense:
            yield Question(function, (case.shape["D"], case.dtype.itemsize, False), case, pass_)
    if not tiny:
        case = suite.decode(16, 8192, 32, 8, 128)
        yield Question(launch.decode_tile, (128, case.dtype.itemsize, 4), case, FORWARD)


def norm(tiny: bool) -> Iterator[Question]:
    launch, suite = of_kernels("norm.launch"), suite_of("norm", False)
    for rows, width in suite.sizes("tiny" if tiny else "full"):
        case = suite.rms_norm_case(rows, width)
        yield Question(launch.forward_launch, (width,), case, FORWARD)
        yield Question(launch.backward_launch, (width, case.dtype.itemsize), case, BACKWARD)


def activation(tiny: bool) -> Iterator[Question]:
    """Long rows, which are split into parts: one choice for all widths."""
    launch, suite = of_kernels("activation.launch"), suite_of("activation", tiny)
    rows, width = (4, launch.LONG) if tiny else suite.sizes("quick")[0]
    gated = suite.swiglu_case(rows, width)
    gelu = suite.gelu_case(rows, width)
    for kernel, case, pass_ in (
        ("gated_forward", gated, FORWARD),
        ("gated_backward", gated, BACKWARD),
        ("gelu_forward", gelu, FORWARD),
        ("gelu_backward", gelu, BACKWARD),
    ):
        yield Question(launch.launch, (kernel, launch.LONG), case, pass_)


def rope(tiny: bool) -> Iterator[Question]:
    launch, suite = of_kernels("rope.launch"), suite_of("rope", tiny)
    for B, S, H, K, D in suite.sizes("tiny" if tiny else "full")[::2]:
        yield Question(launch.launch, (max(H, K), D), suite.rope_case(B, S, H, K, D), FORWARD)


def cross_entropy(tiny: bool) -> Iterator[Question]:
    launch, suite = of_kernels("losses.launch"), suite_of("cross_entropy", tiny)
    for tokens, vocabulary in suite.sizes("tiny" if tiny else "full"):
        case = suite.case(tokens, vocabulary)
        yield Question(launch.cross_entropy_forward_launch, (vocabulary,), case, FORWARD)
        yield Question(launch.cross_entropy_backward_launch, (vocabulary,), case, BACKWARD)


def linear_cross_entropy(tiny: bool) -> Iterator[Question]:
    """The tiles, asked for by name: where the loss is reduced, the op takes chunks of itself."""
    launch, suite = of_kernels("losses.launch"), suite_of("linear_cross_entropy", tiny)
    case = suite.case(16, 64, 101) if tiny else suite.case(*suite.sizes("quick")[0])
    by_tiles = given(OURS, partial(suite.linear_cross_entropy, method="tiles"))
    case = replace(case, contenders=[by_tiles, *case.contenders[1:]])
    yield Question(launch.logits_launch, (False,), case, BOTH)
    yield Question(launch.hidden_launch, (), case, BOTH)
    yield Question(launch.weight_launch, (), case, BOTH)


def sizes_of(case: compare.Case) -> tuple[int, int, int]:
    return case.shape["N"], case.shape["V"], case.shape["E"]


def capability() -> int:
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor


def nf4(tiny: bool) -> Iterator[Question]:
    """Weights in 4 and 8 bits, at the largest number of tokens for which the kernel is used."""
    launch, suite = of_kernels("nf4.launch"), suite_of("nf4", tiny)
    sizes = suite.sizes("tiny" if tiny else "quick")
    for rows, width in sizes:
        case = suite.dequantize_case(rows, width)
        yield Question(launch.dequantize_launch, (case.dtype.itemsize,), case, FORWARD)
    # The kernel that decodes by a table has no choices.
    few = {"nf4": () if of_kernels("nf4.table_kernel").AVAILABLE else (8, 16), "int8": (8, 16)}
    for kernel, make in (("nf4", suite.linear_case), ("int8", suite.int8_case)):
        for rows, width in sizes:
            for tokens in few[kernel]:
                case = make(tokens, rows, width)
                arguments = kernel, tokens, rows
                yield Question(launch.few_tokens_launch, arguments, case, FORWARD, fixed=("tokens",))
        for tokens in (64,) if tiny else (64, 256):
            yield Question(launch.tiles_launch, (kernel, tokens), make(tokens, *sizes[0]), FORWARD)


def optimizer(tiny: bool) -> Iterator[Question]:
    launch, suite = of_kernels("optimizers.launch"), suite_of("optimizer", tiny)
    tensors, elements = suite.lists("tiny" if tiny else "quick")[0]
    low = torch.float16 if tiny else torch.bfloat16
    for kernel, case in (
        ("adamw_kernel", suite.adamw_case(tensors, elements, torch.float32)),
        ("adamw_kernel", suite.adamw_case(tensors, elements, low)),
        ("adamw_8bit_kernel", suite.adamw_8bit_case(tensors, elements)),
    ):
        yield Question(launch.adamw_launch, (kernel, case.dtype.itemsize), case, FORWARD)
    for B, R, C in suite.stacks("tiny" if tiny else "full"):
        case = suite.newton_schulz_case(B, R, C, torch.float32 if tiny else low)
        yield Question(launch.product_launch, (min(R, C), case.dtype.itemsize), case, FORWARD)


QUESTIONS: dict[str, Callable[[bool], Iterator[Question]]] = {
    each.__name__: each
    for each in (attention, linear_cross_entropy, norm, nf4, cross_entropy, activation, rope, optimizer)
}
