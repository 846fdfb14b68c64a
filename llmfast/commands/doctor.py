"""What llmfast finds on this machine: compiler, extension, torch, GPU, optional libraries, what is absent."""

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
from dataclasses import asdict, dataclass
from json import dumps

# What the libraries of an extra are for.
EXTRAS = {
    "hf": "Hugging Face weights, adapters and data sets",
    "data": "Parquet and Zstandard files",
    "dedup": "documents that are nearly equal",
    "ray": "preparing data on a Ray cluster",
    "constraints": "replies that match a JSON schema or an expression",
    "gguf": "weights in GGUF files",
    "gpu-bench": "GPU benchmarks",
    "gym": "tasks of reasoning-gym",
    "app": "the dashboard",
    "eval": "tasks of lm-evaluation-harness and equality of formulas",
    "serve": "the HTTP server",
    "track": "tracking",
}


@dataclass(frozen=True)
class Finding:
    """One line of the report; ``ok`` is None for a thing that is optional and absent."""

    section: str
    name: str
    found: str
    ok: bool | None
    note: str = ""


@dataclass(frozen=True)
class OptionalLibrary:
    module: str
    requirement: str
    extra: str


def doctor(*, json: bool = False) -> None:
    """Show what llmfast finds on this machine, what is missing, and what that disables.

    Args:
        json: Print JSON for programs instead of a table.
    """
    findings = examine()
    if json:
        print(dumps([asdict(finding) for finding in findings], indent=2))
    else:
        _print_table(findings)


def examine() -> list[Finding]:
    """Looks at everything; the only function of the package that asks for a GPU without computing on it."""
    return [*_python(), *_extensions(), *_torch(), *_gpus(), *_optional()]


def optional_libraries() -> list[OptionalLibrary]:
    """The libraries that llmfast's own metadata lists under its extras, without those of tests and documentation."""
    found = {}
    for line in importlib.metadata.requires("llmfast") or []:
        match = re.match(r"([\w-]+)([^;]*);.*extra == ['\"]([\w-]+)['\"]", line)
        if match and match[3] not in ("docs", "test"):
            module = match[1].replace("-", "_")
            found[module] = OptionalLibrary(module, match[1] + match[2].strip(), match[3])
    return list(found.values())


def _python() -> list[Finding]:
    return [
        Finding("system", "Python", platform.python_version(), True),
        Finding("system", "machine", f"{platform.system()}, {platform.machine()}, {os.cpu_count()} cores", True),
        _compiler(),
    ]


def _compiler() -> Finding:
    candidates = [*os.environ.get("CXX", "").split()[:1], "c++", "g++", "clang++"]
    path = next(filter(None, map(shutil.which, candidates)), None)
    if path is None:
        return Finding("system", "C++ compiler", "none", None, "no torch.compile on the CPU")
    answer = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
    return Finding("system", "C++ compiler", (answer.splitlines() or [path])[0], True)


def _extensions() -> list[Finding]:
    return [
        _extension("C++ tokenizer", "_bpe", "tokenizers do not work"),
        _extension("C++ decoder", "_decoder", "decoding with weights packed for this CPU does not work"),
    ]


def _extension(name: str, module: str, without: str) -> Finding:
    try:
        importlib.import_module(f"llmfast.{module}")
    except ImportError as error:
        return Finding("llmfast", name, "not built", False, f"{without}: {error}")
    return Finding("llmfast", name, "built", True)


def _torch() -> list[Finding]:
    import torch

    findings = [Finding("torch", "torch", torch.__version__, True)]
    triton = _version("triton")
    note = "" if triton else "the GPU kernels are off; every op runs its PyTorch definition"
    findings.append(Finding("torch", "Triton", triton or "none", True if triton else None, note))
    cuda = torch.version.cuda
    note = "" if cuda else "this torch was built without CUDA; it cannot use an NVIDIA GPU"
    findings.append(Finding("torch", "CUDA in torch", cuda or "none", True if cuda else None, note))
    return findings


def _gpus() -> list[Finding]:
    import torch

    if not torch.cuda.is_available():
        return [Finding("GPU", "GPU", "none", None, "everything runs on the CPU, fit for small models")]
    return [_gpu(index) for index in range(torch.cuda.device_count())]


def _gpu(index: int) -> Finding:
    import torch

    gpu = torch.cuda.get_device_properties(index)
    found = (
        f"{gpu.name}, capability {gpu.major}.{gpu.minor}, {gpu.total_memory / 2**30:.0f} GiB, "
        f"{gpu.multi_processor_count} multiprocessors, "
        f"{gpu.shared_memory_per_block_optin / 1024:.0f} KiB shared memory a block"
    )
    if gpu.major < 8:
        return Finding("GPU", f"GPU {index}", found, None, "the kernels are proven on capability 8.0 and newer")
    return Finding("GPU", f"GPU {index}", found, True)


def _optional() -> list[Finding]:
    findings = []
    for library in optional_libraries():
        version = _version(library.module)
        note = "" if version else f"for {EXTRAS[library.extra]}, pip install 'llmfast[{library.extra}]'"
        findings.append(Finding("optional", library.module, version or "none", True if version else None, note))
    return findings


def _version(module: str) -> str | None:
    """The installed version of a module, found without importing it; None where it is absent."""
    if importlib.util.find_spec(module) is None:
        return None
    try:
        return importlib.metadata.version(module)
    except importlib.metadata.PackageNotFoundError:
        return "unknown version"


def _print_table(findings: list[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    marks = {True: "[green]✓[/green]", False: "[red]✗[/red]", None: "[yellow]-[/yellow]"}
    table = Table.grid(padding=(0, 2, 0, 0))
    section = findings[0].section
    for finding in findings:
        if finding.section != section:
            table.add_row()
            section = finding.section
        value = f"{finding.found}: {finding.note}" if finding.note else finding.found
        table.add_row(marks[finding.ok], finding.name, Text(value))
    Console(highlight=False).print(table)
