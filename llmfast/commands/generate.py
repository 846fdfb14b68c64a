"""``llmfast generate``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TextIO

from llmfast.inference.config import Sampling


def generate(
    run: Path,
    /,
    prompt: str = "",
    *,
    tokens: int = 200,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    greedy: bool = False,
    seed: int = 0,
    base: Path | None = None,
    output: TextIO | None = None,
) -> str:
    """Continue a text with a trained model, shown as it is made; returns the continuation.

    Args:
        run: A run folder (its newest checkpoint is used), a checkpoint folder or a Hugging Face folder.
        prompt: Text to continue; the start of a document if left out.
        tokens: Most tokens to generate; the model may end the document earlier.
        temperature: Below 1 sharpens the choice towards likely tokens, above 1 evens it out.
        top_k: Choose among the k likeliest tokens only.
        top_p: Choose among the likeliest tokens that together have this probability.
        greedy: Always take the likeliest token (temperature 0).
        seed: Same seed, same text.
        base: Where the base of an adapter lies now, if it was moved since the training.
        output: Where the text is shown; standard output if left out.

    Raises:
        ValueError: no model there, a damaged file, a base that is missing or another one, a prompt longer than the
            context, or a setting out of range.
    """
    sampling = Sampling(0.0 if greedy else temperature, top_k, top_p)
    if tokens < 1:
        raise ValueError(f"tokens must be at least 1, got {tokens}")

    import torch

    from llmfast.inference.generate import encode_prompt, generate_tokens, stream_text
    from llmfast.integrations.opening import open_model

    model, tokenizer = open_model(run, base=base)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    stop = tokenizer.eot_token
    ids = generate_tokens(model, encode_prompt(tokenizer, prompt), tokens, sampling=sampling, seed=seed, stop=stop)
    output = output or sys.stdout
    output.write(prompt)
    parts = []
    for part in stream_text(tokenizer, (token for token in ids if token != stop)):
        parts.append(part)
        output.write(part)
        output.flush()
    output.write("\n")
    return "".join(parts)
