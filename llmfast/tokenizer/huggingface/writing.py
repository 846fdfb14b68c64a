"""Writes ``tokenizer.json`` for a tokenizer that was not read from one, or has been changed since."""

from __future__ import annotations

import warnings
from typing import Any

from llmfast import _bpe
from llmfast.tokenizer.huggingface.added_tokens import AddedToken
from llmfast.tokenizer.huggingface.byte_text import token_text
from llmfast.tokenizer.huggingface.contents import Contents
from llmfast.tokenizer.huggingface.pre_tokenizers import byte_level, pre_tokenizer_of, with_digits
from llmfast.tokenizer.text_rules import TextRules


def to_json(contents: Contents) -> dict[str, Any]:
    """The content of ``tokenizer.json``."""
    rules = contents.rules or TextRules()
    added = {token.content: token for token in rules.added}
    for text, number in contents.special_tokens.items():
        added.setdefault(text, AddedToken(text, number))
    by_id = _distinct(sorted(added.values(), key=lambda token: token.id))
    pre_tokenizer = pre_tokenizer_of(contents.pat_str) if rules.steps is None else rules.steps
    pre_tokenizer = with_digits(pre_tokenizer, rules.digits)
    if rules.prefix_space:
        pre_tokenizer = {**pre_tokenizer, "add_prefix_space": True}
    return {
        "version": "1.0",
        "truncation": contents.around.get("truncation"),
        "padding": contents.around.get("padding"),
        "added_tokens": [token.to_json() for token in by_id],
        "normalizer": rules.normalizer,
        "pre_tokenizer": pre_tokenizer or None,
        "post_processor": contents.around.get("post_processor"),
        "decoder": rules.decoder[0] if rules.decoder else byte_level(use_regex=False),
        "model": rules.model or _model(contents, rules.ids, by_id),
    }


def _distinct(added: list[AddedToken]) -> list[AddedToken]:
    """Of tokens that share an id, the first: a file has one name for an id."""
    kept: dict[int, AddedToken] = {}
    for token in added:
        first = kept.setdefault(token.id, token)
        if first is not token:
            warnings.warn(
                f"{first.content!r} and {token.content!r} both have the id {token.id}, and tokenizer.json has one name "
                f"for an id: {token.content!r} is left out",
                stacklevel=2,
            )
    return list(kept.values())


def _model(contents: Contents, ids: tuple[int, ...] | None, added: list[AddedToken]) -> dict[str, Any]:
    ranks = contents.mergeable_ranks
    text_of = {rank: token_text(token) for token, rank in ranks.items()}
    vocabulary = {text: ids[rank] if ids else rank for rank, text in text_of.items()}
    for token in added:
        if vocabulary.setdefault(token.content, token.id) != token.id:
            raise ValueError(f"special token {token.content!r} is written like token {vocabulary[token.content]}")
    parts_of = _bpe.derive_merges(ranks)
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        # A token that no merge makes is still found where it is a whole piece.
        "ignore_merges": any(len(parts) != 2 for _, parts in parts_of),
        "vocab": dict(sorted(vocabulary.items(), key=lambda item: item[1])),
        "merges": _merges(ranks, text_of, parts_of),
    }


def _merges(ranks: dict[bytes, int], text_of: dict[int, str], parts_of: list[tuple[int, list[int]]]) -> list[str]:
    """The pairs that make each token, in the order of the ranks.

    A token of lower rank than those that make it is not made of two when its own rank is reached. The engine merges any
    two tokens that together are one, so that every such pair is listed.
    """
    token_of = {rank: token for token, rank in ranks.items()}
    merges: list[str] = []
    for rank, parts in sorted(parts_of, key=lambda item: item[0]):
        if len(parts) == 2:
            merges.append(f"{text_of[parts[0]]} {text_of[parts[1]]}")
            continue
        token = token_of[rank]
        pairs = ((token[:i], token[i:]) for i in range(1, len(token)))
        merges += [
            f"{text_of[ranks[left]]} {text_of[ranks[right]]}"
            for left, right in pairs
            if left in ranks and right in ranks
        ]
    return merges
