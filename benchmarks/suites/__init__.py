"""The suites, each in the module of its name.

A suite has ``cases(size)``. Sizes are "full" and "quick" (under a minute per suite) on a GPU, "cpu" and "cpu-quick"
on a CPU, and "tiny", which only shows that a suite works. A suite that measures on text also takes ``files``, and
describes its texts by ``inputs(size, files)``.
"""

from typing import NamedTuple


class Suite(NamedTuple):
    about: str
    devices: tuple[str, ...] = ("cuda",)  # where its figures are meaningful; the first is the default


# in order of importance
SUITES = {
    "attention": Suite("dense, causal, windowed and packed attention, forward and backward; decoding from a cache"),
    "linear_cross_entropy": Suite("the output layer fused with cross entropy, forward and with both gradients"),
    "cross_entropy": Suite("cross entropy of logits, forward and with its gradient"),
    "norm": Suite("rms_norm, layer_norm and a fused residual, forward and backward"),
    "nf4": Suite(
        "weights in 4 and 8 bits: decoding, linear layers for one to thousands of tokens, a training step of an adapter"
    ),
    "optimizer": Suite("AdamW, also with 8-bit moments, and the iteration of Muon", ("cuda", "cpu")),
    "activation": Suite("swiglu, geglu and gelu with a bias, forward and backward"),
    "rope": Suite("rotary position embedding of queries and keys, forward and backward"),
    "train_step": Suite("training steps of whole models: tokens/s, utilization, memory", ("cuda", "cpu")),
    "finetune": Suite(
        "steps of supervised finetuning beside trl, and of QLoRA beside peft: tokens/s, memory", ("cpu",)
    ),
    "align": Suite("steps of DPO, and of GRPO with its sampling, beside trl: samples/s", ("cpu",)),
    "evaluate": Suite("log-likelihoods of multiple choice beside lm-evaluation-harness: tokens/s", ("cpu",)),
    "qlora": Suite("a QLoRA step of an 8B-shaped model: tokens/s, memory"),
    "generate": Suite("decoding with a cache, in 16 bits and NF4: tokens/s", ("cuda", "cpu")),
    "decode_cpu": Suite(
        "decoding on a CPU with weights in 32 to 4 bits: tokens/s, time to the first token, perplexity", ("cpu",)
    ),
    "dispatch": Suite("host time per call of each op, before its kernel starts", ("cpu",)),
    "loader": Suite("batches from token shards: tokens/s", ("cpu",)),
    "tokenizer": Suite("encoding, decoding and loading, on three kinds of text or --text FILE", ("cpu",)),
    "tokenizer_train": Suite("training a vocabulary, on Python's own library or --text FILE", ("cpu",)),
}
