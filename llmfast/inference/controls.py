"""What changes the logits of a sequence by the tokens that it has: bias, penalties, minimum length, constraint."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

import torch
from torch import Tensor

from llmfast.inference.config import Sampling


class Matcher(Protocol):
    """Which tokens a constraint allows next (see ``llmfast.inference.constraints``)."""

    def allowed(self) -> Tensor:
        """(V,) bool, on the CPU."""
        ...

    def advance(self, token: int) -> None:
        """The next token is known."""
        ...

    @property
    def is_complete(self) -> bool:
        """Whether nothing may follow but an end token."""
        ...


class Controls:
    """The changes that ``sampling`` asks for before temperature and cuts, for one sequence.

    Args:
        sampling: of the request.
        prompt: tokens of the prompt.
        ends: the tokens that end the reply, which ``min_tokens`` forbids at first.
        matcher: of the constraint, if there is one, at the start of the reply.
    """

    def __init__(
        self, sampling: Sampling, prompt: Sequence[int], ends: Collection[int] = (), matcher: Matcher | None = None
    ):
        self.sampling, self.matcher = sampling, matcher
        self._ends = sorted(ends) if sampling.min_tokens else []
        self._penalized = sampling.presence_penalty or sampling.frequency_penalty
        self._counts: dict[int, int] = {}  # of the tokens of the reply
        self._seen = set(prompt) if sampling.repetition_penalty != 1 else None
        self._length = 0
        self.change_something = bool(
            sampling.logit_bias or self._ends or self._penalized or self._seen is not None or matcher is not None
        )

    def advance(self, token: int) -> None:
        """The next token of the reply is known."""
        self._length += 1
        if self._penalized:
            self._counts[token] = self._counts.get(token, 0) + 1
        if self._seen is not None:
            self._seen.add(token)
        if self.matcher is not None:
            self.matcher.advance(token)

    def apply(self, logits: Tensor) -> Tensor:
        """The logits (V,) of the next token, changed; differentiable."""
        logits = logits.float().clone()
        sampling = self.sampling
        if self.matcher is not None:
            logits = logits.masked_fill(~self.matcher.allowed().to(logits.device), -torch.inf)
        if sampling.logit_bias:
            tokens, biases = zip(*sampling.logit_bias.items(), strict=True)
            logits = logits.index_add(0, _ids(tokens, logits), torch.tensor(biases).to(logits))
        if self._ends and self._length < sampling.min_tokens:
            logits = logits.index_fill(0, _ids(self._ends, logits), -torch.inf)
        if self._seen:
            seen = _ids(sorted(self._seen), logits)
            at = logits[seen]
            penalty = sampling.repetition_penalty
            logits = logits.index_copy(0, seen, torch.where(at > 0, at / penalty, at * penalty))
        if self._counts:
            tokens, counts = zip(*self._counts.items(), strict=True)
            times = torch.tensor(counts, dtype=torch.float32, device=logits.device)
            minus = sampling.presence_penalty + sampling.frequency_penalty * times
            logits = logits.index_add(0, _ids(tokens, logits), -minus)
        return logits


def _ids(tokens: Sequence[int], like: Tensor) -> Tensor:
    return torch.tensor(tokens, dtype=torch.int64, device=like.device)
