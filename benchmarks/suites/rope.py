"""Rotary position embedding of queries and keys, forward and backward. Bound by memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from llmfast.kernels import rope
from llmfast.kernels.rope import reference as definition

from ..compare import BACKWARD, FORWARD, Case
from ..contenders import Contender, compiled, given
from ..results import OURS

DTYPE = torch.bfloat16
BASE = 10000.0


def sizes(size: str) -> list[tuple[int, int, int, int, int]]:
    """B, S, H, K, D, with queries of at least 64 MB."""
    if size == "tiny":
        return [(2, 8, 4, 2, 16)]
    quick = [(4, 4096, 32, 8, 128)]
    return quick if size == "quick" else [*quick, (1, 32768, 32, 8, 128), (8, 2048, 32, 32, 64)]


def cases(size: str) -> Iterator[Case]:
    for shape in sizes(size):
        yield rope_case(*shape)


def plain(q, k, cos, sin):
    """As models write it: half of each head negated and swapped, with tables in the dtype of q."""

    def rotate(x):
        first, second = x.chunk(2, dim=-1)
        return x * cos[:, None] + torch.cat((-second, first), dim=-1) * sin[:, None]

    return rotate(q), rotate(k)


def exact(q, k, cos, sin):
    """Computed from the angles in float64, not from the rounded tables."""
    return definition.rope(q, k, None, None, None, BASE, q.shape[-1], sections=(), interleaved=False)


def ours(q, k, cos, sin):
    return rope(q, k, base=BASE)


def ours_with_tables(q, k, cos, sin):
    half = q.shape[-1] // 2
    return rope(q, k, cos=cos[:, :half], sin=sin[:, :half])


def heads_first(function: Callable) -> Callable:
    """For peers that take (B, H, S, D) and tables (B, S, D)."""

    def rotate(q, k, cos, sin):
        q, k = function(q.transpose(1, 2), k.transpose(1, 2), cos[None], sin[None])
        return q.transpose(1, 2), k.transpose(1, 2)

    return rotate


def liger() -> Callable:
    from liger_kernel.transformers.functional import liger_rope

    return heads_first(liger_rope)


def hugging_face() -> Callable:
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    return heads_first(apply_rotary_pos_emb)


def rope_case(B: int, S: int, H: int, K: int, D: int) -> Case:
    def inputs(g):
        angle = definition.angles(torch.arange(S, device=g.device), D, BASE, torch.float64).repeat(1, 2)

        def normal(heads):
            return torch.randn(B, S, heads, D, generator=g, device=g.device).to(DTYPE)

        return {"q": normal(H), "k": normal(K), "cos": angle.cos().to(DTYPE), "sin": angle.sin().to(DTYPE)}

    moved = 2 * B * S * (H + K) * D * DTYPE.itemsize
    operations = 3 * B * S * (H + K) * D
    return Case(
        op="rope",
        shape={"B": B, "S": S, "H": H, "K": K, "D": D},
        dtype=DTYPE,
        inputs=inputs,
        exact=exact,
        plain=plain,
        contenders=[
            given(OURS, ours),
            given(f"{OURS}, tables", ours_with_tables),
            given("PyTorch", plain),
            compiled(plain),
            Contender("Liger", liger, "liger_kernel", gpu_only=True),
            Contender("transformers", hugging_face, "transformers"),
        ],
        work={FORWARD: (moved, operations), BACKWARD: (moved, operations)},
        constant=frozenset(("cos", "sin")),
    )
