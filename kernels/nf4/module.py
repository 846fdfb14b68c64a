"""``NF4Linear``: a linear layer that holds its weight in 4 bits."""

from typing import Any

import torch
from torch import Tensor, nn

from .interchange import bitsandbytes_names, from_bitsandbytes_state, has_bitsandbytes_state
from .layout import Layout
from .linear import nf4_linear
from .tensor import NF4Tensor, quantize_nf4


class NF4Linear(nn.Module):
    """``torch.nn.Linear`` with a frozen 4-bit weight (QLoRA, arXiv:2305.14314).

    The weight is one uint8 parameter without gradient, the record of an ``NF4Tensor``: ``.to(dtype)`` leaves it
    alone, a state dict or safetensors file holds it as it is, DistributedDataParallel sends it once, and FSDP2 (from
    torch 2.12 on) cuts it into shards of bytes. ``load_state_dict`` also takes the entries that bitsandbytes writes.

    Args:
        in_features: K.
        out_features: N.
        bias: whether there is one, in 16 or 32 bits, trainable.
        block_size, double_quant, quant_type: see ``quantize_nf4``; what ``load_state_dict`` finds goes.
        dtype: of the bias, and of ``dequantize_nf4(layer.quantized)``.

    Example::

        layer = NF4Linear.from_linear(torch.nn.Linear(128, 256))
        y = layer(torch.randn(4, 128))
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        block_size: int = 64,
        double_quant: bool = True,
        quant_type: str = "nf4",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.dtype = torch.get_default_dtype() if dtype is None else dtype
        self.layout = Layout((out_features, in_features), block_size, double_quant, quant_type)
        record = torch.zeros(self.layout.nbytes, dtype=torch.uint8, device=device)
        self.weight = nn.Parameter(record, requires_grad=False)
        self.register_parameter("bias", None)
        if bias:
            self.bias = nn.Parameter(torch.zeros(out_features, device=device, dtype=self.dtype))

    @classmethod
    def from_linear(cls, linear: nn.Linear, block_size: int = 64, double_quant: bool = True) -> "NF4Linear":
        """The layer with its weight quantized; the bias is shared."""
        return cls.from_tensor(quantize_nf4(linear.weight, block_size, double_quant), linear.bias)

    @classmethod
    def from_tensor(cls, w: NF4Tensor, bias: nn.Parameter | None = None) -> "NF4Linear":
        """A layer around a quantized weight, which is shared."""
        rows, width = w.shape
        layer = cls(width, rows, bias=False, device="meta", dtype=w.dtype)
        layer._hold(w)
        layer.bias = bias
        return layer

    def _hold(self, w: NF4Tensor) -> None:
        self.layout, self.dtype = w.layout, w.dtype
        self.weight = nn.Parameter(w.bytes, requires_grad=False)

    @property
    def quantized(self) -> NF4Tensor:
        """The weight; shares memory with the parameter."""
        return NF4Tensor(self.weight, self.layout, self.dtype)

    def forward(
        self,
        x: Tensor,
        lora_a: Tensor | None = None,
        lora_b: Tensor | None = None,
        lora_scale: float = 1.0,
    ) -> Tensor:
        """``nf4_linear``, with an adapter where one is given."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return nf4_linear(x, self.quantized, bias, lora_a, lora_b, lora_scale)

    def extra_repr(self) -> str:
        layout = self.layout
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"block_size={layout.block_size}, double_quant={layout.double_quant}, quant_type={layout.quant_type}"
        )

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        name = f"{prefix}weight"
        if has_bitsandbytes_state(state_dict, name):
            w = from_bitsandbytes_state(state_dict, name)
            if w.shape != self.layout.shape:
                error_msgs.append(f"{name} must be {self.layout.shape}, got {tuple(w.shape)} from bitsandbytes")
                return
            device = w.device if self.weight.is_meta else self.weight.device
            self._hold(w.to(device))
            others = {key: value for key, value in state_dict.items() if key not in bitsandbytes_names(name)}
            state_dict = others | {name: self.weight.detach()}
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
