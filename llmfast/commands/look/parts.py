"""``llmfast look norms``, ``neighbors`` and ``ablate``: states, embeddings, heads and layers."""

from __future__ import annotations

from pathlib import Path
from typing import Literal


def norms(
    run: Path,
    /,
    prompt: str = "",
    *,
    times_median: float = 100.0,
    out: Path = Path("look"),
    base: Path | None = None,
    device: str | None = None,
) -> None:
    """Show how large the activations of a model are by layer, and which of them are outliers.

    Writes norms.png and norms.json: the norm of each token's state in the residual stream, its largest value, and the
    numbers that are far larger than all others.

    Args:
        run: A run folder (its newest checkpoint is used), a checkpoint folder, a Hugging Face folder, or an adapter.
        prompt: The text that the model reads.
        times_median: A number is an outlier from so many times the median absolute value of its layer on.
        out: The folder to write to.
        base: Where the base of an adapter lies now, if it was moved since the training.
        device: cpu or cuda; a GPU if there is one.

    Raises:
        ValueError: no model there, a damaged file, or no prompt or one longer than the context.
    """
    import torch

    from llmfast.commands.look.opening import open_looked_at, tokens_of_prompt, write_json
    from llmfast.visualization.norms import activation_norms, outliers
    from llmfast.visualization.plots.inside import plot_norms, state_names
    from llmfast.visualization.residual import residual_stream
    from llmfast.visualization.structure import batch_of

    opened = open_looked_at(run, base, device)
    tokens = tokens_of_prompt(opened, prompt)
    with torch.no_grad():
        states = residual_stream(opened.model, batch_of(opened.model, tokens)).states[:, 0]
    found, large = activation_norms(states), outliers(states, times_median=times_median)
    rows, texts = state_names(len(states)), opened.texts(tokens)
    plot_norms(found, out / "norms.png", title=f"Residual stream of {opened.name}")
    write_json(
        out / "norms.json",
        prompt=prompt,
        tokens=tokens,
        rows=rows,
        norms=found.norms.tolist(),
        largest=found.largest.tolist(),
        medians=found.medians.tolist(),
        outliers=[each._asdict() | {"row": rows[each.row], "text": texts[each.position]} for each in large],
    )
    print(f"{'':<12}{'mean norm':>12}{'largest':>12}{'median':>12}")
    for row, name in enumerate(rows):
        figures = (found.norms[row].mean(), found.largest[row].max(), found.medians[row])
        print(f"{name:<12}" + "".join(f"{float(figure):>12.4g}" for figure in figures))
    for each in large:
        where = f"{rows[each.row]}, token {each.position} {texts[each.position]!r}, channel {each.channel}"
        print(f"outlier     {where}: {each.value:.4g}, {each.times_median:,.0f} times the median")
    if not large:
        print(f"no number is {times_median:g} times the median of its layer or more")
    print(f"wrote norms.png and norms.json to {out}")


def neighbors(
    run: Path,
    /,
    prompt: str = "",
    *,
    count: int = 10,
    of: Literal["embedding", "head"] = "embedding",
    out: Path = Path("look"),
    base: Path | None = None,
    device: str | None = None,
) -> None:
    """Show which tokens have embeddings similar to those of a text's tokens.

    Writes neighbors.json, and prints a line for each token: its neighbors, with the cosines of the angles.

    Args:
        run: A run folder (its newest checkpoint is used), a checkpoint folder, a Hugging Face folder, or an adapter.
        prompt: A word or a text.
        count: How many neighbors of each token.
        of: The table: embedding, what tokens are read as, or head, what predicts them.
        out: The folder to write to.
        base: Where the base of an adapter lies now, if it was moved since the training.
        device: cpu or cuda; a GPU if there is one.

    Raises:
        ValueError: no model there, a damaged file, no text, or a count below 1.
    """
    from llmfast.commands.look.opening import open_looked_at, write_json
    from llmfast.visualization.neighbors import embedding_neighbors

    if not prompt:
        raise ValueError("there is no token to find neighbors of: give a text with --prompt")
    opened = open_looked_at(run, base, device)
    tokens = list(dict.fromkeys(opened.tokenizer.encode_ordinary(prompt)))
    found, cosines = embedding_neighbors(opened.model, tokens, count=count, of=of, vocabulary=opened.vocabulary)
    rows = []
    for token, ids, values in zip(tokens, found.tolist(), cosines.tolist(), strict=True):
        texts = opened.texts(ids)
        near = [{"token": i, "text": t, "cosine": c} for i, t, c in zip(ids, texts, values, strict=True)]
        rows.append({"token": token, "text": opened.text(token), "neighbors": near})
        listed = "  ".join(f"{text!r} {value:.2f}" for text, value in zip(texts, values, strict=True))
        print(f"{opened.text(token)!r:<16} {listed}")
    write_json(out / "neighbors.json", prompt=prompt, of=of, tokens=rows)
    print(f"wrote neighbors.json to {out}")


def ablate(
    run: Path,
    /,
    prompt: str = "",
    *,
    layers: tuple[int, ...] = (),
    heads: tuple[int, ...] = (),
    out: Path = Path("look"),
    base: Path | None = None,
    device: str | None = None,
) -> None:
    """Show what each head and each layer of a model is worth: the change of the loss on a text without it.

    Writes ablation.png and ablation.json. A head is left out by replacing its result by zeros, a layer by passing on
    what entered it. Each takes one forward pass.

    Args:
        run: A run folder (its newest checkpoint is used), a checkpoint folder, a Hugging Face folder, or an adapter.
        prompt: The text that is predicted.
        layers: Layers to try, counted from 0; all if left out.
        heads: Heads to try, counted from 0; all if left out.
        out: The folder to write to.
        base: Where the base of an adapter lies now, if it was moved since the training.
        device: cpu or cuda; a GPU if there is one.

    Raises:
        ValueError: no model there, a damaged file, no prompt or one longer than the context, or a layer or head that
            does not exist.
    """
    from llmfast.commands.look.opening import open_looked_at, tokens_of_prompt, write_json
    from llmfast.visualization.ablation import ablate_each
    from llmfast.visualization.plots.inside import plot_ablation
    from llmfast.visualization.structure import chosen, shape_of

    opened = open_looked_at(run, base, device)
    tokens = tokens_of_prompt(opened, prompt)
    found = ablate_each(opened.model, tokens, layers=layers, heads=heads)
    shape = shape_of(opened.model)
    those, of_each = chosen("layers", layers, shape.layers), chosen("heads", heads, shape.heads)
    plot_ablation(found, those, of_each, out / "ablation.png", title=opened.name)
    write_json(
        out / "ablation.json",
        prompt=prompt,
        tokens=tokens,
        loss=found.loss,
        layers=those,
        heads=of_each,
        change_without_head=found.heads.tolist(),
        change_without_layer=found.layers.tolist(),
    )
    print(f"loss {found.loss:.4f} nats per token, over {len(tokens) - 1} tokens")
    for layer, change in zip(those, found.layers.tolist(), strict=True):
        print(f"without layer {layer:<12}{change:+.4f}")
    ranked = found.heads.flatten().argsort(descending=True).tolist()
    for place in ranked[:5]:
        row, column = divmod(place, len(of_each))
        name = f"layer {those[row]}, head {of_each[column]}"
        print(f"without {name:<18}{float(found.heads[row, column]):+.4f}")
    print(f"wrote ablation.png and ablation.json to {out}")
