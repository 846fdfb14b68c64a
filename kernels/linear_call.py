"""What the operators of ``linear_cross_entropy`` are called with."""

from typing import NamedTuple

from torch import Tensor

MIB = 2**20
# Logits that the reference path computes in one piece, with operations that have second derivatives: chunks cost a
# CPU 0.2 ms a call more, and from here on that is a tenth of it and less (benchmarks/log/kernels-losses.md).
FEW_LOGITS = MIB


class Call(NamedTuple):
    hidden: Tensor  # (N, E)
    weight: Tensor  # (V, E)
    bias: Tensor | None  # (V,)
    target: Tensor  # (N,)
    class_weight: Tensor | None  # (V,)
    ignore_index: int
    label_smoothing: float
    z_loss: float
    softcap: float | None
    gradient_filter: float | None
    how: str  # "reference", "chunks" or "tiles"

    @property
    def objective(self) -> tuple:
        """The arguments from class_weight to softcap."""
        return self[4:9]


SCHEMA = (
    "Tensor hidden, Tensor weight, Tensor? bias, Tensor target, Tensor? class_weight, int ignore_index, "
    "float label_smoothing, float z_loss, float? softcap, float? gradient_filter, str how"
)
