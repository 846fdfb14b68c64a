"""Inside of a test, `import kernels` finds Hugging Face's package or none, and never the folder ./kernels.

test_packaging.py runs this file with `python -m pytest` at the root and a package of that name installed.
"""

import importlib.util
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_top_level_kernels_is_not_ours():
    found = importlib.util.find_spec("kernels")
    assert found is None or not Path(found.origin).is_relative_to(ROOT / "kernels")


def test_llmfast_kernels_is_ours():
    found = importlib.util.find_spec("llmfast.kernels")
    assert found.origin.endswith("kernels/__init__.py")


def test_transformers_imports():
    import transformers

    assert transformers.__version__


def test_the_root_is_hidden_from_this_process():
    assert ROOT not in [Path(entry).resolve() for entry in sys.path]


def test_without_the_guard_the_root_would_shadow():
    """Keeps the tests above honest: the trap is there."""
    program = "import sys; sys.path.insert(0, ''); import kernels; print(kernels.__file__)"
    answer = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert Path(answer.stdout.strip()) == ROOT / "kernels" / "__init__.py"
