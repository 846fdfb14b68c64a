"""The families of transformers that llmfast reads, writes or patches, and what each calls the decoder's tensors.

A name of ours stands for one or more of theirs: several are laid end to end along the first dimension, and names with
``{x}``, one an expert, are stacked. ``{i}`` is the layer. Modules are named without ``.weight`` and ``.bias``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

Table = dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Family:
    """One architecture of transformers."""

    model_type: str
    architecture: str
    names: Table | None = None
    """The tensors of the decoder; None for a family whose models can be patched, but are no decoder of ours."""
    patched: bool = False
    """Whether ``llmfast.patch`` knows its modules."""
    conv1d: bool = False
    """Whether linear layers of blocks are stored transposed (GPT-2's Conv1D)."""
    ignored: str = r".*rotary_emb\.inv_freq"
    """Tensors in published folders that are no parameters."""

    @property
    def prefix(self) -> str:
        """What the names of its classes begin with."""
        return re.sub("(ForCausalLM|LMHeadModel)$", "", self.architecture)

    def their_names(self, name: str) -> tuple[str, ...]:
        """The tensors that make up our tensor ``name``; those with ``{x}`` are for each expert."""
        layer = re.search(r"\.(\d+)\.", name)
        pattern = re.sub(r"\.\d+\.", ".{i}.", name, count=1)
        module, _, kind = pattern.rpartition(".")
        suffix = "" if pattern in self.names else f".{kind}"
        theirs = self.names[pattern if not suffix else module]
        return tuple(each.replace("{i}", layer[1] if layer else "") + suffix for each in theirs)


def _llama(**feed_forward: tuple[str, ...]) -> Table:
    layer = "model.layers.{i}."
    attention = ("q_proj", "k_proj", "v_proj")
    table = {
        "embedding": ("model.embed_tokens",),
        "blocks.{i}.attention_norm": (layer + "input_layernorm",),
        "blocks.{i}.attention.qkv": tuple(layer + "self_attn." + each for each in attention),
        "blocks.{i}.attention.q_norm": (layer + "self_attn.q_norm",),
        "blocks.{i}.attention.k_norm": (layer + "self_attn.k_norm",),
        "blocks.{i}.attention.out": (layer + "self_attn.o_proj",),
        "blocks.{i}.feed_forward_norm": (layer + "post_attention_layernorm",),
        "blocks.{i}.feed_forward.gate_up": (layer + "mlp.gate_proj", layer + "mlp.up_proj"),
        "blocks.{i}.feed_forward.down": (layer + "mlp.down_proj",),
        "norm": ("model.norm",),
        "head": ("lm_head",),
    }
    ours = {f"blocks.{{i}}.feed_forward.{name.replace('__', '.')}": value for name, value in feed_forward.items()}
    return table | {name: tuple(layer + each for each in theirs) for name, theirs in ours.items()}


_GPT2 = {
    "embedding": ("transformer.wte",),
    "positions": ("transformer.wpe",),
    "blocks.{i}.attention_norm": ("transformer.h.{i}.ln_1",),
    "blocks.{i}.attention.qkv": ("transformer.h.{i}.attn.c_attn",),
    "blocks.{i}.attention.out": ("transformer.h.{i}.attn.c_proj",),
    "blocks.{i}.feed_forward_norm": ("transformer.h.{i}.ln_2",),
    "blocks.{i}.feed_forward.up": ("transformer.h.{i}.mlp.c_fc",),
    "blocks.{i}.feed_forward.down": ("transformer.h.{i}.mlp.c_proj",),
    "norm": ("transformer.ln_f",),
    "head": ("lm_head",),
}
_MIXTRAL = _llama(
    router=("block_sparse_moe.gate",),
    experts__gate_up=("block_sparse_moe.experts.{x}.w1.weight", "block_sparse_moe.experts.{x}.w3.weight"),
    experts__down=("block_sparse_moe.experts.{x}.w2.weight",),
)
_QWEN_MOE = _llama(
    router=("mlp.gate",),
    experts__gate_up=("mlp.experts.{x}.gate_proj.weight", "mlp.experts.{x}.up_proj.weight"),
    experts__down=("mlp.experts.{x}.down_proj.weight",),
    shared__gate_up=("mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj"),
    shared__down=("mlp.shared_expert.down_proj",),
    shared_gate=("mlp.shared_expert_gate",),
)

FAMILIES = {
    family.model_type: family
    for family in (
        Family("gpt2", "GPT2LMHeadModel", _GPT2, patched=True, conv1d=True, ignored=r".*\.attn\.(masked_)?bias"),
        Family("llama", "LlamaForCausalLM", _llama(), patched=True),
        Family("mistral", "MistralForCausalLM", _llama(), patched=True),
        Family("qwen2", "Qwen2ForCausalLM", _llama(), patched=True),
        Family("qwen3", "Qwen3ForCausalLM", _llama(), patched=True),
        Family("gemma", "GemmaForCausalLM", patched=True),
        Family("gemma2", "Gemma2ForCausalLM", patched=True),
        Family("mixtral", "MixtralForCausalLM", _MIXTRAL),
        Family("qwen2_moe", "Qwen2MoeForCausalLM", _QWEN_MOE),
        Family("qwen3_moe", "Qwen3MoeForCausalLM", _QWEN_MOE),
    )
}
DECODERS = {name: family for name, family in FAMILIES.items() if family.names is not None}
