"""The decoder for CPUs, a C++ extension."""

import numpy as np
import numpy.typing as npt

_Floats = npt.NDArray[np.float32]

class Matrix:
    """An immutable matrix (rows, columns), packed for products."""

    def __init__(self, weights: _Floats, format: str, threads: int = 1) -> None: ...
    @property
    def rows(self) -> int: ...
    @property
    def columns(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    def unpacked(self) -> _Floats:
        """The weights as products see them, (rows, columns)."""

class Cache:
    """Keys and values of all layers, in numbered blocks of positions."""

    def __init__(
        self, layers: int, kv_heads: int, head_width: int, blocks: int, block_size: int, numbers: str
    ) -> None: ...
    @property
    def nbytes(self) -> int: ...
    def copy(self, source: int, target: int) -> None:
        """Copy what a block holds to another."""

class Model:
    """The parameters of a decoder, to which layers are added one after another."""

    def __init__(
        self,
        *,
        width: int,
        heads: int,
        kv_heads: int,
        head_width: int,
        ff_width: int,
        vocabulary: int,
        context: int,
        norm_eps: float,
        embedding_scale: float,
        activation: str,
        embedding: Matrix,
        head: Matrix,
        norm: _Floats,
        norm_bias: _Floats | None = None,
        smear: _Floats | None = None,
        positions: _Floats | None = None,
        cos: _Floats | None = None,
        sin: _Floats | None = None,
    ) -> None: ...
    def add_layer(
        self,
        *,
        attention_norm: _Floats,
        attention_norm_bias: _Floats | None = None,
        qkv: Matrix,
        qkv_bias: _Floats | None = None,
        q_norm: _Floats | None = None,
        q_norm_bias: _Floats | None = None,
        k_norm: _Floats | None = None,
        k_norm_bias: _Floats | None = None,
        out: Matrix,
        out_bias: _Floats | None = None,
        feed_forward_norm: _Floats,
        feed_forward_norm_bias: _Floats | None = None,
        up: Matrix,
        up_bias: _Floats | None = None,
        down: Matrix,
        down_bias: _Floats | None = None,
        window: int | None = None,
    ) -> None: ...

class Decoder:
    """Computes a model's forward passes on threads of its own; safe to use from many threads, one call at a time."""

    def __init__(self, model: Model, threads: int, instructions: str | None = None) -> None: ...
    @property
    def threads(self) -> int: ...
    @property
    def instructions(self) -> str: ...
    def forward(
        self,
        cache: Cache,
        tokens: npt.NDArray[np.int32],
        past: npt.NDArray[np.int64],
        counts: npt.NDArray[np.int64],
        blocks: npt.NDArray[np.int32],
        previous: npt.NDArray[np.int32],
        wanted: npt.NDArray[np.int64],
    ) -> _Floats:
        """Add the keys and values of new tokens to the cache; logits (wanted, vocabulary) of some of them.

        Args:
            tokens: of all chunks, one chunk after another; a chunk is of one sequence.
            past: how many tokens of its sequence are before each chunk.
            counts: tokens of each chunk.
            blocks: (chunks, most blocks), those that hold each sequence.
            previous: the token before each chunk; negative at the start of a sequence.
            wanted: places in ``tokens`` whose logits are wanted, in ascending order.
        """

def instruction_sets() -> list[str]:
    """The instruction sets that this CPU has a decoder for, the fastest first; the last is ``"portable"``."""
