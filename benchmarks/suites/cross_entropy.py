"""Cross entropy of given logits, forward and with its gradient. Bound by memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from llmfast.kernels import cross_entropy
from llmfast.kernels.losses import reference as definition

from ..compare import BOTH, FORWARD, Case
from ..contenders import Contender, compiled, given
from ..results import OURS

DTYPE = torch.bfloat16


def sizes(size: str) -> list[tuple[int, int]]:
    """(tokens, vocabulary): Llama 3, GPT-2, Llama 2, Gemma."""
    if size == "tiny":
        return [(16, 101)]
    quick = [(4096, 128256)]
    return quick if size == "quick" else [*quick, (8192, 50257), (8192, 32000), (2048, 262144)]


def cases(size: str) -> Iterator[Case]:
    for tokens, vocabulary in sizes(size):
        yield case(tokens, vocabulary)


def exact(logits, target):
    loss, _ = definition.cross_entropy(logits, target, None, -100, 0.0, 0.0, None)
    return loss.mean()


def liger() -> Callable:
    """Liger overwrites the logits with their gradient in the forward pass."""
    from liger_kernel.transformers.functional import liger_cross_entropy

    return lambda logits, target: liger_cross_entropy(logits, target)


def case(tokens: int, vocabulary: int) -> Case:
    def inputs(g):
        logits = 2 * torch.randn(tokens, vocabulary, generator=g, device=g.device)
        target = torch.randint(vocabulary, (tokens,), generator=g, device=g.device)
        return {"logits": logits.to(DTYPE), "target": target}

    tensor = tokens * vocabulary * DTYPE.itemsize
    return Case(
        op="cross_entropy",
        shape={"N": tokens, "V": vocabulary},
        dtype=DTYPE,
        inputs=inputs,
        exact=exact,
        plain=lambda logits, target: F.cross_entropy(logits, target),
        contenders=[
            given(OURS, lambda logits, target: cross_entropy(logits, target)),
            given("PyTorch", lambda logits, target: F.cross_entropy(logits, target)),
            compiled(lambda logits, target: F.cross_entropy(logits, target)),
            Contender("Liger", liger, "liger_kernel", gpu_only=True),
        ],
        # With the gradient, logits are read twice (the sum of exponentials comes first) and written once.
        work={FORWARD: (tensor, 4 * tokens * vocabulary), BOTH: (3 * tensor, 8 * tokens * vocabulary)},
    )
