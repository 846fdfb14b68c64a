"""Policy losses, KL estimates, advantages and their denominators against their definitions in float64, and trl."""

import itertools
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch

from llmfast.alignment.losses.advantages import generalized_advantages, group_advantages, whitened
from llmfast.alignment.losses.entropy import entropies
from llmfast.alignment.losses.kl import kl_estimate, kl_loss
from llmfast.alignment.losses.policy import (
    cispo,
    clipped,
    importance,
    reinforce,
    truncated_importance,
    value_loss,
)
from llmfast.alignment.losses.reduce import masked_mean, masked_normalize, masked_sum, row_losses, row_weights

B, S = 6, 7


def rollouts(dtype=torch.float64, seed=0):
    """(new, old, advantages, mask): log-probabilities of tokens with gradients by the new ones."""
    g = torch.Generator().manual_seed(seed)
    old = -torch.rand(B, S, generator=g, dtype=torch.float64)
    new = old + 0.6 * torch.randn(B, S, generator=g, dtype=torch.float64)
    advantages = torch.randn(B, generator=g, dtype=torch.float64)
    lengths = torch.tensor([7, 3, 1, 5, 2, 6])
    mask = torch.arange(S) < lengths[:, None]
    return new.to(dtype).requires_grad_(), old.to(dtype), advantages.to(dtype)[:, None], mask


def by_hand_clipped(new, old, advantages, low, high, dual):
    """Token by token, as the papers write it."""
    out = torch.zeros_like(new)
    for i, j in itertools.product(range(B), range(S)):
        r, a = torch.exp(new[i, j]) / torch.exp(old[i, j]), advantages[i, 0]
        clip = min(max(float(r.detach()), 1 - low), 1 + high)
        # Of two equal surrogates either has the gradient; they differ in value here wherever one is clipped.
        surrogate = r * a if float((r * a).detach()) <= clip * float(a) else clip * a
        if dual is not None and float(a) < 0 and float(surrogate.detach()) < dual * float(a):
            surrogate = dual * a
        out[i, j] = -surrogate
    return out


@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize(("low", "high", "dual"), [(0.2, 0.2, None), (0.2, 0.28, None), (0.1, 0.3, 1.2)])
def test_clipping_is_that_of_the_papers(low, high, dual, dtype, close):
    new, old, advantages, mask = rollouts()
    wanted = by_hand_clipped(new, old, advantages, low, high, dual)
    (wanted_gradient,) = torch.autograd.grad(wanted[mask].sum(), new)
    new, old, advantages, mask = rollouts(dtype)
    found = clipped(new - old, advantages, low=low, high=high, dual=dual)
    (gradient,) = torch.autograd.grad(found.losses[mask].sum(), new)
    torch.testing.assert_close(found.losses.double(), wanted.detach(), rtol=close, atol=close)
    torch.testing.assert_close(gradient.double(), wanted_gradient, rtol=2 * close, atol=close)
    assert torch.equal(found.is_clipped[mask], (gradient == 0)[mask])
    assert found.is_clipped.any()
    assert not found.is_clipped.all()


def test_before_the_first_update_every_policy_loss_has_the_gradient_of_reinforce():
    new, _, advantages, mask = rollouts()
    old = new.detach().clone()
    (wanted,) = torch.autograd.grad(reinforce(new, advantages)[mask].sum(), new)
    for losses in (
        clipped(new - old, advantages).losses,
        clipped(new - old, advantages, high=0.28, dual=3.0).losses,
        cispo(new, new - old, advantages).losses,
    ):
        (gradient,) = torch.autograd.grad(losses[mask].sum(), new)
        torch.testing.assert_close(gradient, wanted, rtol=1e-12, atol=0)


def test_the_ratio_of_an_answer_is_the_geometric_mean_of_its_tokens():
    new, old, advantages, mask = rollouts()
    found = clipped(importance(new - old, mask, "sequence"), advantages, low=3e-2, high=4e-2).losses
    assert found.shape == (B, 1)
    for row in range(B):
        tokens = int(mask[row].sum())
        answer = torch.exp(new[row, :tokens].sum()) / torch.exp(old[row, :tokens].sum())
        ratio = answer ** (1 / tokens)
        surrogate = torch.minimum(ratio * advantages[row], ratio.clamp(0.97, 1.04) * advantages[row])
        torch.testing.assert_close(found[row], -surrogate, rtol=1e-10, atol=1e-12)


