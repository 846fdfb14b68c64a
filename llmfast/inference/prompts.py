"""What begins a prompt and what ends a reply, by the tokenizer and the files beside it."""

from __future__ import annotations

import json
from typing import Any

from llmfast.tokenizer import Tokenizer
from llmfast.tokenizer.huggingface.post_processors import ids_before

DOCUMENT_START = "document_start"
"""The entry of ``tokenizer_config.json`` with the token that begins every document of a training."""
GENERATION = "generation_config.json"
BEGINNINGS = ("<|begin_of_text|>", "<｜begin▁of▁sentence｜>", "<s>")


def prompt_tokens(tokenizer: Tokenizer, text: str) -> list[int]:
    """Tokens of a prompt: those that begin a document (``beginning``), then the text, whose special tokens are text."""
    return [*beginning(tokenizer), *tokenizer.encode_ordinary(text)]


def beginning(tokenizer: Tokenizer) -> list[int]:
    """The tokens that stand before a text.

    A model that llmfast trained from the start says so itself (``DOCUMENT_START``). A tokenizer of Hugging Face does by
    what its ``tokenizer.json`` adds around a text: Llama 3 and Mistral a token for the beginning, Qwen and GPT-2
    nothing. Otherwise it is the token for the beginning, where there is one, or else the end-of-text token, after which
    llmfast's training begins each document.
    """
    named = _json(tokenizer.files.get("tokenizer_config.json")).get(DOCUMENT_START)
    if named is not None:
        return [tokenizer.encode_single_token(named)]
    rule = own_beginning(tokenizer)
    if rule is not None:
        return rule
    for begin in BEGINNINGS:
        if begin in tokenizer.special_tokens_set:
            return [tokenizer.encode_single_token(begin)]
    try:
        return [tokenizer.eot_token]
    except KeyError:
        return []


def begins_documents_with_end_of_text(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer of a model that is trained on documents which begin after the end-of-text token; the files beside
    it say so where its own rule differs."""
    if beginning(tokenizer) == [tokenizer.eot_token]:
        return tokenizer
    name = "tokenizer_config.json"
    config = _json(tokenizer.files.get(name)) or tokenizer.default_config()
    config[DOCUMENT_START] = tokenizer.decode([tokenizer.eot_token])
    return tokenizer.with_files(tokenizer.files | {name: (json.dumps(config, indent=2) + "\n").encode()})


def end_tokens(tokenizer: Tokenizer) -> frozenset[int]:
    """The tokens that end a reply: all that ``generation_config.json`` names, else the end-of-text token."""
    if named := as_tokens(_json(tokenizer.files.get(GENERATION)).get("eos_token_id")):
        return named
    try:
        return frozenset([tokenizer.eot_token])
    except KeyError:
        return frozenset()


def as_tokens(named: int | list[int] | None) -> frozenset[int]:
    """What transformers' files call ``eos_token_id``: a token, several, or none."""
    return frozenset(named if isinstance(named, list) else [] if named is None else [named])


def own_beginning(tokenizer: Tokenizer) -> list[int] | None:
    """The special tokens that a ``tokenizer.json`` puts before a text; None if it does not say."""
    processor = tokenizer.post_processor
    return ids_before(processor) if processor else None


def _json(content: bytes | None) -> dict[str, Any]:
    return json.loads(content) if content else {}
