"""To and from bitsandbytes: its parameters, and the entries of its state dicts and safetensors files.

bitsandbytes writes a quantized weight as an entry of its name with the packed bytes, and beside it entries whose
names go on with ``.absmax``, ``.quant_map``, ``.nested_absmax``, ``.nested_quant_map``, and
``.quant_state.bitsandbytes__nf4``: JSON, as bytes, of all that is no tensor.
"""

import json
from collections.abc import Container, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .layout import Layout
from .reference import GROUP, code_values
from .tensor import NF4Tensor, assemble

if TYPE_CHECKING:
    from bitsandbytes.nn.modules import Params4bit

STATE = "quant_state.bitsandbytes__"


def from_bitsandbytes(parameter: "Params4bit") -> NF4Tensor:
    """The weight of a bitsandbytes ``Linear4bit``, bit by bit, NF4 or FP4.

    Raises:
        ValueError: for a parameter that is not quantized yet, or whose storage bitsandbytes has rearranged for its
            CPU kernels.
    """
    state = getattr(parameter, "quant_state", None)
    if state is None:
        raise ValueError("the parameter is not quantized yet: bitsandbytes quantizes when it is moved to a device")
    if getattr(state, "packing_format_for_cpu", False):
        raise ValueError(
            "bitsandbytes has rearranged this parameter for its CPU kernels: convert it before the first forward pass "
            "in evaluation mode, or from the module's state_dict()"
        )
    return from_bitsandbytes_state({"w": parameter.data, **_named("w", state.as_dict(packed=True))}, "w")


def to_bitsandbytes(w: NF4Tensor) -> "Params4bit":
    """A parameter for ``bitsandbytes.nn.Linear4bit``, bit by bit."""
    from bitsandbytes.nn.modules import Params4bit

    entries = to_bitsandbytes_state(w, "w")
    packed = entries.pop("w")
    stats = {name.removeprefix("w."): entry for name, entry in entries.items()}
    return Params4bit.from_prequantized(packed, stats, device=str(w.device))


def has_bitsandbytes_state(entries: Container[str], name: str) -> bool:
    """Whether a state dict, or the names in it, holds the weight ``name`` as bitsandbytes writes it."""
    return any(f"{name}.{STATE}{kind}" in entries for kind in ("nf4", "fp4"))


def bitsandbytes_names(name: str) -> tuple[str, ...]:
    """The entries that bitsandbytes writes beside the weight ``name``."""
    parts = ("absmax", "quant_map", "nested_absmax", "nested_quant_map", f"{STATE}nf4", f"{STATE}fp4")
    return tuple(f"{name}.{part}" for part in parts)


def from_bitsandbytes_state(entries: Mapping[str, Tensor], name: str) -> NF4Tensor:
    """The weight ``name`` from the entries of a state dict or safetensors file that bitsandbytes wrote.

    Args:
        entries: read by name: a state dict, or anything that gives tensors by name.
        name: as ``model.layers.0.mlp.up_proj.weight``.

    Raises:
        ValueError: where the entries are not there, or describe what this library cannot read.
    """
    kinds = [kind for kind in ("nf4", "fp4") if f"{name}.{STATE}{kind}" in entries]
    if not kinds:
        raise ValueError(f"there is no entry {name}.{STATE}nf4 (or fp4): {name} is not quantized by bitsandbytes")
    described = json.loads(bytes(entries[f"{name}.{STATE}{kinds[0]}"].tolist()))
    packed = entries[name]
    double_quant = "nested_blocksize" in described
    layout = Layout(tuple(described["shape"]), described["blocksize"], double_quant, described["quant_type"])
    _check_code(entries[f"{name}.quant_map"], layout.quant_type, name)
    parts = {"packed": packed.contiguous().view(torch.uint8), "absmax": entries[f"{name}.absmax"]}
    if double_quant:
        if described["nested_blocksize"] != GROUP:
            raise ValueError(f"{name} nests its scales by {described['nested_blocksize']}, known is {GROUP}")
        offset = torch.tensor(described["nested_offset"], dtype=torch.float32, device=packed.device)
        nested = ("nested_absmax", "nested_quant_map")
        parts |= dict(zip(("nested_absmax", "nested_code"), (entries[f"{name}.{n}"] for n in nested), strict=True))
        parts["offset"] = offset
    elif parts["absmax"].dtype != torch.float32:
        raise ValueError(f"{name}.absmax must be torch.float32, got {parts['absmax'].dtype}")
    return assemble(layout, getattr(torch, described["dtype"]), parts)


def to_bitsandbytes_state(w: NF4Tensor, name: str) -> dict[str, Tensor]:
    """The entries that bitsandbytes would write for ``w``: save them with safetensors, and transformers reads them."""
    layout = w.layout
    entries: dict[str, Any] = {"": w.packed.view(-1, 1), ".absmax": w.absmax}
    entries[".quant_map"] = code_values(layout.quant_type, w.device).clone()
    described = {
        "quant_type": layout.quant_type,
        "blocksize": layout.block_size,
        "dtype": str(w.dtype).removeprefix("torch."),
        "shape": list(layout.shape),
    }
    if layout.double_quant:
        assert w.offset is not None
        entries |= {".nested_absmax": w.nested_absmax, ".nested_quant_map": w.nested_code}
        nested = {"nested_blocksize": GROUP, "nested_dtype": "float32", "nested_offset": w.offset.item()}
        described |= nested
    entries[f".{STATE}{layout.quant_type}"] = torch.tensor(list(json.dumps(described).encode()), dtype=torch.uint8)
    return {name + suffix: tensor.clone() for suffix, tensor in entries.items()}


def _named(name: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{name}.{key}": tensor for key, tensor in state.items()}


def _check_code(found: Tensor, quant_type: str, name: str) -> None:
    code = code_values(quant_type, found.device)
    if found.shape != code.shape or not torch.allclose(found.float(), code, rtol=0, atol=1e-6):
        raise ValueError(f"{name}.quant_map is not the code of {quant_type}: {found.flatten()[:16].tolist()}")
