"""The compile gate finds what it is there to find, and every kernel passes it."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="the gate compiles with Triton")

from llmfast.kernels.compile_check.measure import Row
from llmfast.kernels.compile_check.table import REGISTER_MARGIN, load, regressions, render
from llmfast.kernels.frame._triton import gl

PROBE = Path(__file__).parents[1] / "lib" / "gate_probe.py"
ROW = Row("op", "case", "kernel", "90", 4, 40, 0, 1024, 4, 0, 2, 0, [])


def compiling(*command: str) -> subprocess.CompletedProcess:
    """Runs Python where Triton compiles, not interprets."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment)


@pytest.fixture(scope="module")
def probe():
    done = compiling(str(PROBE))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.xdist_group("gate_probe")
@pytest.mark.parametrize(
    ("broken", "fault"),
    [
        ("float64", "computes in float64"),
        ("spill", "spills"),
        ("shared", "bytes of shared memory, the chip gives 101376"),
        ("lacking", "does not use wgmma"),
        ("refused", "does not compile"),
    ],
)
def test_broken_kernels_are_found(probe, broken, fault):
    assert any(fault in found for found in probe["faults"][broken])


@pytest.mark.xdist_group("gate_probe")
def test_nothing_recompiles_as_length_and_batch_change(probe):
    """Nor does host code synchronise: it ran on meta tensors, which hold no value to wait for."""
    few_tokens = "table_kernel" if hasattr(gl.shared_memory_descriptor, "gather") else "linear_few_tokens"
    assert probe["variants"] == {
        "norm_forward": 3,  # rms_norm; layer_norm of heads in a slice, and of one token's, which are contiguous
        "norm_backward": 1,
        "_sum_partials": 1,
        "gated_forward": 1,
        "gated_backward": 1,
        "gelu_forward": 1,
        "gelu_backward": 1,
        "rope_kernel": 1,
        few_tokens: 2,  # up to 8 tokens, up to 16
        "linear_tiles": 1,
        "dequantize_kernel": 1,
    }


def test_ops_pass_the_gate_against_the_committed_table():
    done = compiling("-m", "llmfast.kernels.compile_check", "--op", "rope", "--capability", "120")
    assert done.returncode == 0, done.stdout + done.stderr
    assert ": 0 faults" in done.stdout


def test_regressions_against_the_table():
    committed = {ROW.key: ROW}
    assert regressions(ROW, committed, same_triton=True) == []
    assert "no row in the table" in regressions(ROW, {}, same_triton=True)[0]
    hungry = replace(ROW, registers=ROW.registers + REGISTER_MARGIN + 1)
    assert "takes 49 registers, 40 in the table" in regressions(hungry, committed, same_triton=True)
    assert regressions(hungry, committed, same_triton=False) == []  # another compiler, other registers
    scattered = replace(ROW, wide_loads=0, narrow_loads=32)
    assert "has 0 16-byte loads, 4 in the table" in regressions(scattered, committed, same_triton=True)


def test_the_readable_table_is_the_committed_one():
    from llmfast.kernels.compile_check.table import MARKDOWN

    version, rows = load()
    assert rows
    assert MARKDOWN.read_text() == render(version, list(rows.values()))
