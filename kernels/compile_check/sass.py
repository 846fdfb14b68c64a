"""What a disassembly shows of a kernel's loops: matrix products, spills, and the work done beside products.

Loops are the natural loops of the control-flow graph: a branch back to a block that every path to the branch passes.
A backward jump alone does not make a loop, since ptxas moves code that is rarely run behind the end of the kernel.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

LABEL = re.compile(r"(\.L_\w+):")
INSTRUCTION = re.compile(r"\s*/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;")
PREDICATE = re.compile(r"@!?U?P\w+\s+")
TARGET = re.compile(r"`\((\.L_\w+)\)|(\.L_\w+)")
LEAVES = ("EXIT", "RET", "BRX", "JMP")

PRODUCT = re.compile(r"\b[HIQ]MMA\.16(8)(\d+)")  # of a warp: 16 × 8 × the second number
GROUP_PRODUCT = re.compile(r"\b[HIQ]GMMA\.(\d+)x(\d+)x(\d+)")  # of a group of four warps
BLOCK_PRODUCT = re.compile(r"\bUTC[HIQ]MMA\b.*\bidesc\[(UR\d+)\]")  # of a program (tcgen05)
ANY_PRODUCT = re.compile(r"\b(?:UTC)?[DHIQ]G?MMA\b")  # HFMA2.MMA is none: it moves constants
LOCAL_MEMORY = re.compile(r"\b(?:LDL|STL)\b")
EXPONENTIAL = re.compile(r"\bMUFU\.EX2\b")
COMMIT = re.compile(r"\bgsb0$")  # ends a group of products that is waited for together
WAIT = re.compile(r"WARPGROUP\.DEPBAR\.LE gsb0, 0x(\d+)")


@dataclass(frozen=True)
class Loop:
    """A loop's instructions in the order of their addresses, those of the loops inside of it included."""

    blocks: frozenset[int]
    instructions: tuple[str, ...]

    @property
    def has_products(self) -> bool:
        return any(ANY_PRODUCT.search(instruction) for instruction in self.instructions)

    @property
    def spills(self) -> int:
        """Loads and stores of local memory, where spilled registers are kept."""
        return sum(bool(LOCAL_MEMORY.search(instruction)) for instruction in self.instructions)

    def exponentials(self) -> tuple[int, int]:
        """(exponentials computed while a product of a warp group is under way, all of them).

        The loop is walked through twice, since a product may be under way from one iteration to the next.
        """
        issued = committed = covered = total = 0  # instructions not yet committed; groups that were
        for _ in range(2):
            covered = total = 0
            for instruction in self.instructions:
                if GROUP_PRODUCT.search(instruction):
                    issued += 1
                    if COMMIT.search(instruction):
                        issued, committed = 0, committed + 1
                elif wait := WAIT.search(instruction):
                    committed = min(committed, int(wait[1]))
                elif EXPONENTIAL.search(instruction):
                    total += 1
                    covered += issued + committed > 0
        return covered, total


def loops(sass: str) -> list[Loop]:
    """Every loop of a disassembled kernel (``nvdisasm -c``), in the order of their first instructions."""
    blocks, successors = _blocks(sass)
    predecessors: list[set[int]] = [set() for _ in blocks]
    for block, following in enumerate(successors):
        for successor in following:
            predecessors[successor].add(block)
    dominators = _dominators(predecessors)
    bodies: dict[int, set[int]] = {}
    for block, following in enumerate(successors):
        for header in following:
            if dominators[block] >> header & 1:
                body = bodies.setdefault(header, {header})
                _collect(body, block, predecessors)
    found = []
    for header in sorted(bodies):
        body = frozenset(bodies[header])
        found.append(Loop(body, tuple(each for block in sorted(body) for each in blocks[block])))
    return found


WAIT_LENGTH = 16  # instructions that a loop which only waits (for a barrier, say) may have


def inner_loops(sass: str) -> list[Loop]:
    """The loops that contain no other one; loops that only wait do not count."""
    working = [each for each in loops(sass) if each.has_products or each.spills or len(each.instructions) > WAIT_LENGTH]
    return [loop for loop in working if not any(other.blocks < loop.blocks for other in working)]


def product_loops(sass: str) -> list[Loop]:
    """The innermost loops that compute matrix products."""
    with_products = [loop for loop in loops(sass) if loop.has_products]
    return [loop for loop in with_products if not any(other.blocks < loop.blocks for other in with_products)]


def issued(loop: Loop, warps: int) -> int:
    """Floating-point operations of the matrix products that ``warps`` warps issue in one iteration."""
    flops = 0
    shapes: dict[str, int] = {}
    for instruction in loop.instructions:
        if constant := re.search(r"\bUMOV (UR\d+), 0x([0-9a-f]+)", instruction):
            shapes[constant[1]] = int(constant[2], 16)
        if product := PRODUCT.search(instruction):
            flops += 2 * 16 * int(product[1]) * int(product[2]) * warps
        elif product := GROUP_PRODUCT.search(instruction):
            m, n, k = map(int, product.groups())
            flops += 2 * m * n * k * warps // 4
        elif product := BLOCK_PRODUCT.search(instruction):
            flops += _block_flops(instruction, shapes.get(product[1]))
    return flops


