"""Mistral's ``tekken.json``: tokens in base64, the pattern, and special tokens whose ids come first."""

from __future__ import annotations

import binascii
from base64 import b64decode
from typing import Any

from llmfast.tokenizer.huggingface.contents import Contents
from llmfast.tokenizer.huggingface.fields import field, shown, token_id
from llmfast.tokenizer.huggingface.pre_tokenizers import native_pattern

# Of files that do not list theirs.
_SPECIALS = (
    "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]",
    "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]",
)  # fmt: skip


def is_tekken(file: Any) -> bool:
    """Whether the content of a JSON file is of this format."""
    return isinstance(file, dict) and isinstance(file.get("config"), dict) and isinstance(file.get("vocab"), list)


def from_tekken(file: dict[str, Any]) -> Contents:
    """The tokenizer that the content of a ``tekken.json`` describes."""
    config = field(file, "config", dict)
    n_specials = token_id(config.get("default_num_special_tokens"), "default_num_special_tokens")
    size = token_id(config.get("default_vocab_size"), "default_vocab_size")
    ranks: dict[bytes, int] = {}
    for i, entry in enumerate(field(file, "vocab", list)[: max(0, size - n_specials)]):
        rank = token_id(field(entry, "rank", int), f"the rank of token {i}")
        try:
            token = b64decode(field(entry, "token_bytes", str), validate=True)
        except binascii.Error:
            raise ValueError(f"token {i} is {shown(entry['token_bytes'])}, not base64") from None
        if not token or token in ranks:
            raise ValueError(f"token {i} {'repeats another' if token else 'is empty'}")
        ranks[token] = rank + n_specials
    listed = file.get("special_tokens") is not None
    names = _names(field(file, "special_tokens", list)) if listed else dict(enumerate(_SPECIALS))
    specials = {names.get(number, f"<SPECIAL_{number}>"): number for number in range(n_specials)}
    if len(specials) < n_specials:
        raise ValueError("two of its special tokens are written alike")
    return Contents(native_pattern(field(config, "pattern", str)), ranks, specials)


def _names(entries: list[Any]) -> dict[int, str]:
    names: dict[int, str] = {}
    for entry in entries:
        text = field(entry, "token_str", str)
        names[token_id(field(entry, "rank", int), f"the rank of special token {text!r}")] = text
    return names
