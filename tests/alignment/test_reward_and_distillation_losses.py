"""Losses of reward models and of distillation against their definitions in float64."""

import pytest
import torch

from llmfast.alignment.losses.distillation import divergences, top_k_divergences
from llmfast.alignment.losses.reward import centering, pairwise, process

IGNORED = -100


def test_reward_losses_are_the_formulas():
    g = torch.Generator().manual_seed(0)
    chosen, rejected, margin = torch.randn(3, 6, generator=g, dtype=torch.float64)
    for dtype, close in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        a, b = (each.to(dtype).requires_grad_() for each in (chosen, rejected))
        found = pairwise(a, b, margin.to(dtype))
        wanted = -torch.log(1 / (1 + torch.exp(-(chosen - rejected - margin))))
        torch.testing.assert_close(found.double(), wanted, rtol=close, atol=close)
        (gradient,) = torch.autograd.grad(found.sum(), a)
        p = 1 / (1 + torch.exp(-(chosen - rejected - margin)))
        torch.testing.assert_close(gradient.double(), -(1 - p), rtol=close, atol=close)
        torch.testing.assert_close(centering(a, b).double(), (chosen + rejected) ** 2, rtol=close, atol=close)
    far = pairwise(torch.tensor([-500.0]), torch.tensor([500.0]))
    assert far.tolist() == [1000.0]


def test_the_steps_of_a_process_count_by_their_labels():
    logits = torch.tensor([[0.3, -2.0, 5.0]], dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([[1, 0, 0]])
    p = 1 / (1 + torch.exp(-logits))
    wanted = -(labels * torch.log(p) + (1 - labels) * torch.log(1 - p))
    torch.testing.assert_close(process(logits, labels), wanted, rtol=1e-12, atol=1e-14)
    (gradient,) = torch.autograd.grad(process(logits, labels).sum(), logits)
    torch.testing.assert_close(gradient, p - labels, rtol=1e-12, atol=1e-14)


def heads(dtype=torch.float64):
    g = torch.Generator().manual_seed(5)
    student, teacher = (torch.randn(2, 4, width, generator=g, dtype=torch.float64) for width in (6, 9))
    student_weight, teacher_weight = (torch.randn(13, width, generator=g, dtype=torch.float64) for width in (6, 9))
    targets = torch.tensor([[1, 2, IGNORED, 4], [IGNORED, 0, 12, 3]])
    return *(each.to(dtype) for each in (student, student_weight, teacher, teacher_weight)), targets


@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-10), (torch.float32, 1e-6)])
@pytest.mark.parametrize("kind", ["forward", "reverse", "js"])
def test_divergences_have_the_values_and_gradients_of_the_definition(kind, dtype, close):
    """τ² included: without it, a higher temperature would teach less."""
    tau, beta = 2.0, 0.3
    student, student_weight, teacher, teacher_weight, targets = heads()
    student.requires_grad_()
    p, q = (h @ w.T / tau for h, w in ((student, student_weight), (teacher, teacher_weight)))
    p, q = p.softmax(-1), q.softmax(-1)
    m = beta * q + (1 - beta) * p

    def kl(a, b):
        return (a * torch.log(a / b)).sum(-1)

    each = {"forward": kl(q, p), "reverse": kl(p, q), "js": beta * kl(q, m) + (1 - beta) * kl(p, m)}[kind]
    wanted = torch.where(targets != IGNORED, tau**2 * each, 0)
    (wanted_gradient,) = torch.autograd.grad(wanted.sum(), student)
    s, sw, t, tw, _ = heads(dtype)
    s.requires_grad_()
    found = divergences(s, sw, t, tw, targets, kind=kind, beta=beta, temperature=tau)
    (gradient,) = torch.autograd.grad(found.sum(), s)
    torch.testing.assert_close(found.double(), wanted, rtol=close, atol=close)
    torch.testing.assert_close(gradient.double(), wanted_gradient, rtol=5 * close, atol=5 * close)


def test_a_teacher_of_top_k_is_a_lower_bound_that_meets_the_whole():
    student, student_weight, teacher, teacher_weight, targets = heads()
    whole = divergences(student, student_weight, teacher, teacher_weight, targets)
    log_q = (teacher @ teacher_weight.T).log_softmax(-1)
    p = (student @ student_weight.T).softmax(-1)
    last = torch.zeros_like(whole)
    for k in (1, 3, 7, 13):
        top = log_q.topk(k)
        found = top_k_divergences(student, student_weight, top.indices, top.values, targets)
        q, known = top.values.exp(), p.gather(-1, top.indices)
        rest_q, rest_p = 1 - q.sum(-1), 1 - known.sum(-1)
        wanted = (q * torch.log(q / known)).sum(-1)
        if k < 13:
            wanted = wanted + rest_q * torch.log(rest_q / rest_p)
        torch.testing.assert_close(found, torch.where(targets != IGNORED, wanted, 0), rtol=1e-9, atol=1e-12)
        assert (found >= last - 1e-12).all()
        assert (found <= whole + 1e-9).all()
        last = found
    torch.testing.assert_close(last, whole, rtol=1e-9, atol=1e-12)
