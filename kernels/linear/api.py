"""A linear layer whose result for a row does not depend on the other rows.

    y = x · Wᵀ + bias

The BLAS libraries choose the order of a sum by the shape of the whole product, so that the same row has other bits in
a batch of 1 and in one of 64. Here the order is a function of the width alone. On a GPU one tile serves every number of
rows, and one program adds up the whole width; on a CPU every sum is exact (``frame/fixed_order.py``).
"""

from torch import Tensor

from ..frame.autocast import autocast
from ..frame.backend import use_triton
from ..frame.checks import check_floating, check_same_device, check_same_dtype
from .ops import linear_op


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weightᵀ + bias``, of which each row's bits are a function of that row of ``x``, the weight and the bias.

    So they are the same in every batch, at every place in it, and in training as in generation. Sums are float32 (exact
    on a CPU), the result is rounded once. Gradients reach x, weight and bias; that of x has the same property.

    It costs, against ``torch.nn.functional.linear``: on a GPU what Triton's product is slower than the BLAS library's,
    and at few rows more, because one tile of 128 rows serves all and the width is not split; on a CPU about six times
    the time in float32.

    Args:
        x: (..., K), any floating dtype and strides. Under autocast x, weight and bias are cast as for
            ``torch.nn.functional.linear``.
        weight: (N, K), in x's dtype.
        bias: (N,), in x's dtype.

    Raises:
        ValueError: for a shape, dtype or device that does not fit.

    Example::

        x, weight = torch.randn(5, 64), torch.randn(32, 64)
        assert torch.equal(linear(x, weight)[3:4], linear(x[3:4], weight))
    """
    check_floating("x", x)
    if weight.dim() != 2 or x.dim() == 0 or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"weight must be (N, K) for x (..., K), got {tuple(weight.shape)} for {tuple(x.shape)}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must have one element a row of weight, ({len(weight)},), got {tuple(bias.shape)}")
    for name, tensor in (("weight", weight), ("bias", bias)):
        check_same_device(name, tensor, x)
        check_same_dtype(name, tensor, "x", x)
    x, weight, bias = autocast(x, weight, bias)
    y = linear_op(x.reshape(-1, x.shape[-1]), weight, bias, use_triton(x))
    return y.view(*x.shape[:-1], weight.shape[0])
