"""The README: its set-up commands, its transcript, its length; tests/docs holds what all pages have in common."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def command(name: str) -> str:
    """The block that .ci/run would run: the fenced one after the HTML comment."""
    return re.search(rf"<!-- command: {name} -->\n```bash\n(.*?)```", README, flags=re.DOTALL)[1]


@pytest.mark.parametrize("name", ["quickstart", "test"])
def test_each_set_up_command_is_one_line_that_makes_its_environment(name):
    line = command(name).strip()
    assert "\n" not in line
    assert line.startswith("python3 -m venv .venv && ")
    assert "-c constraints.txt" in line
    assert line.endswith({"quickstart": "llmfast quickstart", "test": "pytest"}[name])


def test_the_dockerfile_runs_both_commands():
    """Trap: a Dockerfile that was left behind by the README."""
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    *installation, quickstart = command("quickstart").strip().split(" && ")
    assert f"RUN {' && '.join(installation)}\n" in dockerfile
    assert dockerfile.endswith(f"CMD {json.dumps(quickstart.split())}\n")
    assert f"RUN {command('test').strip()}\n" in dockerfile


@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md"])
def test_the_transcript_is_the_recorded_one(page):
    """Trap: a showcase typed by hand, or left behind by the program it shows. "..." stands for omitted lines."""
    text = (ROOT / page).read_text(encoding="utf-8")
    path, shown = re.search(r"<!-- transcript: (\S+) -->\n+```text\n(.*?)```", text, flags=re.DOTALL).groups()
    recorded = iter((ROOT / path).read_text(encoding="utf-8").splitlines())
    lines = [line for line in shown.splitlines() if line != "..."]
    assert len(lines) > 5
    assert [line for line in lines if line not in recorded] == []  # `in` consumes: the order counts


def test_the_readme_stays_short():
    assert len(README.splitlines()) <= 220
