"""What the compile check compiles of attention: each launch choice on each chip, and each option that adds code.

A choice is compiled at the widest head width of its class. Options that only add a mask or a load are taken together.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import torch

from ..compile_check import CompileCase
from ..frame import invariance
from ..frame.launch import Chip
from .decode import AppendCall, DecodeCall, run_append, run_decode
from .launch import ALTERNATING, WARP_GROUPS, choosing
from .ops import AttentionBackwardCall, AttentionCall, AttentionKept, backward, forward

FORWARD = ("forward_kernel", "forward_hopper_kernel")
BACKWARD = ("keys_gradient_kernel", "queries_gradient_kernel")
# On 9.0, of the exponentials in a step: those that run beside the product with the values of the tile before, and
# beside dP's product.
SOFTMAX_OVERLAP, GRADIENT_OVERLAP = 0.85, 0.6
MANY = 1000  # sequences, of which no multiprocessor count leaves a large part of the last round idle
PLAIN = {"causal": True}
DROPOUT = {"causal": True, "dropout_p": 0.1, "packed": True}
CAPPED = {"causal": True, "window": 1024, "softcap": 50.0, "sinks": True}
ALIBI = {"causal": True, "alibi": True}
PADDED = {"causal": True, "packed": True, "used": True}
BLOCKS = {"causal": True, "mask": True}

# What each chip compiles: {options: head widths}. 8.9 takes the choices of 8.6; narrow heads launch the tiles of 64
# with less in them; float32 has the same tiles on all chips up to 64, so one shows that they hold.
ALL = {
    "causal": (64, 128, 256),
    "dropout packed": (128, 256),
    "window softcap sinks": (128,),
    "alibi": (128,),
    "padded": (128,),
    "mask of blocks": (128,),
}
COVERED = {
    80: ALL | {"dropout packed": (128,), "dropout alibi padded": (128,), "fp32": (128,)},
    86: {"causal": (64, 128, 256), "alibi": (128,), "mask of blocks": (128,), "fp32": (128,)},
    89: {"causal": (128,), "alibi": (128,), "mask of blocks": (128,)},
    90: ALL
    | {
        "causal": (16, 32, 64, 128, 256),
        "dropout packed": (64, 128, 256),
        "alibi": (64, 128, 256),
        "mask of blocks": (64, 128, 256),
        "dropout alibi padded": (128,),
        "fp32": (64, 128),
        "fp32 alibi": (64,),
    },
    100: ALL | {"dropout packed": (64, 128), "fp32": (128,)},
    120: ALL | {"fp32": (128,)},
}
OPTIONS = {
    "causal": PLAIN,
    "dropout packed": DROPOUT,
    "window softcap sinks": CAPPED,
    "alibi": ALIBI,
    "padded": PADDED,
    "mask of blocks": BLOCKS,
    "dropout alibi padded": DROPOUT | ALIBI | PADDED,
    "fp32": PLAIN,
    "fp32 alibi": ALIBI,
}


def compile_cases(chip: Chip) -> Iterator[CompileCase]:
    """Every tile of the launch functions for this chip, under the options that change what it holds."""
    for name, widths in COVERED[chip.capability].items():
        fp32 = name.startswith("fp32")
        dtype = torch.float32 if fp32 else torch.bfloat16
        for width in widths:
            expected = None if fp32 or width < 64 else products(chip)
            yield training_case(f"{width} {name}", dtype, width, OPTIONS[name], expected, chip)
    for width in (64, 128):
        yield training_case(f"{width} causal, short", torch.bfloat16, width, PLAIN, products(chip), chip, batch=MANY)
    yield batch_invariant_case(chip)
    if chip.capability == 90:
        for width in (64, 128):
            for name, form in (("causal", WARP_GROUPS), ("causal", ALTERNATING), ("full", WARP_GROUPS)):
                title, options = f"{width} {name}, {form}", {"causal": name == "causal"}
                yield training_case(title, torch.bfloat16, width, options, ("wgmma", "tma"), chip, form=form)
    yield decode_case("128 bf16 paged, 8 queries", torch.bfloat16, 128, queries=8, paged=True)
    yield decode_case("128 bf16, alibi, padding", torch.bfloat16, 128, queries=1, paged=False, options=True)
    if chip.capability in (80, 90):
        yield decode_case("256 bf16", torch.bfloat16, 256, queries=1, paged=False)
        yield decode_case("128 fp32", torch.float32, 128, queries=1, paged=False)


def products(chip: Chip) -> tuple[str, str]:
    """The instructions that the products of a chip are meant to be, and how tiles arrive."""
    if chip.capability == 90:
        return ("wgmma", "tma")
    return ("tcgen05", "tma") if chip.capability == 100 else ("mma", "cp.async")


def training_case(
    name: str,
    dtype: torch.dtype,
    width: int,
    options: dict,
    instructions: tuple[str, ...] | None,
    chip: Chip,
    batch: int = 2,
    form: str | None = None,
) -> CompileCase:
    """Forward and backward of 8 query heads on 2 key heads; the forward pass alone of MANY short sequences, whose grid
    is persistent then, and in another form."""
    packed = options.get("packed", False)
    float_options = (width**-0.5, options.get("window"), 0 if options.get("causal") else None)
    arguments = (*float_options, options.get("softcap"), options.get("dropout_p", 0.0), 128)

    def meta(*shape, dtype=dtype):
        return torch.empty(shape, dtype=dtype, device="meta")

    def run():
        q, k = (meta(batch, 512, heads, width).transpose(1, 2) for heads in (8, 2))
        cu = meta(3, dtype=torch.int32) if packed else None
        if packed:
            q, k = (x[0].transpose(0, 1) for x in (q, k))
        sinks = meta(8) if options.get("sinks") else None
        seed = meta(dtype=torch.int64) if options.get("dropout_p") else None
        alibi = meta(2, 8, dtype=torch.float32) if options.get("alibi") else None
        used = meta(2, dtype=torch.int32) if options.get("used") else None
        lists = meta(batch, 8, 4, 2, 5, dtype=torch.int32) if options.get("mask") else None
        with choosing(forward=form) if form else contextlib.nullcontext():
            call = AttentionCall(q, k, k, sinks, alibi, seed, cu, cu, used, used, used, lists, lists, *arguments)
            out, lse = forward(call)
        if batch != MANY and form is None:
            backward(AttentionBackwardCall(out, None, AttentionKept(out, lse, call)))

    if instructions and "cp.async" in instructions and width == 256:  # One stage fetches nothing ahead.
        instructions = ("mma",)
    expected = instructions and dict.fromkeys((*FORWARD, "queries_gradient_kernel"), instructions)
    # Packed sequences end where only the chip knows: their descriptors are made there.
    avoided = None if packed else dict.fromkeys((*FORWARD, *BACKWARD), ("device-built tensormap",))
    overlap = dict.fromkeys(FORWARD, SOFTMAX_OVERLAP) | dict.fromkeys(BACKWARD, GRADIENT_OVERLAP)
    # Wider heads leave no registers for a second tile of logits, so that their forward pass is not rotated.
    asks_overlap = (
        chip.capability == 90 and width in (64, 128) and name.endswith(("causal", "short")) and dtype.itemsize == 2
    )
    return CompileCase("flash_attention", name, run, expected, avoided, overlap if asks_overlap else None)


def batch_invariant_case(chip: Chip) -> CompileCase:
    case = training_case("128 causal, batch-invariant", torch.bfloat16, 128, PLAIN, products(chip), chip, batch=MANY)

    def run():
        invariance.hold(1)
        try:
            case.run()
        finally:
            invariance.hold(-1)

    return replace(case, run=run)


def decode_case(
    name: str, dtype: torch.dtype, width: int, queries: int, paged: bool, options: bool = False
) -> CompileCase:
    def meta(*shape, dtype=dtype):
        return torch.empty(shape, dtype=dtype, device="meta")

    def run():
        pages = meta(2, 64, dtype=torch.int32) if paged else None
        cache = meta(128, 64, 2, width).transpose(1, 2) if paged else meta(2, 2, 4096, width)
        lengths = meta(2, dtype=torch.int32)
        new = meta(2, 2, queries, width)
        run_append(AppendCall(cache, cache, new, new, lengths, pages))
        others = (queries, 1.0, 1024 if paged else None, 0, None)
        alibi = meta(2, 8, dtype=torch.float32) if options else None
        leftpad = lengths if options else None
        q = meta(2, 8, queries, width)
        run_decode(DecodeCall(q, cache, cache, lengths, pages, None, alibi, leftpad, *others))

    return CompileCase("flash_decode", name, run, {"decode_kernel": ("mma",)})
