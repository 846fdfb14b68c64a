"""Dependencies point one way, imports are light, and no GPU is touched before one is asked for."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from llmfast.cli import COMMANDS

ROOT = Path(__file__).resolve().parent.parent

# Libraries that are imported where they are used, never by importing a package of ours.
HEAVY = {
    "bitsandbytes", "datasets", "matplotlib", "pandas", "peft", "streamlit", "tensorboard", "tokenizers",
    "pyarrow", "ray", "trackio", "transformers", "wandb", "zstandard",
}  # fmt: skip

# What a part of llmfast may import of the rest of it, from the bottom up.
LAYERS = {
    "kernels": set(),
    "files": set(),
    "config": {"files"},
    "tokenizer": {"_bpe", "files", "config"},
    "data": {"_bpe", "files", "config", "tokenizer"},
    "models": {"files", "config", "kernels"},
    "inference": {"files", "config", "kernels", "tokenizer", "models", "data"},
    "training": {
        "files",
        "config",
        "kernels",
        "tokenizer",
        "models",
        "data",
        "inference",
        "evaluation",
        "visualization",
    },
    "evaluation": {"files", "config", "kernels", "tokenizer", "models", "data", "inference"},
    "visualization": {"files", "config"},
}


def sources() -> list[tuple[str, Path]]:
    """Every source file with the part of llmfast that it belongs to."""
    kernels = [("kernels", path) for path in sorted((ROOT / "kernels").rglob("*.py"))]
    package = ROOT / "llmfast"
    others = sorted(package.rglob("*.py"))
    return kernels + [(path.relative_to(package).parts[0].removesuffix(".py"), path) for path in others]


def imported_modules(node: ast.AST, package: str) -> list[str]:
    """The full names of the modules in an import statement; ``package`` resolves relative ones."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = package.rsplit(".", node.level - 1)[0] if node.level else ""
        module = ".".join(filter(None, [base, node.module]))
        # `from llmfast import config` names a module, `from llmfast.config import load` a thing inside one.
        return [f"{module}.{alias.name}" for alias in node.names] if module == "llmfast" else [module]
    return []


def is_command(path: Path) -> bool:
    """The functions behind the command line lie beside what they use, but above all parts, as cli.py does."""
    return path.name in ("command.py", "commands.py")


def parts_imported(path: Path, part: str) -> set[str]:
    inner = path.relative_to(ROOT / ("kernels" if part == "kernels" else "llmfast")).parent.parts
    package = ".".join(["llmfast", *(["kernels"] if part == "kernels" else []), *inner])
    names = {
        name for node in ast.walk(ast.parse(path.read_text())) for name in imported_modules(node, package)
    }
    return {name.split(".")[1] for name in names if name.startswith("llmfast.")}


@pytest.mark.parametrize(
    ("part", "path"),
    [
        pytest.param(part, path, id=str(path.relative_to(ROOT)))
        for part, path in sources()
        if part in LAYERS and not is_command(path)
    ],
)
def test_each_part_imports_only_what_lies_below_it(part, path):
    allowed = LAYERS[part] | {part, "_version", "__version__"}
    assert parts_imported(path, part) <= allowed, f"{path} imports upwards"


def runtime_statements(node: ast.stmt) -> list[ast.stmt]:
    """A top-level statement, or what is inside if it is a condition that can hold when the program runs."""
    if not isinstance(node, ast.If):
        return [node]
    return node.orelse if ast.unparse(node.test) == "TYPE_CHECKING" else [*node.body, *node.orelse]


@pytest.mark.parametrize(("part", "path"), [pytest.param(*each, id=str(each[1].name)) for each in sources()])
def test_heavy_libraries_are_imported_inside_functions(part, path):
    top_level = [
        name.split(".")[0]
        for node in ast.parse(path.read_text()).body
        for inner in runtime_statements(node)
        for name in imported_modules(inner, "llmfast")
    ]
    assert not HEAVY & set(top_level)


def loaded_by(module: str) -> tuple[set[str], bool]:
    """The modules that importing one loads, in a fresh interpreter, and whether torch then holds a GPU."""
    program = f"""
import sys
import {module}
touched = "torch" in sys.modules and sys.modules["torch"].cuda.is_initialized()
print(touched, *sys.modules)
"""
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    touched, *modules = answer.stdout.split()
    return {name.split(".")[0] for name in modules}, touched == "True"


@pytest.mark.parametrize("module", ["llmfast", "llmfast.cli", "llmfast.config", "llmfast.commands.doctor"])
def test_light_modules_load_no_torch(module):
    modules, _ = loaded_by(module)
    assert not modules & (HEAVY | {"torch", "triton", "numpy"})


@pytest.mark.parametrize("module", sorted({each.target.split(":")[0] for each in COMMANDS.values()}))
def test_the_help_of_a_command_waits_for_no_torch(module):
    """It takes two seconds to import."""
    modules, _ = loaded_by(module)
    assert not modules & (HEAVY | {"torch", "triton"})


@pytest.mark.parametrize(
    "module", ["llmfast.kernels", "llmfast.tokenizer", "llmfast.models", "llmfast.data", "llmfast.training"]
)
def test_importing_a_package_touches_no_gpu_and_loads_nothing_heavy(module):
    modules, touched = loaded_by(module)
    assert not modules & HEAVY
    assert not touched


def test_kernels_need_torch_and_triton_only():
    modules, _ = loaded_by("llmfast.kernels")
    ours = subprocess.run(
        [sys.executable, "-c", "import sys, llmfast.kernels; print(*sys.modules)"],
        capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    parts = {name.split(".")[1] for name in ours if name.startswith("llmfast.")}
    assert parts <= {"kernels", "_version"}
    assert not modules & {"cattrs", "yaml", "rich", "tyro", "safetensors", "tiktoken"}
