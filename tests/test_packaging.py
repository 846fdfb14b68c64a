"""What the sdist and the wheel hold, that the wheel runs elsewhere, and that nothing is shadowed."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from llmfast import _bpe, _decoder

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.xdist_group("packaging")  # one build serves them all


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Runs a command that must succeed; returns what it printed on both streams."""
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    answer = subprocess.run(command, cwd=cwd, env=os.environ | environment, check=False, **both)
    assert answer.returncode == 0, answer.stdout
    return answer.stdout


def build(kind: str, source: Path, out: Path) -> Path:
    run(sys.executable, "-m", "build", f"--{kind}", "--no-isolation", "--outdir", out, ".", cwd=source)
    return next(out.iterdir())


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of the source tree, so that building writes nothing into the real one."""
    ignored = shutil.ignore_patterns(".*", "build", "dist", "runs", "*.egg-info", "__pycache__", "*.so")
    return Path(shutil.copytree(ROOT, tmp_path_factory.mktemp("checkout") / "llmfast", ignore=ignored))


@pytest.fixture(scope="module")
def sdist(checkout, tmp_path_factory) -> Path:
    (checkout / "llmfast" / "leftover.so").write_bytes(b"")  # what an editable install leaves in a checkout
    return build("sdist", checkout, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory) -> Path:
    """Built from the unpacked sdist, with the extensions in use here; .ci/run compiles a fresh one."""
    folder = tmp_path_factory.mktemp("source")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    source = next(folder.iterdir())
    for extension in (_bpe, _decoder):
        built = Path(extension.__file__)
        shutil.copyfile(built, source / "llmfast" / built.name)
    program = """
import sys
from setuptools.command import build_ext
import setuptools
build_ext.build_ext.build_extension = lambda self, extension: self.copy_file(
    self.get_ext_filename(extension.name.replace(".", "/")), self.get_ext_fullpath(extension.name))
from setuptools import build_meta
build_meta.build_wheel(sys.argv[1])
"""
    out = tmp_path_factory.mktemp("wheel")
    said = run(sys.executable, "-c", program, out, cwd=source)
    assert "absent from the `packages`" not in said  # a new folder of kernels/ that setup.py does not know
    return next(out.iterdir())


def test_sdist_holds_all_sources(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for part in ("kernels", "csrc", "llmfast", "tests", "benchmarks"):
        sources = [path for suffix in ("*.py", "*.cpp", "*.h") for path in (ROOT / part).rglob(suffix)]
        missing = {str(path.relative_to(ROOT)) for path in sources} - names
        assert not missing
    assert {"setup.py", "pyproject.toml", "constraints.txt", "LICENSE", "README.md", "CHANGELOG.md"} <= names
    assert not [name for name in names if name.endswith((".so", ".pyc"))]


def test_wheel_has_one_top_level_package(wheel):
    """A top-level `kernels` would overwrite the Hugging Face package that transformers imports."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    top_level = {name.partition("/")[0] for name in names}
    assert {name for name in top_level if not name.endswith(".dist-info")} == {"llmfast"}
    assert {"llmfast/kernels/__init__.py", "llmfast/py.typed", "llmfast/cli.py"} <= set(names)
    for extension in ("_bpe", "_decoder"):
        assert f"llmfast/{extension}.pyi" in names
        assert any(name.startswith(f"llmfast/{extension}.") and name.endswith(".so") for name in names)
    in_kernels = {str(path.relative_to(ROOT)) for path in (ROOT / "kernels").rglob("*.py")}
    assert {f"llmfast/{name}" for name in in_kernels} <= set(names)


def test_installed_wheel_imports_away_from_the_source(wheel, tmp_path):
    target = tmp_path / "site"
    run(
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-index",
        "--target",
        target,
        wheel,
        cwd=tmp_path,
    )
    program = (
        "import llmfast._bpe, llmfast._decoder, llmfast.kernels; print(llmfast.__file__, llmfast.kernels.__file__)"
    )
    # -S -E: without the editable install of this environment; its libraries come after the target.
    site = next(path for path in map(Path, sys.path) if (path / "torch").is_dir())
    first = f"import sys; sys.path[:0] = [{str(target)!r}]; sys.path.append({str(site)!r}); "
    for file in run(sys.executable, "-S", "-E", "-c", first + program, cwd=tmp_path).split():
        assert Path(file).is_relative_to(target)


@pytest.mark.parametrize("start", [["pytest"], ["benchmarks"]])
def test_running_a_module_at_the_root_does_not_shadow_hugging_faces_kernels(start, tmp_path):
    """`python -m X` puts the working directory first on sys.path, and ours has a folder named kernels."""
    package = tmp_path / "kernels"
    package.mkdir()
    (package / "__init__.py").write_text("__version__ = '0.1'\nhugging_face = True\n")
    information = tmp_path / "kernels-0.1.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: kernels\nVersion: 0.1\n")
    if start == ["pytest"]:
        start = ["pytest", "-n", "0", "-q", "-p", "no:randomly", "tests/test_shadowing.py"]
        run(sys.executable, "-m", *start, cwd=ROOT, PYTHONPATH=str(tmp_path))
    else:
        # What `python -m benchmarks` does first: the root goes on the path, then the package is imported.
        program = (
            "import sys; sys.path.insert(0, ''); import benchmarks, kernels, transformers; assert kernels.hugging_face"
        )
        run(sys.executable, "-c", program, cwd=ROOT, PYTHONPATH=str(tmp_path))
