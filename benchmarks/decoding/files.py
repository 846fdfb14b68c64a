"""The model of a GPT-2 shape in the files of other libraries."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from llmfast.models.decoder import Decoder

from ..hugging_face import same_model


def write_tensors(model: Decoder, path: Path) -> Path:
    """Its parameters by name, as ``Decoder.from_tensors`` takes them."""
    torch.save({name: tensor for name, tensor in model.state_dict().items() if name != "head.weight"}, path)
    return path


def write_hugging_face(model: Decoder, folder: Path) -> Path:
    """With a tokenizer of one word a token, which CTranslate2 takes its vocabulary from."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = {f"t{token}": token for token in range(model.config.vocab_size)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="t0"))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="t0", bos_token="t1", eos_token="t2")
    fast.save_pretrained(folder)
    same_model(model.config, model.state_dict()).save_pretrained(folder)
    return folder


def write_ctranslate2(hugging_face: Path, folder: Path, width: str) -> Path:
    from ctranslate2.converters import TransformersConverter

    TransformersConverter(str(hugging_face)).convert(str(folder), quantization=width)
    return folder


# The table, which is the head too, is in 8 bits where the other matrices are in 4, as in llmfast.
GGUF_TYPES = {"float32": ("F32",) * 2, "bfloat16": ("BF16",) * 2, "int8": ("Q8_0",) * 2, "int4": ("Q4_0", "Q8_0")}
GGUF_NAMES = {
    "attention_norm": "attn_norm",
    "attention.qkv": "attn_qkv",
    "attention.out": "attn_output",
    "feed_forward_norm": "ffn_norm",
    "feed_forward.up": "ffn_up",
    "feed_forward.down": "ffn_down",
}


def write_gguf(model: Decoder, path: Path, width: str) -> Path:
    """GPT-2 in llama.cpp's format, with a made-up vocabulary."""
    import gguf

    config, weights = model.config, model.state_dict()
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.width)
    writer.add_block_count(config.layers)
    writer.add_feed_forward_length(config.ff_width)
    writer.add_head_count(config.heads)
    writer.add_layer_norm_eps(config.norm_eps)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([f"t{token}" for token in range(config.vocab_size)])
    writer.add_token_types([gguf.TokenType.NORMAL] * config.vocab_size)
    writer.add_token_merges(["t 0"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    matrix_type, table_type = (getattr(gguf.GGMLQuantizationType, name) for name in GGUF_TYPES[width])

    def add(name: str, ours: str, kind: gguf.GGMLQuantizationType | None = None) -> None:
        numbers = weights[ours].float().numpy()
        if kind is None or kind == gguf.GGMLQuantizationType.F32:
            writer.add_tensor(name, np.ascontiguousarray(numbers))
        else:
            writer.add_tensor(name, gguf.quantize(numbers, kind), raw_dtype=kind)

    add("token_embd.weight", "embedding.weight", table_type)
    add("position_embd.weight", "positions.weight")
    for kind in ("weight", "bias"):
        add(f"output_norm.{kind}", f"norm.{kind}")
    for layer in range(config.layers):
        for ours, theirs in GGUF_NAMES.items():
            is_matrix = not ours.endswith("norm")
            add(f"blk.{layer}.{theirs}.weight", f"blocks.{layer}.{ours}.weight", matrix_type if is_matrix else None)
            add(f"blk.{layer}.{theirs}.bias", f"blocks.{layer}.{ours}.bias")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
