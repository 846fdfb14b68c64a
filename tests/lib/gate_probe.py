"""Run as a program where Triton compiles (TRITON_INTERPRET unset): prints what tests of the gate ask, as JSON.

- ``faults``: what the gate says of kernels that each break one of its rules.
- ``spilled``: bytes of local memory of each of these.
- ``counts``: what is counted in a kernel whose numbers are known.
- ``again``: what became of a kernel that the table knows, and of one that it does not.
- ``variants``: how many versions of each kernel come of calls with many lengths and batches.
"""

import json
from collections import defaultdict
from dataclasses import replace

import torch
import triton
import triton.language as tl
from llmfast.kernels.activation import ops as activation
from llmfast.kernels.compile_check import CompileCase, sass
from llmfast.kernels.compile_check.measure import Row, compile_for, compiled, disassemble, measure
from llmfast.kernels.compile_check.table import faults
from llmfast.kernels.frame import launch
from llmfast.kernels.nf4 import ops as linear
from llmfast.kernels.nf4.layout import Layout
from llmfast.kernels.norm import ops as norm
from llmfast.kernels.rope import ops as rope


@triton.jit
def in_float64(x, scale: tl.float64):
    tl.store(x, (tl.load(x) * scale).to(tl.float32))


@triton.jit
def spilling(x, BLOCK: tl.constexpr):
    places = tl.arange(0, BLOCK)
    values = tl.load(x + places)
    tl.store(x + places, values / tl.sum(values))


@triton.jit
def spilling_in_a_loop(x, steps, BLOCK: tl.constexpr):
    places = tl.arange(0, BLOCK)
    values = tl.load(x + places)
    for step in range(steps):
        values = values / tl.sum(values) + tl.load(x + step)
    tl.store(x + places, values)


@triton.jit
def multiplying(x, steps, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr):
    """A product of tiles that lie behind one another."""
    rows, columns, depth = tl.arange(0, ROWS), tl.arange(0, COLUMNS), tl.arange(0, DEPTH)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for step in range(steps):
        left = tl.load(x + step * ROWS * DEPTH + rows[:, None] * DEPTH + depth[None, :])
        right = tl.load(x + step * COLUMNS * DEPTH + depth[:, None] * COLUMNS + columns[None, :])
        total = tl.dot(left, right, total)
    tl.store(x + rows[:, None] * COLUMNS + columns[None, :], total.to(tl.float16))


@triton.jit
def hoarding(x, STEPS: tl.constexpr, BLOCK: tl.constexpr):
    tile = tl.arange(0, BLOCK)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    total = tl.zeros((BLOCK, BLOCK), tl.float32)
    for step in tl.range(STEPS, num_stages=6):
        left = tl.load(x + step * BLOCK * BLOCK + tile)
        total = tl.dot(left, tl.load(x + (step + STEPS) * BLOCK * BLOCK + tile), total)
    tl.store(x + tile, total.to(tl.float16))


@triton.jit
def not_of_this_triton(x):
    tl.static_assert(False, "not of this Triton")


def broken_cases() -> list[CompileCase]:
    x = torch.empty(1, device="meta")
    half = torch.empty(1, device="meta", dtype=torch.float16)
    return [
        CompileCase("float64", "", lambda: launch.run(in_float64, (1,), x, x, 0.5)),
        CompileCase("spill", "", lambda: launch.run(spilling, (1,), x, x, BLOCK=4096, num_warps=1, maxnreg=32)),
        CompileCase(
            "loop spill", "", lambda: launch.run(spilling_in_a_loop, (1,), x, x, 9, BLOCK=4096, num_warps=1, maxnreg=32)
        ),
        multiplying_case("repeated", rows=16, columns=16, warps=4),
        multiplying_case("avoided", rows=64, columns=64, warps=4, avoid={"multiplying": ("mma",)}),
        multiplying_case("waiting", rows=64, columns=64, warps=4, overlap={"multiplying": 0.9}),
        CompileCase("shared", "", lambda: launch.run(hoarding, (1,), half, half, STEPS=8, BLOCK=128)),
        CompileCase("refused", "", lambda: launch.run(not_of_this_triton, (1,), x, x)),
        CompileCase("lacking", "", lambda: launch.run(in_float64, (1,), x, x, 1.0), {"in_float64": ("wgmma",)}),
    ]