def test_cispo_clips_the_weight_and_keeps_the_gradient():
    new, old, advantages, mask = rollouts()
    found = cispo(new, new - old, advantages, high=0.2)
    (gradient,) = torch.autograd.grad(found.losses[mask].sum(), new)
    weight = (new - old).detach().exp().clamp(max=1.2)
    torch.testing.assert_close(gradient[mask], (-weight * advantages)[mask], rtol=1e-12, atol=0)
    assert (gradient[mask] != 0).all()


def test_importance_is_truncated_and_has_no_gradient():
    new, old, _, _ = rollouts()
    weights = truncated_importance(new, old, 1.5)
    assert not weights.requires_grad
    torch.testing.assert_close(weights, (new.detach().exp() / old.exp()).clamp(max=1.5), rtol=1e-12, atol=0)


def test_the_value_loss_takes_the_larger_of_both():
    values = torch.tensor([1.0, 1.0, 3.0], dtype=torch.float64, requires_grad=True)
    returns, old = torch.tensor([2.0, 0.0, 3.5]).double(), torch.tensor([1.5, 1.5, 0.0]).double()
    torch.testing.assert_close(value_loss(values, returns), 0.5 * (values - returns) ** 2)
    near = torch.tensor([1.3, 1.3, 0.2], dtype=torch.float64)
    wanted = torch.stack(
        [torch.max((v - r) ** 2, (n - r) ** 2) / 2 for v, r, n in zip(values, returns, near, strict=True)]
    )
    torch.testing.assert_close(value_loss(values, returns, old, clip=0.2), wanted)


# --- KL --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def distributions():
    """Logits of a policy and of a reference over 5 tokens."""
    g = torch.Generator().manual_seed(3)
    policy, reference = torch.randn(2, 5, generator=g, dtype=torch.float64)
    return policy.requires_grad_(), reference


def test_k1_and_k3_have_the_kl_as_their_mean(distributions):
    policy, reference = (each.log_softmax(-1) for each in distributions)
    kl = (policy.exp() * (policy - reference)).sum()
    for estimator in ("k1", "k3"):
        torch.testing.assert_close((policy.exp() * kl_estimate(policy, reference, estimator)).sum(), kl)
    assert (kl_estimate(policy, reference, "k3") >= 0).all()
    assert torch.equal(kl_estimate(policy, policy, "k3"), torch.zeros(5, dtype=torch.float64))


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_the_kl_in_the_loss_has_the_gradient_of_the_kl(distributions, estimator):
    """Trap: k3 in the loss, whose gradient is that of another divergence, or k1, whose mean gradient is 0."""
    logits, reference_logits = distributions
    reference = reference_logits.log_softmax(-1)

    def mean_gradient(of_token):
        """Over tokens drawn from the policy: each token's gradient, by its probability."""
        policy = logits.log_softmax(-1)
        drawn = policy.detach().exp()
        return torch.autograd.grad((drawn * of_token(policy)).sum(), logits)[0]

    policy = logits.log_softmax(-1)
    wanted = torch.autograd.grad((policy.exp() * (policy - reference)).sum(), logits)[0]
    found = mean_gradient(lambda policy: kl_loss(policy, reference, estimator))
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
    value = kl_loss(policy, reference, estimator)
    torch.testing.assert_close(value, kl_estimate(policy, reference, estimator), rtol=1e-12, atol=1e-14)
    if estimator != "k2":
        plain = mean_gradient(lambda policy: kl_estimate(policy, reference, estimator))
        assert not torch.allclose(plain, wanted, rtol=0.05)


def test_entropies_have_the_value_and_gradient_of_the_definition():
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(11, 4, generator=g, dtype=torch.float64)
    states = torch.randn(2, 5, 4, generator=g, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[1, 1, 0, 1, 0], [0, 1, 1, 1, 1]], dtype=torch.bool)
    found = entropies(states, lambda rows: rows @ weight.T, mask)
    p = (states @ weight.T).softmax(-1)
    wanted = torch.where(mask, -(p * p.log()).sum(-1), 0)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-6, atol=1e-6)
    gradients = [torch.autograd.grad(each.sum(), states)[0] for each in (found, wanted)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)
    nothing = entropies(states, lambda rows: rows @ weight.T, torch.zeros(2, 5))
    assert torch.equal(nothing, torch.zeros(2, 5, dtype=nothing.dtype))


