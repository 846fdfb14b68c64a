"""The decoder in C++ for CPUs, as a runner of the engine: weights packed once, in 32, 16, 8 or 4 bits."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from llmfast import _decoder
from llmfast.kernels import NF4Linear
from llmfast.models.adapters.layers import adapted_modules
from llmfast.models.adapters.lora import dense
from llmfast.models.decoder import Decoder
from llmfast.models.rewriting import rewritten

if TYPE_CHECKING:
    from llmfast.inference.runner import Chunk

Weights = Literal["float32", "bfloat16", "int8", "int4"]

BLOCK_MULTIPLE = 16  # positions: those of a panel of keys
MOST_MEMORY = 1 << 30  # bytes of a cache whose size nobody gave


class NativeRunner:
    """Runs a decoder on this CPU, a whole forward pass in one call without the GIL.

    Logits do not depend on the number of threads, on what else is in the batch, or on how a prompt is cut into chunks:
    they are equal to the bit. So they are for every instruction set.

    Args:
        model: its weights are copied, so that it may be let go.
        weights: how matrices are kept. float32 and bfloat16 are multiplied by float32 activations. int8 has a scale for
            each row, int4 one for each 32 weights, and activations are rounded to 8 bits with a scale for each 32
            numbers. Embedding table and head are in int8 where the others are in int4.
        threads: as many as this process may use CPUs, if left out.
        instructions: ``"avx2"`` or ``"portable"``; the fastest that this CPU has, if left out.

    Raises:
        ValueError: a model that the decoder cannot compute (a mixture of experts, dynamic RoPE scaling, adapters), or
            an argument that is none of the above.
    """

    default_adapter: str | None = None
    shares_prefixes = True

    def __init__(
        self,
        model: Decoder,
        weights: Weights = "float32",
        *,
        threads: int | None = None,
        instructions: str | None = None,
    ):
        if weights not in get_args(Weights):
            raise ValueError(f"weights must be one of {', '.join(get_args(Weights))}, got {weights!r}")
        if threads is not None and threads < 1:
            raise ValueError(f"threads must be at least 1, got {threads}")
        if reason := unsupported(model):
            raise ValueError(f"the CPU decoder cannot run this model: {reason}")
        self.config = model.config
        self.weights = weights
        self.vocab_size, self.context = model.config.vocab_size, model.config.context
        self.window = model.config.widest_window
        packed = Packing(model, weights, threads or available_cpus()).model()
        self.decoder = _decoder.Decoder(packed, threads or available_cpus(), instructions)
        self.cache: _decoder.Cache | None = None

    def check_adapter(self, name: str | None) -> None:
        if name is not None:
            raise ValueError(f"the CPU decoder has no adapters, got {name!r}; merge it into the model first")

    def default_blocks(self, block_size: int, cache_dtype: str, sequences: int, memory: int | None) -> int:
        config = self.config
        numbers = 2 * config.layers * config.kv_heads * config.head_width * block_size
        block_bytes = numbers * (2 if self._cache_numbers(cache_dtype) == "bfloat16" else 4)
        if memory is not None:
            return max(1, memory // block_bytes)
        enough = sequences * -(-self.context // block_size)
        return max(1, min(enough, MOST_MEMORY // block_bytes))

    def allocate(self, blocks: int, block_size: int, cache_dtype: str) -> None:
        if block_size % BLOCK_MULTIPLE:
            raise ValueError(f"block_size must be a multiple of {BLOCK_MULTIPLE} on the CPU decoder, got {block_size}")
        config, numbers = self.config, self._cache_numbers(cache_dtype)
        self.cache = _decoder.Cache(config.layers, config.kv_heads, config.head_width, blocks, block_size, numbers)

    def forward(self, chunks: Sequence[Chunk]) -> Tensor:
        assert self.cache is not None, "allocate comes first"
        counts = np.array([len(chunk.tokens) for chunk in chunks], dtype=np.int64)
        blocks = np.full((len(chunks), max(len(chunk.blocks) for chunk in chunks)), -1, dtype=np.int32)
        for row, chunk in zip(blocks, chunks, strict=True):
            row[: len(chunk.blocks)] = chunk.blocks
        ends = counts.cumsum()
        wanted = [np.arange(end - chunk.outputs, end) for end, chunk in zip(ends, chunks, strict=True)]
        previous = [-1 if chunk.previous is None else chunk.previous for chunk in chunks]
        logits = self.decoder.forward(
            self.cache,
            np.array([token for chunk in chunks for token in chunk.tokens], dtype=np.int32),
            np.array([chunk.past for chunk in chunks], dtype=np.int64),
            counts,
            blocks,
            np.array(previous, dtype=np.int32),
            np.concatenate(wanted),
        )
        return torch.from_numpy(logits)

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        assert self.cache is not None, "allocate comes first"
        for source, target in pairs:
            self.cache.copy(source, target)

    def _cache_numbers(self, cache_dtype: str) -> str:
        if cache_dtype == "auto":
            return "float32" if self.weights == "float32" else "bfloat16"
        if cache_dtype not in ("float32", "bfloat16"):
            raise ValueError(f"cache_dtype must be float32 or bfloat16 on the CPU decoder, got {cache_dtype}")
        return cache_dtype


# Settings of which the decoder in C++ has one value.
_ONLY = {
    "rope_pattern": "r",
    "window_rope_base": None,
    "norm_position": "before",
    "parallel_residual": False,
    "qk_norm_over": "head",
    "attention_softcap": None,
    "logit_softcap": None,
    "attention_sinks": False,
    "attention_chunk": None,
    "qk_l2_norm": False,
    "query_temperature": None,
}


def available_cpus() -> int:
    """How many CPUs this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def unsupported(model: nn.Module) -> str:
    """Why the decoder in C++ cannot run the model; empty if it can."""
    if not isinstance(model, Decoder):
        return f"it is a {type(model).__name__}, not a Decoder"
    config = model.config
    if config.experts.count:
        return "it has a mixture of experts"
    if config.rope_scaling.kind == "dynamic":
        return "its RoPE scaling is dynamic"
    if config.activation == "clamped_swiglu":
        return "its activation is clamped_swiglu"
    if config.norm == "layer" and not config.norm_bias:
        return "its LayerNorm has no bias"
    if said := [name for name, only in _ONLY.items() if getattr(config, name) != only]:
        return f"it has model.{said[0]} {getattr(config, said[0])!r}"
    if config.attention_scale is not None and config.positions == "learned":
        return f"it has model.attention_scale {config.attention_scale} without rotary positions"
    if config.residual_scale != 1 and config.qk_norm:
        return f"it has model.residual_scale {config.residual_scale} beside model.qk_norm"
    if any(True for _ in adapted_modules(model)):
        return "it has adapters; merge one and remove them first (merge_and_remove)"
    return ""


