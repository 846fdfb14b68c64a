"""Models of transformers with the weights of ours. Their attention is SDPA, the default."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor, nn

from llmfast.models.config import DecoderConfig


def same_model(config: DecoderConfig, weights: dict[str, Tensor], assign: bool = False) -> nn.Module:
    """A ``GPT2LMHeadModel`` or ``LlamaForCausalLM`` with the weights of our decoder. With ``assign`` the Llama model
    uses these tensors themselves and skips its random initialization."""
    convert = gpt2 if config.positions == "learned" else llama
    with torch.device("meta") if assign else contextlib.nullcontext():
        theirs, renamed = convert(config, weights)
    theirs.load_state_dict(renamed, assign=assign)
    if assign:
        theirs.tie_weights()
        rotary, device = theirs.model.rotary_emb, weights["embedding.weight"].device
        theirs.model.rotary_emb = type(rotary)(theirs.config).to(device)
    return theirs


def unfit(config: DecoderConfig) -> str:
    """The reason that transformers has no such model, or an empty string."""
    return "its models do not smear embeddings" if config.smear else ""


def gpt2(config: DecoderConfig, ours: dict[str, Tensor]) -> tuple[nn.Module, dict[str, Tensor]]:
    """GPT-2 stores its matrices transposed."""
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=config.vocab_size,
            n_positions=config.context,
            n_embd=config.width,
            n_layer=config.layers,
            n_head=config.heads,
            n_inner=config.ff_width,
            layer_norm_epsilon=config.norm_eps,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=None,
            eos_token_id=None,
        )
    )
    theirs = {
        "transformer.wte.weight": ours["embedding.weight"],
        "transformer.wpe.weight": ours["positions.weight"],
        "transformer.ln_f.weight": ours["norm.weight"],
        "transformer.ln_f.bias": ours["norm.bias"],
        "lm_head.weight": ours["head.weight"],
    }
    names = {
        "attention_norm": "ln_1",
        "attention.qkv": "attn.c_attn",
        "attention.out": "attn.c_proj",
        "feed_forward_norm": "ln_2",
        "feed_forward.up": "mlp.c_fc",
        "feed_forward.down": "mlp.c_proj",
    }
    for index in range(config.layers):
        for own, their in names.items():
            for kind in ("weight", "bias"):
                tensor = ours[f"blocks.{index}.{own}.{kind}"]
                theirs[f"transformer.h.{index}.{their}.{kind}"] = tensor.T if tensor.ndim == 2 else tensor
    return model, theirs


def llama(config: DecoderConfig, ours: dict[str, Tensor]) -> tuple[nn.Module, dict[str, Tensor]]:
    """Llama stores queries, keys, values, gate and up as separate matrices."""
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(
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
            bos_token_id=None,
            eos_token_id=None,
        )
    )
    theirs = {
        "model.embed_tokens.weight": ours["embedding.weight"],
        "model.norm.weight": ours["norm.weight"],
        "lm_head.weight": ours["head.weight"],
    }
    q, kv = config.heads * config.head_width, config.kv_heads * config.head_width
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
    return model, theirs
