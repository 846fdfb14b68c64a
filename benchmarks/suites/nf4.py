"""Weights in 4 and 8 bits: decoding, and linear layers for one to thousands of tokens.

Traffic counts the packed weight and the activations: what the format needs, not what a contender moves. It is the limit
up to a few hundred tokens; above, the matrix product is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache

import torch
import torch.nn.functional as F
from llmfast.kernels import NF4Tensor, dequantize_nf4, int8_linear, nf4_linear, quantize_int8, quantize_nf4
from llmfast.kernels.nf4.layout import Layout
from llmfast.kernels.nf4.reference import GROUP, code_values

from ..compare import BACKWARD, BOTH, FORWARD, Case
from ..contenders import Contender, given
from ..results import OURS

DTYPE = torch.bfloat16
TOKENS = (1, 2, 4, 8, 16, 64, 128, 256, 512, 1024, 4096)
RANK, SCALE = 16, 2.0


def sizes(size: str) -> list[tuple[int, int]]:
    """(rows, width) of the weight: attention and feed-forward layers of 8 and 70 billion parameters."""
    if size == "tiny":
        return [(64, 128)]
    quick = [(14336, 4096)]
    return quick if size == "quick" else [(4096, 4096), (4096, 14336), *quick, (28672, 8192)]


def cases(size: str) -> Iterator[Case]:
    tokens = {"tiny": (1, 20), "quick": (1, 8, 64, 1024), "full": TOKENS}[size]
    for rows, width in sizes(size):
        yield dequantize_case(rows, width)
        for count in tokens:
            yield linear_case(count, rows, width)
        for count in tokens[:: max(1, len(tokens) - 1)]:
            yield int8_case(count, rows, width)
        yield adapter_case(tokens[-1], rows, width)


def normal(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=generator, device=generator.device).to(DTYPE)


def frozen(generator: torch.Generator, rows: int, width: int) -> torch.Tensor:
    return normal(generator, rows, width) / width**0.5


class Prepared:
    """What a contender prepares once per weight, outside of the timing. It is found again by the address of the
    weight."""

    def __init__(self, make: Callable[[torch.Tensor], torch.Tensor]):
        self.make, self.made = make, {}

    def __call__(self, record: torch.Tensor) -> torch.Tensor:
        if record.data_ptr() not in self.made:
            self.made[record.data_ptr()] = self.make(record)
        return self.made[record.data_ptr()]


@lru_cache
def code_of(device: torch.device) -> torch.Tensor:
    return code_values("nf4", device)


def bitsandbytes_state(w: NF4Tensor):
    """The same bytes as a quantization state of bitsandbytes."""
    from bitsandbytes.functional import QuantState

    nested = QuantState(w.nested_absmax, code=w.nested_code, blocksize=GROUP, dtype=torch.float32)
    described = {"blocksize": w.layout.block_size, "quant_type": "nf4", "dtype": w.dtype, "state2": nested}
    return QuantState(w.absmax, w.shape, code_of(w.device), offset=w.offset.view(()), **described)


def dequantize_case(rows: int, width: int) -> Case:
    layout = Layout((rows, width))

    def weight(record):
        return NF4Tensor(record, layout, DTYPE)

    def plain(record):
        w = weight(record)
        code = code_of(record.device)
        indices = torch.stack((w.packed >> 4, w.packed & 15), dim=-1).int()
        numbers = code[indices].view(-1, layout.block_size) * w.scales[:, None]
        return numbers.to(DTYPE).view(rows, width)

    def theirs():
        from bitsandbytes.functional import dequantize_4bit

        return lambda record: dequantize_4bit(weight(record).packed.view(-1, 1), bitsandbytes_state(weight(record)))

    moved = layout.nbytes + rows * width * DTYPE.itemsize
    return Case(
        op="dequantize_nf4",
        shape={"N": rows, "K": width},
        dtype=DTYPE,
        inputs=lambda g: {"record": quantize_nf4(frozen(g, rows, width)).bytes},
        exact=lambda record: dequantize_nf4(weight(record), torch.float32).double(),
        plain=plain,
        contenders=[
            given(OURS, lambda record: dequantize_nf4(weight(record))),
            given("PyTorch", plain),
            Contender("bitsandbytes", theirs, "bitsandbytes"),
        ],
        work={FORWARD: (moved, rows * width)},
    )


def linear_case(tokens: int, rows: int, width: int) -> Case:
    layout = Layout((rows, width))

    def weight(record):
        return NF4Tensor(record, layout, DTYPE)

    def decode_and_multiply(x, record):
        return F.linear(x, dequantize_nf4(weight(record), DTYPE))

    def exact(x, record):
        return F.linear(x, dequantize_nf4(weight(record), torch.float32).double())

    def bf16():
        full = Prepared(lambda record: dequantize_nf4(weight(record), DTYPE))
        return lambda x, record: F.linear(x, full(record))

    def theirs():
        from bitsandbytes import matmul_4bit

        return lambda x, record: matmul_4bit(x, weight(record).packed.view(-1, 1), bitsandbytes_state(weight(record)))

    work = layout.nbytes + tokens * (rows + width) * DTYPE.itemsize, 2 * tokens * rows * width
    return Case(
        op="nf4_linear",
        shape={"M": tokens, "N": rows, "K": width},
        dtype=DTYPE,
        inputs=lambda g: {
            "x": normal(g, tokens, width),
            "record": quantize_nf4(frozen(g, rows, width)).bytes,
        },
        exact=exact,
        plain=decode_and_multiply,
        contenders=[
            given(OURS, lambda x, record: nf4_linear(x, weight(record))),
            given("decode + cuBLAS", decode_and_multiply),
            Contender("cuBLAS bf16", bf16),
            Contender("bitsandbytes", theirs, "bitsandbytes"),
        ],
        work={FORWARD: work, BACKWARD: work} if tokens >= 512 else {FORWARD: work},
    )


def adapter_case(tokens: int, rows: int, width: int) -> Case:
    """A layer of QLoRA with all of its gradients."""
    layout = Layout((rows, width))

    def weight(record):
        return NF4Tensor(record, layout, DTYPE)

    def with_adapter(product: Callable) -> Callable:
        def function(x, record, lora_a, lora_b):
            return product(x, record) + SCALE * F.linear(F.linear(x, lora_a), lora_b)

        return function

    def exact_product(x, record):
        return F.linear(x, dequantize_nf4(weight(record), torch.float32).to(x.dtype))

    def theirs():
        from bitsandbytes import matmul_4bit

        def product(x, record):
            return matmul_4bit(x, weight(record).packed.view(-1, 1), bitsandbytes_state(weight(record)))

        return with_adapter(product)

    def inputs(g):
        return {
            "x": normal(g, tokens, width),
            "record": quantize_nf4(frozen(g, rows, width)).bytes,
            "lora_a": frozen(g, RANK, width),
            "lora_b": frozen(g, rows, RANK),
        }

    forward = layout.nbytes + tokens * (rows + width) * DTYPE.itemsize, 2 * tokens * rows * width
    return Case(
        op="nf4_linear + adapter",
        shape={"M": tokens, "N": rows, "K": width, "R": RANK},
        dtype=DTYPE,
        inputs=inputs,
        exact=with_adapter(exact_product),
        plain=with_adapter(exact_product),
        contenders=[
            given(
                OURS,
                lambda x, record, lora_a, lora_b: nf4_linear(x, weight(record), None, lora_a, lora_b, SCALE),
            ),
            given("decode + cuBLAS", with_adapter(exact_product)),
            Contender("bitsandbytes", theirs, "bitsandbytes"),
        ],
        work={FORWARD: forward, BOTH: (2 * forward[0], 2 * forward[1])},
    )


def int8_case(tokens: int, rows: int, width: int) -> Case:
    def inputs(g):
        codes, scale = quantize_int8(frozen(g, rows, width))
        return {"x": normal(g, tokens, width), "codes": codes, "scale": scale}

    def decode_and_multiply(x, codes, scale):
        return F.linear(x, (codes * scale.to(torch.promote_types(x.dtype, torch.float32))[:, None]).to(x.dtype))

    def bf16():
        made = {}

        def full(x, codes, scale):
            if codes.data_ptr() not in made:
                made[codes.data_ptr()] = (codes * scale[:, None]).to(DTYPE)
            return F.linear(x, made[codes.data_ptr()])

        return full

    moved = rows * width + 4 * rows + tokens * (rows + width) * DTYPE.itemsize
    return Case(
        op="int8_linear",
        shape={"M": tokens, "N": rows, "K": width},
        dtype=DTYPE,
        inputs=inputs,
        exact=decode_and_multiply,
        plain=decode_and_multiply,
        contenders=[
            given(OURS, int8_linear),
            given("decode + cuBLAS", decode_and_multiply),
            Contender("cuBLAS bf16", bf16),
        ],
        work={FORWARD: (moved, 2 * tokens * rows * width)},
        constant=frozenset({"scale"}),
    )
