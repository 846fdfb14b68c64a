"""Tables of results in README.md, rendered from the result files; and figures that no file backs.

A table stands between two comments, and ``python -m benchmarks report --readme`` writes it anew:

    <!-- results: h100-norm.json op="rms_norm,layer_norm" pass=forward show=all -->
    ...
    <!-- end of results -->

Without conditions it holds all that the file does. It sets ours beside the best other; ``show=all`` gives every
contender a column, ``show=notes`` says what the cells of such tables mean, on which texts and which machine. A
transcript (``<!-- transcript: FILE -->`` before a fence) is held to its file by a test of its own.
"""

from __future__ import annotations

import re
import shlex
import shutil
import tempfile
from pathlib import Path

from .report import legend, machine_line, op_table, short_rows_of, table
from .results import FOLDER, OURS, Report, Result, read

TABLE = re.compile(r"<!-- results: (?P<how>.+?) -->\n(?P<body>.*?)<!-- end of results -->", re.DOTALL)
FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
# A number with a unit of speed, or by which something is faster or slower.
FIGURE = re.compile(
    r"\d[\d.,]*\s*(?:"
    r"×|x\b|[kKMGT]?B/s|[kMGT]?FLOPS?(?:/s)?\b|[mµn]s\b|[kM]?\s*(?:tokens?|bytes?|steps?)(?:/s\b| (?:a|per) second)"
    r"|times\s+(?:as fast|faster|slower|the speed)|%\s+(?:faster|slower|of (?:the )?(?:peak|ceiling|bandwidth))"
    r"|(?:k|M|million )tokens)",
    re.IGNORECASE,
)


def refreshed(text: str, folder: Path = FOLDER) -> str:
    """The text with every table of results rendered from its file.

    Raises:
        ValueError: a file that is not there, or that holds nothing of what is asked for.
    """

    def render(found: re.Match) -> str:
        lines = "\n".join(lines_of(found["how"], folder))
        return f"<!-- results: {found['how']} -->\n\n{lines}\n\n<!-- end of results -->"

    return TABLE.sub(render, text)


def lines_of(how: str, folder: Path) -> list[str]:
    """The table that ``FILE [op=A,B] [pass=...] [dtype=...] [show=all|notes]`` asks for."""
    file, *conditions = shlex.split(how)
    show = [each for each in conditions if each.startswith("show=")]
    conditions = [each for each in conditions if each not in show]
    path = folder / file
    if not path.is_file():
        raise ValueError(f"results: {file}: there is no such file in {folder}")
    report = read(path)
    wanted = [result for result in report.results if all(holds(result, each) for each in conditions)]
    if not any(result.contender.startswith(OURS) for result in wanted):
        raise ValueError(f"results: {how}: {file} holds no result of {OURS} like that")
    if show == ["show=all"]:
        return list(op_table(wanted))
    if show == ["show=notes"]:
        return [said_below(report, wanted)]
    if show:
        raise ValueError(f"results: {' '.join(show)}: there are show=all and show=notes")
    rows = short_rows_of(wanted)
    head = ["op", "shape", "pass", OURS, "of ceiling", "best other", "", "ratio"]
    return [*table(head, rows), "", machine_line(report)]


def said_below(report: Report, shown: list[Result]) -> str:
    """What the cells mean, the texts, the machine."""
    texts = "; ".join(f"{name}: {origin}" for name, origin in report.inputs.items())
    return " ".join(filter(None, [legend(shown), texts and f"{texts}.", machine_line(report)]))


def shown_pictures(text: str) -> list[str]:
    """The names of the pictures of results that a page shows."""
    return re.findall(r"\(benchmarks/results/plots/([\w.+-]+\.png)\)", text)


def draw_shown(text: str, folder: Path = FOLDER) -> None:
    """Draws the pictures that a page shows.

    Raises:
        ValueError: one that no result file has the figures for.
    """
    from .plots import draw

    wanted = set(shown_pictures(text))
    with tempfile.TemporaryDirectory() as drawn:
        pictures = {path.name: path for path in draw(folder, Path(drawn)) if wanted}
        if missing := wanted - pictures.keys():
            raise ValueError(f"{', '.join(sorted(missing))}: no result file in {folder} gives such a picture")
        for name in wanted:
            (folder / "plots").mkdir(exist_ok=True)
            shutil.copyfile(pictures[name], folder / "plots" / name)


def holds(result: Result, condition: str) -> bool:
    name, _, values = condition.partition("=")
    if name not in ("op", "pass", "dtype"):
        raise ValueError(f"results: {condition}: a condition is op=, pass=, dtype= or show=")
    return getattr(result, "pass_" if name == "pass" else name) in values.split(",")


def unbacked(text: str) -> list[str]:
    """Speed figures outside of tables of results and of fences."""
    prose = COMMENT.sub("", FENCE.sub("", TABLE.sub("", text)))
    return [found.group() for found in FIGURE.finditer(prose)]
