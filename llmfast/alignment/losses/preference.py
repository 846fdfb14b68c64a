"""Losses of preference pairs: DPO and its relatives, each a function of the log-probabilities of whole answers.

With π the policy, π₀ the reference, and h = log π(y)/π₀(y) an answer's log-ratio, most of them are a function of
Δ = h(chosen) − h(rejected). ``PAIR_LOSSES`` has all of them by name. Each gives the loss of every pair (B,).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from llmfast.alignment.config import Divergence, PairLossName

FARTHEST = 80.0  # exp of more overflows in float32


class Pairs(NamedTuple):
    """Log-probabilities of the answers of B pairs, each (B,)."""

    chosen: Tensor
    """Of the chosen answer: the sum over its tokens, by the policy."""
    rejected: Tensor
    reference_chosen: Tensor
    """The same by the reference; unused by losses that need none."""
    reference_rejected: Tensor
    chosen_tokens: Tensor
    """Tokens of the chosen answer."""
    rejected_tokens: Tensor

    @property
    def ratios(self) -> tuple[Tensor, Tensor]:
        """The log-ratios of both answers."""
        return self.chosen - self.reference_chosen, self.rejected - self.reference_rejected

    @property
    def means(self) -> tuple[Tensor, Tensor]:
        """Log-probabilities per token."""
        return self.chosen / self.chosen_tokens, self.rejected / self.rejected_tokens


@dataclass(frozen=True)
class PairOptions:
    """Settings of the losses; each uses those that its formula has."""

    beta: float = 0.1
    """β: how strongly the policy is held to the reference."""
    smoothing: float = 0.0
    """ε: the share of pairs that are taken to be labeled the wrong way round."""
    margin: float = 0.5
    """γ of SimPO: by how much the reward of the chosen answer shall exceed the other."""
    temperature: float = 0.05
    """τ of DiscoPOP's blend."""
    divergence: Divergence = "reverse_kl"
    """From which f-divergence the reward of an answer follows."""
    alpha: float = 0.5
    """α of the divergence ``alpha``."""

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ValueError(f"beta must be positive, got {self.beta}")
        if not 0 <= self.smoothing < 0.5:
            raise ValueError(f"smoothing must be at least 0 and below 0.5, got {self.smoothing}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")
        if self.divergence == "alpha" and self.alpha == 1:
            raise ValueError("alpha 1 is the divergence reverse_kl: choose that")


def divergence_scores(log_ratios: Tensor, divergence: Divergence, alpha: float) -> Tensor:
    """f′(π/π₀) of answers with these log-ratios, up to a constant (f-DPO, arXiv:2309.16240, table 1).

    With t = π/π₀: reverse_kl log t; forward_kl 1 − 1/t; js log(2t/(1+t)); alpha (t^(α−1) − 1)/(α − 1).
    """
    if divergence == "reverse_kl":
        return log_ratios
    if divergence == "forward_kl":
        return -torch.expm1((-log_ratios).clamp(max=FARTHEST))
    if divergence == "js":
        return math.log(2) + F.logsigmoid(log_ratios)
    return torch.expm1(((alpha - 1) * log_ratios).clamp(max=FARTHEST)) / (alpha - 1)


def _scores(pairs: Pairs, options: PairOptions) -> tuple[Tensor, Tensor]:
    chosen, rejected = pairs.ratios
    return tuple(divergence_scores(each, options.divergence, options.alpha) for each in (chosen, rejected))


def _logits(pairs: Pairs, options: PairOptions) -> Tensor:
    chosen, rejected = _scores(pairs, options)
    return options.beta * (chosen - rejected)


def _smoothed(logits: Tensor, smoothing: float) -> Tensor:
    return -(1 - smoothing) * F.logsigmoid(logits) - smoothing * F.logsigmoid(-logits)


# --- with a reference ------------------------------------------------------------------------------------------------


def sigmoid(pairs: Pairs, options: PairOptions) -> Tensor:
    """DPO: −log σ(βΔ), with smoothing the conservative form (arXiv:2305.18290, equation 7; Mitchell 2023)."""
    return _smoothed(_logits(pairs, options), options.smoothing)


def sigmoid_norm(pairs: Pairs, options: PairOptions) -> Tensor:
    """DPO with the log-ratio of each answer divided by its number of tokens (arXiv:2411.15124, section 5.1)."""
    chosen, rejected = _scores(pairs, options)
    delta = chosen / pairs.chosen_tokens - rejected / pairs.rejected_tokens
    return _smoothed(options.beta * delta, options.smoothing)


