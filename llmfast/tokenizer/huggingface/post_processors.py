"""What a ``tokenizer.json`` puts around the ids of a text. It is kept for saving, and read where prompts are made."""

from __future__ import annotations

from typing import Any

from llmfast.tokenizer.huggingface.fields import field, kind_of, shown, token_id
from llmfast.tokenizer.huggingface.pre_tokenizers import steps_of


def tokens_around(post_processor: Any) -> dict[str, int]:
    """The tokens that a post-processor adds, with their ids; ValueError for a damaged one."""
    found: dict[str, int] = {}
    for step in steps_of(post_processor, "processors"):
        if kind_of(step) == "TemplateProcessing":
            ids_before(step)
            for name in field(step, "special_tokens", dict):
                tokens, ids = (_of_special(step, name, kind) for kind in ("tokens", "ids"))
                for text, number in zip(tokens, ids, strict=False):
                    found[str(text)] = token_id(number, f"the id of {shown(name)} in its post-processor")
        elif kind_of(step) in ("BertProcessing", "RobertaProcessing"):
            for name in ("cls", "sep"):
                text, number = _pair(step, name)
                found[text] = number
    return found


def ids_before(post_processor: Any) -> list[int]:
    """The ids that a post-processor puts before a single text; ValueError for a damaged one."""
    found: list[int] = []
    for step in steps_of(post_processor, "processors"):
        if kind_of(step) == "TemplateProcessing":
            for part in field(step, "single", list):
                if isinstance(part, dict) and "Sequence" in part:
                    break
                found += _of_special(step, field(field(part, "SpecialToken", dict), "id", str), "ids")
        elif kind_of(step) in ("BertProcessing", "RobertaProcessing"):
            found.append(_pair(step, "cls")[1])
    return found


def _of_special(template: Any, name: str, kind: str) -> list[Any]:
    """The texts or ids of a special token of a template."""
    return field(field(field(template, "special_tokens", dict), name, dict), kind, list)


def _pair(step: Any, name: str) -> tuple[str, int]:
    pair = field(step, name, list)
    if len(pair) != 2 or not isinstance(pair[0], str):
        raise ValueError(f"its post-processor's {name!r} is {shown(pair)}, not a token and its id")
    return pair[0], token_id(pair[1], f"the id of {name!r} in its post-processor")
