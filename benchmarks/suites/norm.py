"""RMS and layer normalization, forward and backward. Bound by memory."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from llmfast.kernels import layer_norm, rms_norm
from llmfast.kernels.norm import reference as definition

from ..compare import BACKWARD, FORWARD, Case
from ..contenders import Contender, compiled, given
from ..results import OURS

EPS = 1e-6
DTYPE = torch.bfloat16


def sizes(size: str) -> list[tuple[int, int]]:
    """(rows, width): 64 MB each in bfloat16, rows of 1 KB to 32 KB."""
    if size == "tiny":
        return [(32, 64)]
    if size == "quick":
        return [(8192, 4096)]
    return [(8192, 4096), (32768, 1024), (16384, 2048), (4096, 8192), (65536, 512), (2048, 16384)]


def cases(size: str) -> Iterator[Case]:
    for rows, width in sizes(size):
        yield rms_norm_case(rows, width)
        yield layer_norm_case(rows, width)
        yield rms_norm_residual_case(rows, width)


def work(rows: int, width: int, parameters: int, residual: bool) -> dict[str, tuple[int, int]]:
    """Forward reads x and writes y; backward reads x and grad_y and writes grad_x. A residual is one more input and
    one more output forward, and one more gradient to read backward."""
    tensor, weights = rows * width * DTYPE.itemsize, parameters * width * DTYPE.itemsize
    forward, backward = (4, 4) if residual else (2, 3)
    return {
        FORWARD: (forward * tensor + weights, 5 * rows * width),
        BACKWARD: (backward * tensor + 2 * weights, 10 * rows * width),
    }


def normal(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=generator, device=generator.device).to(DTYPE)


def rms_norm_case(rows: int, width: int) -> Case:
    def plain(x, weight):
        return F.rms_norm(x, (width,), weight, EPS)

    def liger():
        from liger_kernel.transformers.functional import liger_rms_norm

        return lambda x, weight: liger_rms_norm(x, weight, EPS)

    def hugging_face():
        from transformers.models.llama.modeling_llama import LlamaRMSNorm

        return lambda x, weight: LlamaRMSNorm.forward(SimpleNamespace(weight=weight, variance_epsilon=EPS), x)

    return Case(
        op="rms_norm",
        shape={"N": rows, "E": width},
        dtype=DTYPE,
        inputs=lambda g: {"x": normal(g, rows, width), "weight": normal(g, width)},
        exact=lambda x, weight: definition.rms_norm(x, weight, EPS, 0.0, None),
        plain=plain,
        contenders=[
            given(OURS, lambda x, weight: rms_norm(x, weight, eps=EPS)),
            given("PyTorch", plain),
            compiled(plain),
            Contender("Liger", liger, "liger_kernel", gpu_only=True),
            Contender("transformers", hugging_face, "transformers"),
        ],
        work=work(rows, width, 1, False),
    )


def rms_norm_residual_case(rows: int, width: int) -> Case:
    def plain(x, residual, weight):
        h = x + residual
        return F.rms_norm(h, (width,), weight, EPS), h

    def liger():
        from liger_kernel.transformers.functional import liger_fused_add_rms_norm

        return lambda x, residual, weight: liger_fused_add_rms_norm(x, residual, weight, EPS)

    return Case(
        op="rms_norm + residual",
        shape={"N": rows, "E": width},
        dtype=DTYPE,
        inputs=lambda g: {
            "x": normal(g, rows, width),
            "residual": normal(g, rows, width),
            "weight": normal(g, width),
        },
        exact=lambda x, residual, weight: definition.rms_norm(x, weight, EPS, 0.0, residual),
        plain=plain,
        contenders=[
            given(OURS, lambda x, residual, weight: rms_norm(x, weight, eps=EPS, residual=residual)),
            given("PyTorch", plain),
            compiled(plain),
            Contender("Liger", liger, "liger_kernel", gpu_only=True),
        ],
        work=work(rows, width, 1, True),
    )


def layer_norm_case(rows: int, width: int) -> Case:
    def plain(x, weight, bias):
        return F.layer_norm(x, (width,), weight, bias, EPS)

    def liger():
        from liger_kernel.transformers.functional import liger_layer_norm

        return lambda x, weight, bias: liger_layer_norm(x, weight, bias, EPS)

    return Case(
        op="layer_norm",
        shape={"N": rows, "E": width},
        dtype=DTYPE,
        inputs=lambda g: {"x": normal(g, rows, width), "weight": normal(g, width), "bias": normal(g, width)},
        exact=lambda x, weight, bias: definition.layer_norm(x, weight, bias, EPS, None),
        plain=plain,
        contenders=[
            given(OURS, lambda x, weight, bias: layer_norm(x, weight, bias, eps=EPS)),
            given("PyTorch", plain),
            compiled(plain),
            Contender("Liger", liger, "liger_kernel", gpu_only=True),
        ],
        work=work(rows, width, 2, False),
    )