def multiplying_case(name: str, rows: int, columns: int, warps: int, **options) -> CompileCase:
    half = torch.empty(1, device="meta", dtype=torch.float16)
    tile = {"ROWS": rows, "COLUMNS": columns, "DEPTH": 32, "num_warps": warps}
    return CompileCase(name, "", lambda: launch.run(multiplying, (1,), half, half, 9, **tile), **options)


def counts(target: str) -> dict:
    """What the gate counts in a kernel whose numbers are known: a product of 64 × 64 × 32."""
    case = multiplying_case("", rows=64, columns=64, warps=4)
    ((_, kernel),) = compiled(case, target)
    disassembly = disassemble(kernel.result)
    (loop,) = sass.product_loops(disassembly)
    return {
        "issued": sass.issued(loop, 4),
        "needed": sass.needed(kernel.result.asm["ttgir"]),
        "instructions": sum(" " + each in " " + text for text in loop.instructions for each in ("HMMA", "HGMMA")),
    }


def calls_of_many_lengths() -> list[CompileCase]:
    def call(batch: int, length: int):
        def run() -> None:
            x = torch.empty(batch, length, 512, dtype=torch.bfloat16, device="meta")
            heads = x[..., :256].unflatten(-1, (4, 64))
            call = norm.NormCall(x, x[0, 0], None, None, 1e-6, 0.0, False)
            y, h, stats = norm.forward(call)
            kept = norm.NormKept(*norm.NormKept.fields(call, y, h, stats))
            norm.backward(norm.NormBackwardCall(y, None, True, False, kept))
            norm.forward(norm.NormCall(heads, heads[0, 0], None, None, 1e-6, 0.0, True))
            gated = activation.GatedCall(x, None, "silu")
            activation.gated_gradients(activation.GatedBackwardCall(activation.gated(gated), gated))
            gelu = activation.BiasedCall(x, x[0, 0], "gelu")
            activation.biased_gradients(activation.BiasedBackwardCall(activation.biased(gelu), True, gelu))
            positions = torch.empty(batch, length, dtype=torch.int64, device="meta")
            rotation = rope.Rotation(positions, None, None, 1e4, 64, [], False, False)
            rope.rotate(rope.RopeCall(heads, heads, rotation))
            layout = Layout((512, 512))
            record = torch.empty(layout.nbytes, dtype=torch.uint8, device="meta")
            layer = linear.FrozenLayer(record, None, None, None, 1.0, True, layout.arguments)
            linear.forward(linear.FrozenLinearCall(x.view(-1, 512), layer))

        return CompileCase("", "", run)

    shapes = [(1, 1), (1, 2), (2, 1), (1, 16), (3, 17), (16, 100), (2, 4096), (1, 9_000_000)]
    return [call(*shape) for shape in shapes]


def again(case: CompileCase, target: str) -> dict:
    """Whether a case is compiled when the table knows its source, and when it does not."""
    ((row, _),) = measure([case], target)
    marked = replace(row, registers=255)  # what no compiler says
    multiplying.device_caches.clear()
    ((kept, _),) = measure([replace(case, case="of another call")], target, {row.source: marked})
    multiplying.device_caches.clear()
    ((changed, _),) = measure([case], target, {"another source": marked})
    return {"known": [kept.case, kept.registers], "changed": changed.registers == row.registers}


def main() -> None:
    measured = list(measure(broken_cases(), "120"))
    found = {row.op: faults(row, unmet) for row, unmet in measured}
    spilled = {row.op: row.spilled for row, _ in measured if isinstance(row, Row)}
    variants = defaultdict(set)
    for case in calls_of_many_lengths():
        for name, kernel in compiled(case, "120"):
            variants[name].add(kernel.source)
    known = {target: counts(target) for target in ("120", "90") if not compile_for(target)}
    sizes = {name: len(hashes) for name, hashes in variants.items()}
    found = {"faults": found, "spilled": spilled, "counts": known, "variants": sizes}
    print(json.dumps(found | {"again": again(multiplying_case("", rows=32, columns=32, warps=1), "120")}))


if __name__ == "__main__":
    main()
