"""Tables, figures and charts of README.md and docs/, rendered from the result files, and figures that no file backs.

``python -m benchmarks report --readme`` writes what stands between these comments:

    <!-- results: tokenizer pass=steady show=all -->
    | a table |
    <!-- end of results -->

    It encodes <!-- figure: tokenizer pass=steady ratio=least -->1.5<!-- end of figure --> times as fast.

The first word names a measurement in ``SHOWN``, or a file. ``op=``, ``pass=`` and ``dtype=`` choose rows, and
``contender=`` leaves one contender beside llmfast. A table sets llmfast beside the best other contender. With
``show=all`` every contender has a column; ``show=notes`` says what the cells mean, what was measured, and on which
machine. A figure is the ``least`` or the ``most`` over its rows of
``ratio=`` (llmfast beside the best other contender) or ``speed=``; ``compiled kernels``; a line of the recorded
quickstart run; or ``what steady means``. What begins with ``study`` is one of the recipes' (see ``studies``).
The table of commands between ``<!-- commands -->`` and ``<!-- end of commands -->`` is what ``llmfast --help`` lists.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from ..results import FOLDER, OURS, ROOT, Report, Result, read
from .report import best_of, grouped, legend, machine_line, op_table, rate, short_rows_of, speed, table
from .studies import study_figure, study_lines

# What the pages show. To show another machine, or another pass, change it here and run the command above.
SHOWN = {
    "tokenizer": "cpu-amd-epyc-tokenizer.json",
    "tokenizer_train": "cpu-amd-epyc-tokenizer_train.json",
    "train_step": "cpu-intel-xeon-train_step.json",
    "finetune": "cpu-amd-epyc-finetune.json",
    "align": "cpu-amd-epyc-align.json",
    "decode_cpu": "cpu-amd-epyc-decode_cpu.json",
    "loader": "cpu-intel-xeon-loader.json",
    "optimizer": "cpu-intel-xeon-optimizer.json",
    "dispatch": "cpu-intel-xeon-dispatch.json",
}
PASSES = {"steady": "encode to NumPy", "cold": "encode to NumPy the first time"}
STEADY = "on fresh text, after the first 4 MB"  # how the steady pass of that file was measured

COMPILED = ROOT / "kernels" / "compile_check" / "table.json"
QUICKSTART = FOLDER / "quickstart.txt"

RESULTS = re.compile(r"<!-- results: (?P<how>.+?) -->\n(?P<body>.*?)<!-- end of results -->", re.DOTALL)
FIGURE = re.compile(r"<!-- figure: (?P<how>.+?) -->(?P<body>.*?)<!-- end of figure -->", re.DOTALL)
COMMANDS = re.compile(r"<!-- commands -->\n.*?<!-- end of commands -->", re.DOTALL)
FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
# A number with a unit of speed, or by which something is faster or slower.
CLAIM = re.compile(
    r"\d[\d.,]*\s*(?:"
    r"×|x\b|[kKMGT]?B/s|[kMGT]?FLOPS?(?:/s)?\b|[mµn]s\b|[kM]?\s*(?:tokens?|bytes?|steps?)(?:/s\b| (?:a|per) second)"
    r"|times\s+(?:as fast|faster|slower|the speed)|%\s+(?:faster|slower|of (?:the )?(?:peak|ceiling|bandwidth))"
    r"|(?:k|M|million )tokens)",
    re.IGNORECASE,
)


def pages() -> list[Path]:
    """README.md and the pages of the documentation."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def refreshed(text: str, folder: Path = FOLDER, problems: list[str] | None = None) -> str:
    """The text with every table and figure rendered from its source.

    Args:
        text: of a page.
        folder: of the result files.
        problems: what cannot be rendered is left as it was, and why is added here; an error without a list.

    Raises:
        ValueError: without ``problems``, a file does not exist, or holds no such result of llmfast.
    """

    def render(found: re.Match[str]) -> str:
        try:
            return render_figure(found) if found.re is FIGURE else render_table(found)
        except ValueError as error:
            if problems is None:
                raise
            problems.append(str(error))
            return found.group()

    def render_table(found: re.Match[str]) -> str:
        lines = "\n".join(lines_of(found["how"], folder))
        return f"<!-- results: {found['how']} -->\n\n{lines}\n\n<!-- end of results -->"

    def render_figure(found: re.Match[str]) -> str:
        return f"<!-- figure: {found['how']} -->{figure_of(found['how'], folder)}<!-- end of figure -->"

    text = FIGURE.sub(render, RESULTS.sub(render, text))
    return COMMANDS.sub(lambda _: f"<!-- commands -->\n\n{commands_table()}\n\n<!-- end of commands -->", text)


