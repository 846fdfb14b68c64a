"""Optimizer steps: AdamW on a list of parameters, with float32 and 8-bit moments, and the iteration of Muon.

AdamW is bound by memory. Every call updates in place and thus continues from the previous one. A list of tensors is
passed as the rows of one tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from llmfast.kernels import adamw_, adamw_8bit_, newton_schulz
from llmfast.kernels.optimizers import adamw_reference as definition
from llmfast.kernels.optimizers import newton_schulz_reference as iteration
from llmfast.kernels.optimizers.newton_schulz import COEFFICIENTS

from ..compare import FORWARD, Case
from ..contenders import Contender, given
from ..results import OURS

LR, BETAS, EPS, DECAY = 1e-3, (0.9, 0.95), 1e-8, 0.1
SETTINGS = {"lr": LR, "betas": BETAS, "eps": EPS, "weight_decay": DECAY}
STEP = 100  # updates before the first call


def lists(size: str) -> list[tuple[int, int]]:
    """(tensors, elements per tensor): the matrices of a few blocks, a few large tensors, and many small ones, where the
    number of launches matters."""
    if size == "tiny":
        return [(3, 4096)]
    if size.startswith("cpu"):
        return [(1, 2**19)]
    quick = [(24, 2**24)]
    return quick if size == "quick" else [*quick, (2, 2**28), (400, 2**14)]


def stacks(size: str) -> list[tuple[int, int, int]]:
    """Matrices (B, R, C) of one shape."""
    if size == "tiny":
        return [(3, 24, 40)]
    if size.startswith("cpu"):  # the smallest preset
        return [(3, 384, 128), (3, 128, 128), (3, 704, 128), (3, 128, 352)]
    quick = [(4, 4096, 4096)]
    return quick if size == "quick" else [*quick, (4, 14336, 4096), (24, 1024, 1024), (96, 384, 128)]


def cases(size: str) -> Iterator[Case]:
    for tensors, elements in lists(size):
        yield adamw_case(tensors, elements, torch.float32)
        yield adamw_case(tensors, elements, torch.bfloat16)
        yield adamw_8bit_case(tensors, elements)
    for shape in stacks(size):
        yield newton_schulz_case(*shape)


def adamw_case(tensors: int, elements: int, dtype: torch.dtype) -> Case:
    def inputs(g):
        def normal():
            return torch.randn(tensors, elements, generator=g, device=g.device)

        steps = torch.full((tensors,), float(STEP), device=g.device)
        return {
            "param": normal().to(dtype),
            "grad": normal().to(dtype),
            "mean": normal(),
            "square": normal().square(),
            "step": steps,
        }

    def ours(seed: int | None = None) -> Callable:
        def update(param, grad, mean, square, step):
            adamw_(*(x.unbind() for x in (param, grad, mean, square, step)), **SETTINGS, seed=seed)
            return param

        return update

    def fused(param, grad, mean, square, step):
        from torch.optim.adamw import adamw

        rows = ([*x.unbind()] for x in (param, grad, mean, square))
        settings = {"lr": LR, "beta1": BETAS[0], "beta2": BETAS[1], "eps": EPS, "weight_decay": DECAY}
        adamw(*rows, [], [*step.unbind()], fused=True, amsgrad=False, maximize=False, **settings)
        return param

    contenders = [given(OURS, ours()), given("PyTorch", written_out)]
    if dtype == torch.bfloat16:
        contenders.append(given(f"{OURS}, stochastic", ours(seed=0)))
    else:  # PyTorch's moments have the dtype of the parameters
        contenders.append(given("PyTorch fused", fused))
    moved = tensors * elements * (3 * dtype.itemsize + 16)
    return Case(
        op="adamw",
        shape={"tensors": tensors, "elements": elements},
        dtype=dtype,
        inputs=inputs,
        exact=written_out,
        plain=written_out,
        contenders=contenders,
        work={FORWARD: (moved, 15 * tensors * elements)},
        constant=frozenset(("param", "grad", "mean", "square", "step")),
    )


def written_out(param, grad, mean, square, step):
    """AdamW written out in PyTorch, without waiting for the device."""
    step += 1
    g = grad.to(mean.dtype)
    mean.lerp_(g, 1 - BETAS[0])
    square.lerp_(g * g, 1 - BETAS[1])
    corrections = (1 - beta ** step[:, None] for beta in BETAS)
    first, second = corrections
    param.mul_(1 - LR * DECAY).sub_(LR / first * mean / (square.sqrt() / second.sqrt() + EPS))
    return param


def adamw_8bit_case(tensors: int, elements: int) -> Case:
    dtype = torch.bfloat16
    names = ("param", "grad", "mean", "square", "largest_mean", "largest_square", "step")

    def inputs(g):
        shape, blocks = (tensors, elements), (tensors, -(-elements // definition.BLOCK))
        device = g.device

        def codes():
            return torch.randint(256, shape, generator=g, device=device, dtype=torch.uint8)

        tensors_of = (
            torch.randn(shape, generator=g, device=device).to(dtype),
            torch.randn(shape, generator=g, device=device).to(dtype),
            *(codes(), codes(), torch.ones(blocks, device=device), torch.ones(blocks, device=device)),
            torch.full((tensors,), float(STEP), device=device),
        )
        return dict(zip(names, tensors_of, strict=True))

    def ours(seed: int | None = None) -> Callable:
        def update(**inputs):
            adamw_8bit_(*(inputs[name].unbind() for name in names), **SETTINGS, seed=seed)
            return inputs["param"]

        return update

    def plain(param, mean, square, largest_mean, largest_square, **rest):
        """Decodes the moments, updates, and encodes them again, one tensor after the other."""
        tables = (definition.dynamic_code(signed).to(param.device) for signed in (True, False))
        moments = [
            definition.decode(code.flatten(), largest.flatten(), table).view(param.shape)
            for code, largest, table in zip((mean, square), (largest_mean, largest_square), tables, strict=True)
        ]
        written_out(param, rest["grad"], *moments, rest["step"])
        for signed, code, largest, moment in (
            (True, mean, largest_mean, moments[0]),
            (False, square, largest_square, moments[1]),
        ):
            table = definition.dynamic_code(signed).to(param.device)
            new = definition.encode(moment.flatten(), table)
            code.copy_(new[0].view_as(code))
            largest.copy_(new[1].view_as(largest))
        return param

    def bitsandbytes():
        from bitsandbytes.functional import optimizer_update_8bit_blockwise

        tables = {}

        def update(**inputs):
            param = inputs["param"]
            if param.device not in tables:
                tables[param.device] = [definition.dynamic_code(s).to(param.device) for s in (True, False)]
            for p, g, m, v, a, b, _ in zip(*(inputs[name].unbind() for name in names), strict=True):
                decay = (*BETAS, 0.0, 0.0, EPS, STEP + 1, LR, *tables[param.device], a, b, DECAY)
                optimizer_update_8bit_blockwise("adam", g, p, m, v, *decay)
            return param

        return update

    moved = tensors * elements * (3 * dtype.itemsize + 4) + 16 * tensors * (elements // definition.BLOCK)
    return Case(
        op="adamw_8bit",
        shape={"tensors": tensors, "elements": elements},
        dtype=dtype,
        inputs=inputs,
        exact=plain,
        plain=plain,
        contenders=[
            given(OURS, ours()),
            given(f"{OURS}, stochastic", ours(seed=0)),
            given("PyTorch", plain),
            Contender("bitsandbytes", bitsandbytes, "bitsandbytes"),
        ],
        work={FORWARD: (moved, 60 * tensors * elements)},
        constant=frozenset(names),
    )


def newton_schulz_case(B: int, R: int, C: int, dtype: torch.dtype = torch.bfloat16) -> Case:
    def exact(x):
        return iteration.newton_schulz(x, 5, COEFFICIENTS, 1e-7, torch.float64)

    def one_by_one(x):
        from torch.optim._muon import _zeropower_via_newtonschulz

        return torch.stack([_zeropower_via_newtonschulz(matrix, COEFFICIENTS, 5, 1e-7) for matrix in x])

    def stacked(x):
        return iteration.newton_schulz(x, 5, COEFFICIENTS, 1e-7, dtype)

    n, m = min(R, C), max(R, C)
    moved = 2 * B * R * C * dtype.itemsize
    return Case(
        op="newton_schulz",
        shape={"B": B, "R": R, "C": C},
        dtype=dtype,
        inputs=lambda g: {"x": torch.randn(B, R, C, generator=g, device=g.device).to(dtype)},
        exact=exact,
        plain=one_by_one,
        contenders=[
            given(OURS, lambda x: newton_schulz(x, dtype=dtype)),
            given("PyTorch Muon", one_by_one),
            given("PyTorch, stacked", stacked),
        ],
        work={FORWARD: (moved, 5 * B * (4 * n * n * m + 2 * n**3))},
        constant=frozenset(("x",)),
    )
