"""The project's pages in Markdown, and what stands in them: fenced blocks, inline code, links."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def fences(text: str, *languages: str) -> list[str]:
    return [body for language, body in FENCE.findall(text) if language in languages]


def inline_code(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", FENCE.sub("", text))


def links(text: str) -> list[str]:
    """Targets of links and pictures, without those of the web and of the page itself."""
    prose = FENCE.sub("", text)
    targets = re.findall(r"\]\(([^)\s]+)\)", prose) + re.findall(r'(?:src|srcset)="([^"]+)"', prose)
    return [target for target in targets if not re.match(r"https?:|#|mailto:", target)]


def command_lines(text: str) -> list[list[str]]:
    """The words behind ``llmfast`` of every command line in the shell blocks and the inline code of a page."""
    return shell_lines(text) + words_of([code for code in inline_code(text) if code.startswith("llmfast ")])


def shell_lines(text: str) -> list[list[str]]:
    """Those of the shell blocks, which are whole."""
    return words_of([line for block in fences(text, "bash") for line in re.split(r"\n|&&", block.replace("\\\n", " "))])


def words_of(lines: list[str]) -> list[list[str]]:
    found = []
    for line in lines:
        words = shlex.split(line, comments=True)
        places = [place for place, word in enumerate(words) if Path(word).name in ("llmfast", "llmfast.cli")]
        if places and len(words) > places[0] + 1:
            found.append(words[places[0] + 1 :])
    return found
