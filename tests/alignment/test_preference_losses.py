"""The DPO family against its formulas in float64, written with probabilities, and against trl where it is installed."""

import math
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch

from llmfast.alignment.losses.preference import (
    OF_THE_BATCH,
    PAIR_LOSSES,
    WITHOUT_REFERENCE,
    PairOptions,
    Pairs,
    divergence_scores,
    kto,
    kto_baseline,
)

# sigmoid as it is in books: exact enough in float64, where the losses must be in float32.


def s(x):
    return 1 / (1 + torch.exp(-x))


def dpo_logit(p, o):
    """β times the difference of log-ratios, from probabilities."""
    t_chosen = torch.exp(p.chosen) / torch.exp(p.reference_chosen)
    t_rejected = torch.exp(p.rejected) / torch.exp(p.reference_rejected)
    return o.beta * (torch.log(t_chosen) - torch.log(t_rejected))


def mixed(z, e):
    return -(1 - e) * torch.log(s(z)) - e * torch.log(s(-z))


def per_token(p):
    h = p.chosen - p.reference_chosen, p.rejected - p.reference_rejected
    return h[0] / p.chosen_tokens - h[1] / p.rejected_tokens


def h_of(p, o):
    return o.beta * (p.chosen - p.reference_chosen), o.beta * (p.rejected - p.reference_rejected)


def sorted_margins(p):
    return torch.sort(p.chosen - p.rejected)[0] - torch.sort(p.reference_chosen - p.reference_rejected)[0]


def sorted_ratios(p):
    a, b = p.chosen - p.reference_chosen, p.rejected - p.reference_rejected
    return torch.sort(a)[0] - torch.sort(b)[0]


def kl_of_two(q, e):
    return q * torch.log(q / (1 - e)) + (1 - q) * torch.log((1 - q) / e)


def odds(p):
    chosen, rejected = torch.exp(p.chosen / p.chosen_tokens), torch.exp(p.rejected / p.rejected_tokens)
    return (chosen / (1 - chosen)) / (rejected / (1 - rejected))


def modulated(z, tau):
    return -torch.log(s(z)) * (1 - s(z / tau)) + torch.exp(-z) * s(z / tau)


DEFINITIONS = {
    "sigmoid": lambda p, o: mixed(dpo_logit(p, o), o.smoothing),
    "sigmoid_norm": lambda p, o: mixed(o.beta * per_token(p), o.smoothing),
    "robust": lambda p, o: (
        (-(1 - o.smoothing) * torch.log(s(dpo_logit(p, o))) + o.smoothing * torch.log(s(-dpo_logit(p, o))))
        / (1 - 2 * o.smoothing)
    ),
    "hinge": lambda p, o: torch.maximum(torch.zeros_like(p.chosen), 1 - dpo_logit(p, o)),
    "ipo": lambda p, o: (per_token(p) - 1 / (2 * o.beta)) ** 2,
    "exo": lambda p, o: kl_of_two(s(dpo_logit(p, o)), o.smoothing),
    "nca": lambda p, o: (
        -torch.log(s(h_of(p, o)[0])) - torch.log(s(-h_of(p, o)[0])) / 2 - torch.log(s(-h_of(p, o)[1])) / 2
    ),
    "bco": lambda p, o: -torch.log(s(h_of(p, o)[0])) - torch.log(s(-h_of(p, o)[1])),
    "sppo": lambda p, o: (
        (h_of(p, o)[0] / o.beta - 1 / (2 * o.beta)) ** 2 + (h_of(p, o)[1] / o.beta + 1 / (2 * o.beta)) ** 2
    ),
    "apo_zero": lambda p, o: 1 - s(h_of(p, o)[0]) + s(h_of(p, o)[1]),
    "apo_down": lambda p, o: s(h_of(p, o)[0]) + 1 - s(dpo_logit(p, o)),
    "discopop": lambda p, o: modulated(dpo_logit(p, o), o.temperature),
    "aot": lambda p, o: mixed(o.beta * sorted_margins(p), o.smoothing),
    "aot_unpaired": lambda p, o: mixed(o.beta * sorted_ratios(p), o.smoothing),
    "kto": lambda p, o: (1 - s(h_of(p, o)[0])) + (1 - s(-h_of(p, o)[1])),
    "sft": lambda p, o: -p.chosen / p.chosen_tokens,
    "simpo": lambda p, o: mixed(
        o.beta * (p.chosen / p.chosen_tokens - p.rejected / p.rejected_tokens) - o.margin, o.smoothing
    ),
    "cpo": lambda p, o: mixed(o.beta * (p.chosen - p.rejected), o.smoothing) - p.chosen / p.chosen_tokens,
    "orpo": lambda p, o: -p.chosen / p.chosen_tokens - o.beta * torch.log(s(torch.log(odds(p)))),
}
OPTIONS = PairOptions(beta=0.3, smoothing=0.1, margin=0.4, temperature=0.7)


