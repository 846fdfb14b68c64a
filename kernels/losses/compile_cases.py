"""What the compile check compiles of the losses."""

from collections.abc import Iterator
from functools import partial

import torch

from ..compile_check import CompileCase
from ..frame.launch import Chip
from . import cross_entropy_ops, linear_cross_entropy_ops, soft_cross_entropy_ops
from .cross_entropy_ops import CrossEntropyBackwardCall, CrossEntropyCall, CrossEntropyKept
from .launch import logits_launch
from .linear_call import LinearCrossEntropyCall
from .linear_cross_entropy_ops import LinearCrossEntropyBackwardCall, LinearCrossEntropyKept
from .linear_kl_divergence import KINDS
from .linear_kl_divergence_ops import LinearKLCall, row_gradients, row_losses
from .objective import LossOptions, objective
from .soft_cross_entropy_ops import SoftCrossEntropyBackwardCall, SoftCrossEntropyCall, SoftCrossEntropyKept

ALL_OPTIONS = LossOptions(-100, 0.1, 1e-4, 30.0)
LIGHT_OPTIONS = LossOptions(-100, 0.0, 1e-4, None)
NO_OPTIONS = LossOptions(-100, 0.0, 0.0, None)


def compile_cases(chip: Chip) -> Iterator[CompileCase]:
    yield from cross_entropy_cases()
    yield from soft_cross_entropy_cases()
    yield CompileCase("vocab_parallel_cross_entropy", "25651 of 128256 bfloat16, label smoothing", _vocab_parallel)
    yield from linear_cross_entropy_cases(chip)
    yield from linear_kl_divergence_cases()


def cross_entropy_cases() -> Iterator[CompileCase]:
    """Each tile (rows of 512, of 128,256) and each way the rows lie, without options and with all of them."""
    for vocabulary, dtype, options in (
        (512, torch.bfloat16, ""),
        (50257, torch.bfloat16, ""),
        (50257, torch.bfloat16, "all options, strided"),
        (128256, torch.bfloat16, ""),
        (128256, torch.bfloat16, "all options, strided"),
        (128256, torch.float32, "all options, strided"),
        (50257, torch.bfloat16, "token accuracy"),
        (128256, torch.bfloat16, "token accuracy"),
    ):
        name = ", ".join(filter(None, (f"{vocabulary} {str(dtype)[6:]}", options)))
        yield CompileCase("cross_entropy", name, partial(_cross_entropy, vocabulary, dtype, options))


def _cross_entropy(vocabulary: int, dtype: torch.dtype, chosen: str) -> None:
    everything, predicts = chosen.startswith("all"), chosen == "token accuracy"
    logits = torch.empty(4, 9, vocabulary, dtype=dtype, device="meta")[:, : 8 if everything else 9]
    target = torch.empty(logits.shape[:2], dtype=torch.int64, device="meta")
    class_weight = torch.empty(vocabulary, device="meta") if everything else None
    options, reduction = (ALL_OPTIONS, "none") if everything else (NO_OPTIONS, "mean")
    call = CrossEntropyCall(logits, target, class_weight, reduction, predicts, options)
    loss, lse, scale, correct = cross_entropy_ops.forward(call)
    if predicts:  # The backward pass is that of the case without.
        return
    kept = CrossEntropyKept(*CrossEntropyKept.fields(call, loss, lse, scale, correct))
    cross_entropy_ops.backward(CrossEntropyBackwardCall(loss, lse if everything else None, kept))


def soft_cross_entropy_cases() -> Iterator[CompileCase]:
    """Each tile, and all options."""
    for vocabulary, dtype, options in (
        (512, torch.bfloat16, ""),
        (128256, torch.bfloat16, ""),
        (50257, torch.float32, "all options"),
    ):
        name = ", ".join(filter(None, (f"{vocabulary} {str(dtype)[6:]}", options)))
        yield CompileCase("soft_cross_entropy", name, partial(_soft_cross_entropy, vocabulary, dtype, bool(options)))


def _soft_cross_entropy(vocabulary: int, dtype: torch.dtype, everything: bool) -> None:
    logits, target = (torch.empty(8, vocabulary, dtype=dtype, device="meta") for _ in range(2))
    class_weight = torch.empty(vocabulary, device="meta") if everything else None
    options = (0.1, 1e-4, 30.0) if everything else (0.0, 0.0, None)
    call = SoftCrossEntropyCall(logits, target, class_weight, *options)
    loss, lse, mass = soft_cross_entropy_ops.forward(call)
    kept = SoftCrossEntropyKept(lse, mass, call)
    soft_cross_entropy_ops.backward(SoftCrossEntropyBackwardCall(loss, lse if everything else None, kept))


