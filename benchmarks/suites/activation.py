"""SwiGLU, GeGLU and GELU with a bias, forward and backward. Bound by memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from llmfast.kernels import geglu, gelu, swiglu
from llmfast.kernels.activation import reference as definition

from ..compare import BACKWARD, FORWARD, Case
from ..contenders import Contender, compiled, given
from ..results import OURS

DTYPE = torch.bfloat16


def sizes(size: str) -> list[tuple[int, int]]:
    """(rows, width): at least 64 MB in bfloat16. 14,336 is the feed-forward width of an 8B Llama."""
    if size == "tiny":
        return [(32, 64)]
    return [(8192, 14336)] if size == "quick" else [(8192, 14336), (16384, 4096), (32768, 3072)]


def cases(size: str) -> Iterator[Case]:
    for rows, width in sizes(size):
        yield swiglu_case(rows, width)
        yield gated_case("geglu tanh", rows, width, plain_geglu, geglu_tanh, liger_geglu, exact_geglu)
        yield gelu_case(rows, width)


def swiglu_case(rows: int, width: int) -> Case:
    return gated_case("swiglu", rows, width, plain_swiglu, swiglu, liger_swiglu, exact_swiglu)


def plain_swiglu(gate, up):
    return F.silu(gate) * up


def plain_geglu(gate, up):
    return F.gelu(gate, approximate="tanh") * up


def geglu_tanh(gate, up):
    return geglu(gate, up, approximate="tanh")


def exact_swiglu(gate, up):
    return definition.gated(gate, up, "silu")


def exact_geglu(gate, up):
    return definition.gated(gate, up, "gelu_tanh")


def liger_swiglu() -> Callable:
    from liger_kernel.transformers.functional import liger_swiglu

    return lambda gate, up: liger_swiglu(gate, up)


def liger_geglu() -> Callable:
    from liger_kernel.transformers.functional import liger_geglu

    return lambda gate, up: liger_geglu(gate, up)


def normal(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=generator, device=generator.device).to(DTYPE)


def gated_case(
    op: str, rows: int, width: int, plain: Callable, ours: Callable, liger: Callable, exact: Callable
) -> Case:
    tensor = rows * width * DTYPE.itemsize
    return Case(
        op=op,
        shape={"N": rows, "F": width},
        dtype=DTYPE,
        inputs=lambda g: {"gate": normal(g, rows, width), "up": normal(g, rows, width)},
        exact=exact,
        plain=plain,
        contenders=[
            given(OURS, ours),
            given("PyTorch", plain),
            compiled(plain),
            Contender("Liger", liger, "liger_kernel", gpu_only=True),
        ],
        work={FORWARD: (3 * tensor, 10 * rows * width), BACKWARD: (5 * tensor, 20 * rows * width)},
    )


def gelu_case(rows: int, width: int) -> Case:
    def plain(x, bias):
        return F.gelu(x + bias)

    tensor, row = rows * width * DTYPE.itemsize, width * DTYPE.itemsize
    return Case(
        op="gelu with bias",
        shape={"N": rows, "F": width},
        dtype=DTYPE,
        inputs=lambda g: {"x": normal(g, rows, width), "bias": normal(g, width)},
        exact=lambda x, bias: definition.biased(x, bias, "gelu"),
        plain=plain,
        contenders=[given(OURS, gelu), given("PyTorch", plain), compiled(plain)],
        work={
            FORWARD: (2 * tensor + row, 10 * rows * width),
            BACKWARD: (3 * tensor + 2 * row, 20 * rows * width),
        },
    )