# --- advantages ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("baseline", ["group", "leave_one_out", "mean", "none"])
def test_group_advantages_by_hand(baseline, scale):
    rewards = [0.0, 1.0, 1.0, 3.0, 2.0, 2.0, 2.0, 2.0]
    found = group_advantages(torch.tensor(rewards, dtype=torch.float64), 4, baseline=baseline, scale=scale, eps=1e-4)
    for place, reward in enumerate(rewards):
        first = place // 4 * 4
        group = rewards[first : first + 4]
        others = [each for number, each in enumerate(group) if first + number != place]
        base = {
            "group": sum(group) / 4,
            "leave_one_out": sum(others) / 3,
            "mean": sum(rewards) / 8,
            "none": 0.0,
        }[baseline]
        variance = sum((each - sum(group) / 4) ** 2 for each in group) / 3
        wanted = (reward - base) / (variance**0.5 + 1e-4) if scale else reward - base
        assert float(found.advantages[place]) == pytest.approx(wanted, abs=1e-12)
    assert found.is_equal.tolist() == [False] * 4 + [True] * 4


def test_equal_rewards_give_exactly_no_advantage():
    """Trap: a rounding of the mean divided by a small number."""
    found = group_advantages(torch.full((6,), 0.1), 3, scale=True, eps=1e-8)
    assert torch.equal(found.advantages, torch.zeros(6))
    assert found.is_equal.all()


def test_groups_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="groups of 4"):
        group_advantages(torch.zeros(6), 4)
    with pytest.raises(ValueError, match="sample more answers"):
        group_advantages(torch.zeros(6), 1)
    assert group_advantages(torch.ones(2), 1, baseline="none").advantages.tolist() == [1.0, 1.0]


def test_generalized_advantages_are_the_sum_of_the_paper():
    """Also across tokens that the policy did not sample, and with the value behind the end of an answer cut short."""
    g = torch.Generator().manual_seed(1)
    rewards, values = torch.randn(2, 3, 6, generator=g, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 1, 0], [0, 1, 1, 0, 0, 0]], dtype=torch.bool)
    bootstrap = torch.tensor([0.5, 0.0, -1.0], dtype=torch.float64)
    gamma, decay = 0.9, 0.8
    found = generalized_advantages(rewards, values, mask, gamma=gamma, decay=decay, bootstrap=bootstrap)
    for row in range(3):
        places = mask[row].nonzero().flatten().tolist()
        v = [float(values[row, place]) for place in places] + [float(bootstrap[row])]
        deltas = [float(rewards[row, p]) + gamma * v[n + 1] - v[n] for n, p in enumerate(places)]
        for n, place in enumerate(places):
            wanted = sum((gamma * decay) ** k * delta for k, delta in enumerate(deltas[n:]))
            assert float(found.advantages[row, place]) == pytest.approx(wanted, abs=1e-12)
            assert float(found.returns[row, place]) == pytest.approx(wanted + v[n], abs=1e-12)
        assert (found.advantages[row][~mask[row]] == 0).all()
        assert (found.returns[row][~mask[row]] == 0).all()


def test_whitened_values_have_mean_0_and_variance_1_where_they_count():
    values, mask = torch.randn(4, 5, dtype=torch.float64) * 3 + 7, torch.rand(4, 5) > 0.3
    mask[0, :2] = True
    found = whitened(values, mask)
    assert float(found[mask].mean()) == pytest.approx(0, abs=1e-12)
    assert float(found[mask].var()) == pytest.approx(1, abs=1e-6)
    assert (found[~mask] == 0).all()
    one = torch.zeros(1, 3, dtype=torch.bool)
    one[0, 1] = True
    assert whitened(torch.tensor([[1.0, 2.0, 3.0]]), one).tolist() == [[0.0, 2.0, 0.0]]


# --- denominators ----------------------------------------------------------------------------------------------------