def _vocab_parallel() -> None:
    """A part of odd size, so that rows start anywhere."""
    logits = torch.empty(8, 25651, dtype=torch.bfloat16, device="meta")
    target = torch.empty(8, dtype=torch.int64, device="meta")
    chosen = objective(None, -100, 0.1, 0.0, None)._replace(classes=128256, weight_sum=torch.empty((), device="meta"))
    loss, lse = (torch.empty(8, device="meta") for _ in range(2))
    cross_entropy_ops.forward_rows(logits, target, chosen, loss, lse)
    cross_entropy_ops.backward_rows(loss, lse, None, logits, target, chosen, lse, torch.empty_like(logits))


def linear_cross_entropy_cases(chip: Chip) -> Iterator[CompileCase]:
    """The tiles, plain, with each option, and filtered; the chunks launch what ``cross_entropy`` does."""
    product = {90: "wgmma", 100: "tcgen05"}.get(chip.capability, "mma")
    gradients = ("hidden_gradient", "weight_gradient")
    logits = ("tile_statistics", "tile_gradients")
    for width, dtype, options in (
        (4096, torch.bfloat16, ""),
        (4096, torch.bfloat16, "bias, z-loss and weights"),
        (960, torch.float16, "all options"),
        (4096, torch.bfloat16, "filtered"),
        (4096, torch.bfloat16, "token accuracy"),
    ):
        by_tma = logits_launch(chip, options not in ("", "filtered")).tma
        expect = dict.fromkeys(logits, (product, "tma" if by_tma else "cp.async"))
        # A tile that may be skipped is not fetched ahead.
        expect |= dict.fromkeys(gradients, (product,) if options == "filtered" else (product, "cp.async"))
        name = ", ".join(filter(None, (f"{width} {str(dtype)[6:]}", options)))
        yield CompileCase("linear_cross_entropy", name, partial(_linear_cross_entropy, width, dtype, options), expect)


def _linear_cross_entropy(width: int, dtype: torch.dtype, options: str) -> None:
    tokens, vocabulary = 8192, 128256
    hidden, weight, bias = (
        torch.empty(shape, dtype=dtype, device="meta")
        for shape in ((tokens, width), (vocabulary, width), (vocabulary,))
    )
    target = torch.empty(tokens, dtype=torch.int64, device="meta")
    everything = options in ("all options", "bias, z-loss and weights")
    if everything:
        class_weight = torch.empty(vocabulary, device="meta")
        chosen = ALL_OPTIONS if options == "all options" else LIGHT_OPTIONS
        call = LinearCrossEntropyCall(hidden, weight, bias, target, class_weight, None, "tiles", False, chosen)
    else:
        threshold = 1e-4 if options == "filtered" else None
        predicts = options == "token accuracy"
        call = LinearCrossEntropyCall(hidden, weight, None, target, None, threshold, "tiles", predicts, NO_OPTIONS)
    loss, lse, _ = linear_cross_entropy_ops.forward(call)
    if call.predicts:  # The backward pass is that of the case without.
        return
    kept, wanted = LinearCrossEntropyKept(lse, call), [True, True, everything]
    grad_lse = lse if everything else None
    linear_cross_entropy_ops.backward(LinearCrossEntropyBackwardCall(loss, grad_lse, wanted, kept))


def linear_kl_divergence_cases() -> Iterator[CompileCase]:
    """Each kind; matrix products are the BLAS library's."""
    for kind in KINDS:
        for vocabulary, dtype in ((128256, torch.bfloat16), (50257, torch.float32)):
            run = partial(_linear_kl_divergence, vocabulary, dtype, kind)
            yield CompileCase("linear_kl_divergence", f"{kind} {vocabulary} {str(dtype)[6:]}", run)


def _linear_kl_divergence(vocabulary: int, dtype: torch.dtype, kind: str) -> None:
    student, teacher = (torch.empty(128, vocabulary, dtype=dtype, device="meta") for _ in range(2))
    target, grad_loss = (torch.empty(128, dtype=d, device="meta") for d in (torch.int64, torch.float32))
    call = LinearKLCall(student, student, teacher, teacher, target, -100, kind, 0.5, 2.0, True)
    _, statistics = row_losses(call, student, teacher, target)
    row_gradients(call, student, teacher, target, grad_loss, statistics)
