"""NF4: 4-bit weights in blocks (Dettmers et al. 2023, QLoRA, arXiv:2305.14314), byte for byte those of bitsandbytes.

A tensor is cut, row after row, into blocks of ``block_size`` numbers. A block is stored as its largest absolute
number, float32, and per number the 4-bit index of the nearest of sixteen codes. The even places are the high
half of a byte. With nested quantization the blocks' scales, less their mean (``offset``), are themselves
stored as 8-bit codes in groups of 256.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ..frame.dtypes import widen
from ..frame.invariance import is_batch_invariant
from ..linear.ops import multiply

GROUP = 256  # scales that share a nested scale
SMALLEST_SCALE = 1e-38  # so that a block of zeros divides by no zero
PLACES = 65535
PIECE = 2**22  # numbers encoded at a time: what is computed in between takes some 20 bytes for each

# Quantiles of the normal distribution, −1, 0 and 1 among them (QLoRA, appendix E).
NF4_CODE = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip
# A sign, two bits of exponent and one of mantissa, of 12.
_FP4_MAGNITUDES = (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0)
CODES = {"nf4": NF4_CODE, "fp4": (*_FP4_MAGNITUDES, *(-value for value in _FP4_MAGNITUDES))}


@lru_cache
def code_values(quant_type: str, device: torch.device) -> Tensor:
    """The sixteen numbers that the 4-bit indices stand for, float32."""
    code = torch.tensor(CODES[quant_type], dtype=torch.float32)
    return (code / code.abs().max()).to(device)


@lru_cache
def dynamic_code(device: torch.device) -> Tensor:
    """The 256 numbers of the 8-bit dynamic tree type (Dettmers 2015, arXiv:1511.04561, section 3.3), ascending.

    For each power of ten from 10⁻⁶ to 1, twice as many steps as for the one below, of both signs; 0 and 1.
    """
    values = [0.0, 1.0]
    for exponent in range(7):
        edges = torch.linspace(0.1, 1, 2**exponent + 1, dtype=torch.float32)
        middles = (edges[:-1] + edges[1:]) / 2.0
        for sign in (1, -1):
            values += (sign * 10 ** (exponent - 6) * middles).tolist()
    return torch.tensor(sorted(values), dtype=torch.float32, device=device)


@lru_cache
def nearest_at_places(device: torch.device) -> Tensor:
    """The index into ``dynamic_code`` that is nearest to each of ``PLACES + 1`` even steps from −1 to 1.

    bitsandbytes looks a number's code up by the step nearest to it, so we must. It is at most 1/131,070 of the
    largest number off the nearest code.
    """
    code = dynamic_code(torch.device("cpu"))
    steps = torch.arange(PLACES + 1, dtype=torch.float64) * 2 / PLACES - 1
    return torch.bucketize(steps.float(), (code[:-1] + code[1:]) / 2).to(device, torch.uint8)


def quantize(weight: Tensor, block_size: int) -> tuple[Tensor, Tensor]:
    """(packed, absmax): two indices a byte, and each block's largest absolute number, float32."""
    flat = weight.reshape(-1)
    whole = flat.numel() // block_size * block_size
    step = PIECE // block_size * block_size
    pieces = [_quantize_blocks(flat[at : min(at + step, whole)], block_size) for at in range(0, whole, step)]
    if whole < flat.numel():  # the last block is shorter, and its scale never below the smallest
        rest = flat[whole:].float()
        scale = rest.abs().max().clamp(min=SMALLEST_SCALE)
        pieces.append((_pack(_nearest(rest / scale)), scale[None]))
    if not pieces:
        return flat.new_empty(0, dtype=torch.uint8), flat.new_empty(0, dtype=torch.float32)
    packed, absmax = zip(*pieces, strict=True)
    return torch.cat(packed), torch.cat(absmax)


def _quantize_blocks(numbers: Tensor, block_size: int) -> tuple[Tensor, Tensor]:
    blocks = numbers.float().view(-1, block_size)
    absmax = blocks.abs().max(1).values
    scaled = blocks * (1.0 / absmax.clamp(min=SMALLEST_SCALE))[:, None]
    return _pack(_nearest(scaled.flatten())), absmax


def _nearest(scaled: Tensor) -> Tensor:
    """The index of the nearest code; of the lower one at a tie, the last for what is not a number."""
    code = code_values("nf4", scaled.device)
    middles = (code[:-1] + code[1:]) / 2
    return torch.bucketize(scaled.clamp(-1, 1), middles, out_int32=True).to(torch.uint8)


def _pack(indices: Tensor) -> Tensor:
    indices = F.pad(indices, (0, indices.numel() % 2), value=NF4_CODE.index(0.0))
    return (indices[::2] << 4) | indices[1::2]


def quantize_scales(absmax: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(codes, nested_absmax, offset): the scales as indices into ``dynamic_code``, one a byte."""
    offset = absmax.mean()
    padded = F.pad(absmax - offset, (0, -absmax.numel() % GROUP))
    groups = padded.view(padded.numel() // GROUP, GROUP)
    nested_absmax = groups.abs().nan_to_num(nan=0.0, posinf=torch.inf).amax(1)
    scaled = (groups * (1.0 / nested_absmax[:, None])).clamp(-1, 1)  # 0 · ∞ where all scales are equal
    place = ((scaled + 1) * (0.5 * PLACES) + 0.5).nan_to_num(nan=0.0).int()
    codes = nearest_at_places(absmax.device)[place]
    return codes.flatten()[: absmax.numel()], nested_absmax, offset


def dequantize_scales(codes: Tensor, nested_absmax: Tensor, nested_code: Tensor, offset: Tensor) -> Tensor:
    groups = nested_absmax.repeat_interleave(GROUP)[: codes.numel()]
    return nested_code[codes.int()] * groups + offset


def dequantize(
    packed: Tensor, absmax: Tensor, code: Tensor, shape: tuple[int, ...], block_size: int, dtype: torch.dtype
) -> Tensor:
    """The numbers, of ``shape``: code times scale in float32, rounded once."""
    numbers = torch.Size(shape).numel()
    # The two codes of each of the 256 bytes, which are looked up as one number of 64 bits: ten times as fast on a CPU
    # as looking up each half of a byte.
    of_byte = torch.stack((code.repeat_interleave(16), code.repeat(16)), dim=-1).view(torch.int64).flatten()
    codes = of_byte.index_select(0, packed.int()).view(torch.float32)
    blocks = F.pad(codes[:numbers], (0, -numbers % block_size)).view(absmax.numel(), block_size)
    return (blocks * absmax[:, None]).flatten()[:numbers].view(shape).to(dtype)


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lora_a: Tensor | None,
    lora_b: Tensor | None,
    lora_scale: float,
) -> tuple[Tensor, Tensor]:
    """``(x @ weightᵀ + bias + lora_scale · hidden @ lora_bᵀ, hidden)`` with ``hidden = x @ lora_aᵀ``, which stays
    wide (Hu et al. 2021, arXiv:2106.09685)."""
    wide = widen(x)
    product = multiply if is_batch_invariant() else F.linear
    y = product(wide, weight.to(wide.dtype), None if bias is None else bias.to(wide.dtype))
    if lora_a is None:
        return y.to(x.dtype), wide.new_empty(0)
    hidden = product(wide, lora_a.to(wide.dtype), None)
    y = y + lora_scale * product(hidden, lora_b.to(wide.dtype), None)
    return y.to(x.dtype), hidden
