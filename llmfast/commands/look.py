"""``llmfast look``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from llmfast.tokenizer import Tokenizer


def look(
    run: Path,
    /,
    prompt: str = "",
    *,
    layers: tuple[int, ...] = (),
    heads: tuple[int, ...] = (),
    out: Path = Path("look"),
    seed: int = 0,
    base: Path | None = None,
    device: str | None = None,
) -> None:
    """Look inside a model while it reads a prompt: where its attention goes, and what each of its heads does.

    Writes attention.html (an interactive page that needs no network), attention.png (a picture of each head), heads.png
    and heads.json (six scores of every head of the model).

    Args:
        run: A run folder (its newest checkpoint is used), a checkpoint folder, a Hugging Face folder, or an adapter.
        prompt: The text that the model reads.
        layers: Layers to show, counted from 0; all if left out.
        heads: Heads to show, counted from 0; all if left out.
        out: The folder to write to.
        seed: Of the random texts on which heads are scored for copying.
        base: Where the base of an adapter lies now, if it was moved since the training.
        device: cpu or cuda; a GPU if there is one.

    Raises:
        ValueError: no model there, a damaged file, no prompt or one longer than the context, or a layer or head that
            does not exist.
    """
    if not prompt:
        raise ValueError("there is nothing to read: give a text with --prompt")

    import torch

    from llmfast.inference.prompts import beginning, prompt_tokens
    from llmfast.integrations.opening import open_model
    from llmfast.visualization.heads import plot_heads, prompt_scores, repeat_scores
    from llmfast.visualization.maps import attention_maps, plot_attention, write_page

    if device is not None and torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device is {device!r}, but torch finds no GPU here: choose cpu")
    model, tokenizer = open_model(run, base=base)
    model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    tokens = prompt_tokens(tokenizer, prompt)
    texts = _texts(tokenizer, tokens)
    maps = attention_maps(model, tokens, layers=layers, heads=heads)
    scores = prompt_scores(model, tokens)
    scores |= repeat_scores(model, _ordinary(tokenizer, model.config.vocab_size), start=beginning(tokenizer), seed=seed)
    out.mkdir(parents=True, exist_ok=True)
    write_page(maps, texts, out / "attention.html", title=f"Attention of {run.resolve().name}")
    plot_attention(maps, texts, out / "attention.png")
    plot_heads(scores, out / "heads.png")
    _write_scores(out / "heads.json", scores, prompt=prompt, tokens=tokens, seed=seed)
    _print_strongest(scores)
    print(f"wrote attention.html, attention.png, heads.png and heads.json to {out}; open {out / 'attention.html'}")


def _texts(tokenizer: Tokenizer, tokens: list[int]) -> list[str]:
    from llmfast.visualization.maps import visible_text

    return [visible_text(tokenizer.decode_single_token_bytes(token)) for token in tokens]


def _ordinary(tokenizer: Tokenizer, vocab_size: int) -> list[int]:
    """The tokens of texts: without special ones, and those that the model does not know."""
    special = {tokenizer.encode_single_token(name) for name in tokenizer.special_tokens_set}
    return [token for token in range(min(tokenizer.n_vocab, vocab_size)) if token not in special]


def _write_scores(path: Path, scores: dict[str, Tensor], **decided: object) -> None:
    from llmfast.files import atomic_write
    from llmfast.visualization.heads import MEANING

    content = {**decided, "meaning": MEANING, "scores": {name: each.tolist() for name, each in scores.items()}}
    atomic_write(path, json.dumps(content, indent=2) + "\n")


def _print_strongest(scores: dict[str, Tensor]) -> None:
    """The head that does each thing most."""
    for name, values in scores.items():
        layer, head = divmod(int(values.argmax()), values.shape[1])
        print(f"{name.replace('_', ' '):<16} highest in layer {layer}, head {head}: {values[layer, head]:.3f}")
