"""The committed pictures are those that their program draws."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def pictures():
    """docs/tools/pictures.py, with the repository root on the path only while it is imported."""
    spec = importlib.util.spec_from_file_location("pictures", ROOT / "docs" / "tools" / "pictures.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["pictures"] = module  # dataclasses look their module up
    sys.path.append(str(ROOT))
    spec.loader.exec_module(module)
    sys.path[:] = [entry for entry in sys.path if entry != str(ROOT)]
    return module


def parts(svg: Path) -> tuple[list[str], int]:
    """The words and the number of shapes: versions of matplotlib may differ in the rest."""
    text = svg.read_text("utf-8")
    return re.findall(r"<text[^>]*>([^<]+)</text>", text), text.count("<path")


def test_pictures_are_up_to_date(pictures, tmp_path):
    """Trap: a picture changed in its program and not drawn again."""
    for drawn in pictures.draw(tmp_path):
        assert parts(drawn) == parts(ROOT / "docs" / "images" / drawn.name), "python -m docs.tools.pictures"
        assert len(parts(drawn)[0]) > 5
