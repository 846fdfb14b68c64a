"""``llmfast look lens``, ``tune`` and ``next``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmfast.visualization.lens import LensReading


def lens(
    run: Path,
    /,
    prompt: str = "",
    *,
    tuned: Path | None = None,
    top: int = 5,
    out: Path = Path("look"),
    base: Path | None = None,
    device: str | None = None,
) -> None:
    """Show what a model would predict after each of its layers: the logit lens, or the tuned lens.

    Writes lens.png and lens.json: by layer and token, the likeliest next tokens, the rank of the one that follows in
    the prompt, and how far the prediction is from the model's own.

    Args:
        run: A run folder (its newest checkpoint is used), a checkpoint folder, a Hugging Face folder, or an adapter.
        prompt: The text that the model reads.
        tuned: A file of llmfast look tune, whose maps translate each layer's states first.
        top: How many of the likeliest tokens to write down.
        out: The folder to write to.
        base: Where the base of an adapter lies now, if it was moved since the training.
        device: cpu or cuda; a GPU if there is one.

    Raises:
        ValueError: no model there, a damaged file, no prompt or one longer than the context, or a lens that was fitted
            to another model.
    """
    from llmfast.commands.look.opening import open_looked_at, tokens_of_prompt, write_json
    from llmfast.visualization.lens import logit_lens
    from llmfast.visualization.plots.inside import plot_lens, state_names
    from llmfast.visualization.tuned_lens import load_tuned_lens

    if top < 1:
        raise ValueError(f"top must be at least 1, got {top}")
    opened = open_looked_at(run, base, device)
    tokens = tokens_of_prompt(opened, prompt)
    fitted = None if tuned is None else load_tuned_lens(tuned, opened.model)
    reading = logit_lens(opened.model, tokens, top=top, lens=fitted)
    kind, rows = "logit lens" if tuned is None else "tuned lens", state_names(len(reading.ranks))
    likeliest = opened.texts(reading.tokens[..., 0].flatten())
    title = f"{kind.capitalize()} of {opened.name}"
    plot_lens(reading, likeliest, opened.texts(tokens), out / "lens.png", title=title)
    write_json(
        out / "lens.json",
        kind=kind,
        prompt=prompt,
        tokens=tokens,
        rows=rows,
        targets=reading.targets.tolist(),
        ranks=reading.ranks.tolist(),
        target_probabilities=reading.target_probabilities.tolist(),
        likeliest=[[opened.texts(each) for each in row] for row in reading.tokens],
        probabilities=reading.probabilities.tolist(),
        divergences=reading.divergences.tolist(),
    )
    _print_lens(reading, rows, likeliest[len(tokens) - 1 :: len(tokens)])
    print(f"wrote lens.png and lens.json to {out}")


def _print_lens(reading: LensReading, rows: list[str], likeliest: list[str]) -> None:
    """By layer: what would be predicted after the prompt, and how the tokens of the prompt fare on average."""
    print(f"{'':<12}{'after the prompt':<24}{'median rank':>12}{'divergence':>12}")
    for row, name in enumerate(rows):
        shown = f"{likeliest[row]!r} {float(reading.probabilities[row, -1, 0]):.1%}"
        rank = float(reading.ranks[row].double().quantile(0.5))
        print(f"{name:<12}{shown:<24}{rank:>12,.0f}{float(reading.divergences[row].mean()):>12.3f}")


def tune(
    run: Path,
    /,
    *,
    data: tuple[Path, ...] = (),
    out: Path = Path("lens.safetensors"),
    steps: int = 200,
    batch_size: int = 4,
    length: int = 256,
    learning_rate: float = 1e-3,
    seed: int = 0,
    base: Path | None = None,
    device: str | None = None,
) -> None:
    """Fit a tuned lens: an affine map for each layer, so that its states predict what the whole model predicts.

    The model stays as it is. Use the file with llmfast look lens --tuned.

    Args:
        run: A run folder (its newest checkpoint is used), a checkpoint folder, a Hugging Face folder, or an adapter.
        data: Text to learn from: text files, JSON Lines or Parquet.
        out: The safetensors file to write.
        steps: Batches to learn from.
        batch_size: Windows of text in each.
        length: Tokens in a window; the model's context if that is shorter.
        learning_rate: Of Adam at the start; it falls linearly to 0.
        seed: Of the order of the windows.
        base: Where the base of an adapter lies now, if it was moved since the training.
        device: cpu or cuda; a GPU if there is one.

    Raises:
        ValueError: no model there, a damaged file, no data or too little of it, or a setting out of range.
    """
    from llmfast.commands.look.opening import open_looked_at
    from llmfast.evaluation.likelihood import beginning_of_text
    from llmfast.evaluation.text import documents
    from llmfast.visualization.structure import shape_of
    from llmfast.visualization.tuned_lens import fit_tuned_lens, save_tuned_lens

    if not data:
        raise ValueError("there is nothing to learn from: give text with --data FILE ...")
    if out.suffix != ".safetensors":
        raise ValueError(f"out must be a file NAME.safetensors, got {out}")
    opened = open_looked_at(run, base, device)
    length = min(length, shape_of(opened.model).context or length)
    start, wanted, tokens = [beginning_of_text(opened.tokenizer)], steps * batch_size * length, []
    for text in documents(data):
        tokens += start + opened.tokenizer.encode_ordinary(text)
        if len(tokens) >= wanted:
            break
    windows = [tokens[first : first + length] for first in range(0, len(tokens) - length + 1, max(1, length))]
    if not windows:
        raise ValueError(
            f"data has {len(tokens):,} tokens, fewer than a window of {length}: give more, or less --length"
        )
    seen: list[list[float]] = []

    def report(step: int, divergences: list[float]) -> None:
        seen.append(divergences)
        if step in (1, steps) or step % max(1, steps // 10) == 0:
            mean = sum(divergences) / len(divergences)
            print(f"step {step:>5,} of {steps:,}: divergence {mean:.4f} nats per token, mean of the layers", flush=True)

    settings = {"steps": steps, "batch_size": batch_size, "learning_rate": learning_rate, "seed": seed}
    fitted = fit_tuned_lens(opened.model, windows, report=report, **settings)
    out.parent.mkdir(parents=True, exist_ok=True)
    save_tuned_lens(fitted, out, opened.model)
    last = seen[-max(1, steps // 10) :]
    for layer, first in enumerate(seen[0]):
        name = "embeddings" if layer == 0 else f"layer {layer - 1}"
        print(f"{name:<12}divergence {first:.4f} before, {sum(each[layer] for each in last) / len(last):.4f} after")
    print(f"wrote {out}; use it with: llmfast look lens {run} --tuned {out} --prompt ...")


def next_token(
    run: Path,
    /,
    prompt: str = "",
    *,
    count: int = 20,
    out: Path = Path("look"),
    base: Path | None = None,
    device: str | None = None,
) -> None:
    """Show which tokens a model expects after a prompt, and how likely each is.

    Writes next.png and next.json. The probabilities are the model's own, at temperature 1.

    Args:
        run: A run folder (its newest checkpoint is used), a checkpoint folder, a Hugging Face folder, or an adapter.
        prompt: The text that the model reads.
        count: How many tokens to show.
        out: The folder to write to.
        base: Where the base of an adapter lies now, if it was moved since the training.
        device: cpu or cuda; a GPU if there is one.

    Raises:
        ValueError: no model there, a damaged file, no prompt or one longer than the context, or a count below 1.
    """
    from llmfast.commands.look.opening import open_looked_at, tokens_of_prompt, write_json
    from llmfast.visualization.plots.inside import plot_next
    from llmfast.visualization.predictions import next_tokens

    opened = open_looked_at(run, base, device)
    tokens = tokens_of_prompt(opened, prompt)
    found, probabilities = (each.tolist() for each in next_tokens(opened.model, tokens, count))
    texts = opened.texts(found)
    shown = prompt if len(prompt) <= 40 else f"…{prompt[-39:]}"
    plot_next(texts, probabilities, out / "next.png", title=f"{opened.name} after “{shown}”")
    rows = [
        {"token": t, "text": text, "probability": p} for t, text, p in zip(found, texts, probabilities, strict=True)
    ]
    write_json(out / "next.json", prompt=prompt, tokens=tokens, next=rows)
    top = max(probabilities)
    for text, probability in zip(texts, probabilities, strict=True):
        print(f"{probability:>7.2%}  {text!r:<20} {'█' * round(30 * probability / top)}")
    print(f"the {len(found)} together: {sum(probabilities):.1%}; wrote next.png and next.json to {out}")
