"""The masks that transformers gives to attention layers, as patterns that flash_attention computes.

transformers describes a mask by a function of positions. ``attention_mask`` recognizes those functions that
flash_attention can express (causal, bidirectional, each with a sliding window, with padded keys) and hands the layers
a ``LayerMask`` that carries the pattern. For every other function the mask has no pattern, and is formed in full. A
layer that looks inside its mask, for example to slice it, gets the right elements whatever the pattern is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from inspect import getclosurevars
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from llmfast.kernels.frame.torch_private import constant_while_traced


@dataclass(frozen=True)
class Pattern:
    """Which keys the queries of a layer see, in the terms of flash_attention: the last query stands at the last key."""

    causal: bool
    window: tuple[int, int] | None
    keys: int
    """How many keys, from the first, take part. A static cache is longer: what follows is not written yet."""
    padding: Tensor | None
    """(B, keys), false where a key is padding; None where no key is."""

    @property
    def is_whole(self) -> bool:
        """Whether every query sees every key."""
        return not self.causal and self.window is None and self.padding is None


class LayerMask(Tensor):
    """A boolean mask (B, 1, S, T), true where a query sees a key, whose elements are formed when an operation reads
    them.

    Results that are masks again stay of this class, without a pattern. Adding one to the scores of attention, which a
    layer does that expects 0 and -inf, would be wrong without any sign of it, and raises ValueError.
    """

    pattern: Pattern | None
    form: Callable[[], Tensor]

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(
        cls, shape: tuple[int, ...], device: torch.device, form: Callable[[], Tensor], pattern: Pattern | None = None
    ) -> LayerMask:
        mask = Tensor._make_wrapper_subclass(cls, shape, dtype=torch.bool, device=device)
        mask.form, mask.pattern, mask._elements = form, pattern, None
        return mask

    def elements(self) -> Tensor:
        """The mask as an ordinary tensor."""
        if self._elements is None:
            self._elements = self.form()
        return self._elements

    def __repr__(self) -> str:
        return f"LayerMask({tuple(self.shape)}, pattern={self.pattern})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in _ARITHMETIC:
            raise ValueError(
                'attn_implementation="llmfast" gives layers boolean masks, but this model computes with its mask: its '
                'attention does not go through the attention interface of transformers. Use attn_implementation="eager"'
            )
        if func.overloadpacket in _VIEWS and _takes_all(*args):
            return args[0]
        if func._schema.is_mutable:  # What is written is no longer the pattern.
            for each in args:
                if isinstance(each, cls):
                    each.pattern = None
        plain_args, plain_kwargs = tree_map_only(cls, cls.elements, (tuple(args), kwargs or {}))
        out = func(*plain_args, **plain_kwargs)
        if isinstance(out, Tensor) and out.dtype == torch.bool and out.dim() == 4:
            return cls(tuple(out.shape), out.device, lambda: out)
        return out


_VIEWS = {getattr(torch.ops.aten, name) for name in ("slice", "detach", "alias")}
_ARITHMETIC = {getattr(torch.ops.aten, name) for name in ("add", "add_", "sub", "sub_", "rsub", "mul", "mul_")}


def _takes_all(mask: Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> bool:
    """Whether a slice (or no slice at all) is the whole mask."""
    return not start and step == 1 and (end is None or end >= mask.shape[dim])


def attention_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable | None = None,
    attention_mask: Tensor | None = None,
    config: Any = None,
    device: Any = "cpu",
    **options: Any,
) -> Tensor | None:
    """The mask that transformers passes to the layers; arguments as those of its ``sdpa_mask``.

    While PyTorch traces, and nothing may depend on the elements of a mask, this is what its SDPA gets.

    Raises:
        ValueError: the attention layers of this model never call the implementation that is registered.
    """
    from transformers.masking_utils import causal_mask_function, sdpa_mask

    if config is not None and (name := unreachable(type(config))):
        raise ValueError(
            f'attn_implementation="llmfast" does not reach the attention of {name}, which does not go through the '
            'attention interface of transformers: use attn_implementation="eager"'
        )
    mask_function = mask_function or causal_mask_function
    arguments = {
        "batch_size": batch_size,
        "q_length": q_length,
        "kv_length": kv_length,
        "q_offset": q_offset,
        "kv_offset": kv_offset,
        "mask_function": mask_function,
        "attention_mask": attention_mask,
        "config": config,
        "device": device,
        **options,
    }
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or _is_fake(attention_mask):
        return sdpa_mask(**arguments)
    arguments |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    q_offset = arguments["q_offset"] = int(q_offset)
    pattern = find_pattern(mask_function, attention_mask, q_offset + q_length - kv_offset, kv_length, kv_offset)
    shape = (batch_size, 1, q_length, kv_length)
    return LayerMask(shape, torch.device(device), lambda: sdpa_mask(**arguments), pattern)


def find_pattern(
    function: Callable, attention_mask: Tensor | None, end: int, kv_length: int, kv_offset: int
) -> Pattern | None:
    """The pattern of a mask function and of the padding ``attention_mask`` (B, tokens); None if it has none.

    Args:
        end: behind the place of the last query, counted in keys of the layer.
        kv_length: keys of the layer, the first of which is the token ``kv_offset``.
    """
    bounds = bounds_of(function, kv_offset + kv_length)
    if bounds is None:
        return None
    causal, window = bounds
    keys = end if causal else kv_length
    aligned = end == kv_length or (not causal and window is None)
    if not 0 < keys <= kv_length or not (causal or aligned):
        return None
    padding = None
    if attention_mask is not None:
        padding = torch.nn.functional.pad(attention_mask, (0, max(0, kv_offset + keys - attention_mask.shape[1])))
        padding = padding[:, kv_offset : kv_offset + keys].bool()
        if padding.all():
            padding = None
        elif window is not None and not _is_run(padding):
            return None  # Leaving out the padding would move tokens that a window counts closer to each other.
    return Pattern(causal, window, keys, padding)


def bounds_of(function: Callable, tokens: int) -> tuple[bool, tuple[int, int] | None] | None:
    """Whether a mask function of transformers is causal, and its window, as flash_attention takes them.

    None for a function that is not one of those which are recognized.
    """
    from transformers import masking_utils as masks

    if function is masks.causal_mask_function:
        return True, None
    if function is masks.bidirectional_mask_function:
        return False, None
    parts = _closure(function, masks.and_masks()).get("mask_functions", ())
    if len(parts) != 2:
        return None
    overlay, base = parts
    if base is masks.causal_mask_function:
        size = _closure(overlay, masks.sliding_window_overlay(1)).get("sliding_window")
        if isinstance(size, int):
            return True, None if size >= tokens else (size - 1, -1)
        size = _closure(overlay, masks.chunked_overlay(1, None)).get("chunk_size")
        # All that is there lies in the first chunk. (Where a row is padded on the left, its first chunk starts later.)
        return (True, None) if isinstance(size, int) and size >= tokens else None
    if base is masks.bidirectional_mask_function:
        size = _closure(overlay, masks.sliding_window_bidirectional_overlay(1)).get("sliding_window")
        return (False, (size, size)) if isinstance(size, int) else None
    return None


def _closure(function: Callable, like: Callable) -> dict[str, Any]:
    """What a function holds, if it was made by the same code as ``like``; nothing otherwise."""
    same = getattr(function, "__code__", None) is like.__code__
    return dict(getclosurevars(function).nonlocals) if same else {}


def _is_run(shown: Tensor) -> bool:
    """Whether in each row what is shown stands together."""
    starts = torch.nn.functional.pad(shown, (1, 0)).int().diff(dim=1) == 1
    return bool((starts.sum(1) <= 1).all())


def _is_fake(tensor: Tensor | None) -> bool:
    return tensor is not None and (tensor.is_meta or isinstance(tensor, torch._subclasses.FakeTensor))


_unreachable: dict[type, str] = {}


@constant_while_traced
def unreachable(config_class: type) -> str:
    """The model of this class of configurations, if no model of it calls registered attention; "" otherwise."""
    if config_class not in _unreachable:
        _unreachable[config_class] = _find_unreachable(config_class)
    return _unreachable[config_class]


def _find_unreachable(config_class: type) -> str:
    from transformers import PreTrainedModel

    def below(cls: type) -> set[type]:
        return {cls}.union(*map(below, cls.__subclasses__()))

    models = [each for each in below(PreTrainedModel) if getattr(each, "config_class", None) is config_class]
    if not models or any(each._can_set_attn_implementation() for each in models):
        return ""
    return config_class.__name__.removesuffix("Config")
