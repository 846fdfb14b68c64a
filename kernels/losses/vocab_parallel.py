"""Cross entropy of logits whose classes are divided among processes: what tensor parallelism ends in.

Each process has the logits of its part of the classes. With lse_r the log-sum-exp of part r and W_r the sum of its
class weights, the loss of ``cross_entropy`` is

    Σ_r [t in r]·(1 − ε)·w[t]·(lse_r − z[t] + lse − lse_r) + ε/V · (Σ_{v in r} w[v]·(lse_r − z[v]) + W_r·(lse − lse_r))

and the z-loss, where lse = log Σ_r exp(lse_r). So two messages of a number per token are exchanged, all lse_r and the
sum over r, and none in the backward pass: the derivative by a process's logits needs lse alone.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..frame.backend import use_triton
from ..frame.checks import check_floating
from . import reference
from .checks import check_options, check_target, finish
from .cross_entropy_ops import backward_rows, forward_rows
from .objective import Asked, LossOptions, Objective, objective

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

IGNORED, ELSEWHERE = -100, -1  # targets of a part that are none of its classes


def vocab_parallel_cross_entropy(
    logits: Tensor,
    target: Tensor,
    group: "ProcessGroup | None" = None,
    *,
    first_class: int | None = None,
    vocabulary: int | None = None,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    return_lse: bool = False,
    return_z_loss: bool = False,
) -> Tensor | tuple[Tensor, ...]:
    """``cross_entropy`` where every process of a group has the logits of a part of the classes.

    Megatron-LM calls it ``vocab_parallel_cross_entropy``, flash-attn ``CrossEntropyLoss(process_group=...)``, PyTorch
    ``loss_parallel``. Every process gets the whole loss, and by its backward pass the gradient of its own logits; as in
    those, the gradient of what the logits are computed from is still to be summed over the processes. Label smoothing
    is over the whole vocabulary (Megatron-LM's is over a process's part).

    Args:
        logits: (..., classes of this process), any floating dtype; they are never written to.
        target: (...), integers in [0, V) of the whole vocabulary, the same on each process.
        group: whose processes hold the parts; None for all processes.
        first_class, vocabulary: this process's first class, and V. Left out, the parts are of equal size, in the order
            of ranks. Give both where they are not: the parts must make up the vocabulary.
        weight: (V,) of the whole vocabulary, the same on each process.

    The other options, what is returned, and the loss where no token counts are those of ``cross_entropy``.

    Raises:
        ValueError: for a target, weight or option that does not fit, and without ``torch.distributed``'s processes.

    Example::

        import torch.distributed as dist

        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # torchrun's need no arguments
        hidden, target = torch.randn(16, 64), torch.randint(1000, (16,))
        head_part = torch.randn(1000 // dist.get_world_size(), 64, requires_grad=True)
        loss = vocab_parallel_cross_entropy(hidden @ head_part.T, target)
        loss.backward()
        dist.destroy_process_group()
    """
    check_floating("logits", logits)
    if type(logits).__name__ == "DTensor":
        raise ValueError("logits is a DTensor, where this process's part is wanted: give logits.to_local()")
    if logits.dim() == 0 or logits.shape[-1] == 0:
        raise ValueError(f"logits must be (..., classes) with at least one class, got {tuple(logits.shape)}")
    first_class, vocabulary = _place(logits.shape[-1], group, first_class, vocabulary)
    target = check_target(target, logits, "logits")
    options = LossOptions(ignore_index, label_smoothing, z_loss, softcap)
    options = check_options(logits, vocabulary, "weight", weight, reduction, options)
    part = _Part(group, first_class, vocabulary, options, use_triton(logits))
    loss, lse = _VocabParallel.apply(logits, target, weight, part)
    asked = Asked(return_lse, return_z_loss, token_accuracy=False)
    return finish(loss, lse, lse, target, weight, vocabulary, reduction, options, asked)


def _place(width: int, group: Any, first_class: int | None, vocabulary: int | None) -> tuple[int, int]:
    """This process's first class, and how many there are in all."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        raise ValueError(
            "no processes to share a vocabulary: call torch.distributed.init_process_group, or cross_entropy"
        )
    if (first_class is None) != (vocabulary is None):
        raise ValueError(f"give both or neither: first_class is {first_class} and vocabulary is {vocabulary}")
    if first_class is None or vocabulary is None:
        return distributed.get_rank(group) * width, distributed.get_world_size(group) * width
    if not 0 <= first_class <= vocabulary - width:
        raise ValueError(
            f"first_class must be from 0 to {vocabulary - width}, so that {width} classes lie within the vocabulary "
            f"of {vocabulary}, got {first_class}"
        )
    return first_class, vocabulary


