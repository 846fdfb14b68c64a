"""The output layer fused with cross entropy, forward and with both gradients. Bound by matrix products."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from llmfast.kernels import linear_cross_entropy
from torch.utils.checkpoint import checkpoint

from ..compare import BOTH, FORWARD, Case
from ..contenders import Contender, absent_without_torch, compiled, given
from ..results import OURS

DTYPE = torch.bfloat16
ROWS = 1024  # memory of the logits that the float64 definition computes at once


def sizes(size: str) -> list[tuple[int, int, int]]:
    """(tokens, width, vocabulary): Llama 3 8B, Qwen 3.5 2B, GPT-2."""
    if size == "tiny":
        return [(16, 32, 101)]
    quick = [(8192, 4096, 128256)]
    return quick if size == "quick" else [*quick, (16384, 2048, 248320), (16384, 768, 50257)]


def cases(size: str) -> Iterator[Case]:
    for tokens, width, vocabulary in sizes(size):
        yield case(tokens, width, vocabulary)


def exact(hidden, weight, target):
    def part(rows, weight, labels):
        return F.cross_entropy(rows @ weight.T, labels, reduction="sum")

    parts = zip(hidden.split(ROWS), target.split(ROWS), strict=True)
    return sum(checkpoint(part, h, weight, t, use_reentrant=False) for h, t in parts) / len(target)


def plain(hidden, weight, target):
    return F.cross_entropy(F.linear(hidden, weight), target)


def torch_fused() -> Callable:
    """In chunks; without options it equals the plain function."""
    options = torch.nn.LinearCrossEntropyOptions()
    return lambda hidden, weight, target: F.linear_cross_entropy(hidden, weight, target, options=options)


def liger(**options) -> Callable[[], Callable]:
    """By default the weight's gradient is accumulated over the chunks in its own dtype."""

    def build() -> Callable:
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

        return lambda hidden, weight, target: liger_fused_linear_cross_entropy(hidden, weight, target, **options)

    return build


def cut_cross_entropy(**options) -> Callable[[], Callable]:
    """By default it skips gradients of improbable tokens; ``filter_eps=None`` keeps them."""

    def build() -> Callable:
        from cut_cross_entropy import linear_cross_entropy

        return lambda hidden, weight, target: linear_cross_entropy(hidden, weight, target, **options)

    return build


def case(tokens: int, width: int, vocabulary: int) -> Case:
    def inputs(g):
        def normal(*shape):
            return torch.randn(shape, generator=g, device=g.device, dtype=DTYPE)

        return {
            "hidden": normal(tokens, width),
            "weight": 2 * width**-0.5 * normal(vocabulary, width),
            "target": torch.randint(vocabulary, (tokens,), generator=g, device=g.device),
        }

    product = 2 * tokens * width * vocabulary
    tensors = (tokens + vocabulary) * width * DTYPE.itemsize
    return Case(
        op="linear_cross_entropy",
        shape={"N": tokens, "E": width, "V": vocabulary},
        dtype=DTYPE,
        inputs=inputs,
        exact=exact,
        plain=plain,
        contenders=[
            given(OURS, lambda hidden, weight, target: linear_cross_entropy(hidden, weight, target)),
            given(f"{OURS} tiles", partial(linear_cross_entropy, method="tiles"), gpu_only=True),
            given("PyTorch", plain),
            compiled(plain),
            absent_without_torch("F.linear_cross_entropy", "linear_cross_entropy", torch_fused),
            Contender("Liger", liger(), "liger_kernel", gpu_only=True),
            Contender("Liger float32", liger(accum_dtype=torch.float32), "liger_kernel", gpu_only=True),
            Contender("CCE exact", cut_cross_entropy(filter_eps=None), "cut_cross_entropy", gpu_only=True),
            Contender("CCE filtered", cut_cross_entropy(), "cut_cross_entropy", gpu_only=True),
        ],
        # The minimum: the logits and one product per gradient. Without stored logits they are computed twice.
        work={FORWARD: (tensors, product), BOTH: (2 * tensors, 3 * product)},
    )
