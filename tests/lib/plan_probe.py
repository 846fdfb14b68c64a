"""Calls the ops with plans that calls before them left, and with none and Triton's own launches, and compares what
reaches the chip. Run by test_direct_launch.py, as launch_probe.py is, on whose stand-ins it stands.

The calls of an op differ in one value at a time, and then at random, so that two calls whose plans are mixed up follow
each other.
"""

import json
import random
import sys
import traceback
from contextlib import ExitStack, nullcontext
from unittest import mock

import launch_probe
import torch
from llmfast.kernels.attention.launch import PERSISTENT, TILES, Tile, choosing, forward_tile
from llmfast.kernels.frame import direct, plan
from llmfast.kernels.frame.launch import CHIPS, INTERPRETER, set_chip
from llmfast.kernels.norm.launch import NormLaunch, forward_launch

from llmfast import kernels

BACKEND = sys.modules["llmfast.kernels.frame.backend"]
HALF, FULL = torch.float16, torch.float32


def tensor(shape, dtype=FULL, lies="densely"):
    """Of these sizes: dense, with gaps between rows, not from 16 bytes on, or with two dimensions exchanged."""
    *outer, width = shape
    if lies == "apart":
        return torch.zeros(*outer, width + 16, dtype=dtype)[..., :width]
    if lies == "unaligned":
        return torch.zeros(1 + torch.Size(shape).numel(), dtype=dtype)[1:].view(shape)
    if lies == "exchanged":
        *batch, second, third = outer
        return torch.zeros(*batch, third, second, width, dtype=dtype).transpose(-2, -3)
    return torch.zeros(shape, dtype=dtype)


LIES = ("densely", "apart", "unaligned")


def norm(function, *, shape, dtype, lies, weight, residual, **options):
    x = tensor(shape, dtype, lies).requires_grad_()
    parameter = None if weight is None else torch.zeros(shape[-weight:], dtype=dtype, requires_grad=True)
    added = {"residual": tensor(shape, residual)} if residual else {}
    if function is kernels.layer_norm and parameter is not None:
        options["bias"] = parameter
    return function(x, parameter, **added, **options), [x] + ([] if parameter is None else [parameter])


NORM = {
    "shape": [(4, 2, 32), (4, 2, 48), (2, 4, 32), (8, 32), (4, 2, 33), (2, 20000), (0, 32)],
    "dtype": [FULL, HALF],
    "lies": LIES,
    "weight": [1, 2, None],
    "residual": [None, FULL, HALF],
    "eps": [1e-6, 1e-5, 0.0, 1.0],
}


def gated(function, *, shape, dtype, lies, packed):
    gate = tensor(shape, dtype, lies).requires_grad_()
    return function(gate, None if packed else tensor(shape, dtype)), [gate]


GATED = {
    "shape": [(4, 32), (4, 64), (2, 64), (4, 66), (4, 2048)],
    "dtype": [FULL, HALF],
    "lies": LIES,
    "packed": [False, True],
}


def gelu(*, shape, dtype, lies, bias, **options):
    x = tensor(shape, dtype, lies).requires_grad_()
    b = torch.zeros(shape[-1], dtype=dtype, requires_grad=True) if bias else None
    return kernels.gelu(x, b, **options), [x, b] if bias else [x]


GELU = {
    "shape": [(4, 32), (4, 64), (2, 64), (4, 66), (4, 2048)],
    "dtype": [FULL, HALF],
    "lies": LIES,
    "bias": [True, False],
    "approximate": ["tanh", "none"],
}


