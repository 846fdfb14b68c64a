"""One low-rank update of a weight, and all updates that one adapter makes to one layer.

Beside the shape letters of ``decoder.py``: K inputs and N outputs of a layer, R rank of an adapter.
"""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from llmfast.kernels import NF4Tensor, dequantize_nf4, lora_linear, nf4_linear

Weight = Tensor | NF4Tensor
"""(N, K), frozen in 4 bits or not."""

WHOLE = "whole"  # the update of all rows of a weight


class Lora(nn.Module):
    """The update ``scale · B · A`` of some rows of a weight; with DoRA, the lengths of the updated rows as well.

    Args:
        rows: how many rows of the weight are updated: B is (rows, R).
        width: K: A is (R, K).
        start: the first of these rows.
        scale: factor on the update.
        dropout: probability of dropping an element of what enters.
        dora: train the length of each row.
        pissa: the update is ``scale · (B · A − B₀ · A₀)`` with what A and B start as.
    """

    initial_a: Tensor | None
    initial_b: Tensor | None

    def __init__(
        self,
        rows: int,
        width: int,
        rank: int,
        *,
        start: int = 0,
        scale: float = 1.0,
        dropout: float = 0.0,
        dora: bool = False,
        pissa: bool = False,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__()
        like = {"device": device, "dtype": dtype}
        self.start, self.scale, self.dropout = start, scale, dropout
        self.a = nn.Parameter(torch.zeros(rank, width, **like))
        self.b = nn.Parameter(torch.zeros(rows, rank, **like))
        self.register_parameter("magnitude", nn.Parameter(torch.ones(rows, **like)) if dora else None)
        for name, factor in (("initial_a", self.a), ("initial_b", self.b)):
            self.register_buffer(name, torch.zeros_like(factor, requires_grad=False) if pissa else None)
        # The processes that have other columns of A, if it is divided (tensor parallel).
        self.group: dist.ProcessGroup | None = None

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    @property
    def stop(self) -> int:
        """The row behind the last one."""
        return self.start + self.b.shape[0]

    @property
    def drops(self) -> bool:
        """Whether elements are dropped in this pass."""
        return self.training and self.dropout > 0

    @torch.no_grad()
    def begin(self, rows: Tensor, generator: torch.Generator | None) -> None:
        """Set A, B and the magnitude to where training starts on ``rows`` (N, K) of the weight."""
        if self.a.is_meta or rows.is_meta:
            return
        if self.initial_a is not None and self.initial_b is not None:
            a, b = _principal(rows.to(self.a.dtype), self.rank, self.scale)
            for factor, initial, value in ((self.a, self.initial_a, a), (self.b, self.initial_b, b)):
                factor.copy_(value)
                initial.copy_(value)
        else:
            # As torch.nn.Linear draws its weight; on the CPU, so that every device starts from the same numbers.
            bound = 1 / math.sqrt(self.a.shape[1])
            self.a.copy_(torch.empty(self.a.shape).uniform_(-bound, bound, generator=generator))
        if self.magnitude is not None:
            self.magnitude.copy_(self.row_norms(rows))

    def factors(self) -> tuple[Tensor, Tensor]:
        """A and B whose product the update is, of twice the rank with ``pissa``."""
        if self.initial_a is None:
            return self.a, self.b
        return torch.cat([self.a, self.initial_a]), torch.cat([self.b, -self.initial_b], 1)

    def delta(self) -> Tensor:
        """``scale · B · A`` (N, K)."""
        a, b = self.factors()
        return self.scale * (b @ a)

    @torch.no_grad()
    def row_norms(self, rows: Tensor) -> Tensor:
        """The lengths of the updated rows, (N,): a constant in the backward pass (DoRA, section 4.3)."""
        updated = rows.to(self.a.dtype) + self.delta()
        if self.group is None:
            return torch.linalg.vector_norm(updated, dim=1)
        squares = updated.square().sum(1)
        dist.all_reduce(squares, group=self.group)
        return squares.sqrt()

    def updated(self, rows: Tensor) -> Tensor:
        """``rows`` (N, K) of the weight with the update in them; differentiable."""
        changed = rows.to(self.a.dtype) + self.delta()
        if self.magnitude is not None:
            changed = (self.magnitude / self.row_norms(rows))[:, None] * changed
        return changed

    def forward(self, x: Tensor, out: Tensor, weight: Weight) -> Tensor:
        """The product with the updated rows, from ``out``, that with the rows as they are.

        With dropout the weight sees all of x, and what the adapter changes about it sees what is left of x.
        """
        left = F.dropout(x, self.dropout, self.training)
        a, b = self.factors()
        added = self.scale * F.linear(F.linear(left, a.to(x.dtype)), b.to(x.dtype))
        if self.magnitude is None:
            return out + added
        rows = slice(self.start, self.stop)
        factor = (self.magnitude / self.row_norms(dense(weight)[rows])).to(out.dtype)
        seen = product(left, weight)[..., rows] if self.drops else out
        return out + (factor - 1) * seen + factor * added

    def extra_repr(self) -> str:
        return f"rows {self.start} to {self.stop}, rank={self.rank}, scale={self.scale:g}, dropout={self.dropout:g}"


class LayerAdapter(nn.ModuleDict):
    """What one adapter changes about one layer: updates of its rows by name, and its own bias if that is trained."""

    def __init__(self, updates: dict[str, Lora], bias: Tensor | None = None):
        super().__init__(dict(sorted(updates.items(), key=lambda item: item[1].start)))
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias.detach().clone()))

    def is_plain(self) -> bool:
        """Whether the layer is in this pass ``x · Wᵀ + scale · (x · Aᵀ) · Bᵀ``, which has a kernel."""
        return not any(lora.drops or lora.magnitude is not None for lora in self.values())

    def factors(self, outputs: int) -> tuple[Tensor, Tensor, float]:
        """A (R, K), B (outputs, R) and the scale of all updates as one."""
        updates = list(self.values())
        if len(updates) == 1 and updates[0].b.shape[0] == outputs:
            return *updates[0].factors(), updates[0].scale
        found = [(lora, *lora.factors()) for lora in updates]
        places = [F.pad(lora.scale * b, (0, 0, lora.start, outputs - lora.stop)) for lora, _, b in found]
        return torch.cat([a for _, a, _ in found]), torch.cat(places, 1), 1.0

    def linear(self, x: Tensor, weight: Weight, bias: Tensor | None) -> Tensor:
        """The linear layer ``weight``, ``bias`` with the updates, on x (..., K)."""
        if self.is_plain() and len(self) and not requires_grad(weight):
            a, b, scale = self.factors(weight.shape[0])
            return _low_rank(x, weight, bias if self.bias is None else self.bias, a, b, scale)
        return self.biased(self.change(x, product(x, weight), weight), bias)

    def biased(self, out: Tensor, bias: Tensor | None) -> Tensor:
        """``out`` with the adapter's bias, or with ``bias`` if it has none of its own."""
        bias = bias if self.bias is None else self.bias
        return out if bias is None else out + bias.to(out.dtype)

    def change(self, x: Tensor, out: Tensor, weight: Weight) -> Tensor:
        """The product with the updated weight, from ``out``, that with the weight as it is."""
        parts, at = [], 0
        for lora in self.values():
            parts += [out[..., at : lora.start], lora(x, out[..., lora.start : lora.stop], weight)]
            at = lora.stop
        parts.append(out[..., at:])
        parts = [part for part in parts if part.shape[-1]]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    def updated(self, weight: Tensor) -> Tensor:
        """``weight`` (N, K) with the updates in it, in the adapter's dtype; differentiable."""
        parts, at = [], 0
        for lora in self.values():
            parts += [weight[at : lora.start], lora.updated(weight[lora.start : lora.stop])]
            at = lora.stop
        parts.append(weight[at:])
        dtype = next((lora.a.dtype for lora in self.values()), weight.dtype)
        return torch.cat([part.to(dtype) for part in parts if len(part)])


