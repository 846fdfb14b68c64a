"""What can be measured: an op suite is a module here with ``cases(size)``, a program one with ``main()``.

``size`` is "full", "quick" (under a minute a suite) or "tiny" (to try a suite out on a CPU).
"""

OPS = {
    "norm": "rms_norm, layer_norm and a fused residual, forward and backward",
    "activation": "swiglu, geglu and gelu with a bias, forward and backward",
    "rope": "rotary position embedding of queries and keys, forward and backward",
    "cross_entropy": "cross entropy of logits, forward and with its gradient",
    "linear_cross_entropy": "the last layer and its cross entropy in one, forward and with both gradients",
    "attention": "dense, causal, windowed and packed attention, forward and backward; decoding from a cache",
}
