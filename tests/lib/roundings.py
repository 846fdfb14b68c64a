"""How large an error the roundings of an algorithm allow, for the tests that compare with a float64 result.

A kernel is as exact as PyTorch's own operator if its error is at most twice the operator's. That is no bound where
the operator is exact by luck: one key, whose probability is 1; seven terms that one BLAS kernel happens to add
without a rounding, and another one does not. The bound is then what the roundings of the algorithm allow for these
very operands. It is found by Monte Carlo arithmetic (Parker, Monte Carlo Arithmetic, 1997): the algorithm, written in
PyTorch, runs in float64 on the same inputs while ``RandomRounding`` rounds the result of each of its steps to float32,
up or down at random. Results that float32 holds exactly stay as they are. The rules:

- An elementwise step (sum of two, product, exp, ...) is off by at most one unit in the last place.
- A sum of n terms t, in whatever order a BLAS kernel, a thread team or a tile adds them, makes n roundings of partial
  sums, each of relative size u = 2⁻²⁴ and independent of the others. The partial sums of terms in no particular order
  are at most the square root of (Σt)² + Σt² in the mean square, so that the error's standard deviation is at most
  ``u √n √((Σt)² + Σt²)`` (Higham and Mary, A New Approach to Probabilistic Rounding Error Analysis, 2019).
- The same holds of each element of a matrix product, with t = a·b.
- Where the kernel takes 16-bit inputs, both operands of its matrix products are of that dtype: an operand that was
  computed (the probabilities of attention) is rounded to it at random, too.

PyTorch's fused operators (softmax, norms, losses, activations) are taken apart into such steps by its own
decompositions. ``rounding_error`` is the largest error of several such runs. Random signs of the right size add up as
roundings do; worst cases of each step, which do not occur together, would allow a hundred times as much and hide
products in TF32 or a term left out.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch._decomp import get_decompositions
from torch.utils._python_dispatch import TorchDispatchMode

RUNS = 8
aten = torch.ops.aten
STEPS_OF = get_decompositions(
    [
        aten._fused_rms_norm,
        aten._fused_rms_norm_backward,
        aten._log_softmax,
        aten._log_softmax_backward_data,
        aten._scaled_dot_product_flash_attention_for_cpu,
        aten._softmax,
        aten._softmax_backward_data,
        aten.addcdiv,
        aten.addcmul,
        aten.addmm,
        aten.addmv,
        aten.addr,
        aten.baddbmm,
        aten.gelu,
        aten.gelu_backward,
        aten.lerp,
        aten.linalg_vector_norm,
        aten.logsumexp,
        aten.mean,
        aten.native_layer_norm,
        aten.native_layer_norm_backward,
        aten.nll_loss_backward,
        aten.nll_loss_forward,
        aten.sigmoid_backward,
        aten.silu,
        aten.silu_backward,
        aten.tanh_backward,
        aten.var_mean,
    ]
)
PRODUCTS = {aten.mm, aten.bmm, aten.mv, aten.dot}


class RandomRounding(TorchDispatchMode):
    """Rounds what PyTorch computes in float64, forward and backward, to float32 up or down at random.

    ``dtype`` is the dtype that the operands of matrix products have.
    """

    def __init__(self, dtype: torch.dtype = torch.float32, seed: int = 0):
        super().__init__()
        self.operand_dtype = torch.float32 if dtype == torch.float64 else dtype
        self.generator = torch.Generator().manual_seed(seed)

    def __torch_dispatch__(self, step, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if step in STEPS_OF:
            with self:
                return STEPS_OF[step](*args, **kwargs)
        if step.overloadpacket in PRODUCTS:
            args = [self.rounded(operand, self.operand_dtype) for operand in args]
        result = step(*args, **kwargs)
        if step.overloadpacket in PRODUCTS:
            squares = step(*(operand.square() for operand in args))
            result = result + self.noise_of_sum(result, squares, terms=args[0].shape[-1])
        elif step.overloadpacket is aten.sum and result.is_floating_point():
            squares = step(args[0].square(), *args[1:], **kwargs)
            result = result + self.noise_of_sum(result, squares, args[0].numel() // max(result.numel(), 1))
        returned = step._schema.returns
        if any(value.alias_info and not value.alias_info.is_write for value in returned):
            return result  # A view holds nothing new.
        if any(value.alias_info for value in returned):
            return result.copy_(self.rounded(result))  # The step wrote to its argument.
        return torch.utils._pytree.tree_map_only(Tensor, self.rounded, result)

    def noise_of_sum(self, total: Tensor, squares: Tensor, terms: int) -> Tensor:
        size = 2**-24 * terms**0.5 * (total.square() + squares).sqrt()
        normal = torch.randn(total.shape, generator=self.generator, dtype=total.dtype)
        return normal.to(total.device) * size.nan_to_num(0.0, 0.0)

    def rounded(self, x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """``x`` rounded to ``dtype``, to either neighbor with a probability that makes the mean exact."""
        if x.dtype != torch.float64:
            return x
        nearest = x.to(dtype).double()
        unit = torch.finfo(dtype).eps * torch.exp2(torch.frexp(x).exponent.double() - 1)
        place = torch.rand(x.shape, generator=self.generator, dtype=x.dtype).to(x.device) - 0.5
        keep = (nearest == x) | ~nearest.isfinite()
        return torch.where(keep, x, (x + place * unit).to(dtype).double())


def largest_difference(x: Tensor, exact: Tensor) -> float:
    """Of any element; equal infinities do not differ, and a NaN in ``x`` or ``exact`` gives NaN."""
    if exact.numel() == 0:
        return 0.0
    x, exact = x.double(), exact.double()
    return (x - exact).abs().masked_fill(x == exact, 0.0).max().item()


def rounding_error(
    algorithm: Callable[[], dict[str, Tensor]], exact: dict[str, Tensor], dtype: torch.dtype
) -> dict[str, float]:
    """The largest error of each result that ``RUNS`` runs of the float64 ``algorithm`` have when it is rounded."""
    errors: dict[str, list[float]] = {name: [] for name in exact}
    for seed in range(RUNS):
        with RandomRounding(dtype, seed):
            found = algorithm()
        for name, value in exact.items():
            errors[name].append(largest_difference(found[name], value))
    finite = all(math.isfinite(error) for runs in errors.values() for error in runs)
    assert finite, f"the algorithm and the definition differ: {errors}"
    return {name: max(runs) for name, runs in errors.items()}
