"""What can be measured, each in the module of its name.

A suite of an op has ``cases(size)``, with sizes "full", "quick" (under a minute a suite) and "tiny" (to try it out on a
CPU); all run in the same way. A program measures on the CPU and has options and output of its own.
"""

OPS = {
    "norm": "rms_norm, layer_norm and a fused residual, forward and backward",
    "activation": "swiglu, geglu and gelu with a bias, forward and backward",
    "rope": "rotary position embedding of queries and keys, forward and backward",
    "cross_entropy": "cross entropy of logits, forward and with its gradient",
    "linear_cross_entropy": "the last layer and its cross entropy in one, forward and with both gradients",
    "attention": "dense, causal, windowed and packed attention, forward and backward; decoding from a cache",
    "nf4": "weights in 4 and 8 bits: decoding, linear layers from one token to thousands, an adapter's training step",
}

PROGRAMS = {
    "tokenizer": "encoding and decoding beside the installed tokenizers, on three kinds of text",
    "tokenizer_train": "training a vocabulary on files of yours, beside the installed trainers",
}