def test_masked_means_are_those_of_the_tokens_that_count():
    """The functions of CS336's assignment 5; what is masked may be NaN."""
    values = torch.tensor([[1.0, 2.0, torch.nan], [5.0, torch.inf, torch.nan]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert float(masked_sum(values, mask)) == 8
    assert float(masked_mean(values, mask)) == pytest.approx(8 / 3)
    assert masked_mean(values, mask, dim=1).tolist() == [1.5, 5.0]
    assert masked_normalize(values, mask, 4.0, dim=1).tolist() == [0.75, 1.25]
    assert float(masked_mean(values, torch.zeros(2, 3))) == 0


@pytest.mark.parametrize("over", ["tokens", "sequences", "constant"])
def test_parts_of_a_batch_add_up_to_the_whole(over):
    """Traps: accumulation that changes GRPO; a sum where a mean was meant."""
    new, old, advantages, mask = rollouts()
    mask[2] = False  # an answer that does not count at all
    losses = clipped(new - old, advantages).losses
    means = [float(losses[row][mask[row]].mean()) for row in range(B) if mask[row].any()]
    sums = [float(losses[row][mask[row]].sum()) for row in range(B)]
    wanted = {
        "tokens": sum(sums) / int(mask.sum()),
        "sequences": sum(means) / 5,
        "constant": sum(sums) / 10 / 5,
    }[over]
    total = row_losses(losses, mask, over, length=10).sum() / row_weights(mask, over).sum()
    assert float(total) == pytest.approx(wanted, rel=1e-12)
    parts = [slice(0, 2), slice(2, 3), slice(3, 6)]
    weights = [row_weights(mask[part], over).sum() for part in parts]
    found = sum(
        row_losses(losses[part], mask[part], over, length=10).sum() / weight.clamp(min=1) * weight / sum(weights)
        for part, weight in zip(parts, weights, strict=True)
    )
    assert float(found) == pytest.approx(wanted, rel=1e-12)


def test_a_constant_length_is_needed_where_it_is_the_denominator():
    with pytest.raises(ValueError, match="length of at least 1"):
        row_losses(torch.zeros(2, 3), torch.ones(2, 3), "constant")


# --- trl -------------------------------------------------------------------------------------------------------------


def loss_by_trl(new, old, advantages, mask, loss_type, level, low, high, delta=None):
    from trl import GRPOTrainer

    accelerator = SimpleNamespace(
        gather=lambda x: x, reduce=lambda x, reduction: x, num_processes=1, sync_gradients=True
    )
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (new, torch.zeros_like(new), None),
        aux_loss_enabled=False, top_entropy_quantile=1.0, off_policy_mask_threshold=None,
        importance_sampling_level=level, beta=0.0, loss_type=loss_type, epsilon_low=low, epsilon_high=high,
        args=SimpleNamespace(delta=delta, steps_per_generation=1), use_vllm=False, model=SimpleNamespace(training=True),
        current_gradient_accumulation_steps=1, max_completion_length=10, accelerator=accelerator,
        _entropy_bonus_enabled=False, _metrics=defaultdict(lambda: defaultdict(list)),
    )  # fmt: skip
    ids = torch.zeros(B, S, dtype=torch.int64)
    inputs = {
        "prompt_ids": ids[:, :1], "prompt_mask": ids[:, :1], "completion_ids": ids, "completion_mask": mask.long(),
        "advantages": advantages[:, 0], "old_per_token_logps": old, "num_items_in_batch": mask.sum(),
    }  # fmt: skip
    return GRPOTrainer._compute_loss(trainer, None, inputs)


@pytest.mark.parametrize(
    ("loss_type", "over", "level", "low", "high"),
    [
        ("grpo", "sequences", "token", 0.2, 0.2),
        ("grpo", "sequences", "sequence", 3e-2, 4e-2),
        ("dr_grpo", "constant", "token", 0.2, 0.2),
        ("dapo", "tokens", "token", 0.2, 0.28),
        ("cispo", "tokens", "token", None, 1.2),
    ],
)
def test_losses_and_gradients_are_those_of_trl(loss_type, over, level, low, high):
    pytest.importorskip("trl", reason="trl is not installed")
    new, old, advantages, mask = rollouts(torch.float32)
    # trl's epsilon of CISPO is the bound itself.
    theirs = loss_by_trl(new, old, advantages, mask, loss_type, level, low, high)
    (their_gradient,) = torch.autograd.grad(theirs, new)
    if loss_type == "cispo":
        losses = cispo(new, new - old, advantages, high=high - 1).losses
    else:
        losses = clipped(importance(new - old, mask, level), advantages, low=low, high=high).losses
    ours = row_losses(losses.expand(B, S), mask, over, length=10).sum() / row_weights(mask, over).sum()
    (gradient,) = torch.autograd.grad(ours, new)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, their_gradient, rtol=1e-5, atol=1e-6)
