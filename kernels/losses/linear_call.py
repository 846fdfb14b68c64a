"""What ``linear_cross_entropy`` is called with after its checks."""

from typing import NamedTuple

from torch import Tensor

from ..frame.dtypes import wide_dtype
from .objective import LossOptions


class LinearCrossEntropyCall(NamedTuple):
    hidden: Tensor  # (N, E)
    weight: Tensor  # (V, E)
    bias: Tensor | None  # (V,)
    target: Tensor  # (N,)
    class_weight: Tensor | None  # (V,)
    gradient_filter: float | None
    how: str  # "reference", "chunks" or "tiles"
    predicts: bool  # whether to find out which tokens' targets have the largest logit
    options: LossOptions

    @property
    def objective(self) -> tuple:
        """The weights of the classes and the options."""
        return self.class_weight, *self.options

    @property
    def heavy(self) -> bool:
        """Whether options take a kernel registers beside its tile of logits."""
        beside = self.bias is not None or self.class_weight is not None or self.predicts
        return beside or self.options.softcap is not None or self.options.label_smoothing != 0

    @property
    def ignore_index(self) -> int:
        return self.options.ignore_index

    def allocate(self) -> tuple[Tensor, Tensor, Tensor]:
        """Each token's loss, log-sum-exp and, if asked for (else empty), 1 where it is predicted."""
        shape, dtype = self.target.shape, wide_dtype(self.hidden.dtype)
        loss, lse = self.hidden.new_empty(shape, dtype=dtype), self.hidden.new_empty(shape, dtype=dtype)
        return loss, lse, lse.new_empty(shape if self.predicts else 0)
