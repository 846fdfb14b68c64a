"""Renders result files as Markdown: a table for each op and pass, or one short table of ours against the best."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from .results import OURS, Report, Result, read_all


def render(folder: Path, short: bool = False) -> str:
    reports = read_all(folder)
    if not reports:
        return f"No results in {folder}."
    return "\n".join(short_lines(reports) if short else long_lines(reports))


def shape_text(result: Result) -> str:
    return " ".join(f"{name}={size}" for name, size in result.shape.items())


def duration(seconds: float) -> str:
    if seconds >= 0.1:
        return f"{seconds:.3g} s"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} µs"


def fraction(result: Result) -> float:
    """Of the ceiling that binds: the larger of the two fractions."""
    return max(result.fraction_of_copy, result.fraction_of_gemm)


def grouped(results: Iterable[Result]) -> dict[tuple, list[Result]]:
    groups: dict[tuple, list[Result]] = {}
    for result in results:
        groups.setdefault(result.key, []).append(result)
    return groups


def table(head: list[str], rows: Iterable[list[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"| {' | '.join('---' for _ in head)} |"
    for row in rows:
        yield f"| {' | '.join(row)} |"


# ------------------------------------------------------------------------------------------------- all of it


def long_lines(reports: list[Report]) -> Iterator[str]:
    for report in reports:
        yield f"## {report.suite}"
        yield ""
        yield f"{machine_line(report)} {ceiling_line(report)}"
        yield ""
        yield (
            "Median of a call, and in brackets the fraction of the measured ceiling that binds it (copy or matrix "
            "product). † was launched by the host call by call, the others as CUDA graphs."
        )
        by_table: dict[tuple, list[Result]] = {}
        for result in report.results:
            by_table.setdefault((result.op, result.pass_, result.dtype), []).append(result)
        for (op, pass_, dtype), results in by_table.items():
            yield from ("", f"### {op}, {pass_}, {dtype}", "")
            yield from op_table(results)
        yield from ("", *notes(report))


def machine_line(report: Report) -> str:
    machine = report.machine
    if machine["gpu"]:
        where = f"{machine['gpu']} (capability {machine['capability']}, driver {machine['driver']})"
    else:
        where = f"CPU only ({machine['processor']}): these figures show that the suite runs, and no speed"
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return f"{where}; {versions}; revision {machine['revision'] or 'unknown'}, {machine['time'][:10]}."


def ceiling_line(report: Report) -> str:
    copy, gemm = report.ceilings["copy_bytes_per_s"], report.ceilings["gemm_flops_per_s"]
    return f"Measured in the same run: copy {copy / 1e9:.0f} GB/s, matrix product {gemm / 1e12:.1f} TFLOP/s."


def op_table(results: list[Result]) -> Iterator[str]:
    names = list(dict.fromkeys(r.contender for r in results if r.status in ("ok", "wrong")))
    rows = []
    for group in grouped(results).values():
        by_name = {result.contender: result for result in group}
        best = min((r.median_s for r in group if r.status == "ok"), default=None)
        rows.append([shape_text(group[0]), *(cell(by_name.get(name), best) for name in names)])
    yield from table(["shape", *names], rows)


def cell(result: Result | None, best: float | None) -> str:
    if result is None or result.median_s is None:
        return "–" if result is None else result.status
    text = f"{duration(result.median_s)}{'†' if result.method == 'events' else ''} ({fraction(result):.0%})"
    if result.status == "wrong":
        return f"{text} WRONG"
    return f"**{text}**" if result.median_s == best else text


def notes(report: Report) -> Iterator[str]:
    """Who could not take part, who was wrong, and what there was no time for."""
    said = dict.fromkeys(
        f"- {r.contender}{'' if r.status in ('missing', 'skipped') else f' ({r.op} {shape_text(r)})'}: "
        f"{r.status}: {r.note}"
        for r in report.results
        if r.status != "ok"
    )
    yield from said
    yield from (f"- not measured: {case}: {reason}" for case, reason in report.not_run.items())
    yield ""


# ---------------------------------------------------------------------------------------------- the short one


def short_lines(reports: list[Report]) -> Iterator[str]:
    """Ours beside the fastest other that is right; and all that is not as it should be."""
    rows = []
    for report in reports:
        groups = grouped(report.results).values()
        rows += [[report.machine["time"][5:16], *row] for group in groups for row in short_rows(group)]
    yield from dict.fromkeys(machine_line(report) for report in reports)
    yield ""
    yield from table(["run", "op", "shape", "pass", OURS, "of ceiling", "best other", "", "ratio"], rows)
    for report in reports:
        yield from (
            f"{r.op} {shape_text(r)} {r.pass_}: {r.contender} {r.status}: {r.note}"
            for r in report.results
            if r.status in ("wrong", "failed") and (r.contender.startswith(OURS) or r.status == "wrong")
        )
        yield from (f"not measured: {case}: {reason}" for case, reason in report.not_run.items())


def short_rows(group: list[Result]) -> Iterator[list[str]]:
    others = [r for r in group if r.status == "ok" and not r.contender.startswith(OURS)]
    best = min(others, key=lambda result: result.median_s, default=None)
    for mine in group:
        if not mine.contender.startswith(OURS):
            continue
        row = [mine.op, shape_text(mine), mine.pass_]
        if mine.median_s is None:
            yield [*row, mine.status, "", "", "", ""]
            continue
        name = "" if mine.contender == OURS else mine.contender.removeprefix(OURS)
        wrong = " WRONG" if mine.status == "wrong" else ""
        row += [duration(mine.median_s) + name + wrong, f"{fraction(mine):.0%}"]
        if best:
            row += [best.contender, duration(best.median_s), f"{best.median_s / mine.median_s:.2f}×"]
        else:
            row += ["none", "", ""]
        yield row
