"""Mixture of experts: a router sends each token to a few of many feed-forwards (Shazeer et al. 2017).

Beside the shape letters of ``decoder.py``: X experts, k experts a token is sent to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmfast.kernels import is_batch_invariant, linear
from llmfast.models.config import DecoderConfig
from llmfast.models.feed_forward import GatedFeedForward
from llmfast.models.grouped import grouped_linear


class Routed(NamedTuple):
    """What a router did with the real tokens among N: the material of its balancing losses and statistics."""

    counts: Tensor
    """How many times each expert was chosen, (X,) int64."""
    scores: Tensor
    """Mean score of each expert, (X,), differentiable."""
    z: Tensor
    """Mean squared log-sum-exp of the logits, a scalar, differentiable."""
    sent: Tensor
    """How many tokens each expert gets, padding included, (X,) int64."""


class Router(nn.Module):
    """Chooses k experts for each token and weighs them."""

    bias: Tensor

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.config = config.experts
        self.weight = nn.Parameter(torch.empty(self.config.count, config.width))
        self.logit_bias = nn.Parameter(torch.empty(self.config.count)) if self.config.biases else None
        # Moved by Decoder.balance_experts and not by gradients; it decides which experts are chosen, not their weight.
        self.register_buffer("bias", torch.zeros(self.config.count))

    def forward(self, x: Tensor, is_real: Tensor | None = None) -> tuple[Tensor, Tensor, Routed]:
        """x (N, E) -> experts (N, k), their weights (N, k) in float32, and statistics.

        Padding is sent to experts as every token is, but the statistics leave it out: ``is_real`` (N,) is false there.

        In float32 under autocast too: which of two close experts wins must not depend on rounding.
        """
        with torch.autocast(x.device.type, enabled=False):
            wide = torch.promote_types(x.dtype, torch.float32)
            product = linear if is_batch_invariant() else F.linear
            bias = None if self.logit_bias is None else self.logit_bias.to(wide)
            logits = product(x.to(wide), self.weight.to(wide), bias)  # (N, X)
            scores = logits.softmax(-1) if self.config.score == "softmax" else logits.sigmoid()
            order = scores + self.bias
            if self.config.score == "sigmoid":  # of which many are 1 in float32
                order = torch.where(self.bias.any(), order, logits)
            chosen = order.topk(self.config.active, dim=-1).indices
            weights = scores.gather(-1, chosen)
            if self.config.normalize:
                weights = weights / weights.sum(-1, keepdim=True)
            is_chosen = chosen[..., None] == torch.arange(scores.shape[1], device=x.device)  # (N, k, X)
            sent = is_chosen.sum((0, 1))
            # Softmax scores stay as they are; sigmoid scores are made to sum to 1.
            shares = scores / scores.sum(-1, keepdim=True)
            z = logits.logsumexp(-1).square()
            if is_real is None:
                return chosen, weights, Routed(sent, shares.mean(0), z.mean(), sent)
            real = is_real.to(wide)
            number = real.sum().clamp(min=1)
            counts = (is_chosen & is_real[:, None, None]).sum((0, 1))
            return chosen, weights, Routed(counts, (real @ shares) / number, (real @ z) / number, sent)


class Experts(nn.Module):
    """X gated feed-forwards, whose products run as one grouped product over tokens sorted by expert."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        X, E, W = config.experts.count, config.width, config.expert_width
        self.activation = config.activation_function()
        self.gate_up = nn.Parameter(torch.empty(X, 2 * W, E))
        self.down = nn.Parameter(torch.empty(X, E, W))
        has_biases = config.experts.biases
        self.gate_up_bias = nn.Parameter(torch.empty(X, 2 * W)) if has_biases else None
        self.down_bias = nn.Parameter(torch.empty(X, E)) if has_biases else None

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        """x (tokens, E) sorted by expert; ``ends`` (X,) int32, behind each expert's last token."""
        return expert_outputs(self.activation, x, ends, dict(self.named_parameters()))


def expert_outputs(
    activation: Callable[[Tensor], Tensor], x: Tensor, ends: Tensor, weights: Mapping[str, Tensor]
) -> Tensor:
    """What ``Experts`` computes with these of its parameters, by name: all of them, or those that a process has."""
    packed = grouped_linear(x, weights["gate_up"], ends, weights.get("gate_up_bias"))
    return grouped_linear(activation(packed), weights["down"], ends, weights.get("down_bias"))


class MixtureOfExperts(nn.Module):
    """Σ over a token's experts of weight · expert(x), or with ``experts.scale_input`` of expert(weight · x), plus the
    shared expert if there is one."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.router = Router(config)
        self.scales_input = config.experts.scale_input
        self.experts = Experts(config)
        shared = config.experts.shared_width
        self.shared = GatedFeedForward(config, shared) if shared else None
        self.shared_gate = nn.Linear(config.width, 1, bias=False) if config.experts.shared_gate else None

    def forward(self, x: Tensor, is_real: Tensor | None = None) -> tuple[Tensor, Routed]:
        """x (B, S, E), of which the tokens where ``is_real`` (B, S) is false are padding."""
        flat = x.reshape(-1, x.shape[-1])  # (N, E)
        chosen, weights, routed = self.router(flat, None if is_real is None else is_real.flatten())
        N, k = chosen.shape
        order = chosen.flatten().argsort(stable=True)  # places in (N·k), those of expert 0 first
        ends = routed.sent.cumsum(0).to(torch.int32)
        entering = flat[order // k]
        if self.scales_input:
            entering = entering * weights.flatten()[order].unsqueeze(-1).to(entering.dtype)
        out = self.experts(entering, ends)
        # Back in the order of tokens, and summed over k there: a scattered sum would not be the same in every run.
        out = out[order.argsort()].view(N, k, -1)
        out = (out if self.scales_input else out * weights.unsqueeze(-1).to(out.dtype)).sum(1)
        if self.shared is not None:
            gate = 1 if self.shared_gate is None else self.shared_gate(flat).sigmoid()
            out = out + gate * self.shared(flat)
        return out.view(x.shape), routed


class Balancing(NamedTuple):
    """What a mixture of experts adds to the training loss, scalars."""

    load: Tensor
    """The load-balancing loss, by its weight."""
    z: Tensor
    """The z-loss of the routers, by its weight."""

    @property
    def total(self) -> Tensor:
        return self.load + self.z


def balancing_losses(routed: list[Routed], config: DecoderConfig, choices: Tensor | None = None) -> Balancing:
    """What is added to the training loss, means over the layers with experts.

    ``load`` is auxiliary_weight · X · Σ share of choices · mean score (Switch Transformer, eq. 4, divided by k:
    1 · weight where all experts are used alike), and ``z`` is z_loss_weight · mean squared log-sum-exp of the logits
    (ST-MoE, eq. 5).

    Args:
        routed: what the routers did, by layer.
        config: of the decoder.
        choices: (layers, X), how many times each expert was chosen in the whole batch, of which this call has a part.
            The result is then this part's summand of the losses of the whole batch: the shares are those of the batch,
            and the mean scores count by this part's tokens. Without it, this call is the whole batch.
    """
    load = z = routed[0].z.new_zeros(())
    for layer, each in enumerate(routed):
        counts = each.counts if choices is None else choices[layer]
        every = counts.sum().clamp(min=1)
        part = each.counts.sum() / every  # 1 for the whole batch
        load = load + config.experts.auxiliary_weight * len(counts) * (counts / every * each.scores).sum() * part
        z = z + config.experts.z_loss_weight * each.z * part
    return Balancing(load / len(routed), z / len(routed))
