"""Which tokens of a prompt made a model expect a token next, by gradients of its log-probability."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from llmfast.models.evaluating import evaluating
from llmfast.visualization.residual import with_embeddings
from llmfast.visualization.structure import batch_of, embedding_of, logits_of


class Attribution(NamedTuple):
    """What each token of a prompt adds to the log-probability of the token after it."""

    token: int
    """Whose log-probability, in nats, is explained."""
    scores: Tensor
    """(S,) float64, by token of the prompt."""
    value: float
    """The log-probability after the prompt."""
    baseline_value: float | None
    """The log-probability after the baseline; None without one."""

    @property
    def gap(self) -> float | None:
        """How far the scores are from adding up to ``value`` − ``baseline_value``: 0 if integrated exactly."""
        if self.baseline_value is None:
            return None
        return float(self.scores.sum()) - (self.value - self.baseline_value)


def input_x_gradient(model: nn.Module, tokens: Sequence[int], *, token: int | None = None) -> Attribution:
    """The embedding of each token times the gradient of the log-probability by it (Shrikumar et al. 2016).

    Args:
        model: a ``Decoder`` or a decoder-only model of transformers. Dropout is off meanwhile.
        tokens: the prompt.
        token: whose log-probability after the prompt is explained; the likeliest if left out.

    Raises:
        ValueError: no tokens, more than the context, or a token outside the vocabulary.
    """
    batch = batch_of(model, tokens)
    token = _explained(model, batch, token)
    embeddings = _embeddings(model, batch)
    value, gradient = _value_and_gradient(model, batch, embeddings, token)
    return Attribution(token, _by_token(embeddings, gradient), value, None)


def integrated_gradients(
    model: nn.Module, tokens: Sequence[int], baseline: Sequence[int], *, token: int | None = None, steps: int = 32
) -> Attribution:
    """The gradients of the log-probability on the straight line from the embeddings of ``baseline`` to those of the
    prompt, integrated, times the way (Sundararajan et al. 2017).

    The scores add up to the difference of the two log-probabilities, up to the error of the integration
    (``Attribution.gap``), which is by Gauss and Legendre's rule: doubling the steps makes it much smaller. A mixture of
    experts jumps where another expert is chosen; those jumps are in the gap whatever the steps are.

    Args:
        model: a ``Decoder`` or a decoder-only model of transformers. Dropout is off meanwhile.
        tokens: the prompt.
        baseline: as many tokens, which stand for saying nothing, such as that which ends texts. Embeddings of zeros
            would be a bad choice: norms divide by their length, and nearly all of the change would lie next to them.
        token: whose log-probability after the prompt is explained; the likeliest if left out.
        steps: points of the line at which gradients are computed, one forward and backward pass each.

    Raises:
        ValueError: no tokens, more than the context, a baseline of another length, a token outside the vocabulary, or
            fewer than one step.
    """
    import numpy as np

    if len(baseline) != len(tokens):
        raise ValueError(f"baseline must have as many tokens as the prompt, {len(tokens)}, got {len(baseline)}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    batch = batch_of(model, tokens)
    token = _explained(model, batch, token)
    start, end = _embeddings(model, batch_of(model, baseline)), _embeddings(model, batch)
    points, weights = np.polynomial.legendre.leggauss(steps)  # on the line from −1 to 1
    integral = torch.zeros_like(end, dtype=torch.float64)
    for point, weight in zip(points.tolist(), weights.tolist(), strict=True):
        embeddings = torch.lerp(start, end, (point + 1) / 2)
        integral += weight / 2 * _value_and_gradient(model, batch, embeddings, token)[1].double()
    values = [_value_and_gradient(model, batch, each, token)[0] for each in (end, start)]
    return Attribution(token, _by_token((end.double() - start.double()), integral), *values)


def _explained(model: nn.Module, batch: Tensor, token: int | None) -> int:
    with torch.no_grad(), evaluating(model):
        logits = logits_of(model, batch)[0, -1]
    if token is None:
        return int(logits.argmax())
    if not 0 <= token < len(logits):
        raise ValueError(f"token {token} is not one of the {len(logits):,} of the model")
    return token


def _embeddings(model: nn.Module, batch: Tensor) -> Tensor:
    with torch.no_grad():
        return embedding_of(model)(batch)


def _value_and_gradient(model: nn.Module, batch: Tensor, embeddings: Tensor, token: int) -> tuple[float, Tensor]:
    """The log-probability of ``token`` after ``embeddings`` (1, S, E), and its gradient by them."""
    x = embeddings.detach().requires_grad_(True)
    with torch.enable_grad(), evaluating(model), with_embeddings(model, x):
        value = logits_of(model, batch)[0, -1].log_softmax(-1)[token]
        (gradient,) = torch.autograd.grad(value, x)
    return value.item(), gradient


def _by_token(difference: Tensor, gradient: Tensor) -> Tensor:
    return (difference.double() * gradient.double())[0].sum(-1).cpu()
