"""What the compile gate compiles of attention: each launch choice on each chip, and each option that adds code.

A choice is compiled at the widest head width of its class. Options that only add a mask or a load are taken together.
"""

import torch

from ..gate import GateCase
from .decode import run_append, run_decode
from .launch import WIDTHS
from .ops import backward, forward

# Head widths 16 and 32 launch the tiles of 64 with less in them: one chip of each kind shows that they compile.
NARROW_ON = (86, 90)
FLOAT32_ON = (80, 90, 100)
PLAIN = {"causal": True}
DROPOUT = {"causal": True, "dropout_p": 0.1, "packed": True}
CAPPED = {"causal": True, "window": 1024, "softcap": 50.0, "sinks": True}


def gate_cases(device):
    """Every tile of the launch functions for this chip, under the options that change what it holds."""
    instructions = products(device)
    for width in WIDTHS:
        if width < 64 and device.capability not in NARROW_ON:
            continue
        yield training_case(f"{width} bf16 causal", torch.bfloat16, width, PLAIN, instructions)
        if width == 128:
            yield training_case("128 bf16", torch.bfloat16, width, {}, instructions)
        if width >= 64:
            yield training_case(f"{width} bf16 dropout packed", torch.bfloat16, width, DROPOUT, instructions)
            yield training_case(
                f"{width} bf16 window softcap sinks", torch.bfloat16, width, CAPPED, instructions
            )
    if device.capability in FLOAT32_ON:
        for width in (64, 128, 256):
            yield training_case(f"{width} fp32 causal", torch.float32, width, PLAIN, None)
    for width in (64, 128, 256):
        yield decode_case(f"{width} bf16", torch.bfloat16, width, queries=1, paged=False)
    yield decode_case("128 bf16 paged, 8 queries", torch.bfloat16, 128, queries=8, paged=True)
    yield decode_case("128 fp32", torch.float32, 128, queries=1, paged=False)


def products(device):
    """The instructions that the products of a chip are meant to be, and how tiles arrive."""
    if device.capability == 90:
        return ("wgmma", "tma")
    return ("tcgen05", "tma") if device.capability == 100 else ("mma", "cp.async")


def training_case(name, dtype, width, options, instructions):
    """Forward and backward of 8 query heads on 2 key heads."""
    packed = options.get("packed", False)
    float_options = (width**-0.5, options.get("window"), 0 if options.get("causal") else None)
    arguments = (*float_options, options.get("softcap"), options.get("dropout_p", 0.0))

    def meta(*shape, dtype=dtype):
        return torch.empty(shape, dtype=dtype, device="meta")

    def run():
        q, k = (meta(2, 512, heads, width).transpose(1, 2) for heads in (8, 2))
        cu = meta(3, dtype=torch.int32) if packed else None
        if packed:
            q, k = (x[0].transpose(0, 1) for x in (q, k))
        sinks = meta(8) if options.get("sinks") else None
        seed = meta(dtype=torch.int64) if options.get("dropout_p") else None
        out, lse = forward(q, k, k, sinks, seed, cu, cu, *arguments)
        backward(out, None, q, k, k, out, lse, seed, cu, cu, *arguments)

    return GateCase("flash_attention", name, run, instructions and expectations(instructions))


def expectations(instructions):
    return dict.fromkeys(("forward_kernel", "queries_gradient_kernel"), instructions)


def decode_case(name, dtype, width, queries, paged):
    def meta(*shape, dtype=dtype):
        return torch.empty(shape, dtype=dtype, device="meta")

    def run():
        pages = meta(2, 64, dtype=torch.int32) if paged else None
        cache = meta(128, 64, 2, width).transpose(1, 2) if paged else meta(2, 2, 4096, width)
        lengths = meta(2, dtype=torch.int32)
        new = meta(2, 2, queries, width)
        run_append(cache, cache, new, new, lengths, pages)
        run_decode(
            meta(2, 8, queries, width),
            cache,
            cache,
            lengths,
            pages,
            None,
            queries,
            1.0,
            1024 if paged else None,
            0,
            None,
        )

    return GateCase("flash_decode", name, run, {"decode_kernel": ("mma",)})