def rope(*, B, S, H, K, D, dtype, lies, positions, tables, **options):
    q = tensor((B, S, H, D), dtype, lies).requires_grad_()
    k = tensor((B, S, K, D), dtype).requires_grad_() if K else None
    if positions is not None:
        options["positions"] = torch.zeros(((3,) if positions == "axes" else ()) + (B, S), dtype=torch.long)
    options["sections"] = (2, 3, options.get("rotary_dim", D) // 2 - 5) if positions == "axes" else None
    if tables:
        options |= {name: torch.zeros(tables, options.get("rotary_dim", D) // 2) for name in ("cos", "sin")}
    return kernels.rope(q, k, **options), [q] + ([k] if K else [])


ROPE = {
    "B": [2, 1],
    "S": [4, 5],
    "H": [2, 4],
    "K": [2, 1, 0],
    "D": [16, 32],
    "dtype": [FULL, HALF],
    "lies": (*LIES, "exchanged"),
    "positions": [None, "one", "axes"],
    "tables": [0, 5, 8],
    "base": [10000.0, 500000.0],
    "rotary_dim": [16, 14],
    "interleaved": [False, True],
}


def cross_entropy(*, N, V, dtype, lies, weight, **options):
    logits = tensor((N, V), dtype, lies).requires_grad_()
    options["weight"] = torch.ones(V) if weight else None
    return kernels.cross_entropy(logits, torch.zeros(N, dtype=torch.long), **options), [logits]


CROSS_ENTROPY = {
    "N": [4, 9, 3],
    "V": [64, 65, 8192],
    "dtype": [FULL, HALF],
    "lies": LIES,
    "weight": [False, True],
    "reduction": ["mean", "sum", "none"],
    "ignore_index": [-100, 0, 1],
    "label_smoothing": [0.0, 0.1, 1.0],
    "z_loss": [0.0, 1.0, 1e-4],
    "softcap": [None, 30.0, 1.0],
}


def attention(*, B, H, K, S, T, D, dtype, lies, packed, form, alibi, sinks, **options):
    q, k, v = (tensor((B, *sizes, D), dtype, lies) for sizes in ((H, S), (K, T), (K, T)))
    if packed:
        q, k, v = (x[0].transpose(0, 1) for x in (q, k, v))
        options["cu_seqlens_q"] = torch.zeros(packed + 1, dtype=torch.int32)
    inputs = [x.detach().requires_grad_() for x in (q, k, v)]
    if alibi:
        options["alibi_slopes"] = torch.zeros(H)
    if sinks:
        options["sinks"] = torch.zeros(H)
    if options.get("dropout_p"):
        options["seed"] = 1
    if options.pop("mask") and not packed:
        options["block_mask"] = kernels.BlockMask(torch.ones(1, H, 1, 1, dtype=torch.bool))
    with choosing(**form) if form else nullcontext():
        out, lse = kernels.flash_attention(*inputs, return_lse=True, **options)
        torch.autograd.grad((out, lse), inputs, (torch.ones_like(out), torch.ones_like(lse)))
    return out, []


ATTENTION = {
    "B": [2, 1],
    "H": [2, 4],
    "K": [2, 1],
    "S": [64, 100, 1],
    "T": [64, 65],
    "D": [32, 64, 16, 128],
    "dtype": [HALF, FULL],
    "lies": (*LIES, "exchanged"),
    "packed": [0, 1, 2],
    "form": [{}, {"forward": PERSISTENT}, {"forward": TILES}, {"keys_gradient": Tile(32, 32, 4, 1)}],
    "alibi": [False, True],
    "sinks": [False, True],
    "mask": [False, True],
    "causal": [False, True],
    "window": [None, (3, 3), (3, -1)],
    "scale": [None, 1.0, 0.5],
    "softcap": [None, 2.0],
    "dropout_p": [0.0, 0.5],
}


def decode(*, B, H, K, S, T, D, dtype, lies, pages, new, **options):
    caches = [tensor((B * (pages or 1), K, T, D), dtype, lies) for _ in range(2)]
    if new:
        options |= {name: torch.zeros(B, K, new, D, dtype=dtype) for name in ("k_new", "v_new")}
    if pages:
        options["page_table"] = torch.zeros(B, pages, dtype=torch.int32)
    q, lengths = torch.zeros(B, H, S, D, dtype=dtype), torch.zeros(B, dtype=torch.int32)
    return kernels.flash_decode(q, *caches, lengths, **options), []


DECODE = {
    "B": [1, 2],
    "H": [2, 4],
    "K": [2, 1],
    "S": [1, 3],
    "T": [64, 1024],
    "D": [32, 64],
    "dtype": [HALF, FULL],
    "lies": ("densely", "apart", "exchanged"),
    "pages": [0, 2, 40],
    "new": [0, 1, 2],
    "causal": [True, False],
    "window": [None, (5, -1)],
    "scale": [None, 1.0],
    "softcap": [None, 2.0],
}


def nf4(*, N, K, tokens, dtype, lies, block, double, bias, rank):
    w = kernels.quantize_nf4(torch.ones(N, K), block_size=block, double_quant=double)
    adapter = {"lora_a": torch.zeros(rank, K), "lora_b": torch.zeros(N, rank), "lora_scale": 2.0} if rank else {}
    return kernels.nf4_linear(tensor((tokens, K), dtype, lies), w, torch.zeros(N) if bias else None, **adapter), []


NF4 = {
    "N": [64, 128],
    "K": [128, 256],
    "tokens": [1, 2, 9, 100, 300],
    "dtype": [HALF, torch.bfloat16, FULL],
    "lies": LIES,
    "block": [64, 128],
    "double": [True, False],
    "bias": [False, True],
    "rank": [0, 4, 16],
}

OPS = {
    "rms_norm": (lambda **x: norm(kernels.rms_norm, **x), {**NORM, "weight_offset": [0.0, 1.0]}),
    "layer_norm": (lambda **x: norm(kernels.layer_norm, **x), NORM),
    "swiglu": (lambda **x: gated(kernels.swiglu, **x), GATED),
    "geglu": (lambda **x: gated(kernels.geglu, **x), GATED),
    "gelu": (gelu, GELU),
    "rope": (rope, ROPE),
    "cross_entropy": (cross_entropy, CROSS_ENTROPY),
    "flash_attention": (attention, ATTENTION),
    "flash_decode": (decode, DECODE),
    "nf4_linear": (nf4, NF4),
}
# Of every op: the chip, the mode, and a choice that a measurement forces.
CIRCUMSTANCES = {
    "chip": [INTERPRETER, CHIPS[90], CHIPS[120]],
    "invariant": [False, True],
    "forced": [False, True],
}


def calls_of(pools, r):
    """One value changed at a time, from the first of each pool, and then all at random."""
    base = {name: values[0] for name, values in pools.items()}
    yield base
    for name, values in pools.items():
        for value in values[1:]:
            yield {**base, name: value}
            yield base
    for _ in range(60):
        yield {name: r.choice(values) for name, values in pools.items()}


def seen(value):
    """What two launches have in common."""
    if isinstance(value, torch.Tensor):
        return type(value), value.dtype, value.shape, value.stride(), value.data_ptr() % 16
    if isinstance(value, tuple):
        return tuple(map(seen, value))
    if hasattr(value, "block_shape"):
        return seen(value.base), list(value.shape), list(value.strides), list(value.block_shape)
    return type(value), repr(value)


def launches_of(function, call, before):
    """What a call launches, or how it is refused."""
    arguments = dict(call)
    chip, invariant, forced = (arguments.pop(name) for name in CIRCUMSTANCES)
    del launch_probe.launched[:]
    set_chip(torch.device("cpu"), chip)
    before()
    tile = forward_tile.forced((chip.capability, 32, 2, False), Tile(16, 16, 4, 1))
    rows = forward_launch.forced((chip.capability, 32), NormLaunch(4, 64, 4, wide=False, resident=2))
    with ExitStack() as stack:
        for context in ((tile, rows) if forced else ()) + ((kernels.batch_invariant(),) if invariant else ()):
            stack.enter_context(context)
        try:
            out, inputs = function(**arguments)
            if inputs:
                outputs = out if isinstance(out, tuple) else (out,)
                torch.autograd.grad(outputs, inputs, [torch.ones_like(x) for x in outputs], allow_unused=True)
        except ValueError as error:
            return [str(error)]
    return [(head[:4], head[4:], *map(seen, values)) for head, values in launch_probe.launched]


def empty():
    for kept in plan._kept:
        kept.cache_clear()


def by_triton(self, tensors):
    self.kernel[self.grid](*tensors, *self.numbers, **self.options)


def check(op):
    function, pools = OPS[op]
    calls = list(calls_of({**pools, **CIRCUMSTANCES}, random.Random(op)))
    with mock.patch.object(BACKEND, "INTERPRETING", True), kernels.backend("triton"):
        found = [launches_of(function, call, lambda: None) for call in calls]
        with mock.patch.object(direct.Prepared, "launch", by_triton):
            expected = [launches_of(function, call, empty) for call in calls]
    launched = sum(isinstance(each[0], tuple) for each in expected if each)
    assert launched > len(calls) / 2, f"{launched} of {len(calls)} calls launch anything: {expected[0]}"
    for call, ours, theirs in zip(calls, found, expected, strict=True):
        assert ours == theirs, (call, ours, theirs)


def plans_are_bounded():
    """Trap: a memory that grows with every length."""
    with mock.patch.object(BACKEND, "INTERPRETING", True), kernels.backend("triton"):
        for n in range(plan.MOST_PLANS + 10):
            kernels.gelu(MEMORY[: n + 1])
    sizes = [kept.cache_info() for kept in plan._kept]
    assert max(size.currsize for size in sizes) == plan.MOST_PLANS
    assert all(size.maxsize == plan.MOST_PLANS for size in sizes)


MEMORY = torch.zeros(2 * plan.MOST_PLANS)

if __name__ == "__main__":
    found = {}
    for name, run in [*((op, lambda op=op: check(op)) for op in OPS), (plans_are_bounded.__name__, plans_are_bounded)]:
        try:
            run()
            found[name] = ""
        except Exception:
            found[name] = traceback.format_exc()[-3000:]
    json.dump(found, sys.stdout)
