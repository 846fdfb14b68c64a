"""Renders result files as Markdown: a table per op and pass, or one short table of llmfast beside the best other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from ..results import OURS, PYTORCH, TEXT, Report, Result, read_all


def render(folder: Path, short: bool = False, sizes: tuple[str, ...] = ()) -> str:
    """All result files of a folder, or those of the given sizes."""
    reports = [report for report in read_all(folder) if not sizes or report.size in sizes]
    if not reports:
        return f"No results in {folder}."
    return "\n".join(short_lines(reports) if short else long_lines(reports))


def shape_text(result: Result) -> str:
    return " ".join(f"{name}={rate(size) if name in LONG else size}" for name, size in result.shape.items())


LONG = ("bytes", "tokens")  # counts shown in millions
NO_DTYPES = (TEXT, "int64")  # not shown


def duration(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:.3g} s"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} µs"


def fraction(result: Result) -> str:
    """The larger of the two fractions of a ceiling, or an empty string if there is none."""
    known = [each for each in (result.fraction_of_copy, result.fraction_of_gemm) if each is not None]
    return f"{max(known):.0%}" if known else ""


def speed(result: Result) -> str:
    """Perplexity, samples or tokens per second of a job, megabytes per second of text, or the time of anything else."""
    if result.perplexity:
        return f"{result.perplexity:.2f}"
    if result.dtype == TEXT and result.bytes:
        return f"{rate(result.bytes / result.median_s / 1e6)} MB/s"
    if result.samples:
        return f"{rate(result.samples / result.median_s)} samples/s"
    if result.tokens:
        return f"{rate(result.tokens / result.median_s)} tokens/s"
    return duration(result.median_s)


def rate(value: float, digits: int = 3) -> str:
    """The number to so many digits, in thousands (k) or millions (M) where it is large."""
    for unit, size in (("M", 1e6), ("k", 1e4)):
        if value >= size:
            return f"{value / (1e6 if unit == 'M' else 1e3):.{digits}g}{unit}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.{digits}g}"


def memory(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def grouped(results: Iterable[Result]) -> dict[tuple, list[Result]]:
    groups: dict[tuple, list[Result]] = {}
    for result in results:
        groups.setdefault(result.key, []).append(result)
    return groups


def best_of(results: Iterable[Result], ours: bool) -> Result | None:
    """The fastest correct result, of llmfast or of the other contenders."""
    correct = [r for r in results if r.status == "ok" and r.median_s and r.contender.startswith(OURS) == ours]
    return min(correct, key=lambda result: result.median_s, default=None)


def table(head: list[str], rows: Iterable[list[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"| {' | '.join('---' for _ in head)} |"
    for row in rows:
        yield f"| {' | '.join(row)} |"


# ------------------------------------------------------------------------------------------------- the full report


def long_lines(reports: list[Report]) -> Iterator[str]:
    for report in reports:
        yield f"## {report.suite}"
        yield ""
        yield f"{machine_line(report)} {ceiling_line(report)} {legend(report.results)}"
        for title, results in tables(report.results).items():
            yield from ("", f"### {title}", "")
            yield from op_table(results)
        yield from ("", *notes(report))
        yield from (f"- {name}: {origin}" for name, origin in report.inputs.items())
        yield ""


def legend(results: list[Result]) -> str:
    """Explains the cells of a table of these results."""
    said = ["Medians"]
    if any(result.fraction_of_copy for result in results):
        said.append("in brackets the fraction of the measured ceiling (copy or matrix product, whichever is nearer)")
    elif any(result.contender == PYTORCH for result in results):
        said.append("in brackets the ratio to PyTorch")
    if any(shows_memory(result) for result in results):
        said.append("in brackets also the peak memory")
    if any(result.method == "events" and not result.tokens for result in results):
        said.append("† was launched by the host, the others as CUDA graphs")
    return f"{'; '.join(said)}."


def tables(results: list[Result]) -> dict[str, list[Result]]:
    """Groups results into tables: one per op, pass and dtype; ops with a single shape share a table."""
    shapes: dict[str, set] = {}
    for result in results:
        shapes.setdefault(result.op, set()).add(tuple(result.shape.items()))
    together = len(shapes) > 1 and all(len(each) == 1 for each in shapes.values())
    by_title: dict[str, list[Result]] = {}
    for result in results:
        words = ([] if together else [result.op]) + [result.pass_] + ([result.dtype] if result.dtype != TEXT else [])
        by_title.setdefault(", ".join(words), []).append(result)
    return by_title


def machine_line(report: Report) -> str:
    machine = report.machine
    if machine["gpu"]:
        where = f"{machine['gpu']} (capability {machine['capability']}, driver {machine['driver']})"
    else:
        where = f"{machine['processor']}, {machine['cores']} cores"
        where += ": a rehearsal, whose figures mean nothing" if report.size == "tiny" else ""
        where += f" ({', '.join(found)})" if (found := machine.get("instructions")) else ""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    revision = f"revision {machine['revision'] or 'unknown'}, {machine['time'][:10]}"
    return f"{where}; Python {machine['python']}, {versions}; {revision}."


def ceiling_line(report: Report) -> str:
    return f"Measured in the same run: {ceilings_line(report.ceilings)}." if report.ceilings else ""


def ceilings_line(ceilings: dict[str, float]) -> str:
    products = {
        name.removesuffix("_flops_per_s"): rate for name, rate in ceilings.items() if name.endswith("_flops_per_s")
    }
    rates = ", ".join(f"{rate / 1e12:.3g} TFLOP/s in {dtype}" for dtype, rate in products.items())
    return f"copy {ceilings['copy_bytes_per_s'] / 1e9:.0f} GB/s, matrix product {rates}"


def op_table(results: list[Result]) -> Iterator[str]:
    names = list(dict.fromkeys(r.contender for r in results if r.status in ("ok", "wrong")))
    parts = [label_parts(result) for result in results]
    # Labels leave out what all rows share.
    said = [index for index in range(len(parts[0])) if len({part[index] for part in parts}) > 1]
    rows = []
    for group in grouped(results).values():
        if not any(result.median_s for result in group):
            continue  # the notes say why
        by_name = {result.contender: result for result in group}
        label = " ".join(filter(None, (label_parts(group[0])[index] for index in said or (0, 1))))
        rows.append([label, *(cell(by_name.get(name), by_name) for name in names)])
    yield from table(["", *names], rows)


def label_parts(result: Result) -> tuple[str, str, str, str]:
    """What can distinguish a row from the others of a table."""
    dtype = "" if result.dtype in NO_DTYPES else result.dtype
    return result.op, shape_text(result), result.pass_, dtype


def cell(result: Result | None, group: dict[str, Result]) -> str:
    if result is None or result.median_s is None:
        return "–" if result is None else result.status
    text = f"{speed(result)}{'†' if result.method == 'events' and not result.tokens else ''}"
    yardstick = group.get(PYTORCH)
    share = fraction(result)
    if not share and yardstick and yardstick.median_s and result is not yardstick:
        share = f"{result.median_s / yardstick.median_s:.2g}×"
    said = [share] if share else []
    if shows_memory(result):
        said.append(memory(result.peak_bytes))
    text += f" ({', '.join(said)})" if said else ""
    if result.status == "wrong":
        return f"{text} WRONG"
    best = min(each.median_s for each in group.values() if each.status == "ok")
    return f"**{text}**" if result.median_s == best else text


def shows_memory(result: Result) -> bool:
    return bool(result.tokens or result.dtype == TEXT) and (result.peak_bytes or 0) >= 2**20


def notes(report: Report) -> Iterator[str]:
    """Lists which contenders could not take part or were wrong, and which cases were not measured."""
    said = dict.fromkeys(
        f"- {r.contender}{'' if r.status in ('missing', 'skipped') else f' ({r.op} {shape_text(r)})'}: "
        f"{r.status}: {r.note}"
        for r in report.results
        if r.status != "ok"
    )
    yield from said
    yield from (f"- not measured: {'; '.join(cases)}: {reason}" for reason, cases in by_reason(report).items())


def by_reason(report: Report) -> dict[str, list[str]]:
    """The cases that were not run, by reason."""
    cases: dict[str, list[str]] = {}
    for case, reason in report.not_run.items():
        cases.setdefault(reason, []).append(case)
    return cases


# ---------------------------------------------------------------------------------------------- the short report


def short_lines(reports: list[Report]) -> Iterator[str]:
    """llmfast beside the fastest other that is correct, and everything that went wrong."""
    rows = []
    for report in reports:
        rows += [[report.machine["time"][5:16], *row] for row in short_rows_of(report.results)]
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


def short_rows_of(results: Iterable[Result]) -> list[list[str]]:
    return [row for group in grouped(results).values() for row in short_rows(group)]


def short_rows(group: list[Result]) -> Iterator[list[str]]:
    best = best_of(group, ours=False)
    for mine in group:
        if not mine.contender.startswith(OURS):
            continue
        what = [mine.pass_] if mine.dtype in NO_DTYPES else [mine.pass_, mine.dtype]
        row = [mine.op, shape_text(mine), ", ".join(what)]
        if mine.median_s is None:
            yield [*row, mine.status, "", "", "", ""]
            continue
        name = "" if mine.contender == OURS else mine.contender.removeprefix(OURS)
        wrong = " WRONG" if mine.status == "wrong" else ""
        row += [speed(mine) + name + wrong, fraction(mine)]
        if best:
            row += [best.contender, speed(best), f"{best.median_s / mine.median_s:.2f}×"]
        else:
            row += ["none", "", ""]
        yield row