def pairs(dtype=torch.float64, count=7, seed=0, spread=1.0):
    """Log-probabilities as of answers of a few tokens, with gradients by the policy's."""
    generator = torch.Generator().manual_seed(seed)
    tokens = [torch.randint(2, 9, (count,), generator=generator).to(torch.float64) for _ in range(2)]
    drawn = [-spread * torch.rand(count, generator=generator, dtype=torch.float64) * n - 0.1 for n in tokens * 2]
    chosen, rejected, reference_chosen, reference_rejected = (each.to(dtype) for each in drawn)
    return Pairs(
        chosen.requires_grad_(), rejected.requires_grad_(), reference_chosen, reference_rejected,
        *(each.to(dtype) for each in tokens),
    )  # fmt: skip


def value_and_gradient(loss, p, options=OPTIONS):
    losses = loss(p, options)
    weights = torch.linspace(0.5, 1.5, len(losses), dtype=losses.dtype)
    wanted = [each for each in (p.chosen, p.rejected) if each.requires_grad]
    gradients = torch.autograd.grad((losses * weights).sum(), wanted, allow_unused=True)
    return losses.detach(), [torch.zeros_like(p.chosen) if g is None else g for g in gradients]


def test_every_loss_has_a_definition_to_compare_with():
    assert PAIR_LOSSES.keys() == DEFINITIONS.keys()
    assert PAIR_LOSSES.keys() >= WITHOUT_REFERENCE | OF_THE_BATCH


@pytest.mark.parametrize("name", PAIR_LOSSES)
@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_values_and_gradients_are_those_of_the_formulas(name, dtype, close):
    wanted, wanted_gradients = value_and_gradient(DEFINITIONS[name], pairs())
    losses, gradients = value_and_gradient(PAIR_LOSSES[name], pairs(dtype))
    torch.testing.assert_close(losses.double(), wanted, rtol=close, atol=close)
    for found, expected in zip(gradients, wanted_gradients, strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=2 * close, atol=close)


@pytest.mark.parametrize("name", sorted(set(PAIR_LOSSES) - {"discopop"}))
def test_answers_far_from_the_reference_have_finite_losses_and_gradients(name):
    """Trap: log of a sigmoid that has rounded to 0."""
    p = pairs(torch.float32)._replace(
        chosen=torch.tensor([-900.0, -1.0, -1e-9]).requires_grad_(),
        rejected=torch.tensor([-1.0, -900.0, -1.0]).requires_grad_(),
        reference_chosen=torch.tensor([-1.0, -900.0, -1.0]),
        reference_rejected=torch.tensor([-900.0, -1.0, -1.0]),
        chosen_tokens=torch.tensor([3.0, 3.0, 1.0]),
        rejected_tokens=torch.tensor([3.0, 3.0, 1.0]),
    )
    losses, gradients = value_and_gradient(PAIR_LOSSES[name], p)
    assert losses.isfinite().all()
    assert all(each.isfinite().all() for each in gradients)


