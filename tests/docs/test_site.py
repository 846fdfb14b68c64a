"""The documentation builds, without network, and needs none when it is read. Skipped without the extra docs."""

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.xdist_group("site")  # one build serves them all

# Loaded when a page is read, as opposed to links that a reader may follow.
LOADED = {"img": "src", "script": "src", "source": "srcset", "iframe": "src", "link": "href"}
NOT_LOADED = {"canonical", "edit", "next", "prev"}  # links of a page's head


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    pytest.importorskip("mkdocs", reason="needs the extra docs: pip install 'llmfast[docs]'")
    out = tmp_path_factory.mktemp("site")
    no_network = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    environment = os.environ | no_network | {"NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", out]
    before = files_of_sources()
    answer = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert files_of_sources() == before, "the build, and the tutorial that it runs, write nothing into the source tree"
    return out


def files_of_sources() -> set[Path]:
    """What lies in docs/ and at the top of the source tree."""
    inside = (path for path in (ROOT / "docs").rglob("*") if "__pycache__" not in path.parts)
    return {*inside, *ROOT.iterdir()} - {ROOT / ".pytest_cache", ROOT / "docs" / "tools" / "__pycache__"}


class Loads(HTMLParser):
    """What a page loads from elsewhere."""

    def __init__(self):
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        target = attributes.get(LOADED.get(tag, ""), "") or ""
        if re.match(r"(?:https?:)?//", target) and attributes.get("rel") not in NOT_LOADED:
            self.found.append(target)


def loads(html: str) -> list[str]:
    parser = Loads()
    parser.feed(html)
    return parser.found


def test_pages_load_nothing_from_the_network(site):
    """Trap: a font, a script or a picture of another server, which tells that server who reads what."""
    pages = list(site.rglob("*.html"))
    assert len(pages) > 25
    assert {str(page): found for page in pages if (found := loads(page.read_text("utf-8")))} == {}


def test_docstrings_become_markdown(site):
    """Trap: a directive of reStructuredText shown as it stands."""
    for page in (site / "reference").glob("*.html"):
        assert not re.search(r"Example::|\.\. math::", page.read_text("utf-8")), page.name


def test_loads_are_found():
    assert loads('<script src="https://a/b.js">') == ["https://a/b.js"]
    assert loads('<link rel="stylesheet" href="//a/b.css"><a href="https://a">') == ["//a/b.css"]
    assert loads('<img src="images/a.svg"><link rel="canonical" href="https://a">') == []


def test_the_reference_has_every_public_name(site):
    """Trap: a name that the package exports and the documentation leaves out."""
    import llmfast.kernels

    import llmfast.tokenizer

    top_level = (site / "reference" / "llmfast.html").read_text("utf-8")
    assert [name for name in llmfast._HOMES if f"llmfast.{name}<" not in top_level] == []
    for package in (llmfast.kernels, llmfast.tokenizer):
        page = (site / "reference" / f"{package.__name__.rpartition('.')[2]}.html").read_text("utf-8")
        for name in package.__all__:
            value = getattr(package, name)
            if callable(value) and value.__module__.startswith("llmfast."):
                assert f'id="{package.__name__}.{name}"' in page


def test_the_reference_has_every_command(site):
    from llmfast.cli import COMMANDS

    page = (site / "reference" / "commands.html").read_text("utf-8")
    assert [name for name in COMMANDS if f">llmfast {name}<" not in page] == []


def test_the_tutorial_was_executed(site):
    """Trap: a notebook whose outputs are those of another version, or missing."""
    cells = json.loads((ROOT / "docs" / "tutorial.ipynb").read_text("utf-8"))["cells"]
    assert not any(cell.get("outputs") for cell in cells), "outputs are not committed: the build makes them"
    page = (site / "tutorial.html").read_text("utf-8")
    assert page.count("data:image/png") >= 3
    assert "bytes per token" in page
