"""Compiles what a launch would compile, and reads off the result what a chip would have to hold."""

import importlib
import importlib.util
import pkgutil
import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler.errors import CompilationError

from ..frame import launch
from . import CompileCase

AMD = "gfx942"
# What an AMD MI300 gives a program; launch choices treat it as the oldest chip that they know.
AMD_CHIP = launch.Chip(80, 64 * launch.KIB, 304)

# How an instruction shows in PTX.
INSTRUCTIONS = {
    "mma": r"\bmma\.sync",
    "wgmma": r"\bwgmma\.mma_async",
    "tcgen05": r"\btcgen05\.mma",
    "tma": r"\bcp\.async\.bulk\.tensor",
    "cp.async": r"\bcp\.async\.c[ag]",
    "float64": r"\.f64\b",
}
# A vector of 16 bytes a thread: 4 × 32 or 2 × 64 bits; on sm_100 also 32 bytes.
WIDE = r"\b{}\.global\S*\.(?:v4\.b32|v2\.b64|v8\.b32|v4\.b64)"
ANY = r"\b{}\.global"


@dataclass(frozen=True)
class Launched:
    """A kernel of a case, for a chip."""

    op: str
    case: str
    kernel: str
    target: str

    @property
    def key(self) -> tuple[str, str, str, str]:
        return self.op, self.case, self.kernel, self.target


@dataclass(frozen=True)
class Row(Launched):
    """What one compiled kernel takes: bytes, registers a thread, numbers of load and store instructions."""

    warps: int
    registers: int
    spilled: int
    shared: int
    wide_loads: int
    narrow_loads: int
    wide_stores: int
    narrow_stores: int
    instructions: list[str]

    def as_dict(self) -> dict:
        return asdict(self)


@dataclass(frozen=True)
class Refused(Launched):
    """A kernel that Triton does not compile, and the last line of its reason."""

    reason: str


class StandIn:
    """Answers what Triton asks of a GPU driver while it compiles.

    Triton keeps compiled kernels by device index, so each target has an index of its own.
    """

    def __init__(self, index: int, target: GPUTarget):
        self.index, self.target = index, target

    def get_current_device(self) -> int:
        return self.index

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_active_torch_device(self) -> torch.device:
        return torch.device("meta")


def chip_of(target: str) -> launch.Chip:
    return AMD_CHIP if target == AMD else launch.CHIPS[int(target)]


def compile_for(target: str) -> None:
    """From here on, a launch on meta tensors compiles for ``target``."""
    gpu = GPUTarget("hip", AMD, 64) if target == AMD else GPUTarget("cuda", int(target), 32)
    triton.runtime.driver.set_active(StandIn(0 if target == AMD else int(target), gpu))
    launch.set_chip(torch.device("meta"), chip_of(target))


def compiled(case: CompileCase, target: str) -> list[tuple[str, object]]:
    """The kernels, by name, that a case launches: compiled, or Triton's error."""
    kernels = []

    def compile_launch(kernel, grid, args, options):
        if target == AMD:
            options.pop("maxnreg", None)  # NVIDIA's alone
        try:
            result = kernel.warmup(*args, grid=grid, **options)
        except CompilationError as error:
            result = error
        kernels.append((kernel.__name__, result))

    previous, launch.compile_only = launch.compile_only, compile_launch
    try:
        case.run()
    finally:
        launch.compile_only = previous
    return kernels


def measure(cases: Iterable[CompileCase], target: str) -> Iterator[tuple[Row | Refused, tuple[str, ...]]]:
    """Each kernel of each case on a target, with the instructions it lacks.

    A kernel that a case launches several times with different results (another dtype, say) is numbered.
    """
    compile_for(target)
    for case in cases:
        seen: dict[str, list[str]] = {}
        for name, kernel in compiled(case, target):
            if isinstance(kernel, CompilationError):
                reason = str(kernel).strip().splitlines()[-1].strip()
                yield Refused(case.op, case.case, name, target, reason), ()
                continue
            versions = seen.setdefault(name, [])
            if kernel.hash in versions:
                continue
            versions.append(kernel.hash)
            row_name = name if len(versions) == 1 else f"{name} {len(versions)}"
            read = _read_amd if target == AMD else _read_nvidia
            row = Row(case.op, case.case, row_name, target, kernel.metadata.num_warps, **read(kernel))
            wanted = () if target == AMD else (case.expect or {}).get(name, ())
            yield row, tuple(i for i in wanted if i not in row.instructions)


def op_families() -> list[str]:
    """The packages of llmfast.kernels that have cases to compile."""
    package = importlib.import_module(__package__.rpartition(".")[0])
    names = [info.name for info in pkgutil.iter_modules(package.__path__)]
    return [name for name in names if importlib.util.find_spec(f"{package.__name__}.{name}.compile_cases")]


def measure_family(task: tuple[str, str]) -> list[tuple[Row | Refused, tuple[str, ...]]]:
    """What became of the kernels of one family of ops on one target."""
    name, target = task
    module = importlib.import_module(f"..{name}.compile_cases", __package__)
    return list(measure(module.compile_cases(chip_of(target)), target))


def _read_nvidia(kernel) -> dict:
    ptx = kernel.asm["ptx"]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack, local = (int(re.search(rf"{n}:(\d+)", usage)[1]) for n in ("REG", "STACK", "LOCAL"))
    accesses = {}
    for kind, opcode in (("loads", "ld"), ("stores", "st")):
        wide = len(re.findall(WIDE.format(opcode), ptx))
        accesses[f"wide_{kind}"] = wide
        accesses[f"narrow_{kind}"] = len(re.findall(ANY.format(opcode), ptx)) - wide
    return {
        "registers": registers,
        "spilled": stack + local,
        "shared": kernel.metadata.shared,
        "instructions": [name for name, pattern in INSTRUCTIONS.items() if re.search(pattern, ptx)],
        **accesses,
    }


def _read_amd(kernel) -> dict:
    text = kernel.asm["amdgcn"]

    def number(name: str) -> int:
        return int(re.search(rf"\.{name}:\s+(\d+)", text)[1])

    def count(pattern: str) -> int:
        return len(re.findall(pattern, text))

    wide = {kind: count(rf"global_{kind}_dwordx4|buffer_{kind}_dwordx4") for kind in ("load", "store")}
    return {
        "registers": number("vgpr_count"),
        "spilled": 4 * (number("vgpr_spill_count") + number("sgpr_spill_count")),
        "shared": kernel.metadata.shared,
        "instructions": ["mfma"] if "v_mfma" in text else [],
        "wide_loads": wide["load"],
        "narrow_loads": count(r"(?:global|buffer)_load_") - wide["load"],
        "wide_stores": wide["store"],
        "narrow_stores": count(r"(?:global|buffer)_store_") - wide["store"],
    }
