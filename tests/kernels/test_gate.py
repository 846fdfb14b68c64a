"""The compile gate finds what it is there to find, and every kernel passes it."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="the gate compiles with Triton")

from llmfast.kernels.compile_check import sass
from llmfast.kernels.compile_check.measure import Row
from llmfast.kernels.compile_check.table import REGISTER_MARGIN, load, regressions, render
from llmfast.kernels.frame._triton import gl

PROBE = Path(__file__).parents[1] / "lib" / "gate_probe.py"
ROW = Row("op", "case", "kernel", "90", 4, 40, 1.0, 0, 0, None, 1024, 4, 0, 2, 0, [], "source")


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
        ("loop spill", "spills inside a loop"),
        ("repeated", "issues 2.0 times the matrix products that its tiles need"),
        ("avoided", "uses mma"),
        ("waiting", "runs 0% of its exponentials beside products, not 90%"),
        ("shared", "bytes of shared memory, the chip gives 101376"),
        ("lacking", "does not use wgmma"),
        ("refused", "does not compile"),
    ],
)
def test_broken_kernels_are_found(probe, broken, fault):
    assert any(fault in found for found in probe["faults"][broken])


@pytest.mark.xdist_group("gate_probe")
def test_a_spill_outside_of_loops_is_reported_and_no_fault(probe):
    """The trap: tiles chosen for a spill that is paid once, not in each step."""
    assert probe["spilled"]["spill"] > 0
    assert probe["faults"]["spill"] == []


@pytest.mark.xdist_group("gate_probe")
@pytest.mark.parametrize(
    ("target", "instructions"),
    [
        ("120", 16),  # a warp of four: 64 × 64 × 32 / 4 of 16 × 8 × 16
        ("90", 2),  # one group of four warps: 64 × 64 × 32 of 64 × 64 × 16
    ],
)
def test_products_are_counted_as_by_hand(probe, target, instructions):
    flops = 2 * 64 * 64 * 32
    assert probe["counts"][target] == {"issued": flops, "needed": [flops], "instructions": instructions}


SASS = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;
        /*0010*/                   STL [R1], R2 ;
.L_x_0:
        /*0020*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR16], RZ, !UPT ;
        /*0030*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR12], R24, gsb0 ;
        /*0040*/                   MUFU.EX2 R3, R4 ;
        /*0050*/               @P2 BRA `(.L_x_2) ;
.L_x_1:
        /*0060*/                   WARPGROUP.DEPBAR.LE gsb0, 0x0 ;
        /*0070*/                   MUFU.EX2 R3, R4 ;
        /*0080*/              @!P0 BRA `(.L_x_0) ;
        /*0090*/                   EXIT ;
.L_x_2:
        /*00a0*/                   LDL R2, [R1] ;
        /*00b0*/                   BRA `(.L_x_1) ;
"""


def test_loops_are_those_of_the_control_flow():
    """The traps: a jump back from code that ptxas moved behind the end is no loop; what it holds is in the loop."""
    (loop,) = sass.loops(SASS)
    assert len(loop.instructions) == 9
    assert loop.spills == 1
    assert loop.exponentials() == (1, 2)
    assert sass.issued(loop, warps=8) == 2 * 2 * 2 * 64 * 128 * 16


def test_products_under_way_from_one_iteration_to_the_next():
    (loop,) = sass.loops(SASS.replace("WARPGROUP.DEPBAR.LE gsb0, 0x0", "WARPGROUP.DEPBAR.LE gsb0, 0x1"))
    assert loop.exponentials() == (2, 2)


@pytest.mark.parametrize(
    ("issued", "needed", "expected"),
    [
        ([8, 8], [8, 8], 1.0),
        ([8, 12], [8, 8], 1.5),
        ([8, 4], [8, 8], 0.5),
        ([16, 8], [8, 16], 2.0),  # loop by loop
        ([8, 8, 16], [8, 16], 1.0),  # a copy of one
        ([8, 8, 16], [8], 2.0),
        ([], [], None),
    ],
)
def test_issued_products_over_needed(issued, needed, expected):
    assert sass.repetition(issued, needed) == expected


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


@pytest.mark.xdist_group("gate_probe")
def test_a_source_that_the_table_knows_is_not_compiled_again(probe):
    assert probe["again"] == {"known": ["of another call", 255], "changed": True}


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
