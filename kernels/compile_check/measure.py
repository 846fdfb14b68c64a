"""Compiles what a launch would compile, and reads off the result what a chip would have to hold."""

import hashlib
import importlib
import importlib.util
import pkgutil
import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler.errors import CompilationError

from ..frame import launch
from . import CompileCase, sass

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
    "device-built tensormap": r"\btensormap\.cp_fenceproxy",
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
    """What one compiled kernel takes: bytes, registers per thread, numbers of load and store instructions.

    Args:
        products: matrix products issued over those needed, in FLOPs, in the inner loop where the two differ most; None
            without such loops.
        spilled: bytes of local memory per thread.
        loop_spills: loads and stores of local memory inside inner loops.
        overlapped: the share of exponentials that run while a product of a warp group is under way, in the shortest
            inner loop that has both, which is the one without masks; None without such loops.
        source: a hash of what decides what Triton makes: the kernel's source and that of what it calls, its arguments'
            types, its constants and options, and the target.
    """

    warps: int
    registers: int
    products: float | None
    spilled: int
    loop_spills: int
    overlapped: float | None
    shared: int
    wide_loads: int
    narrow_loads: int
    wide_stores: int
    narrow_stores: int
    instructions: list[str]
    source: str

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


class Compiled(NamedTuple):
    """A kernel as Triton compiled it, or what the table says of the same source."""

    source: str
    result: object


class Compiler:
    """Stands before Triton's compiler: sources that are known already are not compiled again.

    Args:
        known: rows of the table by their source; whatever case they are of, they say what Triton makes of it.
    """

    def __init__(self, known: Mapping[str, Row]):
        self.known = known
        self.compile = triton.compiler.compile

    def __call__(self, src, target, options, **more) -> Compiled:
        # The path of the installed library that comes with Triton is no part of what decides.
        chosen = sorted((name, str(value)) for name, value in options.items() if name != "extern_libs")
        source = hashlib.sha256(f"{src.hash()} {target} {chosen}".encode()).hexdigest()[:16]
        if source in self.known:
            return Compiled(source, self.known[source])
        return Compiled(source, self.compile(src, target=target, options=options, **more))


def compile_for(target: str, known: Mapping[str, Row] = MappingProxyType({})) -> None:
    """From here on, a launch on meta tensors compiles for ``target``, unless its source is ``known``."""
    gpu = GPUTarget("hip", AMD, 64) if target == AMD else GPUTarget("cuda", int(target), 32)
    triton.runtime.driver.set_active(StandIn(0 if target == AMD else int(target), gpu))
    launch.set_chip(torch.device("meta"), chip_of(target))
    if not isinstance(triton.compiler.compile, Compiler):
        triton.compiler.compile = Compiler(known)
    triton.compiler.compile.known = known


def compiled(case: CompileCase, target: str) -> list[tuple[str, Compiled | CompilationError]]:
    """The kernels, by name, that a case launches: compiled or known, or Triton's error."""
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


def measure(
    cases: Iterable[CompileCase], target: str, known: Mapping[str, Row] = MappingProxyType({})
) -> Iterator[tuple[Row | Refused, list[str]]]:
    """Each kernel of each case on a target, with what it lacks of that which its case asks for.

    A kernel that a case launches several times with different results (another dtype, say) is numbered. Kernels whose
    source is ``known`` are not compiled.
    """
    compile_for(target, known)
    for case in cases:
        seen: dict[str, list[str]] = {}
        for name, kernel in compiled(case, target):
            if isinstance(kernel, CompilationError):
                reason = str(kernel).strip().splitlines()[-1].strip()
                yield Refused(case.op, case.case, name, target, reason), []
                continue
            versions = seen.setdefault(name, [])
            if kernel.source in versions:
                continue
            versions.append(kernel.source)
            launched = Launched(case.op, case.case, name if len(versions) == 1 else f"{name} {len(versions)}", target)
            row = _row(launched, kernel)
            yield row, [] if target == AMD else _unmet(case, name, row)


