"""What the compile check compiles of 4-bit weights: each launch choice, and each option that adds code."""

from collections.abc import Iterator

import torch

from ..compile_check import CompileCase
from ..frame.launch import Chip
from . import dequantize
from .layout import Layout
from .ops import FrozenLayer, FrozenLinearCall, forward


def compile_cases(chip: Chip) -> Iterator[CompileCase]:
    yield dequantize_case("bfloat16", torch.bfloat16, Layout((4096, 4096)))
    yield dequantize_case("float32, 32 a block, plain scales", torch.float32, Layout((4096, 4096), 32, False))
    tiles = {90: "wgmma", 100: "tcgen05"}.get(chip.capability, "mma")
    for tokens, options in (
        (1, {}),
        (16, {"adapter": True}),
        (8, {"block_size": 32, "double_quant": False, "dtype": torch.float16}),
        (4, {"rows": 1024, "adapter": True}),
        (4, {"width": 4160}),
        (9, {"double_quant": False}),
        (64, {"adapter": True}),
        (64, {"rows": 28672}),
        (256, {"rows": 28672, "adapter": True}),
        (256, {"block_size": 32, "double_quant": False, "dtype": torch.float16}),
    ):
        yield linear_case(tokens, tiles, **options)


def _meta(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def dequantize_case(name: str, dtype: torch.dtype, layout: Layout) -> CompileCase:
    record = _meta(layout.nbytes, dtype=torch.uint8)
    return CompileCase("dequantize_nf4", name, lambda: dequantize.by_kernel(record, layout, dtype))


def linear_case(
    tokens: int,
    tiles: str,
    *,
    rows: int = 4096,
    width: int = 4096,
    block_size: int = 64,
    double_quant: bool = True,
    adapter: bool = False,
    dtype: torch.dtype = torch.bfloat16,
) -> CompileCase:
    layout = Layout((rows, width), block_size, double_quant)

    def run() -> None:
        bias, lora_a, lora_b = (
            _meta(*shape, dtype=dtype) if adapter else None for shape in ((rows,), (16, width), (rows, 16))
        )
        x, record = _meta(tokens, width, dtype=dtype), _meta(layout.nbytes, dtype=torch.uint8)
        forward(FrozenLinearCall(x, FrozenLayer(record, bias, lora_a, lora_b, 1.0, True, layout.arguments)))

    what = [f"{tokens} tokens, {rows} rows", str(dtype).removeprefix("torch.")]
    what += [f"width {width}"] if width != 4096 else []
    what += [f"{block_size} a block"] if block_size != 64 else []
    what += ["plain scales"] if not double_quant else []
    what += ["bias and adapter"] if adapter else []
    expect = {"table_kernel": ("mma",), "linear_few_tokens": ("mma", "cp.async"), "linear_tiles": (tiles, "cp.async")}
    return CompileCase("nf4_linear", ", ".join(what), run, expect)
