"""Models of transformers that hold the weights of ours."""

from __future__ import annotations

from torch import Tensor, nn

from llmfast.models.config import DecoderConfig


def same_model(config: DecoderConfig, weights: dict[str, Tensor]) -> nn.Module:
    """A ``LlamaForCausalLM`` with our decoder's weights; attention by SDPA, transformers' default."""
    from transformers import LlamaConfig, LlamaForCausalLM

    theirs = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.width,
            intermediate_size=config.ff_width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            head_dim=config.head_width,
            max_position_embeddings=config.context,
            rms_norm_eps=config.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_base},
            tie_word_embeddings=config.tie_embeddings,
            attn_implementation="sdpa",
            bos_token_id=None,
            eos_token_id=None,
        )
    )
    theirs.load_state_dict(llama_weights(config, weights))
    return theirs


def llama_weights(config: DecoderConfig, ours: dict[str, Tensor]) -> dict[str, Tensor]:
    q, kv = config.heads * config.head_width, config.kv_heads * config.head_width
    theirs = {
        "model.embed_tokens.weight": ours["embedding.weight"],
        "model.norm.weight": ours["norm.weight"],
        "lm_head.weight": ours["head.weight"],
    }
    for index in range(config.layers):
        block, layer = f"blocks.{index}.", f"model.layers.{index}."
        queries, keys, values = ours[f"{block}attention.qkv.weight"].split([q, kv, kv])
        gate, up = ours[f"{block}feed_forward.gate_up.weight"].chunk(2)
        theirs |= {
            f"{layer}input_layernorm.weight": ours[f"{block}attention_norm.weight"],
            f"{layer}post_attention_layernorm.weight": ours[f"{block}feed_forward_norm.weight"],
            f"{layer}self_attn.q_proj.weight": queries,
            f"{layer}self_attn.k_proj.weight": keys,
            f"{layer}self_attn.v_proj.weight": values,
            f"{layer}self_attn.o_proj.weight": ours[f"{block}attention.out.weight"],
            f"{layer}mlp.gate_proj.weight": gate,
            f"{layer}mlp.up_proj.weight": up,
            f"{layer}mlp.down_proj.weight": ours[f"{block}feed_forward.down.weight"],
        }
    return theirs
