"""Log-probabilities of the tokens of a prompt."""

from __future__ import annotations

import torch
from torch import Tensor

from llmfast.inference.distribution import log_probs
from llmfast.inference.sampler import alternatives
from llmfast.inference.sequence import Request


def score_prompt(request: Request, before: int, logits: Tensor) -> None:
    """Note the log-probabilities of tokens of the prompt, if the request asks for them.

    Args:
        request: of the sequence that was read.
        before: how many of its tokens had been read.
        logits: (tokens that were read now, V).
    """
    known, wanted = request.prompt_logprobs, request.sampling.prompt_logprobs
    end = min(before + len(logits), len(request.prompt) - 1)
    # A sequence that gave back its blocks is read again: what is known stays.
    if wanted is None or not before <= len(known) < end:
        return
    rows = logits[len(known) - before : end - before]
    targets = torch.tensor(request.prompt[len(known) + 1 : end + 1], device=logits.device)
    for row, logprob in zip(rows, log_probs(rows, targets).tolist(), strict=True):
        known.append((logprob, alternatives(row, wanted)))
