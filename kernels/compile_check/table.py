"""The committed table: what the check found, what is wrong with it, and how it reads."""

import json
from collections.abc import Iterable
from pathlib import Path

from .measure import AMD, Refused, Row, chip_of

JSON = Path(__file__).with_name("table.json")
MARKDOWN = Path(__file__).with_name("TABLE.md")


REGISTER_MARGIN = 8  # one step in which the hardware hands out registers


def faults(row: Row | Refused, unmet: list[str]) -> list[str]:
    """What makes a kernel unfit for its chip, whatever the table says; ``unmet`` is what its case asks for in vain."""
    if isinstance(row, Refused):
        return [f"does not compile: {row.reason}"]
    found = []
    limit = chip_of(row.target).shared_memory
    if row.shared > limit:
        found.append(f"takes {row.shared} bytes of shared memory, the chip gives {limit}")
    if row.loop_spills:
        found.append(f"spills inside a loop: {row.loop_spills} loads and stores of local memory")
    if row.products not in (None, 1.0):
        found.append(f"issues {row.products} times the matrix products that its tiles need")
    if "float64" in row.instructions:
        found.append("computes in float64")
    return found + unmet


def regressions(row: Row, committed: dict[tuple, Row], same_triton: bool) -> list[str]:
    """What changed for the worse since the table was written."""
    before = committed.get(row.key)
    if before is None:
        return ["has no row in the table: run with --write and commit it"]
    found = []
    if same_triton and row.registers > before.registers + REGISTER_MARGIN:
        found.append(f"takes {row.registers} registers, {before.registers} in the table")
    if same_triton and row.wide_loads < before.wide_loads and row.narrow_loads > before.narrow_loads:
        found.append(f"has {row.wide_loads} 16-byte loads, {before.wide_loads} in the table")
    return found


def load() -> tuple[str, dict[tuple, Row]]:
    """The Triton version that the table was written with, and its rows."""
    if not JSON.exists():
        return "", {}
    table = json.loads(JSON.read_text())
    rows = [Row(**dict(zip(table["columns"], row, strict=True))) for row in table["rows"]]
    return table["triton"], {row.key: row for row in rows}


def save(triton_version: str, rows: Iterable[Row]) -> None:
    rows = sorted(rows, key=lambda row: (row.op, row.target == AMD, row.key))
    columns = list(rows[0].as_dict())
    lines = ",\n".join(json.dumps(list(row.as_dict().values())) for row in rows)
    head = f'{{"triton": "{triton_version}",\n"columns": {json.dumps(columns)},\n"rows": [\n'
    JSON.write_text(f"{head}{lines}\n]}}\n")
    MARKDOWN.write_text(render(triton_version, rows))


def render(triton_version: str, rows: list[Row]) -> str:
    """One Markdown table per op: a line per kernel, and a column of registers per chip."""
    targets = sorted({row.target for row in rows}, key=lambda t: (t == AMD, len(t), t))
    out = [
        "# What the kernels take on each chip",
        "",
        f"Written by `python -m llmfast.kernels.compile_check --write` with Triton {triton_version}. Registers are per "
        "thread, one column per compute capability (gfx942, AMD's MI300, for information); `+40` are bytes per thread "
        "spilled outside of loops, `!40` inside. Products are the matrix FLOPs that inner loops issue over those that "
        "their tiles need, the largest among the chips. Overlap is the share of a loop's exponentials that run beside "
        "its products on the chip that has warp-group products, 9.0. Shared memory is the largest among the chips, in "
        "bytes. Loads and stores of global memory are instructions in the PTX of the newest chip: 16 bytes wide or "
        "more / narrower.",
    ]
    for op in sorted({row.op for row in rows}):
        out += ["", f"## {op}", ""]
        chips = " | ".join(targets)
        out.append(f"| case | kernel | warps | {chips} | products | overlap | shared | loads | stores | instructions |")
        out.append("|---|---|--:|" + "--:|" * len(targets) + "--:|--:|--:|--:|--:|---|")
        kernels: dict[tuple[str, str], dict[str, Row]] = {}
        for row in rows:
            if row.op == op:
                kernels.setdefault((row.case, row.kernel), {})[row.target] = row
        for (case, kernel), by_target in kernels.items():
            out.append(_line(case, kernel, [by_target.get(target) for target in targets]))
    return "\n".join(out) + "\n"


def _line(case: str, kernel: str, found: list[Row | None]) -> str:
    present = [row for row in found if row]
    newest = [row for row in present if row.target != AMD][-1:] or present[-1:]
    products = [row.products for row in present if row.products is not None]
    overlapped = [row.overlapped for row in present if row.overlapped]
    instructions = sorted({i for row in present for i in row.instructions})
    warps = sorted({row.warps for row in present})
    cells = [
        case,
        kernel,
        "/".join(map(str, warps)),
        *map(_registers, found),
        str(max(products)) if products else "",
        f"{min(overlapped):.0%}" if overlapped else "",
        str(max(row.shared for row in present)),
        f"{newest[0].wide_loads} / {newest[0].narrow_loads}",
        f"{newest[0].wide_stores} / {newest[0].narrow_stores}",
        ", ".join(instructions),
    ]
    return f"| {' | '.join(cells)} |"


def _registers(row: Row | None) -> str:
    if row is None:
        return ""
    if not row.spilled:
        return str(row.registers)
    return f"{row.registers}{'!' if row.loop_spills or row.target == AMD else '+'}{row.spilled}"
