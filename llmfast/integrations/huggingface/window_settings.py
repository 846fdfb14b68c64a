"""Settings of sliding windows in a config.json; see ``settings``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from llmfast.integrations.huggingface.rope_settings import NoRope
from llmfast.integrations.huggingface.settings import CHUNKED, FULL, SLIDING, File, check_whole
from llmfast.models.config import DecoderConfig


@dataclass(frozen=True)
class Window:
    """One sliding window for all layers, or none where ``sliding_window`` is null."""

    def read(self, file: File) -> dict[str, Any]:
        window = file.get("sliding_window")
        if window is None:
            return {}
        check_whole("sliding_window", window)
        return {"window": window}

    def write(self, config: DecoderConfig) -> dict[str, Any]:
        slides = any(config.window_of(layer) for layer in range(config.layers))
        return {"sliding_window": config.window if slides else None}


@dataclass(frozen=True)
class SwitchedWindow:
    """Qwen's sliding window, which counts only with ``use_sliding_window``."""

    layers: Literal["all", "late", "early_even", "unrotated"]
    """Which layers slide where the file does not say it layer by layer: those from ``max_window_layers`` on, of those
    before it every second one, or those without positions. With "all" a file cannot say it by layer."""

    def read(self, file: File) -> dict[str, Any]:
        window, slides = file.get("sliding_window"), file.get("use_sliding_window")
        if window is not None:
            check_whole("sliding_window", window)
        bound, layers = file.get("max_window_layers"), range(file["num_hidden_layers"])
        types = None if self.layers == "all" else file.get("layer_types")
        if types is None:
            by_rule = {
                "all": lambda i: True,
                "late": lambda i: i >= bound,
                "early_even": lambda i: not i % 2 and i < bound,
                "unrotated": lambda i: NoRope().read(file)["rope_pattern"][i] == "n",
            }
            is_sliding = [bool(window and slides) and by_rule[self.layers](layer) for layer in layers]
        else:
            is_sliding = _marked(types, len(layers), SLIDING)
            if any(is_sliding) and not (window and slides):
                raise ValueError("layer_types has sliding_attention, but use_sliding_window is off")
        if not any(is_sliding):
            return {}
        return {"window": window, "window_pattern": "".join("fs"[each] for each in is_sliding)}

    def write(self, config: DecoderConfig) -> dict[str, Any]:
        windows = [config.window_of(layer) for layer in range(config.layers)]
        if not any(windows):
            return {}
        said = {"sliding_window": config.window, "use_sliding_window": True}
        if self.layers == "all":
            return said
        return said | {"layer_types": _types(config)}


class Chunks:
    """Llama 4's chunked attention: in layers that rotate, where the file does not say it layer by layer."""

    def read(self, file: File) -> dict[str, Any]:
        layers, types, chunk = file["num_hidden_layers"], file.get("layer_types"), file.get("attention_chunk_size")
        if types is None:
            types = [CHUNKED if each == "r" else FULL for each in NoRope(True).read(file)["rope_pattern"]]
        is_chunked = _marked(types, layers, CHUNKED)
        if not any(is_chunked):
            return {}
        check_whole("attention_chunk_size", chunk)
        return {"attention_chunk": chunk, "window_pattern": "".join("fc"[each] for each in is_chunked)}

    def write(self, config: DecoderConfig) -> dict[str, Any]:
        types = [CHUNKED if config.chunk_of(layer) else FULL for layer in range(config.layers)]
        # The family always has a number there, which only layers with chunks read.
        size = {} if config.attention_chunk is None else {"attention_chunk_size": config.attention_chunk}
        return {"layer_types": types, **size}


@dataclass(frozen=True)
class AlternatingWindow:
    """A sliding window in all layers but each ``period``-th, where the file does not say it layer by layer."""

    period: int
    period_key: str | None = None
    """How published files call the period."""
    full_has_no_rope: bool = False
    """Whether layers without a window have no positions."""

    def read(self, file: File) -> dict[str, Any]:
        layers, types, window = file["num_hidden_layers"], file.get("layer_types"), file.get("sliding_window")
        period = self.period if self.period_key is None else file.get(self.period_key, self.period)
        if types is None:
            is_sliding = [bool((layer + 1) % period) for layer in range(layers)]
        else:
            is_sliding = _marked(types, layers, SLIDING)
        found: dict[str, Any] = {}
        if self.full_has_no_rope:
            found["rope_pattern"] = "".join("nr"[each] for each in is_sliding)
        if any(is_sliding):
            check_whole("sliding_window", window)
            found |= {"window": window, "window_pattern": "".join("fs"[each] for each in is_sliding)}
        return found

    def write(self, config: DecoderConfig) -> dict[str, Any]:
        types = {"layer_types": _types(config)}
        # The family always has a number there, which only layers with a window read.
        return types if config.window is None else types | {"sliding_window": config.window}


def _marked(types: Any, layers: int, kind: str) -> list[bool]:
    """Which layers are of this kind, by ``layer_types``; the others see all."""
    if len(types) != layers or set(types) - {FULL, kind}:
        raise ValueError(f"layer_types is {types}; supported are {FULL} and {kind}, by layer")
    return [each == kind for each in types]


def _types(config: DecoderConfig) -> list[str]:
    return [SLIDING if config.window_of(layer) else FULL for layer in range(config.layers)]
