"""``llmfast model import|export``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

Dtype = Literal["float32", "bfloat16", "float16"]


def import_model(source: Path, out: Path, *, dtype: Dtype = "float32", vocab_multiple: int = 1) -> None:
    """Turn a Hugging Face folder into a checkpoint folder of llmfast, with its tokenizer.

    A tokenizer that llmfast cannot use (sentencepiece, as of Llama 2 and Mistral) is copied as files; a line says so.

    Args:
        source: Folder with config.json and safetensors or .bin files, of GPT-2, Llama, Mistral, Mixtral, Qwen2,
            Qwen2-MoE, Qwen3, Qwen3-MoE, Gemma, Gemma 2, Gemma 3 (text), Phi-3, SmolLM3, OLMo 2, OLMo 3, Granite,
            GPT-OSS, Llama 4 (text), Cohere or Cohere 2.
        out: New folder to write.
        dtype: Of the parameters.
        vocab_multiple: Fill the embedding table up to a multiple of this (64 for GPT-2's 50257 tokens).

    Raises:
        ValueError: no model there, a damaged file, or a model that the decoder cannot be, or a folder that is not new.
    """
    import torch

    from llmfast.integrations.huggingface.folder import check_new, copy_tokenizer, load_huggingface
    from llmfast.models.folder import CONFIG_FILE, read_json, save_model

    check_new(out)
    model = load_huggingface(source, dtype=getattr(torch, dtype), vocab_multiple=vocab_multiple)
    family = read_json(source / CONFIG_FILE)["model_type"]
    save_model(out, model, write_tokenizer=lambda folder: copy_tokenizer(source, folder), family=family)
    print(f"{out}: {model.config.parameters:,} parameters; {_use_of(out, source)}")


def _use_of(folder: Path, source: Path) -> str:
    """What can be done with an imported model, by its tokenizer."""
    from llmfast.tokenizer import Tokenizer

    try:
        Tokenizer.load(folder)
    except (ValueError, OSError) as error:
        return (
            f"the weights are whole, but there is no tokenizer that llmfast can use ({error}); for token ids, take "
            f"transformers' AutoTokenizer.from_pretrained({str(source)!r})"
        )
    return f"try it with: llmfast generate {folder}"


def export_model(
    model: Path,
    out: Path,
    *,
    family: str | None = None,
    dtype: Dtype | None = None,
    max_shard_size: str = "5GB",
) -> None:
    """Write a model as a Hugging Face folder, which transformers reads, with its tokenizer.

    Args:
        model: A run folder (its newest checkpoint is used) or a checkpoint folder; an adapter is merged into its base.
        out: New folder to write.
        family: As model_type of transformers (llama, qwen2, ...). If left out, that which the model was imported from,
            or else the first that fits.
        dtype: Of the tensors; the narrowest that holds all numbers exactly if left out.
        max_shard_size: Larger models are split over several files.

    Raises:
        ValueError: no model there, one that no such folder can describe, or a folder that is not new.
    """
    import torch

    from llmfast.integrations.huggingface.config import as_said, can_say
    from llmfast.integrations.huggingface.folder import save_huggingface
    from llmfast.integrations.opening import open_start
    from llmfast.models.folder import model_folder, read_state_file

    folder = model_folder(model)
    decoder, imported_from = open_start(folder).decoder(), read_state_file(folder).get("family")
    if family is None and imported_from and can_say(as_said(decoder.config, imported_from), imported_from):
        family = imported_from
    save_huggingface(
        decoder,
        out,
        family=family,
        dtype=None if dtype is None else getattr(torch, dtype),
        tokenizer_from=folder,
        max_shard_size=max_shard_size,
    )
    print(f"{out}: load it with AutoModelForCausalLM.from_pretrained")
