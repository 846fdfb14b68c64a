"""Low-rank adapters on frozen weights, of 16 bits or of 4: one layer, and a whole feed-forward layer.

    lora_linear:  y = x · Wᵀ + bias + s · (x · Aᵀ) · Bᵀ
    lora_mlp:     y = down(silu(gate(x)) · up(x)), each of the three as above

``lora_linear`` is the operator of ``nf4_linear`` (``nf4/linear.py``) on a weight that is not packed. ``lora_mlp``
keeps x, gate(x) and up(x) for the backward pass, and what is as narrow as an adapter; their product, which the
adapter of ``down`` needs once more, is computed again.
"""

from typing import NamedTuple

from torch import Tensor

from ..frame.autocast import autocast
from ..frame.checks import check_same_shape
from ..nf4.linear import Weight, check, frozen_layer, frozen_linear
from .ops import swiglu_linear_op


def lora_linear(
    x: Tensor,
    w: Weight,
    lora_a: Tensor,
    lora_b: Tensor,
    bias: Tensor | None = None,
    lora_scale: float = 1.0,
) -> Tensor:
    """``x @ wᵀ + bias + lora_scale · (x @ lora_aᵀ) @ lora_bᵀ`` (Hu et al. 2021, arXiv:2106.09685).

    Gradients reach x, lora_a, lora_b and bias; the weight is frozen.

    Args:
        x: (..., K), any floating dtype. Under autocast it is cast as for ``torch.nn.functional.linear``.
        w: (N, K), in x's dtype and without gradient; or an ``NF4Tensor``.
        lora_a: (R, K), and lora_b: (N, R), any floating dtype, cast to x's.
        bias: (N,).
        lora_scale: α / R in the paper.

    Raises:
        ValueError: for a shape, dtype or device that does not fit, or a weight that wants a gradient.

    Example::

        base = torch.nn.Linear(128, 256).requires_grad_(False)
        lora_a = torch.nn.Parameter(torch.randn(8, 128) / 16)
        lora_b = torch.nn.Parameter(torch.zeros(256, 8))
        y = lora_linear(torch.randn(4, 10, 128), base.weight, lora_a, lora_b, base.bias)
        y.square().mean().backward()
    """
    return frozen_linear(x, w, bias, lora_a, lora_b, lora_scale)


class Adapted(NamedTuple):
    """A frozen weight and its adapter, as ``lora_mlp`` takes them; see ``lora_linear``."""

    w: Weight
    lora_a: Tensor | None = None
    lora_b: Tensor | None = None
    bias: Tensor | None = None
    lora_scale: float = 1.0

    def __call__(self, x: Tensor) -> Tensor:
        return frozen_linear(x, self.w, self.bias, self.lora_a, self.lora_b, self.lora_scale)


def lora_mlp(x: Tensor, gate: Adapted, up: Adapted, down: Adapted) -> Tensor:
    """``down(silu(gate(x)) · up(x))``: a feed-forward layer whose three frozen weights have adapters.

    For the backward pass it keeps x, gate(x) and up(x), and four tensors as wide as an adapter's rank.

    Args:
        x: (..., E), any floating dtype. Under autocast it is cast as for ``torch.nn.functional.linear``.
        gate, up: weights (F, E) with their adapters.
        down: weight (E, F) with its adapter.

    Raises:
        ValueError: as ``lora_linear``.

    Example::

        def adapted(rows, width):
            w = quantize_nf4(torch.randn(rows, width) / width**0.5)
            lora_a = torch.nn.Parameter(torch.randn(8, width) / width**0.5)
            return Adapted(w, lora_a, torch.nn.Parameter(torch.zeros(rows, 8)))


        y = lora_mlp(torch.randn(4, 10, 64), adapted(128, 64), adapted(128, 64), adapted(64, 128))
        y.square().mean().backward()
    """
    return swiglu_linear(gate(x), up(x), down)


def swiglu_linear(gate: Tensor, up: Tensor, down: Adapted) -> Tensor:
    """``down(silu(gate) · up)``, the second half of ``lora_mlp``: of it, nothing but gate and up is kept.

    For feed-forward layers that compute gate and up in one product, of which both are then slices.

    Args:
        gate, up: (..., F).
        down: weight (E, F) with its adapter.

    Raises:
        ValueError: as ``lora_linear``.
    """
    check_same_shape("up(x)", up, "gate(x)", gate)
    w, lora_a, lora_b, bias, lora_scale = down
    check(gate, w, bias, lora_a, lora_b)
    gate, up, bias, lora_a, lora_b = autocast(gate, up, bias, lora_a, lora_b)
    layer = frozen_layer(gate, w, bias, lora_a, lora_b, lora_scale)
    rows = (t.reshape(-1, t.shape[-1]) for t in (gate, up))
    y, _ = swiglu_linear_op(*rows, layer)
    return y.view(*gate.shape[:-1], w.shape[0])
