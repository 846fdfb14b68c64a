"""Measures time and memory: CUDA-graph replays with a cold L2 cache, contenders in alternation, medians.

On a CPU the same functions time calls with the host's clock, so that a suite can be tried without a GPU.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
import re
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

Call = Callable[[], object]
SAMPLE_SECONDS = 1e-3  # a sample repeats its calls to last about this long
MOST_REPEATS = 50
HEAD_START_CYCLES = (
    400_000  # about 0.2 ms in which the host queues a sample, so that the device never waits for the host
)


@dataclass(frozen=True)
class Timing:
    median_s: float
    p20_s: float
    p80_s: float
    method: str


@contextlib.contextmanager
def own_stream(device: str) -> Iterator[None]:
    """A stream other than the default one, as graph capture needs; a backward pass runs on the stream of its forward
    pass."""
    if device != "cuda":
        yield
        return
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        yield
    torch.cuda.synchronize()


def input_sets(input_bytes: int, device: str) -> int:
    """The number of copies of the inputs to rotate through, so that none is in the L2 cache when it is used."""
    if device != "cuda":
        return 1
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    if input_bytes > 16 * cache:  # a call then evicts its own first inputs
        return 1
    return min(max(2, math.ceil(3 * cache / max(input_bytes, 1))), 24)


class Sampler:
    """Samples the seconds per call of ``calls``, which do the same work on different inputs.

    A ``long`` call has run before, is a sample by itself, and is not captured in a graph.
    """

    def __init__(self, calls: list[Call], device: str, *, long: bool = False):
        self.calls, self.device, self.repeats = calls, device, 1
        if long:
            self.play, self.method = self._one_by_one, "events" if device == "cuda" else "clock"
            return
        for call in calls:  # compiles and allocates
            call()
        self.play, self.method = self._player()
        once = self.sample() * len(calls)
        self.repeats = min(max(1, math.ceil(SAMPLE_SECONDS / max(once, 1e-9))), MOST_REPEATS)
        if device == "cpu":
            self.repeats = 1

    def _one_by_one(self) -> None:
        for call in self.calls:
            call()

    def sample(self) -> float:
        elapsed = self._on_gpu() if self.device == "cuda" else self._on_cpu()
        return elapsed / (self.repeats * len(self.calls))

    def _on_cpu(self) -> float:
        start = time.perf_counter()
        for _ in range(self.repeats):
            self.play()
        return time.perf_counter() - start

    def _on_gpu(self) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(HEAD_START_CYCLES)
        start.record()
        for _ in range(self.repeats):
            self.play()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    def _player(self) -> tuple[Call, str]:
        if self.device != "cuda":
            return self._one_by_one, "clock"
        if waits_for_device(self.calls[0]):
            return self._one_by_one, "events"
        try:
            graph = captured(self.calls)
        except RuntimeError:  # Some peers cannot be captured; their users launch them from the host as well.
            torch.cuda.synchronize()
            return self._one_by_one, "events"
        graph.replay()
        return graph.replay, "graph"


def captured(calls: list[Call]) -> torch.cuda.CUDAGraph:
    """Captures all calls, one after the other, in one graph."""
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        # Outputs are kept: a call that reused the memory of the previous one would find it in the cache.
        kept = [call() for call in calls]
    del kept
    return graph


def waits_for_device(call: Call) -> bool:
    """Whether the call synchronizes with the host, which cannot be captured in a graph."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        return True
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return False


def in_turn(samplers: dict[str, Sampler], rounds: int) -> dict[str, Timing]:
    """Samples each of them once per round, so that a slow moment of the machine affects all of them."""
    samples = {name: [] for name in samplers}
    for _ in range(rounds):
        for name, sampler in samplers.items():
            samples[name].append(sampler.sample())
    return {name: _timing(samples[name], sampler.method) for name, sampler in samplers.items()}


def _timing(samples: list[float], method: str) -> Timing:
    ordered = sorted(samples)
    last = len(ordered) - 1
    return Timing(statistics.median(ordered), ordered[round(0.2 * last)], ordered[round(0.8 * last)], method)


def host_seconds(call: Call, device: str) -> float | None:
    """Seconds that the host spends on a call without waiting for its result. None on a CPU, where the work is
    included."""
    if device != "cuda":
        return None
    call()
    torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    torch.cuda.synchronize()
    calls = min(max(1, int(0.05 / (time.perf_counter() - start))), 20)
    rounds = []
    for _ in range(3):
        start = time.perf_counter()
        for _ in range(calls):
            call()
        rounds.append((time.perf_counter() - start) / calls)
        torch.cuda.synchronize()
    return statistics.median(rounds)


def peak_bytes(call: Call, device: str) -> int | None:
    """Peak memory of a call, its result included, above what was allocated before it. The call must have run once. None
    if the system does not report it (on a CPU, Linux does)."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    try:
        ctypes.CDLL(None).malloc_trim(0)  # memory that is freed but kept would hide new allocations
        RESET_PEAK.write_text("5")
        before = _resident()["VmRSS"]
        call()
        return _resident()["VmHWM"] - before
    except (OSError, AttributeError, KeyError):
        return None


RESET_PEAK, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def _resident() -> dict[str, int]:
    """Bytes of resident memory of the process now (VmRSS) and at its peak (VmHWM)."""
    found = re.findall(r"^(VmHWM|VmRSS):\s+(\d+) kB$", STATUS.read_text(), re.MULTILINE)
    return {name: 1024 * int(size) for name, size in found}


def ceilings(device: str, tiny: bool = False, rounds: int = 20) -> dict[str, float]:
    """Measures what this machine reaches now: bytes per second of a copy, reading and writing; operations per second of
    a matrix product by dtype, of random numbers because zeros draw less power and run faster."""
    elements, size = (2**29, 8192) if device == "cuda" else (2**20, 128) if tiny else (2**25, 1024)
    source = torch.randint(2**15, (elements,), device=device, dtype=torch.int16)
    copy = torch.empty_like(source)
    a, b = (torch.randn(size, size, device=device) for _ in range(2))
    operands = {dtype: (a.to(dtype), b.to(dtype)) for dtype in (torch.bfloat16, torch.float32)}
    with own_stream(device):
        samplers = {"copy": Sampler([lambda: copy.copy_(source)], device)}
        for dtype, (x, y) in operands.items():
            samplers[name_of(dtype)] = Sampler([functools.partial(torch.matmul, x, y)], device)
        # Fewer where a product takes seconds, as in bfloat16 on a processor without instructions for it.
        slowest = max(sampler.sample() * sampler.repeats for sampler in samplers.values())
        timings = in_turn(samplers, min(rounds, max(3, int(5 / slowest))))
    products = {f"{name_of(dtype)}_flops_per_s": timings[name_of(dtype)].median_s for dtype in operands}
    return {
        "copy_bytes_per_s": 2 * source.nbytes / timings["copy"].median_s,
        **{name: 2 * size**3 / seconds for name, seconds in products.items()},
    }


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def fractions(ceilings: dict[str, float], dtype: str, work: tuple[int, int], seconds: float) -> dict[str, float]:
    """Fractions of the copy's and the matrix product's rate. Dtypes that were not measured are compared with
    bfloat16."""
    moved, operations = work
    product = ceilings.get(f"{dtype}_flops_per_s", ceilings["bfloat16_flops_per_s"])
    return {
        "fraction_of_copy": moved / seconds / ceilings["copy_bytes_per_s"],
        "fraction_of_gemm": operations / seconds / product,
    }
