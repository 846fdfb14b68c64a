"""Reads and writes the folders: converts tensors between their names and ours, and copies tokenizer files."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from llmfast.files import atomic_folder
from llmfast.integrations.huggingface.config import from_config, to_config, with_plain_embedding
from llmfast.integrations.huggingface.family import Family
from llmfast.kernels import NF4Linear, dequantize_nf4, from_bitsandbytes_state
from llmfast.kernels.nf4.interchange import bitsandbytes_names, has_bitsandbytes_state
from llmfast.models.config import DecoderConfig
from llmfast.models.decoder import Decoder

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


def load_huggingface(
    folder: str | Path, *, dtype: torch.dtype = torch.float32, vocab_multiple: int = 1, keep_4_bits: bool = False
) -> Decoder:
    """The model of a folder with config.json and safetensors, sharded or not.

    Weights that bitsandbytes stored in 4 bits are decoded.

    Args:
        folder: A model of the family GPT-2, Llama, Mistral, Qwen2, Qwen3, Mixtral, Qwen2-MoE or Qwen3-MoE.
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
        family, config = from_config(json.loads(config_file.read_text("utf-8")))
    except (ValueError, KeyError, TypeError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{config_file} cannot be used: {reason}") from None
    config = DecoderConfig(**vars(config) | {"vocab_multiple": vocab_multiple})
    with torch.device("meta"):
        wanted = _own_tensors(Decoder(config), config)
    with _stored_tensors(folder) as (names, read):
        reader = _Reader(family, config, names, read)
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
        module = model.get_submodule(name.removesuffix(".weight"))
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

    An embedding that is scaled on its way in (``scale_embedding``) becomes a table of its own with the factor in it:
    those families know no such factor.

    Args:
        family: The ``model_type`` of transformers; the first that fits if left out.
        dtype: The dtype of the tensors; that of the parameters if left out.
        tokenizer_from: A folder whose tokenizer files are copied.
        max_shard_size: Larger models are split over several files.

    Raises:
        ValueError: the family cannot describe the model, or the folder is not empty.
        OSError: the disk is full or not writable.
    """
    from huggingface_hub import save_torch_state_dict

    check_new(folder)
    config = with_plain_embedding(model.config) if model.config.scale_embedding else model.config
    chosen, file = to_config(config, family)
    tensors = {}
    for name, tensor in _own_tensors(model, config).items():
        tensor = tensor.detach().cpu()
        if name == "embedding.weight" and model.config.scale_embedding:
            tensor = tensor * config.width**0.5
        tensors |= _theirs(chosen, config, name, tensor if dtype is None else tensor.to(dtype))
    file["dtype"] = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    with atomic_folder(folder) as partial:
        save_torch_state_dict(tensors, partial, max_shard_size=max_shard_size)
        (partial / "config.json").write_text(json.dumps(file, indent=2) + "\n")
        copy_tokenizer(tokenizer_from, partial)


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
        if _is_transposed(self.family, name, tensor):
            tensor = tensor.T
            self.current.add(None)
        if name in ("embedding.weight", "head.weight") and len(tensor) < len(like):
            tensor = torch.cat([tensor, tensor.new_zeros(len(like) - len(tensor), tensor.shape[1])])
        if tensor.shape != like.shape:
            raise ValueError(
                f"{theirs[0]} has the shape {tuple(tensor.shape)}, but by config.json it is {tuple(like.shape)}"
            )
        return tensor

    def _joined(self, names: list[str] | tuple[str, ...]) -> Tensor:
        return torch.cat([self._one(name) for name in names]) if len(names) > 1 else self._one(names[0])

    def _one(self, name: str) -> Tensor:
        # Folders saved from the model without its head lack the first word of every name.
        found = name if name in self.names else name.partition(".")[2]
        if found not in self.names:
            raise ValueError(f"the tensor {name} is missing")
        self.used.add(found)
        if not has_bitsandbytes_state(self.names, found):
            self.current.add(None)
            return self.read(found)
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
    if _is_transposed(family, name, tensor):
        tensor = tensor.T
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


def _is_transposed(family: Family, name: str, tensor: Tensor) -> bool:
    return family.conv1d and name.startswith("blocks.") and tensor.ndim == 2


@contextlib.contextmanager
def _stored_tensors(folder: Path) -> Iterator[tuple[set[str], Callable[[str], Tensor]]]:
    """The names of the tensors in a folder's safetensors files, and a function that reads one."""
    index = folder / "model.safetensors.index.json"
    files = ["model.safetensors"]
    if index.exists():
        files = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    with contextlib.ExitStack() as stack:
        homes = {}
        for name in files:
            if not (folder / name).exists():
                raise ValueError(f"{folder / name} is missing")
            try:
                opened = stack.enter_context(safe_open(folder / name, framework="pt"))
            except SafetensorError as error:
                raise ValueError(f"{folder / name} is damaged: {error}") from None
            homes |= dict.fromkeys(opened.keys(), opened)
        yield set(homes), lambda name: homes[name].get_tensor(name)