@pytest.mark.parametrize("name", sorted(WITHOUT_REFERENCE))
def test_losses_without_a_reference_ignore_it(name):
    p = pairs()
    other = p._replace(
        reference_chosen=p.reference_chosen * math.nan, reference_rejected=p.reference_rejected * math.nan
    )
    assert torch.equal(PAIR_LOSSES[name](p, OPTIONS), PAIR_LOSSES[name](other, OPTIONS))


@pytest.mark.parametrize("name", sorted(set(PAIR_LOSSES) - OF_THE_BATCH))
def test_the_loss_of_a_pair_depends_on_that_pair_alone(name):
    """Trap: a loss that changes when a batch is worked through in parts."""
    p = pairs()
    whole = PAIR_LOSSES[name](p, OPTIONS)
    parts = [PAIR_LOSSES[name](Pairs(*(each[place : place + 1] for each in p)), OPTIONS) for place in range(7)]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-14, atol=0)


@pytest.mark.parametrize(
    ("divergence", "derivative"),
    [
        ("reverse_kl", lambda t: torch.log(t)),
        ("forward_kl", lambda t: 1 - 1 / t),
        ("js", lambda t: torch.log(2 * t / (1 + t))),
        ("alpha", lambda t: (t ** (0.5 - 1) - 1) / (0.5 - 1)),
    ],
)
def test_scores_are_derivatives_of_the_divergence(divergence, derivative):
    t = torch.tensor([0.2, 0.9, 1.0, 1.7, 4.0], dtype=torch.float64)
    torch.testing.assert_close(divergence_scores(t.log(), divergence, 0.5), derivative(t), rtol=1e-12, atol=1e-14)
    assert divergence_scores(torch.tensor([-500.0, 500.0]), divergence, 0.5).isfinite().all()