def needed(ttgir: str) -> list[int]:
    """Floating-point operations that the tiles of each innermost loop with products need in one iteration."""
    open_loops: list[list] = []  # [FLOPs of its own, whether a loop inside of it has products], None for other regions
    found = []
    for line in ttgir.splitlines():
        text = re.sub(r"\s+loc\(.*$", "", line).strip()
        if text.startswith("}") and open_loops:
            closed = open_loops.pop()
            if closed:
                flops, has_inner = closed
                if flops and not has_inner:
                    found.append(flops)
                for outer in open_loops:
                    if outer and (flops or has_inner):
                        outer[1] = True
        if text.endswith("{"):
            open_loops.append([0, False] if re.search(r"\bscf\.(?:for|while)\b", text) else None)
        elif flops := _tile_flops(text):
            inner = next((each for each in reversed(open_loops) if each), None)
            if inner:
                inner[0] += flops
    return found


def repetition(issued: list[int], needed: list[int]) -> float | None:
    """``issued`` over ``needed``, of loop by loop the ratio that is farthest from 1; None without products in loops.

    ptxas may leave several copies of a loop. Each is then held against the loop that needs as much, or else against
    the smallest.
    """
    if not issued and not needed:
        return None
    assert bool(issued) == bool(needed), f"products in loops of one language alone: {issued} issued, {needed} needed"
    if len(issued) == len(needed):
        ratios = [a / b for a, b in zip(issued, needed, strict=True)]
    else:
        ratios = [each / (each if each in needed else min(needed)) for each in issued]
    return round(max(ratios, key=lambda ratio: abs(ratio - 1)), 3)


def _tile_flops(line: str) -> int:
    if not re.search(r"= tt\.dot |warp_group_dot |tc_gen5_mma ", line):
        return 0
    shapes = [
        [int(size) for size in dims.split("x")]
        for dims in re.findall(r"(?:tensor|memdesc)<((?:\d+x)*\d+)x[a-z]+\d+", line.split(" : ", 1)[1])
    ]
    *batch, m, k = shapes[0]
    n = shapes[1][-1]
    flops = 2 * m * n * k
    for size in batch:
        flops *= size
    return flops


def _block_flops(instruction: str, shape: int | None) -> int:
    """FLOPs of a tcgen05 product, whose rows, columns and dtype its descriptor holds (PTX ISA, "Instruction
    descriptor")."""
    assert shape is not None, f"a product of unknown shape: {instruction}"
    columns, rows = (shape >> 17 & 63) * 8, (shape >> 24 & 31) * 16
    tf32 = "UTCHMMA" in instruction and shape >> 7 & 7 == 2
    depth = 8 if tf32 else 16 if "UTCHMMA" in instruction else 32
    return 2 * rows * columns * depth


def _blocks(sass: str) -> tuple[list[list[str]], list[set[int]]]:
    """Basic blocks, and the blocks that may follow each."""
    blocks: list[list[str]] = [[]]
    labels: dict[str, int] = {}
    for line in sass.splitlines():
        if label := LABEL.match(line):
            if blocks[-1]:
                blocks.append([])
            labels[label[1]] = len(blocks) - 1
        elif instruction := INSTRUCTION.match(line):
            blocks[-1].append(instruction[1])
            if PREDICATE.sub("", instruction[1]).startswith(("BRA", *LEAVES)):
                blocks.append([])
    successors: list[set[int]] = [set() for _ in blocks]
    for i, block in enumerate(blocks):
        last = block[-1] if block else ""
        plain = PREDICATE.sub("", last)
        jumps = plain.startswith(("BRA", *LEAVES))
        if jumps:
            names: Iterable[str] = (a or b for a, b in TARGET.findall(last))
            successors[i] |= {labels[name] for name in names if name in labels}
        conditional = plain != last or "," in plain
        if i + 1 < len(blocks) and (not jumps or (conditional and not plain.startswith("BRX"))):
            successors[i].add(i + 1)
    return blocks, successors


def _dominators(predecessors: list[set[int]]) -> list[int]:
    """For each block the blocks on every path to it, as bits. Blocks that nothing leads to are entries, too."""
    everything = (1 << len(predecessors)) - 1
    found = [everything if before else 1 << block for block, before in enumerate(predecessors)]
    found[0] = 1
    changed = True
    while changed:
        changed = False
        for block, before in enumerate(predecessors):
            if block == 0 or not before:
                continue
            common = everything
            for each in before:
                common &= found[each]
            if (new := common | 1 << block) != found[block]:
                found[block], changed = new, True
    return found


def _collect(body: set[int], block: int, predecessors: list[set[int]]) -> None:
    """Adds what reaches ``block`` without passing the loop's header, which is in ``body``."""
    pending = [block]
    while pending:
        block = pending.pop()
        if block not in body:
            body.add(block)
            pending.extend(predecessors[block])
