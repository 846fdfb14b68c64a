"""Finds what single heads of a model do: by scores, and by where they look in two sentences that differ in a word.

python recipes/attention/heads.py RUN HEADS.json
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmfast.inference.prompts import beginning
from llmfast.integrations.opening import open_model
from llmfast.models.decoder import Decoder
from llmfast.tokenizer import Tokenizer
from llmfast.visualization.attention import attention_rows
from llmfast.visualization.heads import prompt_scores, repeat_scores

SENTENCE = "The trophy does not fit into the suitcase because it is too {}."
ENDINGS = ("big", "small")
THINGS = ("trophy", "suitcase")


def weights_of(model: Decoder, tokens: list[int]) -> Tensor:
    """All attention weights, (layers, heads, tokens, tokens)."""
    found = torch.zeros(model.config.layers, model.config.heads, len(tokens), len(tokens))
    for rows in attention_rows(model, tokens):
        _, count, keys = rows.weights.shape
        columns = slice(rows.first_key, rows.first_key + keys)
        found[rows.layer, :, rows.first_row : rows.first_row + count, columns] = rows.weights.cpu()
    return found


def places(tokenizer: Tokenizer, text: str, word: str, behind: int) -> list[int]:
    """The tokens of the first place of a word, ``behind`` tokens further."""
    _, offsets = tokenizer.encode_with_offsets(text)
    start = text.index(word)
    overlaps = [first < start + len(word) and end > start for first, end in offsets]
    return [place + behind for place, inside in enumerate(overlaps) if inside]


def looks(model: Decoder, tokenizer: Tokenizer, ending: str, source: str) -> dict[str, Any]:
    """Of all heads, where the one that tells the two things apart most looks from the last token of a word."""
    text = SENTENCE.format(ending)
    start = beginning(tokenizer)
    weights = weights_of(model, [*start, *tokenizer.encode_ordinary(text)])
    row = places(tokenizer, text, source, len(start))[-1]
    on = {thing: weights[:, :, row, places(tokenizer, text, thing, len(start))].sum(-1) for thing in THINGS}
    difference = on[THINGS[0]] - on[THINGS[1]]
    layer, head = divmod(int(difference.abs().argmax()), difference.shape[1])
    return {
        "sentence": f"too {ending}",
        "from": source.strip(),
        "layer": layer,
        "head": head,
        **{thing: float(on[thing][layer, head]) for thing in THINGS},
        "mean difference": float(difference.mean()),
    }


def main() -> None:
    run, out = map(Path, sys.argv[1:])
    model, tokenizer = open_model(run)
    model.eval()
    start = beginning(tokenizer)
    special = {tokenizer.encode_single_token(name) for name in tokenizer.special_tokens_set}
    ordinary = [token for token in range(tokenizer.n_vocab) if token not in special]
    text = SENTENCE.format(ENDINGS[0])
    scores = prompt_scores(model, [*start, *tokenizer.encode_ordinary(text)])
    scores |= repeat_scores(model, ordinary, start=start)
    strongest = []
    for name, values in scores.items():
        layer, head = divmod(int(values.argmax()), values.shape[1])
        others = (values.sum() - values[layer, head]) / max(1, values.numel() - 1)
        strongest.append(
            {"score": name, "layer": layer, "head": head, "value": float(values[layer, head]), "others": float(others)}
        )
    found = {
        "strongest": strongest,
        "looks": [looks(model, tokenizer, ending, source) for ending in ENDINGS for source in (" it", f" {ending}")],
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
