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
    "bitsandbytes", "datasets", "datasketch", "gguf", "llguidance", "math_verify", "matplotlib", "pandas", "peft",
    "streamlit", "tensorboard", "tokenizers",
    "pyarrow", "ray", "reasoning_gym", "trackio", "transformers", "wandb", "zstandard",
}  # fmt: skip

# What a part of llmfast may import of the rest of it, from the bottom up.
_BASE = {"_bpe", "files", "remote", "config", "kernels", "tokenizer", "models", "data"}
LAYERS = {
    "kernels": set(),
    "files": set(),
    "remote": {"files"},
    "config": {"files"},
    "tokenizer": {"_bpe", "files", "config"},
    "data": {"_bpe", "files", "remote", "config", "tokenizer"},
    "models": {"files", "config", "kernels", "tokenizer"},
    "integrations": {"files", "config", "kernels", "tokenizer", "models"},
    "visualization": {"files", "config", "kernels", "tokenizer", "models"},
    "inference": _BASE | {"integrations", "_decoder"},
    "evaluation": _BASE | {"inference"},
    "training": _BASE | {"inference", "evaluation", "integrations", "visualization"},
    "pipeline": {"files", "config", "training"},
    "finetuning": _BASE | {"inference", "evaluation", "integrations", "visualization", "training"},
    "alignment": _BASE | {"inference", "evaluation", "integrations", "visualization", "training", "finetuning"},
}
# The top floor may import all parts, and nothing imports it but the program and the package's own face.
TOP = "commands"
ABOVE = {"cli", "app", "__init__", "__main__"}


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


def parts_imported(path: Path, part: str) -> set[str]:
    inner = path.relative_to(ROOT / ("kernels" if part == "kernels" else "llmfast")).parent.parts
    package = ".".join(["llmfast", *(["kernels"] if part == "kernels" else []), *inner])
    names = {name for node in ast.walk(ast.parse(path.read_text())) for name in imported_modules(node, package)}
    return {name.split(".")[1] for name in names if name.startswith("llmfast.")}


@pytest.mark.parametrize(
    ("part", "path"),
    [pytest.param(part, path, id=str(path.relative_to(ROOT))) for part, path in sources() if part in LAYERS],
)
def test_each_part_imports_only_what_lies_below_it(part, path):
    allowed = LAYERS[part] | {part, "_version", "__version__"}
    assert parts_imported(path, part) <= allowed, f"{path} imports upwards"


@pytest.mark.parametrize(
    ("part", "path"),
    [pytest.param(*each, id=str(each[1].relative_to(ROOT))) for each in sources()],
)
def test_every_part_has_its_place_and_commands_are_on_the_top_floor(part, path):
    assert part in LAYERS.keys() | ABOVE | {TOP, "_version"}
    if part not in ABOVE | {TOP}:
        assert TOP not in parts_imported(path, part)


def module_name(path: Path) -> str:
    inner = path.relative_to(ROOT / "llmfast") if (ROOT / "llmfast") in path.parents else path.relative_to(ROOT)
    parts = ["llmfast", *inner.with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_at_run_time(path: Path, module: str, modules: set[str]) -> set[str]:
    """The modules of ours that a module imports, also inside functions; what only a type checker reads is free."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found = set()
    waiting: list[ast.AST] = [ast.parse(path.read_text())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            waiting += node.orelse
            continue
        waiting += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] if node.level else ""
            source = ".".join(filter(None, [base, node.module]))
            # `from package import module` imports the module; `from module import name` the module itself.
            names = {f"{source}.{alias.name}" for alias in node.names}
            found |= names & modules or {source}
    return (found & modules) - {module}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Modules that can be reached from themselves, those of one circle together."""
    reach = {}
    for start in graph:
        seen, waiting = set(), [start]
        while waiting:
            for following in graph[waiting.pop()] - seen:
                seen.add(following)
                waiting.append(following)
        reach[start] = seen
    groups = {
        tuple(sorted(other for other in graph if other in reach[name] and name in reach[other]))
        for name in graph
        if name in reach[name]
    }
    return [list(group) for group in sorted(groups)]


def test_no_import_goes_in_a_circle():
    """Trap: two modules that each need the other can neither be read nor moved alone."""
    paths = {module_name(path): path for _, path in sources()}
    graph = {name: imports_at_run_time(path, name, set(paths)) for name, path in paths.items()}
    assert len(graph) > 100
    assert graph["llmfast.training.trainer"] >= {"llmfast.training.task", "llmfast.training.objective"}
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    assert circles(graph) == []


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
    # Streamlit alone runs the pages of the dashboard.
    assert not (HEAVY - {"streamlit"} if part == "app" else HEAVY) & set(top_level)


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
