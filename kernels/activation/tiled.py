"""A feed-forward layer, or any function of single tokens, on some tokens at a time."""

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..frame.dtypes import widen


def tiled_mlp(mlp: nn.Module, x: Tensor, tiles: int | None = None) -> Tensor:
    """``mlp(x)``, with the memory that ``mlp`` needs for one tile of the tokens at a time.

    Of a long sequence, what a feed-forward layer keeps for its backward pass is several times as large as its input.
    Here nothing of it is kept: the backward pass computes each tile again (Arctic Long Sequence Training,
    arXiv:2506.13996; in Liger Kernel ``apply_tiled_mlp``). The time is that of activation checkpointing, one forward
    pass more. Gradients of parameters are summed over the tiles in float32 and rounded once.

    Args:
        mlp: computes each token alone, as feed-forward layers do; its result may be of another width than x. When it is
            computed again, dropout draws the same numbers, and autocast is as it was.
        x: (..., S, E), any floating dtype. The tiles are of whole rows of S.
        tiles: how many; S / E, rounded up, if left out, which makes a tile about square.

    Returns:
        what ``mlp(x)`` returns, with gradients for x and the parameters. Second derivatives are refused.

    Raises:
        ValueError: for x without a dimension of tokens, and fewer tiles than one.

    Example::

        mlp = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.GELU(), torch.nn.Linear(256, 64))
        out = tiled_mlp(mlp, torch.randn(2, 1000, 64), tiles=8)
        out.sum().backward()
    """
    if x.dim() < 2 or not x.is_floating_point():
        raise ValueError(f"x must be floating-point numbers (..., S, E), got {x.dtype} of shape {tuple(x.shape)}")
    if tiles is None:
        tiles = -(-x.shape[-2] // max(x.shape[-1], 1))
    elif tiles < 1:
        raise ValueError(f"tiles must be at least 1, got {tiles}")
    parameters = [p for p in mlp.parameters() if p.requires_grad]
    return _Tiled.apply(mlp, max(tiles, 1), x, *parameters)


class _Tiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mlp: nn.Module, tiles: int, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.mlp, ctx.tiles, ctx.parameters = mlp, tiles, len(parameters)
        ctx.state = _State.now(x)
        ctx.save_for_backward(x, *parameters)
        return torch.cat([mlp(part) for part in x.chunk(tiles, dim=-2)], dim=-2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, *parameters = ctx.saved_tensors
        parts, grads = x.chunk(ctx.tiles, dim=-2), grad.chunk(ctx.tiles, dim=-2)
        wants_x = ctx.needs_input_grad[2]
        grad_x = []
        sums: list[Tensor | None] = [None] * len(parameters)
        with ctx.state.again(x):
            for part, some in zip(parts, grads, strict=True):
                leaf = part.detach().requires_grad_(wants_x)
                with torch.enable_grad():
                    out = ctx.mlp(leaf)
                wanted = [leaf, *parameters] if wants_x else parameters
                found = list(torch.autograd.grad(out, wanted, some, allow_unused=True))
                if wants_x:
                    grad_x.append(found.pop(0))
                for i, gradient in enumerate(found):
                    if gradient is not None:
                        so_far = sums[i]
                        sums[i] = widen(gradient) if so_far is None else so_far + gradient
        rounded = (None if s is None else s.to(p.dtype) for s, p in zip(sums, parameters, strict=True))
        return None, None, torch.cat(grad_x, dim=-2) if wants_x else None, *rounded


class _State(NamedTuple):
    """What a function's result depends on beside its arguments."""

    random: Tensor
    random_of_device: Tensor | None
    autocast: tuple[bool, torch.dtype]

    @classmethod
    def now(cls, x: Tensor) -> "_State":
        kind = x.device.type
        device = torch.cuda.get_rng_state(x.device) if x.is_cuda else None
        return cls(torch.get_rng_state(), device, (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)))

    @contextlib.contextmanager
    def again(self, x: Tensor) -> Iterator[None]:
        enabled, dtype = self.autocast
        with torch.random.fork_rng([x.device] if x.is_cuda else []), torch.autocast(x.device.type, dtype, enabled):
            torch.set_rng_state(self.random)
            if self.random_of_device is not None:
                torch.cuda.set_rng_state(self.random_of_device, x.device)
            yield
