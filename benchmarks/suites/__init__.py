"""What can be measured, each in the module of its name.

A suite has ``cases(size)``; all suites run in the same way. Sizes are "full" and "quick" (under a minute a suite) on a
GPU, "cpu" and "cpu-quick" for what is worth measuring on a CPU, and "tiny", which only shows that a suite works. A
suite that works on texts takes ``files`` of them, too, and says by ``inputs(size, files)`` what they are.
"""

from typing import NamedTuple


class Suite(NamedTuple):
    about: str
    devices: tuple[str, ...] = ("cuda",)  # where its figures mean something, the first by default


JOBS = ("train_step", "qlora", "generate")  # of whole models

# What tells most comes first.
SUITES = {
    "attention": Suite(
        "dense, causal, windowed and packed attention, forward and backward; decoding from a cache"
    ),
    "linear_cross_entropy": Suite(
        "the last layer and its cross entropy in one, forward and with both gradients"
    ),
    "cross_entropy": Suite("cross entropy of logits, forward and with its gradient"),
    "norm": Suite("rms_norm, layer_norm and a fused residual, forward and backward"),
    "nf4": Suite(
        "weights in 4 and 8 bits: decoding, linear layers from one token to thousands, an adapter's training step"
    ),
    "optimizer": Suite("AdamW, with 8-bit moments too, and the iteration of Muon", ("cuda", "cpu")),
    "activation": Suite("swiglu, geglu and gelu with a bias, forward and backward"),
    "rope": Suite("rotary position embedding of queries and keys, forward and backward"),
    "train_step": Suite("training steps of whole models: tokens/s, utilisation, memory", ("cuda", "cpu")),
    "qlora": Suite("a QLoRA step of an 8B-shaped model: tokens/s, memory"),
    "generate": Suite("decoding with a cache, in 16 bits and NF4: tokens/s", ("cuda", "cpu")),
    "dispatch": Suite("what a call of each op costs the host before its kernel starts", ("cpu",)),
    "loader": Suite("batches out of token shards: tokens/s", ("cpu",)),
    "tokenizer": Suite("encoding, decoding and loading, on three kinds of text or --text FILE", ("cpu",)),
    "tokenizer_train": Suite("training a vocabulary, on Python's own library or --text FILE", ("cpu",)),
}
