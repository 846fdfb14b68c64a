"""Attention written out in plain PyTorch, as user code would, the option combinations its tests meet, and how exact
flash_attention must be."""

import contextlib
import itertools
import random
from dataclasses import dataclass

import pytest
import torch
from attention_steps import flash_attention_steps
from kernel_testing import assert_as_exact_as, assert_matches
from llmfast.kernels import flash_attention
from llmfast.kernels.attention.reference import dropout_keep
from llmfast.kernels.frame.launch import Chip, set_chip

BLOCK = 128  # rows and keys of a block of a mask

OPTIONS = {
    "D": (16, 40, 64, 80, 96, 128, 160, 192, 256),
    "S": (1, 7, 63, 64, 65, 127, 500, 1000),
    "T": (1, 7, 63, 64, 65, 127, 500, 1000),
    "ratio": (1, 3, 8),
    "causal": (False, True),
    "window": (None, (20, -1), (5, 9)),
    "softcap": (None, 3.0),
    "sinks": (False, True),
    "dropout_p": (0.0, 0.3),
    "dtype": (torch.float32, torch.float16, torch.bfloat16),
    "heads_last": (False, True),
    "mask": (None, (True, False), (False, True)),
}
# What the interpreter takes, which multiplies bfloat16 wrongly; a GPU meets all of it.
FEW = OPTIONS | {
    "S": (1, 7, 65),
    "T": (1, 63, 64, 127),
    "ratio": (1, 3),
    "dtype": (torch.float32, torch.float16),
    "mask": (None,),
}
# Of several blocks.
BLOCKS = FEW | {
    "D": (16, 40),
    "S": (130,),
    "T": (129, 300),
    "ratio": (1, 2),
    "window": (None, (150, -1), (5, 9)),
    "dtype": (torch.float16,),
    "heads_last": (False,),
    "mask": ((True, True), (True, False), (False, True), (False, False)),
}