def test_the_baseline_of_kto_is_never_negative_and_has_no_gradient():
    ratios = torch.tensor([-3.0, 1.0], requires_grad=True)
    assert float(kto_baseline(ratios)) == 0
    found = kto_baseline(ratios + 2)
    assert float(found) == pytest.approx(1.0)
    assert not found.requires_grad
    p = pairs()
    z, (chosen, rejected) = 0.7, h_of(p, OPTIONS)
    wanted = (1 - s(chosen - OPTIONS.beta * z)) + (1 - s(OPTIONS.beta * z - rejected))
    torch.testing.assert_close(kto(p, OPTIONS, baseline=z), wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"beta": 0.0}, "beta must be positive"),
        ({"beta": math.nan}, "beta must be positive"),
        ({"smoothing": 0.5}, "smoothing must be"),
        ({"divergence": "alpha", "alpha": 1.0}, "choose that"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        PairOptions(**settings)


def test_exo_without_smoothing_is_refused():
    with pytest.raises(ValueError, match="smoothing above 0"):
        PAIR_LOSSES["exo"](pairs(), PairOptions(smoothing=0.0))


# --- trl -------------------------------------------------------------------------------------------------------------

TRL_NAMES = {
    "sigmoid": "sigmoid", "sigmoid_norm": "sigmoid_norm", "robust": "robust", "hinge": "hinge", "ipo": "ipo",
    "exo": "exo_pair", "nca": "nca_pair", "bco": "bco_pair", "sppo": "sppo_hard", "apo_zero": "apo_zero",
    "apo_down": "apo_down", "discopop": "discopop", "aot": "aot", "aot_unpaired": "aot_unpaired",
}  # fmt: skip


def token_rows(count=7, length=8, seed=0):
    """Log-probabilities of tokens, 0 behind the end of an answer; chosen answers first; and the mask."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, length, (2 * count, 1), generator=generator)
    mask = torch.arange(length) < lengths
    return -torch.rand(2 * count, length, generator=generator) * mask, mask


def loss_by_trl(name, rows, mask, reference, options):
    """The mean loss as ``DPOTrainer`` computes it, from a model whose log-probabilities are ``rows``."""
    from trl import DPOTrainer

    chosen, rejected = reference.chunk(2)
    whole = torch.cat([torch.zeros(len(rows), 1, dtype=torch.bool), mask], 1)
    zeros = torch.zeros(rows.shape)
    outputs = SimpleNamespace(log_probs=rows, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())
    divergences = {"js": "js_divergence", "alpha": "alpha_divergence"}
    accelerator = SimpleNamespace(
        device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x, unwrap_model=lambda x: x
    )
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True), accelerator=accelerator, aux_loss_enabled=False, ld_alpha=None,
        precompute_ref_logps=True, f_divergence_type=divergences.get(options.divergence, options.divergence),
        f_alpha_divergence_coef=options.alpha, loss_types=[name], loss_weights=[1.0], beta=options.beta,
        label_smoothing=options.smoothing, use_weighting=False, args=SimpleNamespace(discopop_tau=options.temperature),
        _metrics=defaultdict(lambda: defaultdict(list)), _total_train_tokens=0, _tp_size=1,
    )  # fmt: skip
    inputs = {
        "completion_mask": whole.long(), "input_ids": torch.ones(whole.shape, dtype=torch.int64),
        "attention_mask": torch.ones(whole.shape), "ref_chosen_logps": chosen, "ref_rejected_logps": rejected,
    }  # fmt: skip
    return DPOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, False)


WITH_DIVERGENCE = ("sigmoid", "sigmoid_norm", "robust", "hinge", "ipo", "exo", "discopop")


@pytest.mark.parametrize(
    ("name", "divergence"),
    [(name, "reverse_kl") for name in TRL_NAMES]
    + [(name, divergence) for name in WITH_DIVERGENCE for divergence in ("forward_kl", "js", "alpha")],
)
def test_losses_and_gradients_are_those_of_trl(name, divergence):
    pytest.importorskip("trl", reason="trl is not installed")
    # trl has no smoothing in the plain losses.
    smoothing = 0.1 if name in ("robust", "exo", "aot", "aot_unpaired") else 0.0
    options = PairOptions(beta=0.3, smoothing=smoothing, temperature=0.7, divergence=divergence, alpha=0.5)
    rows, mask = token_rows()
    reference = token_rows(seed=1)[0].sum(1)
    theirs = rows.clone().requires_grad_()
    loss = loss_by_trl(TRL_NAMES[name], theirs, mask, reference, options)
    loss.backward()
    ours = rows.clone().requires_grad_()
    sums, counts = ours.sum(1).chunk(2), mask.sum(1).float().chunk(2)
    found = PAIR_LOSSES[name](Pairs(*sums, *reference.chunk(2), *counts), options).mean()
    found.backward()
    torch.testing.assert_close(found, loss.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.grad * mask, theirs.grad * mask, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["simpo", "cpo", "orpo"])
def test_losses_without_a_reference_are_those_of_trl(name):
    pytest.importorskip("trl", reason="trl is not installed")
    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.orpo import ORPOTrainer

    p = pairs(torch.float32)
    options = PairOptions(beta=0.3, smoothing=0.0 if name == "orpo" else 0.1, margin=0.4)
    trainer = SimpleNamespace(
        alpha=0.0, beta=0.3, simpo_gamma=0.4, label_smoothing=0.1, loss_type="simpo" if name == "simpo" else "sigmoid",
        accelerator=SimpleNamespace(device=torch.device("cpu")),
    )  # fmt: skip
    means = p.means
    if name == "orpo":
        wanted = -ORPOTrainer.odds_ratio_loss(trainer, *means)[0] - means[0]
    elif name == "simpo":
        wanted = CPOTrainer.cpo_loss(trainer, *means)[0]
    else:
        wanted = CPOTrainer.cpo_loss(trainer, p.chosen, p.rejected)[0] - means[0]
    torch.testing.assert_close(PAIR_LOSSES[name](p, options), wanted, rtol=1e-5, atol=1e-6)
