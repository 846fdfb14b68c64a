"""``llmfast look attention``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from llmfast.commands.look.opening import Opened


def attention(
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
    """Show where the attention of a model goes while it reads a prompt, and what each of its heads does.

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
    from llmfast.commands.look.opening import open_looked_at, tokens_of_prompt, write_json
    from llmfast.inference.prompts import beginning
    from llmfast.visualization.heads import MEANING, plot_heads, prompt_scores, repeat_scores
    from llmfast.visualization.maps import attention_maps, plot_attention, write_page

    opened = open_looked_at(run, base, device)
    model, tokens = opened.model, tokens_of_prompt(opened, prompt)
    texts = opened.texts(tokens)
    maps = attention_maps(model, tokens, layers=layers, heads=heads)
    scores = prompt_scores(model, tokens)
    scores |= repeat_scores(model, _ordinary(opened), start=beginning(opened.tokenizer), seed=seed)
    write_page(maps, texts, out / "attention.html", title=f"Attention of {opened.name}")
    plot_attention(maps, texts, out / "attention.png")
    plot_heads(scores, out / "heads.png")
    lists = {name: each.tolist() for name, each in scores.items()}
    write_json(out / "heads.json", prompt=prompt, tokens=tokens, seed=seed, meaning=MEANING, scores=lists)
    _print_strongest(scores)
    print(f"wrote attention.html, attention.png, heads.png and heads.json to {out}; open {out / 'attention.html'}")


def _ordinary(opened: Opened) -> list[int]:
    """The tokens of texts: without special ones, and those that the model does not know."""
    tokenizer = opened.tokenizer
    special = {tokenizer.encode_single_token(name) for name in tokenizer.special_tokens_set}
    return [token for token in range(opened.vocabulary) if token not in special]


def _print_strongest(scores: dict[str, Tensor]) -> None:
    """The head that does each thing most."""
    for name, values in scores.items():
        layer, head = divmod(int(values.argmax()), values.shape[1])
        print(f"{name.replace('_', ' '):<16} highest in layer {layer}, head {head}: {values[layer, head]:.3f}")
