"""Attention for training and decoding: dense, causal, windowed, packed, and against a cache.

Rates count the operations of visible pairs: 4·D per pair forward, 10·D backward (FlashAttention-2's convention).
Tensors are (B, S, H, D) in memory and viewed as (B, H, S, D), which is the layout that a model's projections produce.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, partial

import torch
import torch.nn.functional as F
from llmfast.kernels import flash_attention, flash_decode
from llmfast.kernels.attention import reference as definition
from llmfast.kernels.attention.launch import ALTERNATING, PERSISTENT, TILES, WARP_GROUPS, Tile, choosing
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from ..compare import BACKWARD, FORWARD, Case
from ..contenders import Contender, given
from ..results import OURS

DTYPE = torch.bfloat16
ROWS = 1024  # memory of the scores that the float64 definition computes at once
SDPA = {
    "SDPA flash": SDPBackend.FLASH_ATTENTION,
    "SDPA efficient": SDPBackend.EFFICIENT_ATTENTION,
    "SDPA cuDNN": SDPBackend.CUDNN_ATTENTION,
}


def cases(size: str) -> Iterator[Case]:
    if size == "tiny":
        yield dense(2, 4, 2, 32, 16, True)
        yield dense(1, 2, 2, 32, 16, False, window=8)
        yield packed((5, 0, 20, 7), 2, 2, 16)
        yield decode(2, 32, 4, 2, 16)
        return
    quick = size == "quick"
    yield from (training(8192, 128, causal) for causal in (True, False))
    yield decode(16, 8192, 32, 8, 128)
    if quick:
        yield training(2048, 64, True)
        return
    yield dense(1, 16, 16, 16384, 128, True, window=1024)
    yield packed((4096, 1024, 7168, 512, 3584), 16, 16, 128)
    yield from (decode(B, T, 32, 8, 128) for B, T in ((1, 131072), (64, 4096), (1, 4096), (16, 32768)))
    for length in (2048, 16384, 4096, 1024, 512):
        yield from (training(length, 128, causal) for causal in (True, False))
    for length in (8192, 2048, 16384, 4096, 1024, 512):
        yield from (training(length, 64, causal) for causal in (True, False))
    yield dense(2, 32, 8, 8192, 128, True)


def training(length: int, D: int, causal: bool) -> Case:
    """16,384 tokens of model width 2,048."""
    heads = 2048 // D
    return dense(16384 // length, heads, heads, length, D, causal)


def normal(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=g, device=g.device).to(DTYPE)


# --------------------------------------------------------------------------------------------- dense and windowed


def dense(B: int, H: int, K: int, S: int, D: int, causal: bool, window: int | None = None) -> Case:
    """``window``: each query sees this many keys before its own, and none after it."""
    causal = causal or window is not None
    pairs = visible_pairs(S, causal, window)
    grouped = H != K
    mask = {"causal": causal, "window": window}

    def sdpa(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=grouped)

    @cache
    def seen(device):
        return definition.visible(S, S, window, 0, device)

    def sdpa_masked(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen(q.device), enable_gqa=grouped)

    plain = sdpa if window is None else sdpa_masked
    others = [with_backend(name, backend, plain) for name, backend in SDPA.items()]
    both_sides = (-1, -1) if window is None else (window, 0)

    def flash_attn(q, k, v, function):
        return heads_last(function, q, k, v, causal=causal, window_size=both_sides)

    return Case(
        op="attention, " + (f"window {window}" if window else "causal" if causal else "full"),
        shape={"B": B, "H": H, "K": K, "S": S, "D": D},
        dtype=DTYPE,
        inputs=lambda g: {
            "q": normal(g, B, S, H, D).transpose(1, 2),
            "k": normal(g, B, S, K, D).transpose(1, 2),
            "v": normal(g, B, S, K, D).transpose(1, 2),
        },
        exact=partial(exact, **mask),
        plain=plain,
        contenders=[
            given(OURS, partial(ours, **mask)),
            given("SDPA", plain),
            *(alternatives(partial(ours, **mask)) if window is None else ()),
            *others,
            Contender("FlexAttention", partial(flex_attention, S, causal, window, grouped), gpu_only=True),
            *dao_contenders("flash_attn_func", flash_attn),
        ],
        work=training_work(B * S, H, K, D, B * H * pairs),
        part=partial(first_group, group=H // K),
    )


def visible_pairs(S: int, causal: bool, window: int | None) -> int:
    """The number of (query, key) pairs of one head that the mask lets through."""
    if not causal:
        return S * S
    reach = S if window is None else min(window + 1, S)
    return reach * (reach + 1) // 2 + (S - reach) * reach


def training_work(tokens: int, H: int, K: int, D: int, pairs: int) -> dict[str, tuple[int, int]]:
    q, kv = tokens * H * D * DTYPE.itemsize, tokens * K * D * DTYPE.itemsize
    return {FORWARD: (2 * q + 2 * kv, 4 * D * pairs), BACKWARD: (4 * q + 4 * kv, 10 * D * pairs)}


def first_group(name: str, x: Tensor, *, group: int) -> Tensor:
    """The first key head of the first sequence and the query heads that share it; they depend on nothing else."""
    if name == "filled":
        return x[:1]
    return x[:1, :1] if name in ("k", "v") else x[:1, :group]


def ours(q, k, v, *, causal: bool, window: int | None) -> Tensor:
    return flash_attention(q, k, v, causal=causal, window=None if window is None else (window, 0))


@dataclass(frozen=True)
class Alternative(Contender):
    """llmfast with launch choices that were not measured yet, beside those that it makes."""

    capability: tuple[int, int] | None = None  # the only capability that it is for

    def absence(self, device: str) -> tuple[str, str] | None:
        absence = super().absence(device)
        if absence is None and self.capability and torch.cuda.get_device_capability() != self.capability:
            return "skipped", f"for compute capability {self.capability[0]}.{self.capability[1]} only"
        return absence


def alternatives(function: Callable) -> list[Contender]:
    """The launch choices to decide between; the fastest in a pass should become the default."""
    hopper = (9, 0)
    found = [
        (f"{OURS}, {TILES}", {"forward": TILES}, None),
        (f"{OURS}, {PERSISTENT}", {"forward": PERSISTENT}, None),
        (f"{OURS}, {WARP_GROUPS}", {"forward": WARP_GROUPS}, hopper),
        (f"{OURS}, {ALTERNATING}", {"forward": ALTERNATING}, hopper),
        (f"{OURS}, dK/dV 64 × 128", {"keys_gradient": Tile(64, 128, 8, 2, tma=True)}, hopper),
    ]
    return [
        Alternative(name, partial(launching, function, choices), gpu_only=True, capability=capability)
        for name, choices, capability in found
    ]


def launching(function: Callable, choices: dict) -> Callable:
    """``function`` with these launch choices in its forward pass and in the later backward pass."""

    def attend(q, k, v):
        with choosing(**choices):
            out = function(q, k, v)
        if out.grad_fn is not None:
            chosen = ExitStack()
            out.grad_fn.register_prehook(lambda grads: chosen.enter_context(choosing(**choices)))
            out.grad_fn.register_hook(lambda inputs, grads: chosen.close())
        return out

    return attend


def exact(q, k, v, *, causal: bool, window: int | None) -> Tensor:
    """Computes a block of queries at a time; its last query is aligned with the last key given to the block."""
    S = q.shape[2]

    def block(rows, keys, values):
        right = 0 if causal else None
        return definition.attention(rows, keys, values, scale=q.shape[-1] ** -0.5, left=window, right=right)[0]

    found = []
    for start in range(0, S, ROWS):
        end = min(start + ROWS, S)
        seen = end if causal else S
        found.append(checkpoint(block, q[:, :, start:end], k[:, :, :seen], v[:, :, :seen], use_reentrant=False))
    return torch.cat(found, dim=2)


def with_backend(name: str, backend: SDPBackend, function: Callable) -> Contender:
    """The context manager is part of each call; it adds to the host time only."""

    def chosen(*args, **kwargs):
        with sdpa_kernel(backend):
            return function(*args, **kwargs)

    return given(name, chosen, gpu_only=True)


def flex_attention(S: int, causal: bool, window: int | None, grouped: bool) -> Callable:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def seen(b, h, query, key):
        inside = query >= key
        return inside if window is None else inside & (query - key <= window)

    mask = create_block_mask(seen, None, None, S, S, device="cuda") if causal else None
    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda q, k, v: compiled(q, k, v, block_mask=mask, enable_gqa=grouped)


def dao_contenders(function: str, call: Callable) -> list[Contender]:
    """FlashAttention-2, and FlashAttention-3 where its Hopper build is installed; ``call(..., function=)``."""

    def build(module: str) -> Callable:
        import importlib

        return partial(call, function=getattr(importlib.import_module(module), function))

    return [
        Contender("flash-attn 2", partial(build, "flash_attn"), "flash_attn", gpu_only=True),
        Contender("flash-attn 3", partial(build, "flash_attn_interface"), "flash_attn_interface", gpu_only=True),
    ]


def heads_last(function: Callable, q: Tensor, k: Tensor, v: Tensor, **options) -> Tensor:
    """Adapts a function that takes and returns (B, S, H, D)."""
    out = function(*(x.transpose(1, 2) for x in (q, k, v)), **options)
    return (out[0] if isinstance(out, tuple) else out).transpose(1, 2)


# ---------------------------------------------------------------------------------------------------- packed


def packed(lengths: tuple[int, ...], H: int, K: int, D: int) -> Case:
    """Causal attention in sequences laid end to end."""
    tokens, longest = sum(lengths), max(lengths)
    pairs = sum(visible_pairs(length, True, None) for length in lengths)

    def inputs(g):
        starts = torch.tensor([0, *lengths]).cumsum(0).to(g.device, torch.int32)
        q, k, v = (normal(g, tokens, heads, D) for heads in (H, K, K))
        return {"q": q, "k": k, "v": v, "starts": starts}

    def one_by_one(function: Callable) -> Callable:
        def attend(q, k, v, starts):
            parts = zip(*(x.split(lengths) for x in (q, k, v)), strict=True)
            outs = [function(*(x.transpose(0, 1)[None] for x in part)) for part in parts if len(part[0])]
            return torch.cat([out[0].transpose(0, 1) for out in outs])

        return attend

    def sdpa(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=H != K)

    def flash_attn(q, k, v, starts, function):
        out = function(q, k, v, starts, starts, longest, longest, causal=True)
        return out[0] if isinstance(out, tuple) else out

    return Case(
        op="attention, packed causal",
        shape={"sequences": len(lengths), "N": tokens, "H": H, "K": K, "D": D},
        dtype=DTYPE,
        inputs=inputs,
        exact=one_by_one(partial(exact, causal=True, window=None)),
        plain=one_by_one(sdpa),
        contenders=[
            given(
                OURS,
                lambda q, k, v, starts: flash_attention(
                    q, k, v, causal=True, cu_seqlens_q=starts, max_seqlen_q=longest
                ),
            ),
            given("SDPA, one by one", one_by_one(sdpa)),
            *dao_contenders("flash_attn_varlen_func", flash_attn),
        ],
        work=training_work(tokens, H, K, D, H * pairs),
        part=partial(first_packed_group, group=H // K),
    )


def first_packed_group(name: str, x: Tensor, *, group: int) -> Tensor:
    if name == "starts":
        return x
    return x[:, :1] if name in ("k", "v") else x[:, :group]


# --------------------------------------------------------------------------------------------------- decoding


def decode(B: int, T: int, H: int, K: int, D: int) -> Case:
    """One new query per sequence against a full cache. Bound by reading the cache."""

    def inputs(g):
        cache = {name: normal(g, B, T, K, D).transpose(1, 2) for name in ("k", "v")}
        filled = torch.full((B,), T, device=g.device, dtype=torch.int32)
        return {"q": normal(g, B, 1, H, D).transpose(1, 2), **cache, "filled": filled}

    def sdpa(q, k, v, filled):
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=H != K)

    def flash_attn(q, k, v, filled, function):
        return heads_last(function, q, k, v, cache_seqlens=filled, causal=True)

    def exact_decode(q, k, v, filled):
        return exact(q, k, v, causal=False, window=None)

    cache_bytes = 2 * B * T * K * D * DTYPE.itemsize
    return Case(
        op="attention, decode",
        shape={"B": B, "H": H, "K": K, "T": T, "D": D},
        dtype=DTYPE,
        inputs=inputs,
        exact=exact_decode,
        plain=sdpa,
        contenders=[
            given(OURS, lambda q, k, v, filled: flash_decode(q, k, v, filled)),
            given("SDPA", sdpa),
            *(with_backend(name, backend, sdpa) for name, backend in SDPA.items()),
            *dao_contenders("flash_attn_with_kvcache", flash_attn),
        ],
        work={FORWARD: (cache_bytes + 2 * B * H * D * DTYPE.itemsize, 4 * B * H * T * D)},
        constant=frozenset(("q", "k", "v")),
        part=partial(first_group, group=H // K),
    )
