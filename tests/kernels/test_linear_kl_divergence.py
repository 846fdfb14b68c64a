"""linear_kl_divergence: as exact as the divergences written out in PyTorch, by kernels and by definitions."""

import math
import sys

import pytest
import torch
import torch.nn.functional as F
from kernel_testing import (
    assert_compiles,
    assert_keeps_inputs,
    assert_matches,
    assert_same_bits,
    products,
    random_tensor,
    results,
)
from llmfast.kernels import backend, linear_kl_divergence

OPS = sys.modules["llmfast.kernels.losses.linear_kl_divergence_ops"]
MODULE = sys.modules["llmfast.kernels.losses.linear_kl_divergence"]
KINDS = ["forward", "reverse", "js"]
CLASSES = 2048 + 30  # longer than the columns that a program takes at a time


@pytest.fixture(params=["triton", "reference"])
def path(request, device, monkeypatch):
    """The device; the tokens go by in several chunks, on either path."""
    monkeypatch.setattr(MODULE, "FEW_LOGITS", 0)
    monkeypatch.setattr(OPS, "chunk_rows", lambda *sizes: 8)
    with backend(request.param):
        yield device


def problem(device, dtype=torch.float32, classes=CLASSES, tokens=16):
    shapes = {
        "student_hidden": (tokens, 16),
        "student_weight": (classes, 16),
        "teacher_hidden": (tokens, 24),
        "teacher_weight": (classes, 24),
    }
    inputs = {name: random_tensor(s, dtype, device, seed=i) / 2 for i, (name, s) in enumerate(shapes.items())}
    return inputs, torch.tensor([0, -100, 1, 2] * 4, device=device)[:tokens]


def student_only(function, inputs, **options):
    """``function`` of the student's tensors, which alone get gradients."""
    teacher = {name: tensor for name, tensor in inputs.items() if name.startswith("teacher")}

    def call(student_hidden, student_weight):
        others = {name: tensor.to(student_hidden.dtype) for name, tensor in teacher.items()}
        return function(student_hidden, student_weight, **others, **options)

    return call, {name: tensor for name, tensor in inputs.items() if name.startswith("student")}


def written_out(
    student_hidden,
    student_weight,
    teacher_hidden,
    teacher_weight,
    target,
    kind,
    beta=0.5,
    temperature=1.0,
    reduction="mean",
):
    s = F.log_softmax(F.linear(student_hidden, student_weight) / temperature, -1)
    t = F.log_softmax(F.linear(teacher_hidden, teacher_weight) / temperature, -1)
    if kind == "forward":
        loss = F.kl_div(s, t, reduction="none", log_target=True).sum(-1)
    elif kind == "reverse":
        loss = F.kl_div(t, s, reduction="none", log_target=True).sum(-1)
    else:
        m = torch.logsumexp(torch.stack([t + math.log(beta), s + math.log(1 - beta)]), 0)
        loss = beta * F.kl_div(m, t, reduction="none", log_target=True).sum(-1)
        loss = loss + (1 - beta) * F.kl_div(m, s, reduction="none", log_target=True).sum(-1)
    loss = loss if loss.dtype == torch.float64 else loss.float()
    loss = torch.where(target == -100, 0, loss)
    if reduction == "none":
        return loss
    return loss.sum() / (target != -100).sum() if reduction == "mean" else loss.sum()


@pytest.mark.numeric
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_as_exact_as_written_out(path, kind, dtype):
    inputs, target = problem(path, dtype)
    options = {"target": target, "kind": kind, "temperature": 2.0, "beta": 0.3}
    ours, student = student_only(linear_kl_divergence, inputs, **options)
    peer, _ = student_only(written_out, inputs, **options)
    assert_matches(ours, peer, student)


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_reductions_and_expanded_gradients(path, reduction):
    inputs, target = problem(path, classes=300)
    options = {"target": target, "kind": "js", "reduction": reduction}
    ours, student = student_only(linear_kl_divergence, inputs, **options)
    peer, _ = student_only(written_out, inputs, **options)
    assert_matches(ours, peer, student, grad_layout="expanded")


@pytest.mark.parametrize("kind", KINDS)
def test_few_logits_on_the_reference_path(kind):
    inputs, target = problem("cpu", torch.float64, classes=50)
    with backend("reference"):
        ours, student = student_only(linear_kl_divergence, inputs, target=target, kind=kind)
        peer, _ = student_only(written_out, inputs, target=target, kind=kind)
        for name, value in results(ours, student).items():
            torch.testing.assert_close(value, results(peer, student)[name], rtol=1e-10, atol=1e-12)


def test_without_a_target_every_token_counts(path):
    inputs, target = problem(path, classes=300)
    found = linear_kl_divergence(**inputs)
    assert torch.equal(found, linear_kl_divergence(**inputs, target=torch.zeros_like(target)))
    assert found > 0


