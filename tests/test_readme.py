"""The README's commands parse and its Python examples run."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from llmfast import cli

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def blocks(*languages: str) -> list:
    found = [text for language, text in BLOCKS if language in languages]
    return [pytest.param(text, id=text.splitlines()[0][:40]) for text in found]


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


@pytest.mark.parametrize("text", blocks("bash", "sh", "console"))
def test_shell_examples_parse_and_name_real_commands(text):
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    for line in re.split(r"\n|&&", text.replace("\\\n", " ")):
        words = shlex.split(line, comments=True)
        if words and Path(words[0]).name == "llmfast":
            assert words[1] in cli.COMMANDS or " ".join(words[1:3]) in cli.COMMANDS, line


@pytest.mark.skipif(not blocks("python"), reason="the README has no Python example")
@pytest.mark.parametrize("text", blocks("python"))
def test_python_examples_run(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(text, "README.md", "exec"), {"__name__": "__main__"})


def test_the_transcript_is_the_recorded_one():
    """Trap: a showcase typed by hand, or left behind by the program it shows."""
    path = re.search(r"<!-- transcript: (\S+) -->\n+```text\n(.*?)```", README, flags=re.DOTALL)
    assert (ROOT / path[1]).read_text(encoding="utf-8") == path[2]
