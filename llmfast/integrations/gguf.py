"""Models of GGUF files, as llama.cpp has them: the architectures llama and gpt2, with the tokenizer inside.

Weights in fewer bits (Q8_0, Q4_0, Q4_K and what else the ``gguf`` package decodes) become float32.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmfast.models.config import DecoderConfig, RopeScaling
from llmfast.models.decoder import Decoder
from llmfast.models.rotary import frequencies
from llmfast.models.rotary_pairs import half_split, of_queries_and_keys
from llmfast.tokenizer import Tokenizer, patterns
from llmfast.tokenizer.huggingface.pre_tokenizers import byte_level, pre_tokenizer_of
from llmfast.tokenizer.huggingface.reading import from_json

# How files name the ways to split text before merging.
_SPLITS = {
    "gpt-2": patterns.GPT2,
    "llama-bpe": patterns.LLAMA3,
    "llama3": patterns.LLAMA3,
    "llama-v3": patterns.LLAMA3,
    "qwen2": patterns.QWEN2,
}
_CONTROL, _USER_DEFINED = 3, 4  # types of tokens

_BLOCK = {
    "attn_norm": "attention_norm",
    "attn_qkv": "attention.qkv",
    "attn_output": "attention.out",
    "ffn_norm": "feed_forward_norm",
    "ffn_up": "feed_forward.up",
    "ffn_down": "feed_forward.down",
}
_TOP = {
    "token_embd.weight": "embedding.weight",
    "position_embd.weight": "positions.weight",
    "output_norm.weight": "norm.weight",
    "output_norm.bias": "norm.bias",
    "output.weight": "head.weight",
}


def is_gguf(path: str | Path) -> bool:
    """Whether a path is a GGUF file, by its name."""
    return str(path).endswith(".gguf")


def load_gguf(path: str | Path) -> tuple[Decoder, Tokenizer]:
    """The model and tokenizer of a GGUF file.

    Args:
        path: a file of the architecture llama or gpt2, in one part.

    Returns:
        The decoder, in float32, and the tokenizer, whose files name the end tokens and the chat template.

    Raises:
        ValueError: a damaged file, another architecture, or a tokenizer that is not byte-level BPE.
        ModuleNotFoundError: gguf is not installed (``pip install 'llmfast[gguf]'``).
    """
    import gguf

    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    try:
        reader = gguf.GGUFReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items()}
    except (ValueError, IndexError, KeyError) as error:
        raise ValueError(f"{path} is not a GGUF file, or damaged: {error}") from None
    architecture = fields.get("general.architecture")
    if architecture not in ("llama", "gpt2"):
        raise ValueError(f"{path} holds the architecture {architecture!r}; supported are llama and gpt2")
    try:
        tensors = {
            each.name: torch.from_numpy(np.array(gguf.dequantize(each.data, each.tensor_type), dtype=np.float32))
            for each in reader.tensors
        }
        config = (_llama if architecture == "llama" else _gpt2)(fields, tensors)
        model = Decoder.from_tensors(config, _renamed(tensors, config))
        return model, _tokenizer(fields, path.stem)
    except KeyError as error:
        raise ValueError(f"{path} lacks {error}") from None
    except (NotImplementedError, ValueError) as error:
        raise ValueError(f"{path} cannot be used: {error}") from None


# --- the model --------------------------------------------------------------------------------------------------------


def _sizes(fields: dict[str, Any], tensors: dict[str, Tensor], name: str) -> dict[str, Any]:
    embedding = tensors["token_embd.weight"]
    head = tensors.get("output.weight")
    return {
        "vocab_size": len(embedding),
        "width": embedding.shape[1],
        "layers": fields[f"{name}.block_count"],
        "heads": fields[f"{name}.attention.head_count"],
        "ff_width": fields[f"{name}.feed_forward_length"],
        "context": fields[f"{name}.context_length"],
        "tie_embeddings": head is None or torch.equal(head, embedding),
    }


def _gpt2(fields: dict[str, Any], tensors: dict[str, Tensor]) -> DecoderConfig:
    eps = fields["gpt2.attention.layer_norm_epsilon"]
    kinds = {"positions": "learned", "norm": "layer", "activation": "gelu_tanh", "biases": "all"}
    return DecoderConfig(**_sizes(fields, tensors, "gpt2"), **kinds, norm_eps=_rounded(eps))


def _llama(fields: dict[str, Any], tensors: dict[str, Tensor]) -> DecoderConfig:
    if fields.get("llama.expert_count"):
        raise ValueError("it is a mixture of experts")
    sizes = _sizes(fields, tensors, "llama")
    config = DecoderConfig(
        **sizes,
        kv_heads=fields.get("llama.attention.head_count_kv", sizes["heads"]),
        head_width=fields.get("llama.attention.key_length", sizes["width"] // sizes["heads"]),
        norm_eps=_rounded(fields["llama.attention.layer_norm_rms_epsilon"]),
        rope_base=_rounded(fields.get("llama.rope.freq_base", 10_000.0)),
        rope_scaling=_scaling(fields, tensors),
        biases="qkv" if "blk.0.attn_q.bias" in tensors else "none",
    )
    _check_frequencies(config, tensors)
    return config


def _rounded(number: float) -> float:
    """A number that was kept in 32 bits, as it was written."""
    return float(f"{number:.7g}")


def _scaling(fields: dict[str, Any], tensors: dict[str, Tensor]) -> RopeScaling:
    kind = fields.get("llama.rope.scaling.type", "none")
    factor = fields.get("llama.rope.scaling.factor", 1.0)
    original = fields.get("llama.rope.scaling.original_context_length")
    if "rope_freqs.weight" in tensors:
        # Llama 3.1 and later: what each frequency is divided by. All have the same bounds, and a factor of their own.
        divisors = tensors["rope_freqs.weight"]
        return RopeScaling("llama3", _rounded(float(divisors.max())), original or 8192)
    if kind == "none" or factor == 1:
        return RopeScaling()
    if kind == "linear":
        return RopeScaling("linear", factor)
    if kind == "yarn":
        return RopeScaling("yarn", factor, original)
    raise ValueError(f"its RoPE scaling is {kind!r}")


def _check_frequencies(config: DecoderConfig, tensors: dict[str, Tensor]) -> None:
    divisors = tensors.get("rope_freqs.weight")
    if divisors is None:
        return
    plain = config.rope_base ** -(torch.arange(0, config.head_width, 2, dtype=torch.float64) / config.head_width)
    if not torch.allclose(frequencies(config, config.context), plain / divisors.double(), rtol=1e-4):
        raise ValueError("its RoPE scaling is not that of Llama 3.1")


def _renamed(tensors: dict[str, Tensor], config: DecoderConfig) -> dict[str, Tensor]:
    """The tensors by the names of a decoder."""
    found = {ours: tensors[theirs] for theirs, ours in _TOP.items() if theirs in tensors}
    if config.tie_embeddings:
        found.pop("head.weight", None)
    for layer in range(config.layers):
        block, prefix = f"blocks.{layer}.", f"blk.{layer}."
        for theirs, ours in _BLOCK.items():
            for kind in ("weight", "bias"):
                if f"{prefix}{theirs}.{kind}" in tensors:
                    found[f"{block}{ours}.{kind}"] = tensors[f"{prefix}{theirs}.{kind}"]
        if config.gated:
            up = found.pop(f"{block}feed_forward.up.weight")
            found[f"{block}feed_forward.gate_up.weight"] = torch.cat([tensors[f"{prefix}ffn_gate.weight"], up])
            for kind in ("weight", "bias") if config.biases == "qkv" else ("weight",):
                q, k, v = (tensors[f"{prefix}attn_{part}.{kind}"] for part in "qkv")
                found[f"{block}attention.qkv.{kind}"] = of_queries_and_keys(half_split, torch.cat([q, k, v]), config)
    return found


# --- the tokenizer ----------------------------------------------------------------------------------------------------


def _tokenizer(fields: dict[str, Any], name: str) -> Tokenizer:
    kind = fields.get("tokenizer.ggml.model")
    if kind != "gpt2":
        raise ValueError(f"its tokenizer is of the kind {kind!r}; supported is byte-level BPE (gpt2)")
    split = fields.get("tokenizer.ggml.pre", "gpt-2" if fields["general.architecture"] == "gpt2" else None)
    if split not in _SPLITS:
        raise ValueError(f"its tokenizer splits text by {split!r}; supported are {', '.join(_SPLITS)}")
    tokens = fields["tokenizer.ggml.tokens"]
    types = fields.get("tokenizer.ggml.token_type", [1] * len(tokens))
    file = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            _added_token(number, tokens[number], is_special=type_ == _CONTROL)
            for number, type_ in enumerate(types)
            if type_ in (_CONTROL, _USER_DEFINED)
        ],
        "normalizer": {"type": "NFC"} if split == "qwen2" else None,
        "pre_tokenizer": pre_tokenizer_of(_SPLITS[split]),
        "post_processor": _around(fields, tokens),
        "decoder": byte_level(use_regex=True),
        "model": {
            "type": "BPE",
            "vocab": {text: number for number, text in enumerate(tokens)},
            "merges": fields["tokenizer.ggml.merges"],
            "ignore_merges": split not in ("gpt-2", "qwen2"),
        },
    }
    contents = from_json(file)._replace(source=json.dumps(file, ensure_ascii=False).encode())
    return Tokenizer.of_contents(name, contents).with_files(_beside(fields, tokens))


def _added_token(number: int, text: str, *, is_special: bool) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": text, "special": is_special, **flags}


def _around(fields: dict[str, Any], tokens: list[str]) -> dict[str, Any]:
    """What stands before a text, as a ``tokenizer.json`` says it."""
    begin = fields.get("tokenizer.ggml.bos_token_id")
    # llama.cpp's rule where a file does not say: Llama 3 begins with a token, other BPE does not.
    adds = fields.get("tokenizer.ggml.add_bos_token", str(fields.get("tokenizer.ggml.pre", "")).startswith("llama"))
    if begin is None or not adds:
        return byte_level(use_regex=True) | {"trim_offsets": False}
    text = tokens[begin]
    return {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": text, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {text: {"id": text, "ids": [begin], "tokens": [text]}},
    }


def _beside(fields: dict[str, Any], tokens: list[str]) -> dict[str, bytes]:
    """The end tokens and the chat template, as the files beside a tokenizer say them."""
    names = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")
    ends = list(dict.fromkeys(fields[name] for name in names if name in fields))
    files: dict[str, Any] = {"generation_config.json": {"eos_token_id": ends}} if ends else {}
    ids = {name: fields.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos")}
    files["tokenizer_config.json"] = {f"{name}_token": tokens[id_] for name, id_ in ids.items() if id_ is not None}
    found = {name: json.dumps(content, indent=2).encode() for name, content in files.items()}
    if template := fields.get("tokenizer.chat_template"):
        found["chat_template.jinja"] = template.encode()
    return found
