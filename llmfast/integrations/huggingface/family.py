"""What one description of a family of transformers holds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llmfast.integrations.huggingface.defaults import DEFAULTS
from llmfast.integrations.huggingface.settings import File, Setting
from llmfast.integrations.huggingface.tensor_layouts import TRANSPOSED, Layout
from llmfast.integrations.huggingface.tensor_names import Table
from llmfast.models.config import DecoderConfig

if TYPE_CHECKING:
    from torch import Tensor

_LINEAR = (
    "attention.qkv",
    "attention.out",
    "feed_forward.gate_up",
    "feed_forward.up",
    "feed_forward.down",
    "feed_forward.shared.gate_up",
    "feed_forward.shared.down",
)


@dataclass(frozen=True)
class Family:
    """One architecture of transformers: how its configuration and tensors are those of a decoder, and what to patch."""

    model_type: str
    architecture: str
    """The class of its causal language models."""
    settings: tuple[Setting, ...] = ()
    """How config.json and the decoder's configuration say the same; none where no decoder of ours is such a model."""
    names: Table = field(default_factory=dict)
    """The tensors of the decoder: see ``tensor_names``."""
    patched: Mapping[str, str] = field(default_factory=dict)
    """The modules that ``llmfast.patch`` replaces: what follows the prefix in the name of a class, and the kind of
    module that it is, one of ``llmfast.integrations.replacements.REPLACEMENTS``."""
    conv1d: bool = False
    """Whether linear layers of blocks are stored transposed (GPT-2's Conv1D)."""
    layouts: Mapping[str, Layout] = field(default_factory=dict)
    """How other tensors are stored that are not laid out as ours, by the names of ``names``."""
    ignored: str = r".*rotary_emb\.inv_freq"
    """Tensors in published folders that are no parameters."""

    @property
    def prefix(self) -> str:
        """What the names of its classes begin with."""
        return re.sub("(ForCausalLM|LMHeadModel)$", "", self.architecture)

    # --- configuration ----------------------------------------------------------------------------------------------

    def read(self, file: Mapping[str, Any]) -> DecoderConfig:
        """The decoder that a config.json describes.

        Raises:
            ValueError: a setting that the decoder does not have.
            KeyError: a setting that is missing.
        """
        found: dict[str, Any] = {}
        reading = File(file, DEFAULTS[self.model_type])
        for setting in self.settings:
            found |= setting.read(reading)
        reading.check_all_used()
        return DecoderConfig(**found)

    def write(self, config: DecoderConfig) -> dict[str, Any]:
        """The config.json that says most of ``config``; what it does not say shows when it is read again.

        Raises:
            ValueError: a setting that the family does not have.
        """
        file: dict[str, Any] = {}
        for setting in self.settings:
            file |= setting.write(config)
        return file | {"model_type": self.model_type, "architectures": [self.architecture]}

    # --- tensors ----------------------------------------------------------------------------------------------------

    def their_names(self, name: str) -> tuple[str, ...]:
        """The tensors that make up our tensor ``name``; those with ``{x}`` are for each expert."""
        layer = re.search(r"\.(\d+)\.", name)
        pattern = _pattern(name)
        module, _, kind = pattern.rpartition(".")
        suffix = "" if pattern in self.names else f".{kind}"
        theirs = self.names[pattern if not suffix else module]
        return tuple(each.replace("{i}", layer[1] if layer else "") + suffix for each in theirs)

    def layout_of(self, name: str, tensor: Tensor) -> Layout | None:
        """How the family stores our tensor ``name``; None where it is as ours."""
        if self.conv1d:
            return TRANSPOSED if name.startswith("blocks.") and tensor.ndim == 2 else None
        return self.layouts.get(_pattern(name))

    @property
    def adapter_targets(self) -> dict[str, tuple[str, ...]]:
        """The linear modules of a block, ours and theirs, by their names inside the block.

        PEFT takes theirs as ``target_modules``, which are the ends of names.
        """
        return {
            ours: tuple(each.partition("{i}.")[2] for each in self.names[f"blocks.{{i}}.{ours}"])
            for ours in _LINEAR
            if f"blocks.{{i}}.{ours}" in self.names
        }


def _pattern(name: str) -> str:
    """The name of a tensor with ``{i}`` for its layer."""
    return re.sub(r"\.\d+\.", ".{i}.", name, count=1)