def lines_of(how: str, folder: Path) -> list[str]:
    """The table that ``study NAME TABLE`` or ``NAME [CONDITION ...] [show=all|notes]`` asks for."""
    if how.startswith("study "):
        return study_lines(how.removeprefix("study "))
    report, wanted, shown = selected(how, folder, "show")
    if shown == "show=all":
        return list(op_table(wanted))
    if shown == "show=notes":
        return [said_below(report, wanted)]
    if shown:
        raise ValueError(f"results: {shown}: there are show=all and show=notes")
    head = ["op", "shape", "pass", OURS, "of ceiling", "best other", "", "ratio"]
    return [*table(head, short_rows_of(wanted)), "", machine_line(report)]


def figure_of(how: str, folder: Path) -> str:
    """The figure that ``NAME [CONDITION ...] ratio|speed=least|most`` asks for, or one of a name."""
    if how == "compiled kernels":
        return compiled_kernels()
    if how == "what steady means":
        return STEADY
    if how.startswith("study "):
        return study_figure(how.removeprefix("study "))
    if how.startswith("quickstart "):
        return bits_per_byte(how.removeprefix("quickstart "))
    _, wanted, asked = selected(how, folder, "ratio", "speed")
    pairs = list(beside_the_best(wanted))
    if asked in ("ratio=least", "ratio=most") and pairs:
        choose = min if asked == "ratio=least" else max
        return rate(choose(other.median_s / mine.median_s for mine, other in pairs), digits=2)
    if asked in ("speed=least", "speed=most"):
        choose = max if asked == "speed=least" else min  # the least speed takes the most time
        ours = [mine for group in grouped(wanted).values() if (mine := best_of(group, ours=True))]
        return speed(choose(ours, key=lambda result: result.median_s / (result.bytes or result.tokens or 1)))
    raise ValueError(f"figure: {how}: ask for ratio= or speed=, least or most, of rows that have a peer")


def selected(how: str, folder: Path, *asked: str) -> tuple[Report, list[Result], str]:
    """A report, its results that meet the conditions, and the one word that begins with one of ``asked``."""
    name, *words = shlex.split(how)
    said = [word for word in words if word.partition("=")[0] in asked]
    conditions = [word for word in words if word not in said]
    path = folder / SHOWN.get(name, name)
    if not path.is_file():
        raise ValueError(f"results: {path.name}: there is no such file in {folder}")
    report = read(path)
    wanted = [result for result in report.results if all(meets(result, each) for each in conditions)]
    if not any(result.contender.startswith(OURS) for result in wanted):
        raise ValueError(f"results: {how}: {path.name} holds no such result of {OURS}")
    return report, wanted, " ".join(said)


def meets(result: Result, condition: str) -> bool:
    name, _, values = condition.partition("=")
    if name not in ("op", "pass", "dtype", "contender"):
        raise ValueError(f"results: {condition}: a condition is op=, pass=, dtype= or contender=")
    if name == "contender":
        return result.contender == values or result.contender.startswith(OURS)
    if name == "pass":
        return result.pass_ in [PASSES.get(value, value) for value in values.split(",")]
    # The name of an op may hold a comma itself.
    return getattr(result, name) in (values, *values.split(","))


def beside_the_best(results: list[Result]) -> Iterator[tuple[Result, Result]]:
    """For each row, the fastest result of llmfast and the fastest of the others."""
    for group in grouped(results).values():
        mine, other = best_of(group, ours=True), best_of(group, ours=False)
        if mine and other:
            yield mine, other


def said_below(report: Report, shown: list[Result]) -> str:
    """What the cells mean, the texts, the machine."""
    texts = "; ".join(f"{name}: {origin}" for name, origin in report.inputs.items())
    return " ".join(filter(None, [legend(shown), texts and f"{texts}.", machine_line(report)]))


def compiled_kernels() -> str:
    """How many kernels the compile check's table holds for NVIDIA's architectures."""
    content = json.loads(COMPILED.read_text(encoding="utf-8"))
    target = content["columns"].index("target")
    return f"{sum(row[target].isdigit() for row in content['rows']):,}"


def bits_per_byte(compressor: str) -> str:
    """What a compressor, or ``this model``, needs for the held-out text of the recorded quickstart run."""
    line = rf"^ *{re.escape(compressor)} +([\d.]+) bits per byte$"
    found = re.search(line, QUICKSTART.read_text(encoding="utf-8"), re.MULTILINE)
    if not found:
        raise ValueError(f"figure: quickstart {compressor}: {QUICKSTART.name} has no such line")
    return found[1]


def commands_table() -> str:
    from llmfast.cli import COMMANDS as COMMAND_LINE

    rows = ([f"`llmfast {name}`", command.help] for name, command in COMMAND_LINE.items())
    return "\n".join(table(["command", "what it does"], rows))


def unbacked(text: str) -> list[str]:
    """Claims of speed outside of tables and figures from result files, and outside of fences."""
    prose = COMMENT.sub("", FIGURE.sub("", FENCE.sub("", RESULTS.sub("", text))))
    return [found.group() for found in CLAIM.finditer(prose)]
