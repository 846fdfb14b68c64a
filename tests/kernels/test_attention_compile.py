"""What only the compiler can show: lengths that change compile nothing, and tiles that fit a small chip."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import torch
from llmfast.kernels.compile_check.measure import compile_for, chip_of
from llmfast.kernels.frame import launch
from llmfast.kernels.attention.ops import AttentionCall, forward
from llmfast.kernels.attention.forward import forward_kernel

compiled = []
launch.compile_only = lambda kernel, grid, args, options: compiled.append(kernel.warmup(*args, grid=grid, **options))

def attend(B, S, T, width, heads_last, right):
    def rows(H, length):
        shape = (B, length, H, width) if heads_last else (B, H, length, width)
        x = torch.empty(shape, dtype=torch.float16, device="meta")
        return x.transpose(1, 2) if heads_last else x
    q, k = rows(4, S), rows(2, T)
    forward(AttentionCall(q, k, k, *10 * [None], 0.1, None, right, None, 0.0, 128))

compile_for("120")
one_by_one = [(1, 1, 1), (1, 128, 128), (3, 129, 77), (2, 4096, 100000)]
for B, S, T in one_by_one + [(500, 200, 200), (700, 300, 300)]:
    for heads_last in (False, True):
        attend(B, S, T, 40, heads_last, S - T)
versions = {kernel.source for kernel in compiled}
# Two orders of tiles: a program a tile, and a persistent grid where sequences are short and many.
assert len(versions) == 2, f"{len(versions)} versions of the kernel for lengths that differ"

attend(1, 500, 500, 256, True, 0)
limit = chip_of("120").shared_memory
assert limit < 100 * 1024
assert compiled[-1].result.metadata.shared <= limit, compiled[-1].result.metadata.shared
"""


def test_lengths_compile_nothing_new_and_wide_heads_fit_a_small_chip():
    """The traps: a compilation for each sequence length; tiles of a data-centre chip on a consumer's."""
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    found = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr[-3000:]
