"""Host time per call: checking arguments, dispatching, recording for autograd, allocating, choosing a launch, and it.

"llmfast" follows the path of a CUDA tensor with tiny CPU tensors, up to the function in C that gives a launch to the
driver of the GPU: a stand-in for it does nothing. "llmfast, Triton's launch" is the same with every launch by Triton
itself, as other kernels are launched. "llmfast on CPU" is what a CPU tensor gets: the plain definition, including its
work. PyTorch's figure also includes its work, some tenths of a microsecond at these sizes. The suites of the ops report
the host time on a GPU.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from llmfast import kernels

from .. import measure
from ..compare import BOTH, FORWARD, as_tuple, one_line
from ..results import OURS, PYTORCH, Result

ON_CPU = f"{OURS} on CPU"
TRITONS_LAUNCH = f"{OURS}, Triton's launch"
DEVICE = 1000  # of the stand-in: Triton keeps compiled kernels by it, and no GPU may get these
RECORDED = "forward, recorded"  # for autograd
CALLS = 100  # per sample
B, S, H, D, E, V = 1, 4, 2, 16, 32, 64
EPS = 1e-6


@dataclass(frozen=True)
class Dispatch:
    """One op: our function, the same in PyTorch, and the tensors for both. Floating-point tensors get gradients."""

    op: str
    shape: dict[str, int]
    ours: Callable
    pytorch: Callable
    inputs: tuple[Tensor, ...]
    passes: tuple[str, ...] = (FORWARD, RECORDED, BOTH)

    def __str__(self) -> str:
        return self.op

    def run(self, device: str, rounds: int, ceilings: dict[str, float]) -> list[Result]:
        """Times each pass in host seconds per call, the functions in alternation."""
        with nothing_launched(), one_thread():
            return [result for pass_ in self.passes for result in self._run_pass(pass_, rounds)]

    def _run_pass(self, pass_: str, rounds: int) -> list[Result]:
        samplers, results = {}, []
        for name, function, path in (
            (OURS, self.ours, "triton"),
            (TRITONS_LAUNCH, self.ours, "triton"),
            (ON_CPU, self.ours, "auto"),
            (PYTORCH, self.pytorch, "auto"),
        ):
            try:
                launch = tritons_launch if name == TRITONS_LAUNCH else contextlib.nullcontext
                samplers[name] = measure.Sampler([repeated(self._call(function, pass_), path, launch)], "cpu")
            except Exception as error:
                results.append(self._result(pass_, name, "failed", one_line(error)))
        for name, timing in measure.in_turn(samplers, 3 * rounds).items():
            seconds = {key: getattr(timing, key) / CALLS for key in ("median_s", "p20_s", "p80_s")}
            results.append(self._result(pass_, name, "ok", method=timing.method, **seconds))
        return results

    def _call(self, function: Callable, pass_: str) -> measure.Call:
        inputs = [x.clone().requires_grad_(x.is_floating_point() and pass_ != FORWARD) for x in self.inputs]
        if pass_ != BOTH:
            return lambda: function(*inputs)
        leaves = [x for x in inputs if x.requires_grad]
        grads = [torch.ones_like(output) for output in as_tuple(function(*inputs))]
        return lambda: torch.autograd.grad(as_tuple(function(*inputs)), leaves, grads)

    def _result(self, pass_: str, name: str, status: str, note: str = "", **measured) -> Result:
        return Result(self.op, self.shape, "float32", pass_, name, status, note, **measured)


def repeated(call: measure.Call, path: str, launch: Callable) -> measure.Call:
    """The calls of one sample, with our ops on the given backend."""

    def calls() -> None:
        with kernels.backend(path), launch():
            for _ in range(CALLS):
                call()

    return calls


@contextlib.contextmanager
def tritons_launch() -> Iterator[None]:
    """Every launch goes the way of ``kernel[grid](...)``."""

    def launch(kernel: Any, grid: tuple, args: tuple, options: dict) -> None:
        kernel[grid](*args, **options)

    def launch_prepared(plan: Any, tensors: tuple) -> None:
        launch(plan.kernel, plan.grid, (*tensors, *plan.numbers), plan.options)

    with (
        mock.patch.object(sys.modules["llmfast.kernels.frame.launch"], "launch", launch),
        mock.patch.object(sys.modules["llmfast.kernels.frame.direct"].Prepared, "launch", launch_prepared),
    ):
        yield


@contextlib.contextmanager
def nothing_launched() -> Iterator[None]:
    """Makes kernels accept CPU tensors, of which is asked what is asked of CUDA tensors, compiles them for a chip that
    is not there, and launches them into nothing."""
    import triton
    from llmfast.kernels.compile_check.measure import StandIn
    from llmfast.kernels.frame.launch import INTERPRETER
    from triton.backends.compiler import GPUTarget
    from triton.runtime.interpreter import InterpretedFunction

    class Loader:
        def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple:
            return object(), 1, 32, 0, 1024  # module, function, registers, spills, most threads

        def get_device_properties(self, device: int) -> dict:
            return {"max_shared_mem": 2**18}

    class Driver(StandIn):
        utils = Loader()

        def launcher_cls(self, source: object, metadata: object) -> Callable:
            return lambda *launch: None

    def ask_as_of_cuda(device: torch.device) -> None:
        dispatcher._why_unsupported(0)

    def nothing(self: object, *args: object, **options: object) -> None:
        pass

    dispatcher = sys.modules["llmfast.kernels.frame.backend"]  # the name in the package is that of the public class
    chips = sys.modules["llmfast.kernels.frame.launch"]._chips
    with (
        mock.patch.dict(chips, {torch.device("cuda", 0): INTERPRETER}),
        mock.patch.object(dispatcher, "_require_triton", ask_as_of_cuda),
        mock.patch.object(triton.runtime.driver, "_active", Driver(DEVICE, GPUTarget("cuda", 80, 32))),
        mock.patch.object(InterpretedFunction, "run", nothing),
    ):
        yield


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def cases(size: str) -> Iterator[Dispatch]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    x, scale, bias, head = normal(S, E), normal(E), normal(E), normal(V, E)
    logits, target = normal(S, V), torch.arange(S)
    q, k, v = (normal(B, H, S, D) for _ in range(3))
    angles = normal(S, D // 2)
    cos, sin = angles.cos(), angles.sin()
    wide = [torch.cat((t, t), dim=-1).unsqueeze(1) for t in (cos, sin)]
    rows, attention = {"N": S, "E": E}, {"B": B, "H": H, "S": S, "D": D}

    yield Dispatch(
        "rms_norm",
        rows,
        lambda x, w: kernels.rms_norm(x, w, eps=EPS),
        lambda x, w: F.rms_norm(x, (E,), w, EPS),
        (x, scale),
    )
    yield Dispatch(
        "layer_norm",
        rows,
        lambda x, w, b: kernels.layer_norm(x, w, b, eps=EPS),
        lambda x, w, b: F.layer_norm(x, (E,), w, b, EPS),
        (x, scale, bias),
    )
    yield Dispatch("swiglu", rows, kernels.swiglu, lambda gate, up: F.silu(gate) * up, (x, x))
    yield Dispatch("geglu", rows, kernels.geglu, lambda gate, up: F.gelu(gate) * up, (x, x))
    yield Dispatch("gelu", rows, kernels.gelu, F.gelu, (x,))
    yield Dispatch(
        "rope",
        attention,
        lambda q, k: kernels.rope(q, k, cos=cos, sin=sin),
        lambda q, k: (rotated(q, *wide), rotated(k, *wide)),
        (q.transpose(1, 2), k.transpose(1, 2)),
    )
    yield Dispatch("cross_entropy", {"N": S, "V": V}, kernels.cross_entropy, F.cross_entropy, (logits, target))
    yield Dispatch(
        "linear_cross_entropy",
        {"N": S, "E": E, "V": V},
        kernels.linear_cross_entropy,
        lambda x, w, target: F.cross_entropy(F.linear(x, w), target),
        (x, head, target),
    )
    yield Dispatch(
        "flash_attention",
        attention,
        lambda q, k, v: kernels.flash_attention(q, k, v, causal=True),
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        (q, k, v),
    )
    filled = torch.full((B,), S, dtype=torch.int32)
    yield Dispatch(
        "flash_decode",
        attention | {"S": 1, "T": S},
        lambda q, k, v: kernels.flash_decode(q, k, v, filled),
        F.scaled_dot_product_attention,
        (q[:, :, -1:], k, v),
        passes=(FORWARD,),
    )
