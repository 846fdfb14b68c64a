"""Launch choices of ``int8_linear``."""

import torch

from ..nf4.launch import FEW_TOKENS, MOST_TOKENS

STEP = 64  # columns: four 16-byte loads, and four steps of the tensor cores


def strategy(tokens: int, width: int, dtype: torch.dtype) -> str:
    """``"few tokens"``, ``"tiles"`` or ``"workspace"``. A workspace costs three bytes per weight where 4 bits cost
    2.5, so it pays from about as many tokens on."""
    if dtype == torch.float32 or width % STEP or tokens > MOST_TOKENS:
        return "workspace"
    return "few tokens" if tokens <= FEW_TOKENS else "tiles"
