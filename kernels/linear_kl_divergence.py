"""Distillation: the divergence between a student's and a teacher's next-token distributions, from their hidden
states and heads, whose logits (N, V) never exist.

With log p_S and log p_T the log-softmax of the logits over the temperature τ, and M = β·p_T + (1 − β)·p_S, a
token's loss and its derivative by the student's logits are

    forward   KL(p_T ‖ p_S)                            (p_S − p_T) / τ
    reverse   KL(p_S ‖ p_T)                            p_S·(log p_S − log p_T − KL(p_S ‖ p_T)) / τ
    js        β·KL(p_T ‖ M) + (1 − β)·KL(p_S ‖ M)      (1 − β)·p_S·(log p_S − log M − KL(p_S ‖ M)) / τ

The tokens go by in chunks (``linear_chunks``): the logits of a chunk are two matrix products, and one kernel
reads them. From the gradient of the student's logits, written in their place, two more products give those of its
hidden states and of its head, which is summed over the chunks in float32 (``linear_chunks.add_product``). Where the
loss of all tokens is one number that happens in the same pass, four products in all; where each token's loss is asked
for, the backward pass computes the logits a second time.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .backend import use_triton
from .checks import check_choice, check_floating, check_same_device
from .counted_tokens import CountedTokens
from .gate import GateCase
from .kl_kernels import kl_backward, kl_forward
from .launch import Device, cdiv, next_power_of_2, run
from .linear_call import FEW_LOGITS
from .linear_chunks import add_product, blocks_in_cache, chunk_rows
from .loss_checks import REDUCTIONS, autocast, check_same_dtype, check_target
from .operator import define, define_with_gradients
from .reference import divergence as definition
from .reference import loss as losses
from .reference.dtypes import widen

KINDS = ("forward", "reverse", "js")

# -------------------------------------------------------------------------------------------- launch choices

BLOCK = 2048  # columns a step: of two models, so half of what ``cross_entropy`` takes; js spills with more
WARPS = 8


def block_of(vocabulary: int) -> int:
    return min(max(next_power_of_2(vocabulary), 256), BLOCK)


# ------------------------------------------------------------------------------------------------ the passes


class Call(NamedTuple):
    student_hidden: Tensor  # (N, E)
    student_weight: Tensor  # (V, E)
    teacher_hidden: Tensor  # (N, E of the teacher)
    teacher_weight: Tensor  # (V, E of the teacher)
    target: Tensor | None  # (N,)
    ignore_index: int
    kind: str
    beta: float
    temperature: float
    kernels: bool  # or the definitions

    @property
    def measure(self) -> tuple[str, float, float]:
        return self.kind, self.beta, self.temperature


def logits_of(call: Call, some: slice | Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """The student's and the teacher's logits of some tokens, and their targets."""
    student = F.linear(call.student_hidden[some], call.student_weight)
    teacher = F.linear(call.teacher_hidden[some], call.teacher_weight)
    return student, teacher, None if call.target is None else call.target[some]


def run_rows(kernel, columns: int, call: Call, student: Tensor, *rest: Tensor | None) -> None:
    """Launches ``kernel`` on each row of logits and ``columns`` blocks of classes."""
    rows, vocabulary = student.shape
    run(
        kernel,
        (rows, columns),
        student,
        *(student, *rest, rows, vocabulary, call.ignore_index, call.beta, call.temperature),
        KIND=call.kind,
        BLOCK=block_of(vocabulary),
        num_warps=WARPS,
    )


def row_losses(
    call: Call, student: Tensor, teacher: Tensor, target: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """The loss of each row of logits, and what the kernels compute its gradient from."""
    if not call.kernels:
        blocks = blocks_in_cache(student)
        loss = torch.cat(
            [definition.kl_divergence(student[some], teacher[some], *call.measure) for some in blocks]
        )
        return loss if target is None else torch.where(target == call.ignore_index, 0, loss), None
    loss = student.new_empty(student.shape[0], dtype=torch.float32)
    statistics = student.new_empty((5, student.shape[0]), dtype=torch.float32)
    run_rows(kl_forward, 1, call, student, teacher, target, loss, statistics)
    return loss, statistics


def row_gradients(
    call: Call,
    student: Tensor,
    teacher: Tensor,
    target: Tensor | None,
    grad_loss: Tensor,
    statistics: Tensor | None,
) -> Tensor:
    """The gradient of the student's logits, in their dtype and their place."""
    if not call.kernels:
        for some in blocks_in_cache(student):
            gradient = definition.kl_gradient(student[some], teacher[some], *call.measure)
            student[some] = gradient * grad_loss[some].unsqueeze(-1)
        if target is not None:
            student.masked_fill_((target == call.ignore_index).unsqueeze(-1), 0)
        return student
    blocks = cdiv(student.shape[1], block_of(student.shape[1]))
    run_rows(kl_backward, blocks, call, student, teacher, target, grad_loss.contiguous(), statistics)
    return student


