"""The warp-specialised forward pass of 9.0: its source on a CPU, by emulation; its instructions; itself on a chip."""

import importlib
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from attention_cases import Case, assert_rows_exact, eager_attention
from kernel_testing import random_tensor

pytest.importorskip("triton", reason="Gluon is a part of Triton")

from gluon_emulator import Descriptor, Emulator, Pointer
from llmfast.kernels import backend, flash_attention
from llmfast.kernels.attention.launch import ALTERNATING, PERSISTENT, TILES, WARP_GROUPS, choosing

FILE = Path(importlib.import_module("llmfast.kernels.attention.forward_hopper").__file__)
KEYS = 128


def emulate(q, k, v, causal, seed, alternate=True, programs=2, stages=2, change=lambda source: source):
    (B, H, S, D), (_, K, T, _) = q.shape, k.shape
    out = torch.full_like(q, float("nan"))
    lse = torch.full((B, H, S), float("nan"))

    def described(x, rows):
        return Descriptor(x.numpy(), [1, 1, rows, D])

    Emulator(FILE, "llmfast.kernels.attention", change).launch(
        "forward_hopper_kernel", programs, seed,
        described(q, 64), described(k, KEYS), described(v, KEYS), described(out, 64), Pointer(lse.numpy().reshape(-1)),
        H, B, math.ceil(S / 128), S, T, T - S if causal == "top-left" else 0 if causal else None,
        np.float32(D**-0.5 * math.log2(math.e)),
        GROUP=H // K, D=D, BLOCK_N=KEYS, STAGES=stages, PERSISTENT=True, ALTERNATE=alternate,
    )  # fmt: skip
    return out, lse


def halves(*shapes):
    return [random_tensor(shape, torch.float16, seed=i) for i, shape in enumerate(shapes)]


@pytest.mark.parametrize(
    ("B", "H", "K", "S", "T", "causal", "alternate"),
    [
        (1, 1, 1, 200, 300, True, False),
        (1, 2, 1, 128, 256, False, True),
        (1, 2, 1, 257, 1, False, False),
        (2, 3, 1, 300, 300, True, True),  # an odd number of tiles: the middle one has no partner
        (1, 2, 2, 300, 40, True, True),  # rows that see nothing
        (1, 1, 1, 100, 700, True, True),
    ],
)
def test_emulated_in_any_order_it_is_exact(B, H, K, S, T, causal, alternate):
    """Whatever the order in which loading and computing groups and copies come to run."""
    inputs = halves((B, H, S, 16), (B, K, T, 16), (B, K, T, 16))
    for seed in range(3):
        out, lse = emulate(*inputs, causal, seed, alternate, programs=1 + seed, stages=2 + seed % 2)
        assert_rows_exact((out, lse), inputs, causal=causal)


WAIT = "        acc, p = hopper.warpgroup_mma_wait(0, deps=(acc, p))\n"
RELEASE = "        mbarrier.arrive(slot(v_empty, before, STAGES))\n"


@pytest.mark.parametrize(
    ("source", "broken"),
    [
        (WAIT + RELEASE, RELEASE + WAIT),  # values released while their product runs
        ("            mbarrier.arrive(slot(v_empty, last, STAGES))\n", ""),
        ("            hopper.fence_async_shared()\n", ""),
        ("(steps & 1) ^ (1 - group)", "steps & 1"),
    ],
)
def test_the_emulator_finds_what_is_broken(source, broken):
    def change(text):
        assert source in text
        return text.replace(source, broken)

    inputs = halves((1, 3, 300, 16), (1, 3, 700, 16), (1, 3, 700, 16))
    expected = eager_attention(*inputs, causal=True)[0]

    def emulate_in_several_orders():
        for seed in range(5):
            out, _ = emulate(*inputs, True, seed, change=change)
            torch.testing.assert_close(out, expected, rtol=0, atol=0.01)

    with pytest.raises(AssertionError):
        emulate_in_several_orders()


PROGRAM = """
import re, subprocess, tempfile
import triton
from llmfast.kernels.attention.compile_cases import PLAIN, training_case
from llmfast.kernels.attention.launch import WARP_GROUPS
from llmfast.kernels.compile_check.measure import chip_of, compile_for, compiled
import torch

compile_for("90")
(_, kernel), = compiled(training_case("", torch.bfloat16, 128, PLAIN, None, chip_of("90"), form=WARP_GROUPS), "90")
ptx = kernel.result.asm["ptx"]
# Two groups, each with a first product, a masked and an unmasked loop of two products, and a last one: 8 of 16 wide.
assert len(re.findall("wgmma.mma_async", ptx)) == 2 * 6 * 8, len(re.findall("wgmma.mma_async", ptx))
assert set(re.findall(r"setmaxnreg\\.inc\\S*\\s+(\\d+);", ptx)) >= {"240"}
with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
    file.write(kernel.result.asm["cubin"])
    file.flush()
    tool = triton.knobs.nvidia.nvdisasm.path
    sass = subprocess.run([tool, "-c", file.name], capture_output=True, text=True, check=True).stdout
steps = re.findall(r"HGMMA|MUFU\\.EX2|DEPBAR\\.LE gsb0, 0x[01]", sass)
text = "".join({"H": "p", "M": "e", "D": "w" + step[-1]}[step[0]] for step in steps)
# Products of the next scores and of the present values, 8 each, and only then a wait; the exponentials of 64 scores a
# thread before the wait for the values: one that follows it runs while the tensor cores stand idle.
overlapped = re.findall(r"p{16}w1(e*)w0", text)
assert len(overlapped) == 4, text
assert all(len(run) >= 64 for run in overlapped), [len(run) for run in overlapped]
"""


def test_softmax_runs_beside_the_product_with_the_values():
    """The trap: ptxas moved the softmax behind the wait for the product that it is to run beside."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    found = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr[-3000:]


@pytest.fixture
def hopper():
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("warp groups are for capability 9.0")
    with backend("triton"):
        yield


@pytest.mark.gpu
@pytest.mark.parametrize("form", [WARP_GROUPS, ALTERNATING])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("D", [64, 128])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("S", "T"), [(64, 64), (500, 1000), (1000, 500), (2048, 2048), (129, 4097)])
def test_on_a_chip_it_is_as_exact_as_pytorch_and_repeats_its_bits(hopper, form, dtype, D, causal, S, T):
    case = Case(D, S, T, 3, causal, None, None, False, 0.0, dtype, True)
    inputs = case.inputs("cuda", batch=3, kv_heads=2)
    with choosing(forward=form):
        out, lse = flash_attention(**inputs, causal=causal, return_lse=True)
        again = flash_attention(**inputs, causal=causal)
    assert torch.equal(out, again)
    assert_rows_exact((out, lse), tuple(inputs.values()), causal=causal)


@pytest.mark.gpu
@pytest.mark.parametrize("causal", [False, True])
def test_on_a_chip_all_forms_agree(hopper, causal):
    q, k, v = (random_tensor((2, heads, 3000, 128), torch.bfloat16, "cuda", seed=heads) for heads in (8, 2, 2))
    outs = {}
    for form in (TILES, PERSISTENT, WARP_GROUPS, ALTERNATING):
        with choosing(forward=form):
            outs[form] = flash_attention(q, k, v, causal=causal)
    assert torch.equal(outs[TILES], outs[PERSISTENT])
    assert torch.equal(outs[WARP_GROUPS], outs[ALTERNATING])
    torch.testing.assert_close(outs[TILES], outs[WARP_GROUPS], rtol=0.02, atol=0.02)