def robust(pairs: Pairs, options: PairOptions) -> Tensor:
    """DPO made unbiased for a share ε of swapped labels (arXiv:2403.00409, equation 10)."""
    logits, e = _logits(pairs, options), options.smoothing
    return (-(1 - e) * F.logsigmoid(logits) + e * F.logsigmoid(-logits)) / (1 - 2 * e)


def hinge(pairs: Pairs, options: PairOptions) -> Tensor:
    """max(0, 1 − βΔ), as in SLiC (arXiv:2305.10425)."""
    return torch.relu(1 - _logits(pairs, options))


def ipo(pairs: Pairs, options: PairOptions) -> Tensor:
    """(Δ̄ − 1/(2β))² with log-ratios per token (arXiv:2310.12036, equation 17; means as its authors advise)."""
    chosen, rejected = _scores(pairs, options)
    delta = chosen / pairs.chosen_tokens - rejected / pairs.rejected_tokens
    return (delta - 1 / (2 * options.beta)).square()


def exo(pairs: Pairs, options: PairOptions) -> Tensor:
    """KL(p ‖ q) of p = (σ(βΔ), σ(−βΔ)) and q = (1 − ε, ε) (arXiv:2402.00856, equation 16).

    Raises:
        ValueError: smoothing 0, for which it is infinite.
    """
    if not options.smoothing > 0:
        raise ValueError("exo needs a smoothing above 0")
    logits = _logits(pairs, options)
    keeps = torch.sigmoid(logits) * (F.logsigmoid(logits) - math.log1p(-options.smoothing))
    swaps = torch.sigmoid(-logits) * (F.logsigmoid(-logits) - math.log(options.smoothing))
    return keeps + swaps


def nca(pairs: Pairs, options: PairOptions) -> Tensor:
    """−log σ(βh⁺) − ½ log σ(−βh⁺) − ½ log σ(−βh⁻) (arXiv:2402.05369, section 4)."""
    chosen, rejected = (options.beta * each for each in pairs.ratios)
    return -F.logsigmoid(chosen) - 0.5 * F.logsigmoid(-chosen) - 0.5 * F.logsigmoid(-rejected)


def bco(pairs: Pairs, options: PairOptions) -> Tensor:
    """−log σ(βh⁺) − log σ(−βh⁻): a classifier of both answers (arXiv:2404.04656), whose reward shift is 0 here."""
    chosen, rejected = (options.beta * each for each in pairs.ratios)
    return -F.logsigmoid(chosen) - F.logsigmoid(-rejected)


def sppo(pairs: Pairs, options: PairOptions) -> Tensor:
    """(h⁺ − 1/(2β))² + (h⁻ + 1/(2β))²: the chosen answer wins with certainty (arXiv:2405.00675, equation 4.7)."""
    (chosen, rejected), half = pairs.ratios, 0.5 / options.beta
    return (chosen - half).square() + (rejected + half).square()


def apo_zero(pairs: Pairs, options: PairOptions) -> Tensor:
    """1 − σ(βh⁺) + σ(βh⁻), for chosen answers better than the policy's own (arXiv:2408.06266, equation 7)."""
    chosen, rejected = (options.beta * each for each in pairs.ratios)
    return torch.sigmoid(-chosen) + torch.sigmoid(rejected)


def apo_down(pairs: Pairs, options: PairOptions) -> Tensor:
    """σ(βh⁺) + 1 − σ(βΔ), for chosen answers worse than the policy's own (arXiv:2408.06266, equation 8)."""
    chosen, rejected = (options.beta * each for each in pairs.ratios)
    return torch.sigmoid(chosen) + torch.sigmoid(rejected - chosen)


def discopop(pairs: Pairs, options: PairOptions) -> Tensor:
    """Log-ratio modulated loss: −log σ(z) and e^(−z) of z = βΔ, blended by σ(z/τ) (arXiv:2406.08414, equation 5)."""
    logits = _logits(pairs, options)
    share = torch.sigmoid(logits / options.temperature)
    return -F.logsigmoid(logits) * (1 - share) + torch.exp(-logits) * share


def aot(pairs: Pairs, options: PairOptions) -> Tensor:
    """DPO on sorted differences: the batch's policy margins against its reference margins (arXiv:2406.05882).

    A loss of the batch as a whole: it is not the sum over its parts.
    """
    policy = (pairs.chosen - pairs.rejected).sort().values
    reference = (pairs.reference_chosen - pairs.reference_rejected).sort().values
    return _smoothed(options.beta * (policy - reference), options.smoothing)