def sweep(
    call: Call, grad_loss: Tensor | None = None, wanted: Sequence[bool] = (False, False)
) -> tuple[Tensor, Tensor, Tensor]:
    """One pass over the tokens: the loss of each (N,) and, with ``grad_loss`` (N,), the gradients of the student's
    hidden states and of its head that are wanted (empty where not), the latter in float32."""
    hidden, weight = call[:2]
    counted = CountedTokens(hidden.shape[0], call.target, call.ignore_index)
    loss = _allocate(*call).zero_()
    grad_hidden = hidden.new_zeros(hidden.shape if wanted[0] else 0)
    grad_weight = hidden.new_zeros(weight.shape if wanted[1] else 0, dtype=loss.dtype)
    on_cpu = hidden.device.type == "cpu"
    rows = chunk_rows(2 * weight.shape[0], weight.shape[1], hidden.itemsize, on_cpu)
    # The operands are in their dtype already: autocast must not narrow the float32 sums.
    with torch.autocast(hidden.device.type, enabled=False):
        for some in counted.chunks(rows):
            student, teacher, target = logits_of(call, some)
            loss[some], statistics = row_losses(call, student, teacher, target)
            if not any(wanted):
                continue
            gradients = row_gradients(call, student, teacher, target, grad_loss[some], statistics)
            if wanted[0]:
                grad_hidden[some] = gradients @ weight
            if wanted[1]:
                add_product(grad_weight, gradients.T, hidden[some])
    return loss, grad_hidden, grad_weight


# -------------------------------------------------------------------------------------------------- operators

_SCHEMA = (
    "Tensor student_hidden, Tensor student_weight, Tensor teacher_hidden, Tensor teacher_weight, "
    "Tensor? target, int ignore_index, str kind, float beta, float temperature, bool kernels"
)


def _allocate(*inputs) -> Tensor:
    hidden = inputs[0]
    return hidden.new_empty(hidden.shape[0], dtype=widen(hidden[:0]).dtype)


def _run(*inputs) -> Tensor:
    return sweep(Call(*inputs))[0]


def _allocate_gradients(wanted, hidden, weight, weight_dtype) -> tuple[Tensor, Tensor]:
    return hidden.new_empty(hidden.shape if wanted[0] else 0), hidden.new_empty(
        weight.shape if wanted[1] else 0, dtype=weight_dtype
    )


def _allocate_backward(grad_loss, wanted, *inputs) -> tuple[Tensor, Tensor]:
    hidden, weight = inputs[:2]
    return _allocate_gradients(wanted, hidden, weight, weight.dtype)


def _run_backward(grad_loss, wanted, *inputs) -> tuple[Tensor, Tensor]:
    call = Call(*inputs)
    _, grad_hidden, grad_weight = sweep(call, grad_loss, wanted)
    return grad_hidden, grad_weight.to(call.student_weight.dtype)


_backward_op = define(
    f"linear_kl_divergence_backward(Tensor grad_loss, bool[] wanted, {_SCHEMA}) -> (Tensor, Tensor)",
    _run_backward,
    _allocate_backward,
)


def _save(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[:5])
    ctx.rest = inputs[5:]


