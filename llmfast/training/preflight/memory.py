"""Memory to train and to run a model, component by component, from its configuration alone.

What is counted for the backward pass is what the kernels on a GPU keep; PyTorch's allocator and the CUDA context come
on top (``OVERHEAD``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from llmfast.models.config import Checkpointing, DecoderConfig
from llmfast.models.size import cache_bytes_per_token, norms_of_block, parameters_by_part
from llmfast.training.optimizers.registry import OPTIMIZERS, OptimizerName

Precision = Literal["float32", "bfloat16"]
GIB = 2**30
OVERHEAD = 1 * GIB
LOSS_WORKSPACE = 256 * 2**20  # at least; see linear_cross_entropy


@dataclass(frozen=True)
class TrainingSetup:
    """How a model is trained, as far as memory depends on it."""

    batch_size: int = 1
    """Sequences that pass the model at a time."""
    sequence: int | None = None
    """Tokens a sequence; the model's context if left out."""
    precision: Precision = "bfloat16"
    """bfloat16: matrix products in bfloat16, parameters and the residual stream in float32 (autocast)."""
    optimizer: OptimizerName = "adamw"
    """Whose state is kept."""
    checkpointing: Checkpointing = "none"
    """Activation checkpointing."""
    head: Literal["trained", "frozen", "none"] = "trained"
    """The output head: a frozen one has no gradient, and a classifier has none."""
    packed: int = 0
    """Numbers of the matrices that are stored in 4 bits, of which there is no copy in bfloat16."""


def training_memory(config: DecoderConfig, setup: TrainingSetup) -> dict[str, float]:
    """Bytes of each component at the peak of a training step in which all weights are trained.

    What a task freezes, stores in 4 bits or adds to the weights is in its own ``memory()``, in place of these figures.
    """
    tokens = setup.batch_size * (setup.sequence or config.context)
    count = config.parameters
    blocks = sum(_block_activations(config, layer, setup) for layer in range(config.layers))
    parts = {
        "weights": 4.0 * count,
        "weights in bfloat16": 0.0 if setup.precision == "float32" else 2.0 * _cast_parameters(config, setup),
        "gradients": 4.0 * count,
        "optimizer": _optimizer_state(config, setup),
        "activations": tokens * (blocks + _end_activations(config, setup)),
        "recomputation": tokens * _largest_block(config, setup),
        "loss": _loss_workspace(config, tokens, setup),
    }
    if setup.checkpointing == "none":
        del parts["recomputation"]
    return {part: size for part, size in parts.items() if size}


def lasting_memory(config: DecoderConfig, optimizer: OptimizerName) -> dict[str, float]:
    """Bytes of the weights, their gradients and the optimizer's state, which no batch size changes."""
    parts = training_memory(config, TrainingSetup(precision="float32", optimizer=optimizer))
    return {name: parts[name] for name in ("weights", "gradients", "optimizer")}