def aot_unpaired(pairs: Pairs, options: PairOptions) -> Tensor:
    """DPO on sorted log-ratios: those of the chosen answers against those of the rejected ones (arXiv:2406.05882)."""
    chosen, rejected = (each.sort().values for each in pairs.ratios)
    return _smoothed(options.beta * (chosen - rejected), options.smoothing)


def kto(pairs: Pairs, options: PairOptions, *, baseline: Tensor | float = 0.0) -> Tensor:
    """(1 − σ(β(h⁺ − z₀))) + (1 − σ(β(z₀ − h⁻))), both answers counting alike (arXiv:2402.01306, equation 8).

    ``baseline`` is z₀, an estimate of KL(π ‖ π₀) without gradient: see ``kto_baseline``.
    """
    chosen, rejected = pairs.ratios
    good = torch.ones_like(chosen, dtype=torch.bool)
    return kto_judged(chosen, good, options, baseline=baseline) + kto_judged(
        rejected, ~good, options, baseline=baseline
    )


def kto_judged(log_ratios: Tensor, is_good: Tensor, options: PairOptions, *, baseline: Tensor | float = 0.0) -> Tensor:
    """KTO of single answers (B,): 1 − σ(β(h − z₀)) of a good one, 1 − σ(β(z₀ − h)) of a bad one (arXiv:2402.01306)."""
    moved = log_ratios - baseline
    return torch.sigmoid(options.beta * torch.where(is_good, -moved, moved))


def kto_baseline(log_ratios: Tensor) -> Tensor:
    """z₀ of KTO: the mean log-ratio of answers to other prompts than theirs, at least 0, without gradient."""
    return log_ratios.detach().mean().clamp(min=0)


# --- without a reference ---------------------------------------------------------------------------------------------


def sft(pairs: Pairs, options: PairOptions) -> Tensor:
    """The cross entropy of the chosen answer, per token of it."""
    return -pairs.means[0]


def simpo(pairs: Pairs, options: PairOptions) -> Tensor:
    """−log σ(β(m⁺ − m⁻) − γ), m being log-probabilities per token (arXiv:2405.14734, equation 6)."""
    chosen, rejected = pairs.means
    return _smoothed(options.beta * (chosen - rejected) - options.margin, options.smoothing)


def cpo(pairs: Pairs, options: PairOptions) -> Tensor:
    """−log σ(β(log π⁺ − log π⁻)), and the cross entropy of the chosen answer per token (arXiv:2401.08417)."""
    return _smoothed(options.beta * (pairs.chosen - pairs.rejected), options.smoothing) + sft(pairs, options)


def orpo(pairs: Pairs, options: PairOptions) -> Tensor:
    """The cross entropy of the chosen answer, and −β log σ(log odds ratio) (arXiv:2403.07691, equations 6 and 7).

    The odds p/(1 − p) are of p = exp(log-probability per token).
    """
    chosen, rejected = pairs.means
    odds = chosen - rejected - (_log_one_minus_exp(chosen) - _log_one_minus_exp(rejected))
    return sft(pairs, options) - options.beta * F.logsigmoid(odds)


def _log_one_minus_exp(x: Tensor) -> Tensor:
    """log(1 − eˣ) of x < 0 without cancellation (Mächler 2012); x = 0, a certain answer, counts as the next below."""
    x = x.clamp(max=-torch.finfo(x.dtype).tiny)
    near = x > -math.log(2)
    # Where one branch is not taken its input is replaced: an infinite derivative times 0 would be NaN.
    close = torch.log(-torch.expm1(torch.where(near, x, -1.0)))
    return torch.where(near, close, torch.log1p(-torch.exp(torch.where(near, -1.0, x))))


PairLoss = Callable[[Pairs, PairOptions], Tensor]
PAIR_LOSSES: dict[PairLossName, PairLoss] = {
    each.__name__: each
    for each in (
        sigmoid, sigmoid_norm, robust, hinge, ipo, exo, nca, bco, sppo, apo_zero, apo_down,
        discopop, aot, aot_unpaired, kto, sft, simpo, cpo, orpo,
    )
}  # fmt: skip
WITHOUT_REFERENCE = frozenset({"sft", "simpo", "cpo", "orpo"})
OF_THE_BATCH = frozenset({"aot", "aot_unpaired", "kto"})
"""Losses of a batch as a whole, which its parts do not add up to."""
