"""``llmfast look loss`` and ``attribute``: text colored by numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

FULL_LOSS = 10.0
"""Nats with the strongest color: a probability of 1 in 22,026."""


def loss(
    run: Path,
    /,
    prompt: str = "",
    *,
    file: Path | None = None,
    stride: int | None = None,
    out: Path = Path("look"),
    base: Path | None = None,
    device: str | None = None,
) -> None:
    """Color a text by how badly a model predicts each of its tokens.

    Writes loss.html (a page that needs no network) and loss.json, and shows the text in the terminal. The losses add up
    to what llmfast eval --tasks text measures: each token once, the first from the token that begins a text.

    Args:
        run: A run folder (its newest checkpoint is used), a checkpoint folder, a Hugging Face folder, or an adapter.
        prompt: The text.
        file: A file with the text instead, of any length.
        stride: Tokens between the starts of the windows in which a long text is read; the context if left out.
        out: The folder to write to.
        base: Where the base of an adapter lies now, if it was moved since the training.
        device: cpu or cuda; a GPU if there is one.

    Raises:
        ValueError: no model there, a damaged file, no text, or a stride that is not from 1 to the context.
    """
    from llmfast.commands.look.opening import open_looked_at, write_json
    from llmfast.data.reading.readers import read_content
    from llmfast.evaluation.likelihood import beginning_of_text, windows
    from llmfast.visualization.colored_text import write_text_page
    from llmfast.visualization.predictions import token_losses
    from llmfast.visualization.structure import shape_of

    if (not prompt) == (file is None):
        raise ValueError("give a text with --prompt, or a file with --file")
    if file is not None and not file.is_file():
        raise ValueError(f"file: {file} is not a file")
    opened = open_looked_at(run, base, device)
    text = prompt if file is None else read_content(file)
    tokens = opened.tokenizer.encode_ordinary(text)
    if not tokens:
        raise ValueError("there is no text to predict")
    context = shape_of(opened.model).context or len(tokens)
    losses: list[float] = []
    for pair in windows([beginning_of_text(opened.tokenizer), *tokens], context, stride or context):
        of_window = token_losses(opened.model, [*pair.context, *pair.continuation])
        losses += of_window[-len(pair.continuation) :].tolist()
    total, texts = math.fsum(losses), opened.texts(tokens)
    bits = total / math.log(2) / len(text.encode())
    means = f"{total / len(tokens):.4f} per token, {bits:.4f} bits per byte"
    summary = f"{len(tokens):,} tokens: {total:.4f} nats in all, {means}"
    write_text_page(
        texts,
        losses,
        out / "loss.html",
        title=f"Loss of {opened.name}",
        summary=summary,
        unit="nats",
        full=FULL_LOSS,
        notes=[f", a probability of {math.exp(-each):.3%}" for each in losses],
    )
    write_json(out / "loss.json", text=text, tokens=tokens, texts=texts, losses=losses, total=total, bits_per_byte=bits)
    _show(texts, losses, FULL_LOSS)
    print(f"{summary}\nwrote loss.html and loss.json to {out}")


def attribute(
    run: Path,
    /,
    prompt: str = "",
    *,
    token: str = "",
    method: Literal["integrated_gradients", "input_x_gradient"] = "integrated_gradients",
    steps: int = 32,
    out: Path = Path("look"),
    base: Path | None = None,
    device: str | None = None,
) -> None:
    """Show which tokens of a prompt made a model expect a token after it, by gradients of its log-probability.

    Writes attribution.html (a page that needs no network) and attribution.json, and shows the text in the terminal.
    Integrated gradients lead from a prompt of beginning-of-text tokens alone to the real one, and add up to
    the difference that it makes.

    Args:
        run: A run folder (its newest checkpoint is used), a checkpoint folder, a Hugging Face folder, or an adapter.
        prompt: The text that the model reads.
        token: The text of the token to explain, with its space if it begins with one; the likeliest if left out.
        method: integrated_gradients, or input_x_gradient, one gradient at the prompt, times its embeddings.
        steps: Points at which integrated gradients are computed.
        out: The folder to write to.
        base: Where the base of an adapter lies now, if it was moved since the training.
        device: cpu or cuda; a GPU if there is one.

    Raises:
        ValueError: no model there, a damaged file, no prompt or one longer than the context, or no single token.
    """
    from llmfast.commands.look.opening import chosen_token, open_looked_at, tokens_of_prompt, write_json
    from llmfast.evaluation.likelihood import beginning_of_text
    from llmfast.visualization.attribution import input_x_gradient, integrated_gradients
    from llmfast.visualization.colored_text import write_text_page

    opened = open_looked_at(run, base, device)
    tokens = tokens_of_prompt(opened, prompt)
    wanted = chosen_token(opened, token)
    if method == "input_x_gradient":
        found = input_x_gradient(opened.model, tokens, token=wanted)
    else:
        baseline = [beginning_of_text(opened.tokenizer)] * len(tokens)
        found = integrated_gradients(opened.model, tokens, baseline, token=wanted, steps=steps)
    texts, scores = opened.texts(tokens), found.scores.tolist()
    summary = f"after the prompt, {opened.text(found.token)!r} has a log-probability of {found.value:.4f}"
    if found.baseline_value is not None:
        summary += (
            f", {found.baseline_value:.4f} after the baseline; the scores add up to {sum(scores):.4f}, "
            f"the difference is {found.value - found.baseline_value:.4f}"
        )
    full = max(map(abs, scores)) or 1.0
    title = f"What made {opened.name} expect {opened.text(found.token)!r}"
    write_text_page(texts, scores, out / "attribution.html", title=title, summary=summary, unit="nats", full=full)
    write_json(
        out / "attribution.json",
        method=method,
        prompt=prompt,
        tokens=tokens,
        texts=texts,
        token=found.token,
        token_text=opened.text(found.token),
        scores=scores,
        value=found.value,
        baseline_value=found.baseline_value,
        gap=found.gap,
    )
    _show(texts, scores, full)
    print(f"{summary}\nwrote attribution.html and attribution.json to {out}")


def _show(texts: Sequence[str], values: Sequence[float], full: float) -> None:
    """The text in color on a terminal; elsewhere a line for each token."""
    from rich.console import Console

    from llmfast.visualization.colored_text import colored

    console = Console(highlight=False)
    if console.is_terminal and console.color_system:
        console.print(colored(texts, values, full=full))
    else:
        for text, value in zip(texts, values, strict=True):
            print(f"{value:>10.4f}  {text}")
