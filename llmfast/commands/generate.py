"""``llmfast generate``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from llmfast.inference.config import Sampling

if TYPE_CHECKING:
    from llmfast.tokenizer import Tokenizer


def generate(
    run: Path,
    /,
    prompt: str = "",
    *,
    chat: str = "",
    system: str = "",
    tokens: int = 200,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    greedy: bool = False,
    seed: int = 0,
    base: Path | None = None,
    output: TextIO | None = None,
) -> str:
    """Continue a text, or answer a message, with a trained model, shown as it is made; returns what it wrote.

    Args:
        run: A run folder (its newest checkpoint is used), a checkpoint folder or a Hugging Face folder.
        prompt: Text to continue; the start of a document if left out.
        chat: A message to answer instead, by the chat template beside the model's tokenizer.
        system: What the system says first (with --chat).
        tokens: Most tokens to generate; the model may end the document, or its answer, earlier.
        temperature: Below 1 sharpens the choice towards likely tokens, above 1 evens it out. If left out, what
            generation_config.json beside the model says, else 0.8.
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
    if tokens < 1:
        raise ValueError(f"tokens must be at least 1, got {tokens}")
    if prompt and chat:
        raise ValueError("give either a prompt or --chat, not both")
    if system and not chat:
        raise ValueError("--system is for --chat")
    Sampling(temperature or 0.0, top_k, top_p)  # refused before the model is read

    import torch

    from llmfast.data.chat.opening import end_tokens
    from llmfast.inference.generate import encode_prompt, generate_tokens, stream_text
    from llmfast.integrations.opening import open_model

    model, tokenizer = open_model(run, base=base)
    sampling = _sampling(tokenizer, 0.0 if greedy else temperature, top_k, top_p)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    start = _chat_prompt(tokenizer, chat, system) if chat else encode_prompt(tokenizer, prompt)
    stop = end_tokens(tokenizer)
    ids = generate_tokens(model, start, tokens, sampling=sampling, seed=seed, stop=stop)
    output = output or sys.stdout
    output.write(prompt)
    parts = []
    for part in stream_text(tokenizer, (token for token in ids if token not in stop)):
        parts.append(part)
        output.write(part)
        output.flush()
    output.write("\n")
    return "".join(parts)


def _chat_prompt(tokenizer: Tokenizer, message: str, system: str) -> list[int]:
    """The tokens that an answer to ``message`` continues."""
    from llmfast.data.chat.opening import own_template, saved_chat

    if own_template(tokenizer) is None:
        raise ValueError(
            "--chat needs a chat template beside the model's tokenizer: llmfast sft trains a model with one"
        )
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": message})
    return saved_chat(tokenizer).prompt_of(messages)


def _sampling(tokenizer: Tokenizer, temperature: float | None, top_k: int | None, top_p: float | None) -> Sampling:
    """What is asked for, else what ``generation_config.json`` says, else the defaults."""
    from llmfast.data.chat.opening import generation_settings

    said = generation_settings(tokenizer)
    if temperature is None:
        temperature = said.get("temperature", 0.8) if said.get("do_sample", True) else 0.0
    return Sampling(temperature, top_k if top_k is not None else said.get("top_k"), top_p or said.get("top_p"))