@dataclass(frozen=True)
class Case:
    D: int
    S: int
    T: int
    ratio: int
    causal: bool
    window: tuple | None
    softcap: float | None
    sinks: bool
    dropout_p: float
    dtype: torch.dtype
    heads_last: bool
    mask: tuple | None = None  # of blocks, whether it differs by entry and by head

    def __str__(self):
        flags = [name for name in ("causal", "window", "softcap", "sinks", "dropout_p") if getattr(self, name)]
        flags += ["mask" + "".join(by for by, is_by in zip("BH", self.mask, strict=True) if is_by)] if self.mask else []
        return f"D{self.D} S{self.S} T{self.T} H/K{self.ratio} {str(self.dtype)[6:]} {'+'.join(flags) or 'plain'}"

    def inputs(self, device, batch=1, kv_heads=1, logits=1):
        """q, k, v and sinks; q is ``logits`` times as large as usual."""
        generator = torch.Generator().manual_seed(hash((self.D, self.S, self.T)))

        def rows(heads, length):
            shape = (batch, length, heads, self.D) if self.heads_last else (batch, heads, length, self.D)
            x = torch.randn(shape, generator=generator, dtype=torch.float64).to(device, self.dtype)
            return x.transpose(1, 2) if self.heads_last else x

        H = kv_heads * self.ratio
        made = {"q": rows(H, self.S) * logits, "k": rows(kv_heads, self.T), "v": rows(kv_heads, self.T)}
        if self.sinks:
            made["sinks"] = torch.randn(H, generator=generator, dtype=torch.float64).to(device, self.dtype)
        return made

    def block_mask(self, batch, heads, device):
        """Of random blocks, half of which are seen."""
        shape = [n if by else 1 for n, by in zip((batch, heads), self.mask, strict=True)]
        blocks = [-(-n // BLOCK) for n in (self.S, self.T)]
        return (torch.rand(*shape, *blocks, generator=torch.Generator().manual_seed(self.S + self.T)) < 0.5).to(device)

    def options(self):
        names = ("causal", "window", "softcap", "dropout_p")
        return {name: getattr(self, name) for name in names} | {"seed": 7 if self.dropout_p else None}


@contextlib.contextmanager
def launches_of(chip, device):
    """Launch choices for another chip, in the interpreter."""
    if device != "cpu":
        pytest.skip("a GPU takes its own launches")
    here = torch.device("cpu")
    before = Chip.of(here)
    set_chip(here, chip)
    try:
        yield
    finally:
        set_chip(here, before)


def pairwise(options, seed=0):
    """Cases among which every pair of values of two options occurs: greedily, the best of random candidates."""
    draw = random.Random(seed)
    names = list(options)
    missing = {(a, x, b, y) for a, b in itertools.combinations(names, 2) for x in options[a] for y in options[b]}
    cases = []
    while missing:
        candidates = []
        for _ in range(30):
            values = {name: draw.choice(options[name]) for name in names}
            a, x, b, y = draw.choice(sorted(missing, key=repr))
            values |= {a: x, b: y}
            covered = {(a, values[a], b, values[b]) for a, b in itertools.combinations(names, 2)} & missing
            candidates.append((len(covered), len(candidates), values, covered))
        *_, values, covered = max(candidates, key=lambda candidate: candidate[:2])
        missing -= covered
        cases.append(Case(**values))
    return cases


def hidden_keys(S, T, causal=False, window=None, device="cpu", block_mask=None):
    """Boolean (S, T), or with a mask (B or 1, H or 1, S, T): the keys that a query does not see; the last query stands
    at the last key."""
    position = torch.arange(S, device=device)[:, None] + T - S
    key = torch.arange(T, device=device)
    left, right = window or (-1, -1)
    hidden = torch.zeros((S, T), dtype=torch.bool, device=device)
    if causal:
        hidden |= key > position
    if left >= 0:
        hidden |= key < position - left
    if right >= 0:
        hidden |= key > position + right
    if block_mask is not None:
        seen = block_mask.repeat_interleave(BLOCK, -2)[..., :S, :].repeat_interleave(BLOCK, -1)[..., :T]
        hidden = hidden | ~seen
    return hidden


def eager_attention(
    q,
    k,
    v,
    sinks=None,
    *,
    causal=False,
    window=None,
    softcap=None,
    dropout_p=0.0,
    seed=None,
    scale=None,
    keep=None,
    block_mask=None,
):
    """softmax(q kᵀ) v in the dtype of q, one PyTorch op after another; returns (out, lse)."""
    S, T = q.shape[2], k.shape[2]
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    hidden = hidden_keys(S, T, causal, window, q.device, block_mask)
    scores = scores.masked_fill(hidden, float("-inf"))
    if sinks is not None:
        column = sinks[:, None, None].expand(*scores.shape[:3], 1).to(scores.dtype)
        scores = torch.cat([scores, column], dim=-1)
    blind = (scores == float("-inf")).all(dim=-1, keepdim=True)
    scores = torch.where(blind, 0.0, scores)
    p = torch.where(blind, 0.0, scores.softmax(dim=-1))[..., :T]
    lse = torch.where(blind, float("-inf"), scores.logsumexp(dim=-1, keepdim=True)).squeeze(-1)
    if dropout_p:
        p = p * keep / (1 - dropout_p)
    return p @ v, lse.float() if q.dtype != torch.float64 else lse


def seen_keys_only(function):
    """``function`` with its log-sum-exp zeroed for rows that see nothing, where it is -inf on all sides."""

    def wrapped(**inputs):
        out, lse = function(**inputs)
        return out, torch.where(lse == float("-inf"), 0.0, lse)

    return wrapped


def steps_of(dtype, *, causal=False, window=None, seed=None, block_mask=None, **options):
    """The kernels' own steps for inputs of ``dtype``, with the arguments of ``eager_attention``."""

    def steps(q, k, v, sinks=None):
        hidden = hidden_keys(q.shape[2], k.shape[2], causal, window, q.device, block_mask)
        return flash_attention_steps(q, k, v, sinks, hidden=hidden, dtype=dtype, **options)

    return steps


def assert_exact(case, device, logits=1, **sizes):
    """flash_attention and its gradients are as exact as ``eager_attention``; arguments as for ``Case.inputs``."""
    inputs = case.inputs(device, logits=logits, **sizes)
    B, H = inputs["q"].shape[:2]
    options, keep = case.options(), None
    if case.mask:
        options["block_mask"] = case.block_mask(B, H, device)
    if case.dropout_p:
        axes = torch.meshgrid(*(torch.arange(n, device=device) for n in (B, H, case.S, case.T)), indexing="ij")
        keep = dropout_keep(torch.tensor(7, device=device), case.dropout_p, *axes)

    def ours(**tensors):
        return flash_attention(**tensors, **options, return_lse=True)

    def peer(**tensors):
        return eager_attention(**tensors, **options, keep=keep)

    steps = steps_of(case.dtype, **options, keep=keep)
    assert_matches(*(seen_keys_only(function) for function in (ours, peer)), inputs, algorithm=seen_keys_only(steps))


def assert_rows_exact(found, inputs, **options):
    """``found``, which is (out, lse) or out alone, for the inputs q, k and v is as exact as ``eager_attention``."""
    found = found if isinstance(found, tuple) else (found,)
    wide = [x.double() for x in inputs]
    peer, exact = eager_attention(*inputs, **options), eager_attention(*wide, **options)
    sinks = options.pop("sinks", None)
    wide.append(None if sinks is None else sinks.double())
    steps = steps_of(inputs[0].dtype, **options)
    for i, (name, value) in enumerate(zip(("out", "lse"), found, strict=False)):
        assert_as_exact_as(name, value, peer[i], exact[i], lambda i=i: steps(*wide)[i])
