"""Measurements and their files: one JSON schema for every suite, written atomically."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from llmfast.pipeline.machine import cpuinfo, processor

SCHEMA = 1
OURS, PYTORCH = "llmfast", "PyTorch"
ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "benchmarks" / "results"
TEXT = "text"  # used in place of a dtype
STATUSES = ("ok", "wrong", "failed", "missing", "skipped")
# Libraries whose installed versions are recorded, because figures may depend on them.
LIBRARIES = (
    "llmfast",
    "torch",
    "triton",
    "numpy",
    "transformers",
    "peft",
    "trl",
    "lm-eval",
    "liger-kernel",
    "cut-cross-entropy",
    "flash-attn",
    "bitsandbytes",
    "ctranslate2",
    "node-llama-cpp",
)
NODE_MODULES = "LLMFAST_NODE_MODULES"  # names the folder of Node's packages, among them node-llama-cpp
TEXT_LIBRARIES = (
    "llmfast", "tiktoken", "tokenizers", "fastokens", "gigatoken", "toktok-rs", "quicktok-v1", "rs-bpe", "rustbpe",
    "ffbpe",
)  # fmt: skip
INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")  # instruction sets that are recorded


@dataclass(frozen=True)
class Result:
    """One contender on one pass of one op at one shape. Times are seconds per call; None means not measured.

    For a status other than ``ok``, ``note`` gives the reason. A contender is ``wrong`` if its ``error`` (the relative
    error of its worst tensor against float64) exceeds ``allowed_error``; it is timed, but never counts as the best.
    """

    op: str
    shape: dict[str, int]
    dtype: str
    pass_: str
    contender: str
    status: str
    note: str = ""
    method: str = ""  # "graph": CUDA-graph replays; "events": launched by the host; "clock": the CPU's clock
    median_s: float | None = None
    p20_s: float | None = None
    p80_s: float | None = None
    bytes: int | None = None  # minimum traffic: each input read once, each output written once
    flops: int | None = None
    tokens: int | None = None  # per call, if a job is measured
    samples: int | None = None  # per call, if the speed of a job is that of whole samples
    fraction_of_copy: float | None = None  # fraction of the copy bandwidth measured in this run
    fraction_of_gemm: float | None = None  # fraction of the matrix product's rate measured in this run
    peak_bytes: int | None = None  # of forward and backward together, or of the job, above what was allocated before
    host_s: float | None = None  # host time per call, without waiting for the device
    error: float | None = None
    allowed_error: float | None = None
    perplexity: float | None = None  # of held-out text, where that is what was measured

    def __post_init__(self) -> None:
        assert self.status in STATUSES, self.status

    @property
    def key(self) -> tuple:
        """Results with the same key are compared: op, pass, dtype and shape."""
        return self.op, self.pass_, self.dtype, tuple(self.shape.items())

    def to_json(self) -> dict[str, Any]:
        return {name.rstrip("_"): value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Result:
        names = {field.name.rstrip("_"): field.name for field in fields(cls)}
        return cls(**{names[name]: value for name, value in row.items()})


@dataclass
class Report:
    """The results of one run of one suite, with what is needed to judge them."""

    suite: str
    size: str
    machine: dict[str, Any]
    ceilings: dict[str, float]
    results: list[Result] = field(default_factory=list)
    not_run: dict[str, str] = field(default_factory=dict)  # case -> why
    measured: list[str] = field(default_factory=list)  # cases
    inputs: dict[str, str] = field(default_factory=dict)  # text -> its origin

    @property
    def file_name(self) -> str:
        """Quick runs and rehearsals have names of their own, so that they do not replace a full run."""
        where = self.machine.get("gpu") or f"cpu {self.machine['processor']}"
        machine = re.sub(r"[^a-z0-9]+", "-", where.lower()).strip("-")
        return f"{machine}-{self.suite}{'' if self.size in ('full', 'cpu') else f'-{self.size}'}.json"

    def write(self, folder: Path) -> Path:
        content = {"schema": SCHEMA, **vars(self), "results": [result.to_json() for result in self.results]}
        return write_json(folder / self.file_name, content)


def write_json(path: Path, content: Any) -> Path:
    """Writes the file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}.tmp")
    unfinished.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(unfinished, path)
    return path


def read(path: Path) -> Report:
    content = json.loads(path.read_text(encoding="utf-8"))
    schema = content.pop("schema", None)
    if schema != SCHEMA:
        raise ValueError(f"{path} has schema {schema}, this program reads schema {SCHEMA}")
    content["results"] = [Result.from_json(row) for row in content["results"]]
    return Report(**content)


def read_all(folder: Path) -> list[Report]:
    return [read(path) for path in sorted(folder.glob("*.json"))]


def describe_machine(device: str, libraries: Sequence[str] = LIBRARIES) -> dict[str, Any]:
    """Hardware, driver, versions, revision and time."""
    machine = {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "system": platform.platform(),
        "processor": processor(),
        "instructions": instructions(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "revision": _git_revision(),
        "versions": {name: version for name in libraries if (version := _version(name))},
        "gpu": None,
    }
    return machine | (_describe_gpu() if device == "cuda" else {})


def _describe_gpu() -> dict[str, Any]:
    import torch

    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": properties.L2_cache_size,
        "cuda": torch.version.cuda,
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
    }


def _version(library: str) -> str | None:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        description = Path(os.environ.get(NODE_MODULES, "")) / library / "package.json"
        return json.loads(description.read_text(encoding="utf-8"))["version"] if description.is_file() else None


def instructions() -> list[str]:
    """The INSTRUCTIONS that this processor has, if the system reports them."""
    flags = re.findall(r"^flags\s*:\s*(.+)$", cpuinfo(), re.MULTILINE)
    return [name for name in INSTRUCTIONS if flags and name in flags[0].split()]


def has_bfloat16() -> bool:
    """Whether this CPU multiplies in bfloat16. On x86 without AVX-512 BF16 or AMX, PyTorch is ten times as slow as in
    float32."""
    return platform.machine() != "x86_64" or bool({"avx512_bf16", "amx_bf16"} & set(instructions()))


def _git_revision() -> str | None:
    revision = _output("git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD")
    changed = revision and _output("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no")
    return f"{revision} with changes" if changed else revision


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
