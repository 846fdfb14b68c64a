"""``llmfast generate``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TextIO

from llmfast.inference.config import EngineConfig, Sampling

if TYPE_CHECKING:
    from llmfast.inference.engine import Engine
    from llmfast.tokenizer import Tokenizer


def generate(
    run: Path,
    /,
    prompt: str = "",
    *,
    prompt_file: str = "",
    chat: str = "",
    system: str = "",
    tokens: int = 200,
    samples: int = 1,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    greedy: bool = False,
    stop: tuple[str, ...] = (),
    seed: int = 0,
    truncate: bool = False,
    base: Path | None = None,
    device: str | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    weights: Literal["float32", "bfloat16", "int8", "int4", "nf4"] | None = None,
    output: TextIO | None = None,
) -> str:
    """Continue a text, or answer a message, with a trained model, shown as it is made; returns what it wrote.

    Args:
        run: A run folder (its newest checkpoint is used), a checkpoint folder, a Hugging Face folder or a GGUF file.
        prompt: Text to continue; the start of a document if left out.
        prompt_file: A file with the text to continue instead; - for standard input.
        chat: A message to answer instead, by the chat template beside the model's tokenizer.
        system: What the system says first (with --chat).
        tokens: Most tokens to generate; the model may end the document, or its answer, earlier.
        samples: How many texts to generate.
        temperature: Below 1 sharpens the choice towards likely tokens, above 1 evens it out. If left out, what
            generation_config.json beside the model says, else 0.8.
        top_k: Choose among the k likeliest tokens only.
        top_p: Choose among the likeliest tokens that together have this probability.
        min_p: Choose among tokens with at least this share of the likeliest one's probability.
        repetition_penalty: Above 1, makes tokens less likely that the prompt or the text has already.
        greedy: Always take the likeliest token (temperature 0).
        stop: Texts before which to end.
        seed: Same seed, same text.
        truncate: Read only the end of a prompt that is longer than the model's context.
        base: Where the base of an adapter lies now, if it was moved since the training.
        device: cpu or cuda; a GPU if there is one.
        dtype: Compute in PyTorch in this dtype; if left out, bfloat16 on a GPU and float32 on a CPU.
        weights: How the decoder for CPUs keeps the weights: fewer bits are faster and less exact. nf4 is in PyTorch,
            also on a GPU.
        output: Where the text is shown; standard output if left out.

    Raises:
        ValueError: no model there, a damaged file, a base that is missing or another one, a prompt longer than the
            context, or a setting out of range.
    """
    if tokens < 1:
        raise ValueError(f"tokens must be at least 1, got {tokens}")
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    if sum(map(bool, (prompt, prompt_file, chat))) > 1:
        raise ValueError("give either a prompt, --prompt_file or --chat")
    if system and not chat:
        raise ValueError("--system is for --chat")
    given = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    given = {
        name: value for name, value in (given | {"repetition_penalty": repetition_penalty}).items() if value is not None
    }
    others = {"max_tokens": tokens, "stop": stop, "seed": seed, "truncate_prompt": truncate}
    Sampling(**given, **others)  # refused before the model is read
    text = _read(prompt_file) if prompt_file else prompt

    from llmfast.inference.defaults import default_sampling
    from llmfast.inference.engine import Engine

    config = EngineConfig(max_batch=min(samples, 16))
    engine = Engine.open(run, base=base, device=device, dtype=dtype, weights=weights, config=config)
    defaults = default_sampling(engine.tokenizer, temperature=0.8)
    settings = defaults | given | ({"temperature": 0.0} if greedy else {}) | others
    start: str | list[int] = text
    if chat:
        start, end = _chat_prompt(engine.tokenizer, chat, system)
        settings["stop_tokens"] = (end,)
    written = _write(engine, start, Sampling(**settings), samples, text, output or sys.stdout)
    return "".join(written)


def _write(
    engine: Engine, start: str | list[int], sampling: Sampling, samples: int, prompt: str, output: TextIO
) -> list[str]:
    """Show one reply as it is made, or several after each other."""
    parts = []
    if samples == 1:
        updates = engine.stream(start, sampling)
        output.write(prompt)
        for update in updates:
            parts.append(update.text)
            output.write(update.text)
            output.flush()
        output.write("\n")
        return parts
    (replies,) = engine.generate([start], sampling, samples=samples)
    output.write(prompt)
    for number, reply in enumerate(replies, 1):
        parts.append(f"\n--- {number} of {samples}\n{reply.text}\n")
        output.write(parts[-1])
    return parts


def _read(file: str) -> str:
    content = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"prompt_file {file} is not UTF-8: {error.reason} at byte {error.start}") from None


def _chat_prompt(tokenizer: Tokenizer, message: str, system: str) -> tuple[list[int], int]:
    """The tokens that an answer to ``message`` continues, and the one that ends it."""
    from llmfast.data.chat.opening import own_template, saved_chat

    if own_template(tokenizer) is None:
        raise ValueError(
            "--chat needs a chat template beside the model's tokenizer: llmfast sft trains a model with one"
        )
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": message})
    encoder = saved_chat(tokenizer)
    return encoder.prompt_of(messages), encoder.end_token
