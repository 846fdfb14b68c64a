"""``NF4Tensor``: a tensor in 4 bits a number, as QLoRA stores frozen weights (arXiv:2305.14314)."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..frame.checks import check_floating
from . import reference as definition
from .layout import Layout

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, eq=False, repr=False)
class NF4Tensor:
    """A quantized tensor: one uint8 record, and how to read it. Made by ``quantize_nf4``.

    It is no ``torch.Tensor``, on purpose: no operation can take its bytes for numbers. Pickling, ``copy.deepcopy``
    and ``torch.compile`` see a dataclass around one plain tensor; ``NF4Linear`` is the module that holds it.

    Args:
        bytes: uint8 (layout.nbytes,), the parts that ``Layout`` lists one after another.
        layout: the shape and how its blocks are stored.
        dtype: what ``dequantize_nf4`` gives unless told otherwise; of the quantized tensor at first.
    """

    bytes: Tensor
    layout: Layout
    dtype: torch.dtype

    def __post_init__(self):
        if self.bytes.dtype != torch.uint8 or self.bytes.shape != (self.layout.nbytes,):
            raise ValueError(
                f"bytes must be torch.uint8 of shape ({self.layout.nbytes},) for {self.layout}, "
                f"got {self.bytes.dtype} of shape {tuple(self.bytes.shape)}"
            )

    def _part(self, name: str, dtype: torch.dtype) -> Any:
        if name not in self.layout.sizes:
            return None
        return self.bytes.narrow(0, self.layout.start(name), self.layout.sizes[name]).view(dtype)

    @property
    def packed(self) -> Tensor:
        """uint8 (⌈numbers / 2⌉,), the earlier index of a byte in its high half."""
        return self._part("packed", torch.uint8)

    @property
    def absmax(self) -> Tensor:
        """(blocks,): float32 scales, or with double quantization uint8 codes of them."""
        return self._part("absmax", torch.uint8 if self.layout.double_quant else torch.float32)

    @property
    def nested_absmax(self) -> Tensor | None:
        return self._part("nested_absmax", torch.float32)

    @property
    def nested_code(self) -> Tensor | None:
        return self._part("nested_code", torch.float32)

    @property
    def offset(self) -> Tensor | None:
        return self._part("offset", torch.float32)

    @property
    def scales(self) -> Tensor:
        """float32 (blocks,), with double quantization undone."""
        if not self.layout.double_quant:
            return self.absmax
        nested = (self._part(name, torch.float32) for name in ("nested_absmax", "nested_code", "offset"))
        return definition.dequantize_scales(self.absmax, *nested)

    @property
    def shape(self) -> torch.Size:
        return torch.Size(self.layout.shape)

    @property
    def device(self) -> torch.device:
        return self.bytes.device

    @property
    def is_cpu(self) -> bool:
        return self.bytes.is_cpu

    @property
    def is_cuda(self) -> bool:
        return self.bytes.is_cuda

    def to(self, target: torch.device | torch.dtype | str | int, non_blocking: bool = False) -> "NF4Tensor":
        """On another device, or with another ``dtype`` for what ``dequantize_nf4`` gives; the bits stay."""
        if isinstance(target, torch.dtype):
            check_dtype(target)
            return replace(self, dtype=target)
        return replace(self, bytes=self.bytes.to(target, non_blocking=non_blocking))

    def __repr__(self) -> str:
        return (
            f"NF4Tensor(shape={tuple(self.shape)}, dtype={self.dtype}, device={str(self.device)!r}, "
            f"block_size={self.layout.block_size}, double_quant={self.layout.double_quant}, "
            f"quant_type={self.layout.quant_type!r})"
        )


def assemble(layout: Layout, dtype: torch.dtype, parts: dict[str, Tensor]) -> NF4Tensor:
    """The tensor whose parts these are, copied into one record."""
    packed = parts["packed"]
    out = NF4Tensor(packed.new_zeros(layout.nbytes, dtype=torch.uint8), layout, dtype)
    for name in layout.sizes:
        getattr(out, name).copy_(parts[name].reshape(-1))
    return out


def quantize_nf4(weight: Tensor, block_size: int = 64, double_quant: bool = True) -> NF4Tensor:
    """``weight`` in 4 bits a number, byte for byte as bitsandbytes quantizes it on a CPU.

    Blocks of ``block_size`` numbers, row after row, are stored as a scale and, for each number, the nearest of
    sixteen quantiles of the normal distribution (Dettmers et al. 2023, arXiv:2305.14314, section 3). The error of
    a number is at most 0.152 of the largest in its block, plus what double quantization changes of the scale.

    Args:
        weight: float32, bfloat16 or float16, any shape; ``nf4_linear`` takes (N, K), as ``torch.nn.Linear``.
        block_size: 32 to 4096, a power of two.
        double_quant: store the scales in 8 bits, in groups of 256: 4.13 bits a number in place of 4.5.

    Raises:
        ValueError: for another dtype or block size.

    Example::

        weight = torch.randn(256, 128)
        quantized = quantize_nf4(weight)
        error = (dequantize_nf4(quantized) - weight).abs().max()
    """
    check_floating("weight", weight)
    check_dtype(weight.dtype)
    weight = weight.detach()
    layout = Layout(tuple(weight.shape), block_size, double_quant)
    if weight.is_meta:
        return NF4Tensor(weight.new_empty(layout.nbytes, dtype=torch.uint8), layout, weight.dtype)
    packed, absmax = definition.quantize(weight, block_size)
    parts = {"packed": packed, "absmax": absmax}
    if double_quant:
        codes, nested_absmax, offset = definition.quantize_scales(absmax)
        nested_code = definition.dynamic_code(weight.device)
        parts |= {
            "absmax": codes,
            "nested_absmax": nested_absmax,
            "nested_code": nested_code,
            "offset": offset,
        }
    return assemble(layout, weight.dtype, parts)


def check_dtype(dtype: torch.dtype) -> None:
    if dtype not in DTYPES:
        raise ValueError(f"the dtype must be float32, bfloat16 or float16, got {dtype}")
