"""What families of transformers call the decoder's tensors.

A table maps a module of ours to one or more of theirs: several are laid end to end along the first dimension, and names
with ``{x}``, one per expert, are stacked. ``{i}`` is the layer. Modules are named without ``.weight`` and ``.bias``.
"""

from __future__ import annotations

from collections.abc import Mapping

Table = Mapping[str, tuple[str, ...]]


def _blocks(theirs: str, table: Table) -> Table:
    """A table of the modules inside of a block, whose name in their models is given."""
    return {f"blocks.{{i}}.{ours}": tuple(f"{theirs}.{each}" for each in names) for ours, names in table.items()}


_AROUND_LLAMA = {"embedding": ("model.embed_tokens",), "norm": ("model.norm",), "head": ("lm_head",)}
_ATTENTION = _blocks(
    "model.layers.{i}",
    {
        "attention_norm": ("input_layernorm",),
        "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "attention.q_norm": ("self_attn.q_norm",),
        "attention.k_norm": ("self_attn.k_norm",),
        "attention.out": ("self_attn.o_proj",),
        "feed_forward_norm": ("post_attention_layernorm",),
    },
)
LLAMA = {
    **_AROUND_LLAMA,
    **_ATTENTION,
    **_blocks(
        "model.layers.{i}",
        {"feed_forward.gate_up": ("mlp.gate_proj", "mlp.up_proj"), "feed_forward.down": ("mlp.down_proj",)},
    ),
}
GEMMA2 = {
    **LLAMA,
    **_blocks(
        "model.layers.{i}",
        {
            "attention_post_norm": ("post_attention_layernorm",),
            "feed_forward_norm": ("pre_feedforward_layernorm",),
            "feed_forward_post_norm": ("post_feedforward_layernorm",),
        },
    ),
}
_OLMO2_WITHOUT = ("blocks.{i}.attention_norm", "blocks.{i}.feed_forward_norm")
OLMO2 = {name: theirs for name, theirs in GEMMA2.items() if name not in _OLMO2_WITHOUT}
COHERE = {name: theirs for name, theirs in LLAMA.items() if name != "blocks.{i}.feed_forward_norm"}
PHI3 = {
    **LLAMA,
    **_blocks(
        "model.layers.{i}",
        {"attention.qkv": ("self_attn.qkv_proj",), "feed_forward.gate_up": ("mlp.gate_up_proj",)},
    ),
}
MIXTRAL = {
    **_AROUND_LLAMA,
    **_ATTENTION,
    **_blocks(
        "model.layers.{i}.block_sparse_moe",
        {
            "feed_forward.router": ("gate",),
            "feed_forward.experts.gate_up": ("experts.{x}.w1.weight", "experts.{x}.w3.weight"),
            "feed_forward.experts.down": ("experts.{x}.w2.weight",),
        },
    ),
}
QWEN_MOE = {
    **LLAMA,
    **_blocks(
        "model.layers.{i}.mlp",
        {
            "feed_forward.router": ("gate",),
            "feed_forward.experts.gate_up": ("experts.{x}.gate_proj.weight", "experts.{x}.up_proj.weight"),
            "feed_forward.experts.down": ("experts.{x}.down_proj.weight",),
            "feed_forward.shared.gate_up": ("shared_expert.gate_proj", "shared_expert.up_proj"),
            "feed_forward.shared.down": ("shared_expert.down_proj",),
            "feed_forward.shared_gate": ("shared_expert_gate",),
        },
    ),
}
GPT_OSS = {
    **_AROUND_LLAMA,
    **_ATTENTION,
    **_blocks(
        "model.layers.{i}",
        {
            "attention.sinks": ("self_attn.sinks",),
            "feed_forward.router": ("mlp.router",),
            "feed_forward.router.logit_bias": ("mlp.router.bias",),
            "feed_forward.experts.gate_up": ("mlp.experts.gate_up_proj",),
            "feed_forward.experts.gate_up_bias": ("mlp.experts.gate_up_proj_bias",),
            "feed_forward.experts.down": ("mlp.experts.down_proj",),
            "feed_forward.experts.down_bias": ("mlp.experts.down_proj_bias",),
        },
    ),
}
LLAMA4 = {
    **_AROUND_LLAMA,
    **_ATTENTION,
    **_blocks(
        "model.layers.{i}.feed_forward",
        {
            "feed_forward.gate_up": ("gate_proj", "up_proj"),
            "feed_forward.down": ("down_proj",),
            "feed_forward.router": ("router",),
            "feed_forward.experts.gate_up": ("experts.gate_up_proj",),
            "feed_forward.experts.down": ("experts.down_proj",),
            "feed_forward.shared.gate_up": ("shared_expert.gate_proj", "shared_expert.up_proj"),
            "feed_forward.shared.down": ("shared_expert.down_proj",),
        },
    ),
}
GPT2 = {
    "embedding": ("transformer.wte",),
    "positions": ("transformer.wpe",),
    **_blocks(
        "transformer.h.{i}",
        {
            "attention_norm": ("ln_1",),
            "attention.qkv": ("attn.c_attn",),
            "attention.out": ("attn.c_proj",),
            "feed_forward_norm": ("ln_2",),
            "feed_forward.up": ("mlp.c_fc",),
            "feed_forward.down": ("mlp.c_proj",),
        },
    ),
    "norm": ("transformer.ln_f",),
    "head": ("lm_head",),
}