def _differentiate(ctx, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
    wanted = list(ctx.needs_input_grad[:2])
    gradients = _backward_op(grad_loss, wanted, *ctx.saved_tensors, *ctx.rest)
    nothing = (None,) * (len(Call._fields) - 2)
    return *(g if want else None for g, want in zip(gradients, wanted, strict=True)), *nothing


_kl_op = define(
    f"linear_kl_divergence({_SCHEMA}) -> Tensor", _run, _allocate, backward=_differentiate, save=_save
)


def _allocate_sum(wanted, *inputs) -> tuple[Tensor, Tensor, Tensor]:
    hidden, weight = inputs[:2]
    wide = widen(hidden[:0]).dtype
    return hidden.new_empty((), dtype=wide), *_allocate_gradients(wanted, hidden, weight, wide)


def _run_sum(wanted, *inputs) -> tuple[Tensor, Tensor, Tensor]:
    call = Call(*inputs)
    ones = call.student_hidden.new_ones((), dtype=widen(call.student_hidden[:0]).dtype)
    loss, *gradients = sweep(call, ones.expand(call.student_hidden.shape[0]), wanted)
    return loss.sum(), *gradients


_sum_op = define_with_gradients(
    f"linear_kl_divergence_sum(bool[] wanted, {_SCHEMA}) -> (Tensor, Tensor, Tensor)",
    _run_sum,
    _allocate_sum,
)

# -------------------------------------------------------------------------------------------- public function


def linear_kl_divergence(
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    target: Tensor | None = None,
    *,
    kind: str = "forward",
    beta: float = 0.5,
    temperature: float = 1.0,
    reduction: str = "mean",
    ignore_index: int = -100,
) -> Tensor:
    """The divergence of a student's next-token distribution p_S from a teacher's p_T, without their logits.

    With ``p = softmax(hidden @ weightᵀ / temperature)``, each token's loss is

    - ``"forward"``: KL(p_T ‖ p_S) (Hinton, Vinyals and Dean 2015, arXiv:1503.02531, section 2)
    - ``"reverse"``: KL(p_S ‖ p_T) (MiniLLM, arXiv:2306.08543)
    - ``"js"``: β·KL(p_T ‖ M) + (1 − β)·KL(p_S ‖ M) with M = β·p_T + (1 − β)·p_S (generalised Jensen-Shannon;
      GKD, arXiv:2306.13649, section 2)

    in float32 (float64 for float64). The temperature's square, by which Hinton multiplies the loss, is left to the
    caller. Gradients reach the student's hidden states and head; the teacher gets none.

    Memory beside the inputs and the gradients: a float32 copy of the head's gradient, a copy of the hidden states'
    gradient, and a workspace of 256 MiB or half of the student's head. Tokens that are ignored cost nothing, but for a
    CPU where logits are few (1 MiB): with a target, the host waits once a call to hear how many count; into a CUDA
    graph all are captured.

    Args:
        student_hidden: (..., E), any floating dtype. Under autocast the four tensors are cast as for
            ``torch.nn.functional.linear``.
        student_weight: (V, E).
        teacher_hidden: (..., E of the teacher), the same tokens.
        teacher_weight: (V, E of the teacher), the same vocabulary.
        target: (...), integers of which only ``ignore_index`` matters: such tokens count nothing. None: all count.
        kind: ``"forward"``, ``"reverse"`` or ``"js"``.
        beta: the teacher's share of M, between 0 and 1; ``"js"`` only.
        temperature: τ, positive.
        reduction: ``"mean"`` over the tokens that count (0 where none does), ``"sum"``, or ``"none"`` for each
            token's loss (...), 0 where ignored.

    Raises:
        ValueError: for a shape, dtype, device or option that does not fit.

    Example::

        student = torch.nn.Sequential(torch.nn.Embedding(1000, 32), torch.nn.Linear(32, 1000, bias=False))
        teacher = torch.nn.Sequential(torch.nn.Embedding(1000, 64), torch.nn.Linear(64, 1000, bias=False))
        tokens = torch.randint(1000, (4, 128))
        hidden = student[0](tokens), teacher[0](tokens).detach()
        loss = linear_kl_divergence(hidden[0], student[1].weight, hidden[1], teacher[1].weight, temperature=2.0)
        loss.backward()
    """
    _check(student_hidden, student_weight, teacher_hidden, teacher_weight, target)
    check_choice("kind", kind, KINDS)
    check_choice("reduction", reduction, REDUCTIONS)
    if not 0.0 < beta < 1.0:
        raise ValueError(f"beta must be between 0 and 1, both excluded, got {beta}")
    if not temperature > 0.0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    tensors = autocast(student_hidden, student_weight, teacher_hidden.detach(), teacher_weight.detach())
    kernels = use_triton(*tensors)
    tokens, vocabulary = student_hidden[..., 0].numel(), student_weight.shape[0]
    hidden, weight, teacher_rows, teacher_head = (t.reshape(-1, t.shape[-1]) for t in tensors)
    flat = None if target is None else target.reshape(-1)
    if not kernels and tokens * vocabulary * hidden.itemsize <= FEW_LOGITS:
        logits = F.linear(hidden, weight), F.linear(teacher_rows, teacher_head)
        loss = definition.kl_divergence(*logits, kind, beta, temperature)
        loss = loss if flat is None else torch.where(flat == ignore_index, 0, loss)
    else:
        call = Call(
            hidden, weight, teacher_rows, teacher_head, flat, ignore_index, kind, beta, temperature, kernels
        )
        wanted = [torch.is_grad_enabled() and p.requires_grad for p in call[:2]]
        summed = any(wanted) and reduction != "none"
        loss = _sum_op(wanted, *call)[0] if summed else _kl_op(*call)
    if reduction == "none":
        return loss.view(student_hidden.shape[:-1])
    if target is None:
        counted = loss.new_ones(tokens)
    else:
        counted = losses.token_weight(target, None, ignore_index, loss.dtype)
    return losses.reduce(loss, counted, reduction)


def _check(
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    target: Tensor | None,
) -> None:
    for who, hidden, weight in (
        ("student", student_hidden, student_weight),
        ("teacher", teacher_hidden, teacher_weight),
    ):
        check_floating(f"{who}_hidden", hidden)
        if hidden.dim() == 0 or weight.dim() != 2 or weight.shape[1] != hidden.shape[-1]:
            raise ValueError(
                f"{who}_weight must be (V, E) for {who}_hidden (..., E), "
                f"got {tuple(weight.shape)} for {tuple(hidden.shape)}"
            )
        for name, tensor in ((f"{who}_hidden", hidden), (f"{who}_weight", weight)):
            check_same_device(name, tensor, student_hidden)
            check_same_dtype(name, tensor, "student_hidden", student_hidden)
    if teacher_hidden.shape[:-1] != student_hidden.shape[:-1]:
        raise ValueError(
            f"teacher_hidden must be of the student's tokens {tuple(student_hidden.shape[:-1])}, "
            f"got {tuple(teacher_hidden.shape)}"
        )
    if teacher_weight.shape[0] != student_weight.shape[0] or student_weight.shape[0] == 0:
        raise ValueError(
            f"teacher_weight must have the student's vocabulary, {student_weight.shape[0]} (at least 1), "
            f"got {teacher_weight.shape[0]}"
        )
    if target is not None:
        check_target(target, student_hidden, "student_hidden")


# ---------------------------------------------------------------------------------------------- compile gate


def gate_cases(device: Device) -> Iterator[GateCase]:
    """Each kind; matrix products are the BLAS library's."""
    for kind in KINDS:
        for vocabulary, dtype in ((128256, torch.bfloat16), (50257, torch.float32)):
            run = partial(_gate_run, vocabulary, dtype, kind)
            yield GateCase("linear_kl_divergence", f"{kind} {vocabulary} {str(dtype)[6:]}", run)


def _gate_run(vocabulary: int, dtype: torch.dtype, kind: str) -> None:
    student, teacher = (torch.empty(128, vocabulary, dtype=dtype, device="meta") for _ in range(2))
    target, grad_loss = (torch.empty(128, dtype=d, device="meta") for d in (torch.int64, torch.float32))
    call = Call(student, student, teacher, teacher, target, -100, kind, 0.5, 2.0, True)
    _, statistics = row_losses(call, student, teacher, target)
    row_gradients(call, student, teacher, target, grad_loss, statistics)