class Packing:
    """Copies of a decoder's parameters in the form that the decoder in C++ reads.

    What it has no setting for is joined with parameters in float32. Matrices keep their numbers, which are rounded
    again otherwise: the scale of logits goes into the last norm and that of attention into cosines and sines, and the
    residual stream is divided by its scale, which changes nothing behind a norm whose eps follows. Only the order of
    rotated columns moves rows of matrices.
    """

    def __init__(self, model: Decoder, weights: Weights, threads: int):
        self.decoder = model
        self.config = dataclasses.replace(model.config, logit_scale=1.0, norm_weight_offset=0.0, rope_interleaved=False)
        self.weights = weights
        self.threads = threads

    def model(self) -> _decoder.Model:
        model, config = self.decoder, self.config
        # Of queries and keys: their products get its square.
        scale = 1.0 if config.attention_scale is None else config.attention_scale * config.head_width**0.5
        on_rotation = scale**0.5
        table_format = "int8" if self.weights == "int4" else self.weights
        embedding = self.matrix("embedding.weight", model.embedding.weight, table_format)
        head = embedding if config.tie_embeddings else self.matrix("head.weight", model.head.weight, table_format)
        packed = _decoder.Model(
            width=config.width,
            heads=config.heads,
            kv_heads=config.kv_heads,
            head_width=config.head_width,
            ff_width=config.ff_width,
            vocabulary=config.vocab_size,
            context=config.context,
            norm_eps=config.norm_eps / config.residual_scale**2,
            embedding_scale=config.embedding_factor / config.residual_scale,
            activation=config.activation,
            embedding=embedding,
            head=head,
            smear=None if model.smear is None else numbers(model.smear.weight),
            positions=None if model.positions is None else numbers(model.positions.weight / config.residual_scale),
            cos=numbers(model.cos * on_rotation) if config.positions == "rope" else None,
            sin=numbers(model.sin * on_rotation) if config.positions == "rope" else None,
            **self.norm("norm", "norm"),
        )
        for index in range(config.layers):
            self.add_layer(packed, index)
        return packed

    def add_layer(self, packed: _decoder.Model, index: int) -> None:
        block = f"blocks.{index}"
        packed.add_layer(
            **self.norm("attention_norm", f"{block}.attention_norm"),
            **self.linear("qkv", f"{block}.attention.qkv"),
            **(self.norm("q_norm", f"{block}.attention.q_norm") if self.config.qk_norm else {}),
            **(self.norm("k_norm", f"{block}.attention.k_norm") if self.config.qk_norm else {}),
            **self.linear("out", f"{block}.attention.out"),
            **self.norm("feed_forward_norm", f"{block}.feed_forward_norm"),
            **self.linear("up", f"{block}.feed_forward.{'gate_up' if self.config.gated else 'up'}"),
            **self.linear("down", f"{block}.feed_forward.down"),
            window=self.config.window_of(index),
        )

    def linear(self, name: str, module: str) -> dict[str, _decoder.Matrix | npt.NDArray[np.float32]]:
        layer = self.decoder.get_submodule(module)
        weight = layer.quantized if isinstance(layer, NF4Linear) else layer.weight
        found = {name: self.matrix(f"{module}.weight", dense(weight), self.weights)}
        return found if layer.bias is None else found | {f"{name}_bias": self.numbers(f"{module}.bias", layer.bias)}

    def matrix(self, name: str, weight: Tensor, form: str) -> _decoder.Matrix:
        return _decoder.Matrix(self.numbers(name, weight), form, self.threads)

    def norm(self, name: str, module: str) -> dict[str, npt.NDArray[np.float32]]:
        layer = self.decoder.get_submodule(module)
        found = {name: self.numbers(f"{module}.weight", layer.weight)}
        bias = getattr(layer, "bias", None)
        return found if bias is None else found | {f"{name}_bias": self.numbers(f"{module}.bias", bias)}

    def numbers(self, name: str, tensor: Tensor) -> npt.NDArray[np.float32]:
        """A parameter of the decoder as the packed configuration has it; scales are joined in float32."""
        return numbers(rewritten(name, tensor.detach().float(), self.decoder.config, self.config))


def numbers(tensor: Tensor) -> npt.NDArray[np.float32]:
    return tensor.detach().to("cpu", torch.float32).contiguous().numpy()