class _Part(NamedTuple):
    """What a process has of the classes, and how it computes."""

    group: Any
    first_class: int
    vocabulary: int
    options: LossOptions
    kernels: bool

    def local_target(self, target: Tensor, width: int) -> Tensor:
        """The targets, counted from the part's first class; IGNORED, or ELSEWHERE where they are of no class here."""
        local = target.long() - self.first_class
        local = torch.where((local >= 0) & (local < width), local, ELSEWHERE)
        return torch.where(target == self.options.ignore_index, IGNORED, local)

    def objective(self, weight: Tensor | None, width: int) -> Objective:
        """What is computed of the part's logits; without the z-loss, which is of the whole vocabulary."""
        own = None if weight is None else weight[self.first_class : self.first_class + width]
        _, label_smoothing, _, softcap = self.options
        return objective(own, IGNORED, label_smoothing, 0.0, softcap)._replace(classes=self.vocabulary)


class _VocabParallel(torch.autograd.Function):
    """Each token's loss and log-sum-exp."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, weight: Tensor | None, part: _Part) -> tuple[Tensor, Tensor]:
        width, epsilon = logits.shape[-1], part.options.label_smoothing
        local, chosen = part.local_target(target, width), part.objective(weight, width)
        loss, own_lse = _losses(logits, local, chosen, part.kernels)
        lse = _gathered(own_lse, part.group).logsumexp(0)
        # What the part's terms lack for being of its own log-sum-exp.
        along = (1 - epsilon) * reference.token_weight(local, chosen.weight, IGNORED, width, lse.dtype)
        if epsilon:
            along = along + epsilon / part.vocabulary * (width if chosen.weight is None else chosen.weight.sum())
        loss += torch.where(along == 0, 0, along * (lse - own_lse))
        torch.distributed.all_reduce(loss, group=part.group)
        ignore_index, _, z_loss, _ = part.options
        counted = reference.token_weight(target, weight, ignore_index, part.vocabulary, lse.dtype)
        valid = target != ignore_index
        known = reference.is_class(target, ignore_index, part.vocabulary)
        if z_loss:
            loss += z_loss * counted * lse.square()
        loss = torch.where(valid, torch.where(known, loss, torch.nan), 0)
        lse = torch.where(valid, lse, 0)
        ctx.save_for_backward(logits, local, weight, counted, lse)
        ctx.part = part
        return loss, lse

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, grad_lse: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        logits, local, weight, counted, lse = ctx.saved_tensors
        part, width = ctx.part, logits.shape[-1]
        _, epsilon, z_loss, _ = part.options
        chosen = part.objective(weight, width)
        if epsilon:
            total = lse.new_tensor(float(part.vocabulary)) if weight is None else weight.float().sum()
            chosen = chosen._replace(weight_sum=total)
        # The kernels know the weight of the targets of this part only, and no z-loss: the rest of the factor of the
        # probabilities is given as if it came through the log-sum-exp.
        rest = 2 * z_loss * counted * lse + torch.where(local == ELSEWHERE, (1 - epsilon) * counted, 0)
        grad_lse = torch.where(local == IGNORED, 0, grad_lse + grad_loss * rest)
        return _gradient(logits, local, chosen, lse, grad_loss, grad_lse, part.kernels), None, None, None


def _losses(logits: Tensor, local: Tensor, chosen: Objective, kernels: bool) -> tuple[Tensor, Tensor]:
    """The part's terms of each token's loss, and its log-sum-exp."""
    if not kernels:
        return reference.cross_entropy(logits, local, *_as_reference(chosen), vocabulary=chosen.classes)
    loss, lse = (torch.empty(local.shape, dtype=torch.float32, device=logits.device) for _ in range(2))
    forward_rows(logits, local, chosen, loss, lse)
    return loss, lse


def _gradient(
    logits: Tensor,
    local: Tensor,
    chosen: Objective,
    lse: Tensor,
    grad_loss: Tensor,
    grad_lse: Tensor,
    kernels: bool,
) -> Tensor:
    if kernels:
        grad_logits = torch.empty_like(logits, memory_format=torch.contiguous_format)
        backward_rows(grad_loss, grad_lse, None, logits, local, chosen, lse, grad_logits)
        return grad_logits
    rows = (x.flatten() for x in (local, lse, grad_loss, grad_lse))
    gradient = reference.cross_entropy_gradient(
        logits.flatten(0, -2), *rows, *_as_reference(chosen), None, chosen.weight_sum, chosen.classes
    )
    gradient = gradient.masked_fill((local.flatten() == IGNORED).unsqueeze(-1), 0)
    return gradient.view(logits.shape).to(logits.dtype)


def _as_reference(chosen: Objective) -> tuple[Tensor | None, int, float, float, float | None]:
    """The weights of the classes and the options, as the definitions take them."""
    return chosen.weight, chosen.ignore_index, chosen.label_smoothing or 0.0, 0.0, chosen.softcap


def _gathered(x: Tensor, group: Any) -> Tensor:
    """Every process's ``x``, in the order of ranks."""
    everyones = [torch.empty_like(x) for _ in range(torch.distributed.get_world_size(group))]
    torch.distributed.all_gather(everyones, x.contiguous(), group=group)
    return torch.stack(everyones)