def _row(launched: Launched, kernel: Compiled) -> Row:
    if isinstance(kernel.result, Row):
        return replace(kernel.result, **asdict(launched))
    read = _read_amd if launched.target == AMD else _read_nvidia
    found = {"warps": kernel.result.metadata.num_warps, **read(kernel.result)}
    return Row(**asdict(launched), **found, source=kernel.source)


def _unmet(case: CompileCase, name: str, row: Row) -> list[str]:
    expected, avoided = ((each or {}).get(name, ()) for each in (case.expect, case.avoid))
    found = [f"does not use {each}" for each in expected if each not in row.instructions]
    found += [f"uses {each}" for each in avoided if each in row.instructions]
    share = (case.overlap or {}).get(name, 0.0)
    if share and (row.overlapped or 0.0) < share:
        found.append(f"runs {row.overlapped or 0.0:.0%} of its exponentials beside products, not {share:.0%}")
    return found


def op_families() -> list[str]:
    """The packages of llmfast.kernels that have cases to compile."""
    package = importlib.import_module(__package__.rpartition(".")[0])
    names = [info.name for info in pkgutil.iter_modules(package.__path__)]
    return [name for name in names if importlib.util.find_spec(f"{package.__name__}.{name}.compile_cases")]


def measure_family(task: tuple[str, str, Mapping[str, Row]]) -> list[tuple[Row | Refused, list[str]]]:
    """What became of the kernels of one family of ops on one target; the known ones are not compiled."""
    name, target, known = task
    module = importlib.import_module(f"..{name}.compile_cases", __package__)
    return list(measure(module.compile_cases(chip_of(target)), target, known))


def _read_nvidia(kernel) -> dict:
    ptx = kernel.asm["ptx"]
    usage = _of_cubin(kernel, triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage")
    registers, stack, local = (int(re.search(rf"{n}:(\d+)", usage)[1]) for n in ("REG", "STACK", "LOCAL"))
    accesses = {}
    for kind, opcode in (("loads", "ld"), ("stores", "st")):
        wide = len(re.findall(WIDE.format(opcode), ptx))
        accesses[f"wide_{kind}"] = wide
        accesses[f"narrow_{kind}"] = len(re.findall(ANY.format(opcode), ptx)) - wide
    return {
        "registers": registers,
        "spilled": stack + local,
        **_read_loops(kernel),
        "shared": kernel.metadata.shared,
        "instructions": [name for name, pattern in INSTRUCTIONS.items() if re.search(pattern, ptx)],
        **accesses,
    }


def disassemble(kernel) -> str:
    return _of_cubin(kernel, triton.knobs.nvidia.nvdisasm.path, "-c")


def _of_cubin(kernel, *command: str) -> str:
    """What one of NVIDIA's tools says of a compiled kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        return subprocess.run([*command, file.name], capture_output=True, text=True, check=True).stdout


def _read_loops(kernel) -> dict:
    disassembly = disassemble(kernel)
    inner = sass.product_loops(disassembly)
    by_length = sorted(inner, key=lambda loop: len(loop.instructions))
    covered, total = next((each for each in (loop.exponentials() for loop in by_length) if each[1]), (0, 0))
    # Where warps are specialized, each loop is run by as many as one of their groups has, not by all of the program.
    warps = int(re.search(r'"ttg.num-warps" = (\d+)', kernel.asm["ttgir"])[1])
    issued = [sass.issued(loop, warps) for loop in inner]
    return {
        "products": sass.repetition(issued, sass.needed(kernel.asm["ttgir"])),
        "loop_spills": sum(loop.spills for loop in sass.inner_loops(disassembly)),
        "overlapped": round(covered / total, 2) if total else None,
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
        "products": None,
        "spilled": 4 * (number("vgpr_spill_count") + number("sgpr_spill_count")),
        "loop_spills": 0,
        "overlapped": None,
        "shared": kernel.metadata.shared,
        "instructions": ["mfma"] if "v_mfma" in text else [],
        "wide_loads": wide["load"],
        "narrow_loads": count(r"(?:global|buffer)_load_") - wide["load"],
        "wide_stores": wide["store"],
        "narrow_stores": count(r"(?:global|buffer)_store_") - wide["store"],
    }