def test_equal_distributions_are_zero_apart(path):
    inputs, _ = problem(path, classes=300)
    same = (inputs["student_hidden"], inputs["student_weight"])
    for kind in KINDS:
        assert linear_kl_divergence(*same, *same, kind=kind).abs() < 1e-6


@pytest.mark.parametrize("tokens", [0, 2])
def test_all_tokens_ignored_gives_zero_and_no_nan(path, tokens):
    inputs, target = problem(path, classes=300, tokens=tokens)
    ours, student = student_only(linear_kl_divergence, inputs, target=torch.full_like(target, -100))
    for name, value in results(ours, student).items():
        assert not value.any(), name


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_matrix_products_have_no_rows_for_ignored_tokens(path, reduction):
    """A fine-tuning batch is mostly prompt: a quarter of the tokens takes a quarter of the work."""
    inputs, target = problem(path, classes=300, tokens=16)
    for name in ("student_hidden", "student_weight"):
        inputs[name].requires_grad_()

    def multiplications(target):
        return products(lambda: linear_kl_divergence(**inputs, target=target, reduction=reduction).sum().backward())

    student, teacher = 16 * 300 * 16, 16 * 300 * 24
    every = multiplications(target.clamp(min=0))
    assert every == (3 * student + teacher if reduction == "mean" else 4 * student + 2 * teacher)
    assert 4 * multiplications(torch.where(target == -100, 1, -100)) == every
    assert multiplications(torch.full_like(target, -100)) == 0


def test_ignored_tokens_may_hold_anything(path):
    inputs, target = problem(path, classes=300)
    ours, student = student_only(linear_kl_divergence, inputs, target=target)
    clean = results(ours, student)
    for name in ("student_hidden", "teacher_hidden"):
        inputs[name][target == -100] = float("nan")
    dirty = results(*student_only(linear_kl_divergence, inputs, target=target))
    for name, value in clean.items():
        assert torch.equal(dirty[name], value), name


def test_second_backward_gives_the_same_gradients(path):
    inputs, target = problem(path, classes=300)
    hidden = inputs["student_hidden"].requires_grad_()
    loss = linear_kl_divergence(**inputs, target=target)
    first, second = (torch.autograd.grad(loss, hidden, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_the_teacher_gets_no_gradient(path):
    inputs, target = problem(path, classes=300)
    for tensor in inputs.values():
        tensor.requires_grad_()
    linear_kl_divergence(**inputs, target=target).backward()
    assert inputs["student_weight"].grad.any()
    assert inputs["teacher_hidden"].grad is None
    assert inputs["teacher_weight"].grad is None


def test_two_runs_have_equal_bits_and_inputs_stay(path):
    inputs, target = problem(path, classes=300)
    ours, student = student_only(linear_kl_divergence, inputs, target=target, kind="reverse")
    assert_same_bits(ours, student)
    assert_keeps_inputs(ours, student)


def test_torch_compile_takes_it_whole(path):
    inputs, target = problem(path, classes=300)
    assert_compiles(*student_only(linear_kl_divergence, inputs, target=target, kind="js"))


def test_operator_is_well_formed(path):
    inputs, target = problem(path, classes=20)
    hidden, weight, *teacher = inputs.values()
    call = (hidden.requires_grad_(), weight.requires_grad_(), *teacher, target, -100, "js", 0.5, 1.0, False)
    torch.library.opcheck(torch.ops.llmfast.linear_kl_divergence.default, call)


@pytest.mark.gpu
def test_captures_into_a_cuda_graph():
    inputs, target = problem("cuda", torch.bfloat16)
    hidden, weight = (inputs[name].requires_grad_() for name in ("student_hidden", "student_weight"))

    def gradients():
        return torch.autograd.grad(linear_kl_divergence(**inputs, target=target), (hidden, weight))

    gradients()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = gradients()
    target[2] = -100  # how many tokens count is not known when the graph is captured
    graph.replay()
    # the graph multiplies ignored tokens too: a product of another shape may sum in another order
    for one, other in zip(captured, gradients(), strict=True):
        torch.testing.assert_close(one, other, rtol=4 * torch.finfo(one.dtype).eps, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "both"}, "kind must be one of 'forward', 'reverse', 'js', got 'both'"),
        ({"beta": 1.0}, "beta must be between 0 and 1"),
        ({"temperature": 0.0}, "temperature must be positive and finite, got 0.0"),
        ({"teacher_weight": torch.ones(21, 24)}, "student's vocabulary, 20"),
        ({"teacher_hidden": torch.ones(5, 24)}, r"teacher_hidden must be of the student's tokens \(16,\)"),
        ({"student_weight": torch.ones(20, 9)}, "student_weight must be"),
    ],
)
def test_errors_name_the_argument(change, message):
    inputs, _ = problem("cpu", classes=20)
    with pytest.raises(ValueError, match=message):
        linear_kl_divergence(**{**inputs, **change})
