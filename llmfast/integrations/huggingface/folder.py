"""Reads and writes the folders: converts tensors between their names and ours, and copies tokenizer files."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llmfast.files import atomic_folder
from llmfast.integrations.huggingface.config import as_said, from_config, to_config
from llmfast.integrations.huggingface.family import Family
from llmfast.integrations.huggingface.mxfp4 import dequantize_mxfp4, packed_names
from llmfast.integrations.huggingface.stored import stored_tensors
from llmfast.kernels import NF4Linear, dequantize_nf4, from_bitsandbytes_state
from llmfast.kernels.nf4.interchange import bitsandbytes_names, has_bitsandbytes_state
from llmfast.models.config import DecoderConfig
from llmfast.models.decoder import Decoder
from llmfast.models.rewriting import rewritten

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "tokenizer.model.v3",
    "tekken.json",
    "chat_template.jinja",
    "generation_config.json",
)


GENERATION_FILE = "generation_config.json"
_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


def load_huggingface(
    folder: str | Path, *, dtype: torch.dtype = torch.float32, vocab_multiple: int = 1, keep_4_bits: bool = False
) -> Decoder:
    """The model of a folder with config.json and safetensors (or PyTorch's .bin files), sharded or not.

    The model computes what transformers does, or is refused: what config.json leaves out is what transformers takes for
    the family, and a setting that the decoder does not have is named in the error. Weights that bitsandbytes stored in
    4 bits are decoded, and so is the MXFP4 of GPT-OSS.

    Args:
        folder: A model of the family GPT-2, Llama, Mistral, Mixtral, Qwen2, Qwen2-MoE, Qwen3, Qwen3-MoE, Gemma,
            Gemma 2, Gemma 3 (text), Phi-3, SmolLM3, OLMo 2, OLMo 3, Granite, GPT-OSS, Llama 4
            (text), Cohere or Cohere 2.
        dtype: The dtype of the parameters.
        vocab_multiple: Pad the embedding table to a multiple of this (64 for GPT-2's 50257 tokens).
        keep_4_bits: Leave the linear layers that are in 4 bits so, with the numbers that they have (with plain scales:
            nested ones cannot be joined where q, k and v become one layer).

    Raises:
        ValueError: the folder holds no model, a file is damaged, or the decoder cannot represent the model.
    """
    folder = Path(folder)
    config_file = folder / "config.json"
    if not config_file.exists():
        raise ValueError(f"{folder} holds no model: config.json is missing")
    try:
        file = json.loads(config_file.read_text("utf-8"))
        family, config = from_config(file)
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{config_file} cannot be used: {reason}") from None
    config = dataclasses.replace(config, vocab_multiple=vocab_multiple)
    with stored_tensors(folder) as (names, read):
        reader = _Reader(family, config, names, read)
        if config.tie_embeddings and reader.has_other_head():
            config = reader.config = dataclasses.replace(config, tie_embeddings=False)
        with torch.device("meta"):
            wanted = _own_tensors(Decoder(config), config)
        tensors = {name: reader.tensor(name, like).to(dtype).contiguous() for name, like in wanted.items()}
        if left := reader.left():
            raise ValueError(f"{folder} holds tensors that this model has no place for: {', '.join(left[:3])}")
    model = Decoder.from_tensors(config, tensors)
    if keep_4_bits:
        del tensors
        _pack_again(model, reader.block_sizes)
    return model


def _pack_again(model: Decoder, block_sizes: dict[str, set[int]]) -> None:
    """Put layers whose numbers were decoded from 4 bits in 4 bits again, one after another.

    This changes nothing: the largest number of a block stands for 1, so that scale and codes come out as they were.
    """
    for name, sizes in block_sizes.items():
        module = model.get_submodule(name.removesuffix(".weight")) if name.endswith(".weight") else None
        if type(module) is nn.Linear and len(sizes) == 1 and None not in sizes:
            model.set_submodule(name.removesuffix(".weight"), NF4Linear.from_linear(module, min(sizes), False))


def save_huggingface(
    model: Decoder,
    folder: str | Path,
    *,
    family: str | None = None,
    dtype: torch.dtype | None = None,
    tokenizer_from: str | Path | None = None,
    max_shard_size: str = "5GB",
) -> None:
    """Write the model as a new folder that transformers reads.

    Tensors that were imported from such a folder are written as they were, to the bit. Scales that the family lacks
    (``embedding_scale``, ``residual_scale``, ``logit_scale``, ``attention_scale``) move into the weights, that of
    embeddings into a table of its own. The tokens that begin and end a text are written as generation_config.json of
    ``tokenizer_from`` names them, or as its tokenizer has them.

    Args:
        family: The ``model_type`` of transformers; the first that fits if left out.
        dtype: The dtype of the tensors; the narrowest one that holds every number of theirs exactly if left out: a
            model that was imported from bfloat16 has that dtype again.
        tokenizer_from: A folder whose tokenizer files are copied.
        max_shard_size: Larger models are split over several files.

    Raises:
        ValueError: the family cannot describe the model, or the folder is not empty.
        OSError: the disk is full or not writable.
    """
    from huggingface_hub import save_torch_state_dict

    check_new(folder)
    config = as_said(model.config, family)
    chosen, file = to_config(config, family)
    tensors = {}
    for name, tensor in _own_tensors(model, config).items():
        tensors |= _theirs(chosen, config, name, rewritten(name, tensor.detach().cpu(), model.config, config))
    dtype = dtype or narrowest(tensors.values())
    tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    special = special_tokens(tokenizer_from)
    file |= dict.fromkeys(_SPECIAL) | special  # null where they are unknown: not those of the family's first model
    file["dtype"] = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    with atomic_folder(folder) as partial:
        save_torch_state_dict(tensors, partial, max_shard_size=max_shard_size)
        (partial / "config.json").write_text(json.dumps(file, indent=2) + "\n")
        copy_tokenizer(tokenizer_from, partial)
        if special and not (partial / GENERATION_FILE).exists():
            (partial / GENERATION_FILE).write_text(json.dumps(special, indent=2) + "\n")


def narrowest(tensors: Iterable[Tensor]) -> torch.dtype:
    """The first of bfloat16 and float16 that holds all these numbers exactly; if none does, the dtype of the first."""
    tensors = list(tensors)
    for dtype in (torch.bfloat16, torch.float16):
        if all(torch.equal(each.to(dtype).to(each.dtype), each) for each in tensors):
            return dtype
    return tensors[0].dtype


def special_tokens(source: str | Path | None) -> dict[str, Any]:
    """The tokens that begin, end and fill up a text, as config.json names them, of the tokenizer at ``source``."""
    from llmfast.tokenizer import Tokenizer

    if source is None:
        return {}
    file = Path(source) / GENERATION_FILE
    if file.exists():
        said = json.loads(file.read_text("utf-8"))
        return {name: said[name] for name in _SPECIAL if said.get(name) is not None}
    try:
        end = Tokenizer.load(source).eot_token
    except (ValueError, OSError, KeyError, AttributeError):
        return {}
    return {"bos_token_id": end, "eos_token_id": end}


def check_new(folder: str | Path) -> None:
    """Refuses a folder that is not empty, because a folder is written as a whole.

    Raises:
        ValueError: the folder holds something, or is a file.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists already; choose another folder")


def copy_tokenizer(source: str | Path | None, folder: Path) -> None:
    """Copy the tokenizer files that are at ``source``."""
    for name in TOKENIZER_FILES if source is not None else ():
        if (Path(source) / name).exists():
            shutil.copyfile(Path(source) / name, folder / name)


def _own_tensors(model: Decoder, config: DecoderConfig) -> dict[str, Tensor]:
    """Our tensors by name, the head only where ``config`` has one of its own."""
    tensors = model.state_dict()
    if config.tie_embeddings:
        del tensors["head.weight"]
    return tensors


class _Reader:
    """Assembles our tensors from those of a folder."""

    def __init__(self, family: Family, config: DecoderConfig, names: set[str], read: Callable[[str], Tensor]):
        self.family, self.config, self.names, self.read = family, config, names, read
        self.used: set[str] = set()
        self.block_sizes: dict[str, set[int | None]] = {}
        """Of our tensors: the block sizes of those of theirs that are in 4 bits, and None where one is not."""

    def has_other_head(self) -> bool:
        """Whether there is an output head beside the embedding table with other numbers: transformers then takes it,
        whatever config.json says."""
        head, table = (self.found(*self.family.their_names(f"{each}.weight")) for each in ("head", "embedding"))
        return None not in (head, table) and not torch.equal(self.read(head), self.read(table))

    def found(self, name: str) -> str | None:
        """The name of a tensor in the folder. Folders saved from the model without its head lack the first word."""
        return next((each for each in (name, name.partition(".")[2]) if each in self.names), None)

    def tensor(self, name: str, like: Tensor) -> Tensor:
        if name.endswith("router.bias"):
            return torch.zeros(like.shape)
        theirs = self.family.their_names(name)
        self.current = self.block_sizes.setdefault(name, set())
        if "{x}" in theirs[0]:
            experts = range(self.config.experts.count)
            tensor = torch.stack([self._joined([each.replace("{x}", str(x)) for each in theirs]) for x in experts])
        else:
            tensor = self._joined(theirs)
        if layout := self.family.layout_of(name, tensor):
            tensor = layout.read(tensor)
            self.current.add(None)
        if name in ("embedding.weight", "head.weight") and len(tensor) == self.config.vocab_size:
            tensor = torch.cat([tensor, tensor.new_zeros(len(like) - len(tensor), tensor.shape[1])])
        if tensor.shape != like.shape:
            raise ValueError(
                f"{theirs[0]} has the shape {tuple(tensor.shape)}, but by config.json it is {tuple(like.shape)}"
            )
        return tensor

    def _joined(self, names: list[str] | tuple[str, ...]) -> Tensor:
        return torch.cat([self._one(name) for name in names]) if len(names) > 1 else self._one(names[0])

    def _one(self, name: str) -> Tensor:
        packed = [self.found(each) for each in packed_names(name)]
        if None not in packed:
            self.used.update(packed)
            self.current.add(None)
            return dequantize_mxfp4(*map(self.read, packed))
        found = self.found(name)
        if found is None:
            raise ValueError(f"the tensor {name} is missing")
        self.used.add(found)
        return self._stored(found)

    def _stored(self, found: str) -> Tensor:
        if not has_bitsandbytes_state(self.names, found):
            self.current.add(None)
            tensor = self.read(found)
            if not tensor.is_floating_point():
                raise ValueError(f"the tensor {found} holds {tensor.dtype}: such weights cannot be decoded")
            return tensor
        beside = self.names & set(bitsandbytes_names(found))
        self.used |= beside
        packed = from_bitsandbytes_state({each: self.read(each) for each in {found, *beside}}, found)
        # Blocks lie side by side when matrices are joined, where each ends with a whole one.
        whole = packed.layout.numbers % packed.layout.block_size == 0
        self.current.add(packed.layout.block_size if whole and packed.layout.quant_type == "nf4" else None)
        return dequantize_nf4(packed, torch.float32)

    def left(self) -> list[str]:
        """Tensors of the folder that are parameters and were not read."""
        tied = {"lm_head.weight"} if self.config.tie_embeddings else set()
        left = self.names - self.used - tied
        return sorted(name for name in left if not re.fullmatch(self.family.ignored, name))


def _theirs(family: Family, config: DecoderConfig, name: str, tensor: Tensor) -> dict[str, Tensor]:
    """The tensors of a folder that our tensor ``name`` becomes."""
    if name.endswith("router.bias"):
        if tensor.any():
            raise ValueError(f"{name} is not zero: a {family.model_type} folder has no place for it")
        return {}
    names = family.their_names(name)
    if name in ("embedding.weight", "head.weight"):
        tensor = tensor[: config.vocab_size]
    if layout := family.layout_of(name, tensor):
        tensor = layout.write(tensor)
    if "{x}" not in names[0]:
        return dict(zip(names, _parts(tensor, config, len(names)), strict=True))
    return {
        theirs.replace("{x}", str(x)): part
        for x, expert in enumerate(tensor)
        for theirs, part in zip(names, _parts(expert, config, len(names)), strict=True)
    }


def _parts(tensor: Tensor, config: DecoderConfig, count: int) -> list[Tensor]:
    """A fused tensor in its parts: queries, keys and values, or gate and up."""
    sizes = {
        1: [len(tensor)],
        2: [len(tensor) // 2] * 2,
        3: [heads * config.head_width for heads in (config.heads, config.kv_heads, config.kv_heads)],
    }[count]
    # Views of one storage would be taken for tied tensors.
    return [part.clone() for part in tensor.split(sizes)]