def largest_batch(config: DecoderConfig, setup: TrainingSetup, memory: float) -> int:
    """The most sequences that train in ``memory`` bytes at once; 0 if not one does."""

    def fits(batch_size: int) -> bool:
        wanted = TrainingSetup(**vars(setup) | {"batch_size": batch_size})
        return sum(training_memory(config, wanted).values()) + OVERHEAD <= memory

    low, high = 0, 1
    while fits(high) and high < 2**20:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def cache_tokens(config: DecoderConfig, memory: float) -> int:
    """How many tokens of keys and values fit beside the weights, both in bfloat16; 0 if the weights do not fit."""
    return max(0, int((memory - OVERHEAD - 2 * config.parameters) // cache_bytes_per_token(config)))


def _block_activations(config: DecoderConfig, layer: int, setup: TrainingSetup) -> float:
    """Bytes a token that one block keeps for its backward pass."""
    stream, c = 4 * config.width, _compute_bytes(setup)
    if setup.checkpointing == "full":
        return stream
    E, H, K, D = config.width, config.heads, config.kv_heads, config.head_width
    packed, turned, mixed = (H + 2 * K) * D, (H + K) * D, H * D
    if setup.checkpointing == "selective":  # the stream at the entrance, and the results of products
        products = packed + mixed + E
        return stream + c * products + 4 * H + _feed_forward_products(config, layer, c)
    kept = E + packed + mixed + (turned if config.positions == "rope" else 0)
    per_norm = 8 if config.norm == "layer" else 4
    norms = norms_of_block(config) * (stream + per_norm)
    norms += per_norm * (2 if config.qk_norm_over == "all" else H + K) if config.qk_norm else 0
    if config.qk_l2_norm and config.rotation_of(layer) != "none":  # what is normalized and its size, in float32
        norms += 4 * (turned + H + K)
    masks = 2 * E if config.dropout else 0
    return norms + c * kept + 4 * H + masks + _feed_forward_activations(config, layer, c)


def _feed_forward_activations(config: DecoderConfig, layer: int, c: int) -> float:
    E, F, W, k = config.width, config.ff_width, config.expert_width, config.experts.active
    if not config.has_experts(layer):
        return c * (E + _kept_units(config) * F)
    shared = config.experts.shared_width
    # Each of a token's k experts keeps its input, what is between its products and its result; the router keeps its
    # input and scores in float32, and where each copy of the token went.
    routing, units = 4 * E + 4 * 4 * config.experts.count + 8 * 4 * k, _kept_units(config)
    return routing + c * (k * (2 * E + units * W) + (E + units * shared if shared else 0))


def _kept_units(config: DecoderConfig) -> int:
    """Numbers kept for each hidden unit: what enters the activation, what comes out, and what is between in PyTorch's
    own functions."""
    between = 4 if config.activation == "clamped_swiglu" else 0
    return (3 if config.gated else 2) + between


def _feed_forward_products(config: DecoderConfig, layer: int, c: int) -> float:
    """Results of the feed-forward's products, which selective checkpointing keeps."""
    E, W, k, shared = config.width, config.expert_width, config.experts.active, config.experts.shared_width
    if not config.has_experts(layer):
        return c * (E + (2 if config.gated else 1) * config.ff_width)
    return 4 * config.experts.count + c * (k * (E + 2 * W) + (E + 2 * shared if shared else 0))


def _end_activations(config: DecoderConfig, setup: TrainingSetup) -> float:
    """Bytes a token that the final norm and the loss keep: the stream, its norm, and the gradient of that."""
    masks = config.width if config.dropout else 0
    return 4 * config.width + masks + 2 * _compute_bytes(setup) * config.width


def _largest_block(config: DecoderConfig, setup: TrainingSetup) -> float:
    """A block that is computed again has all its activations for a while."""
    whole = TrainingSetup(precision=setup.precision)
    return max(_block_activations(config, layer, whole) for layer in range(config.layers))


def _loss_workspace(config: DecoderConfig, tokens: int, setup: TrainingSetup) -> float:
    """What linear_cross_entropy takes beside inputs and gradients: a chunk of logits, and the float32 sum of the head's
    gradient, if it is trained, which is there a second time while it is scaled."""
    if setup.head == "none":
        return 0.0
    c, head = _compute_bytes(setup), config.table_rows * config.width
    return min(max(LOSS_WORKSPACE, c * head / 2), c * tokens * config.table_rows) + (
        2 * 4 * head if setup.head == "trained" else 0
    )


def _optimizer_state(config: DecoderConfig, setup: TrainingSetup) -> float:
    count = config.parameters
    choice = OPTIMIZERS[setup.optimizer]
    own = 0 if choice.matrix_state_bytes is None else _matrix_parameters(config, blocks_only=True)
    return (choice.matrix_state_bytes or 0.0) * own + choice.state_bytes * (count - own)


def _matrix_parameters(config: DecoderConfig, *, blocks_only: bool = False) -> int:
    parts = parameters_by_part(config)
    names = ["attention", "feed-forward", "experts", "shared experts"]
    head = 0 if blocks_only else config.table_rows * config.width
    return sum(parts.get(name, 0) for name in names) + head


def _cast_parameters(config: DecoderConfig, setup: TrainingSetup) -> int:
    """Numbers of the matrices that autocast copies."""
    return _matrix_parameters(config, blocks_only=setup.head == "none") - setup.packed


def _compute_bytes(setup: TrainingSetup) -> int:
    return 4 if setup.precision == "float32" else 2


CHECKPOINTING = get_args(Checkpointing)