# --- products with a weight of any kind -----------------------------------------------------------------------------


def requires_grad(weight: Weight) -> bool:
    return isinstance(weight, Tensor) and weight.requires_grad


def product(x: Tensor, weight: Weight) -> Tensor:
    """``x · Wᵀ``."""
    return nf4_linear(x, weight) if isinstance(weight, NF4Tensor) else F.linear(x, weight)


def product_dtype(x: Tensor) -> torch.dtype:
    """That of a product with x: autocast's, where it is on."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def dense(weight: Weight) -> Tensor:
    """The numbers of a weight."""
    return dequantize_nf4(weight, torch.float32) if isinstance(weight, NF4Tensor) else weight


def _low_rank(x: Tensor, weight: Weight, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
    if isinstance(weight, NF4Tensor):
        return nf4_linear(x, weight, bias, a, b, scale)
    if torch.is_autocast_enabled(x.device.type):
        x, weight = x.to(product_dtype(x)), weight.to(product_dtype(x))
    return lora_linear(x, weight, a, b, bias, scale)


def _principal(rows: Tensor, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    """A and B of the best approximation ``scale · B · A`` of ``rows`` with that rank (PiSSA, equations 2 and 3)."""
    u, s, vh = torch.linalg.svd(rows, full_matrices=False)
    if rank > len(s):
        raise ValueError(f"lora.rank {rank} is more than {len(s)}, the rank of a weight of shape {tuple(rows.shape)}")
    root = (s[:rank] / scale).sqrt()
    return root[:, None] * vh[:rank], u[:, :rank] * root
