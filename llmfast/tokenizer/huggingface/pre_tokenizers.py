"""How a ``tokenizer.json`` splits text into pieces, as one expression for the engine where that is possible."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from llmfast.tokenizer import patterns
from llmfast.tokenizer.huggingface import expressions
from llmfast.tokenizer.huggingface.fields import field, kind_of
from llmfast.tokenizer.training import WHOLE


class Splitting(NamedTuple):
    """The pattern that cuts text, or else the steps, as the file has them, that Hugging Face's library is to apply.

    `prefix_space`: each stretch of text between added tokens that does not begin with a space gets one. `digits`: each
    digit is a piece of its own ("each"), or each run of them ("runs"), and the pattern cuts what is between.
    """

    pat_str: str
    prefix_space: bool = False
    digits: str | None = None
    steps: dict[str, Any] | None = None


# What matches the expression is a piece; what stands between is one too, or is dropped, as tiktoken does.
ISOLATED = {"behavior": "Isolated", "invert": False}
MATCHES_ONLY = {"behavior": "Removed", "invert": True}

# Patterns that Hugging Face's files have to spell otherwise than tiktoken does: Oniguruma's $ also matches before a
# newline, and {1,3}+ repeats there. Some are several expressions, applied one after another.
IN_ONIGURUMA = {
    patterns.CL100K: (patterns.LLAMA3.replace(r"|\s*[\r\n]+|", r"|\s+\z|\s*[\r\n]+|"),),
    patterns.DEEPSEEK: patterns.DEEPSEEK_STEPS,
}


@functools.cache
def _native() -> dict[tuple[Any, ...], str]:
    """The engine's patterns by the meanings of the expressions that say the same in a file."""
    found = {tuple(map(expressions.meaning, theirs)): ours for ours, theirs in IN_ONIGURUMA.items()}
    for pattern in patterns.NATIVE:
        if pattern != WHOLE and expressions.is_portable(pattern):
            found.setdefault((expressions.meaning(pattern),), pattern)
    # Behind \s++ it makes no difference whether $ is the end of a line or of the text.
    found[(expressions.meaning(patterns.GPT2),)] = patterns.GPT2
    return found


def read_pre_tokenizer(pre_tokenizer: Any, normalizes_to_bytes: int = 0) -> Splitting:
    """How the pre-tokenizer of a file cuts text; ValueError for one that is not byte-level.

    Args:
        pre_tokenizer: the file's.
        normalizes_to_bytes: how many times the file's normalizer has turned the text into byte-level characters.
    """
    steps = steps_of(pre_tokenizer, "pretokenizers")
    kinds = [kind_of(step) for step in steps]
    times = kinds.count("ByteLevel") + normalizes_to_bytes
    if times != 1:
        described = "has no step" if not kinds else f"is {', '.join(map(str, kinds))}"
        raise ValueError(
            f"it turns text into bytes {times} times, not once: its pre-tokenizer {described}"
            if times
            else f"it is not byte-level: its pre-tokenizer {described}, without ByteLevel"
        )
    return _as_pattern(steps, kinds) or Splitting(WHOLE, steps=pre_tokenizer or {})


def leaves_bytes(normalizer: Any, pre_tokenizer: Any) -> bool:
    """Whether a step behind the one that turns text into byte-level characters may turn these into others."""
    first, then = (
        [kind_of(step) for step in steps_of(part, name)]
        for part, name in ((normalizer, "normalizers"), (pre_tokenizer, "pretokenizers"))
    )
    if "ByteLevel" in first:
        return first[-1] != "ByteLevel" or "Metaspace" in then
    return "ByteLevel" in then and "Metaspace" in then[then.index("ByteLevel") :]


def native_pattern(expression: str) -> str:
    """The engine's spelling of a pattern in the syntax of the `regex` library; another pattern as it stands.

    >>> native_pattern(r"[^\\r\\n\\p{N}\\p{L}]?\\p{L}+") == r"[^\\r\\n\\p{N}\\p{L}]?\\p{L}+"
    True
    """
    if expression in patterns.NATIVE or not expressions.is_portable(expression):
        return expression
    return _native().get((expressions.meaning(expression),), expression)


def steps_of(part: Any, name: str) -> list[Any]:
    """The steps of a pre-tokenizer, normalizer or the like, of which sequences may hold others."""
    flat: list[Any] = []
    waiting = [part]
    while waiting:
        one = waiting.pop()
        if kind_of(one) == "Sequence":
            waiting.extend(reversed(field(one, name, list)))
        elif one is not None and one != {}:
            flat.append(one)
    return flat


def _as_pattern(steps: list[Any], kinds: list[str | None]) -> Splitting | None:
    if kinds[0] == "Digits":
        rest = _as_pattern(steps[1:], kinds[1:]) if len(steps) > 1 else None
        if rest is None or rest.prefix_space or rest.digits:
            return None
        return rest._replace(digits="each" if steps[0].get("individual_digits", False) else "runs")
    if kinds[-1] != "ByteLevel" or set(kinds[:-1]) - {"Split"}:
        return None
    *splits, byte_level = steps
    prefix_space = bool(byte_level.get("add_prefix_space", True))
    splits_by_itself = byte_level.get("use_regex", True)
    if not splits:
        return Splitting(patterns.GPT2 if splits_by_itself else WHOLE, prefix_space)
    if splits_by_itself or prefix_space:  # of each piece, then
        return None
    hows = [{name: split.get(name) for name in ISOLATED} for split in splits]
    if any(how not in (ISOLATED, MATCHES_ONLY) for how in hows):
        return None
    found = [_expression(split) for split in splits]
    if None in found:
        return None
    pattern = _pattern([each for each in found if each is not None], hows)
    return None if pattern is None else Splitting(pattern)


def _pattern(found: list[str], hows: list[dict[str, Any]]) -> str | None:
    try:
        meanings = tuple(map(expressions.meaning, found))
    except expressions.NotUnderstood:
        return None
    first, *others = found
    if others:
        return _native().get(meanings) if MATCHES_ONLY not in hows else None
    if first in patterns.NATIVE and expressions.is_portable(first):
        return first
    if meanings in _native():
        return _native()[meanings]
    if not expressions.is_portable(first) or expressions.may_be_empty(meanings[0]):
        return None
    return first if hows == [MATCHES_ONLY] else patterns.with_gaps(first)


def _expression(split: dict[str, Any]) -> str | None:
    """What a step splits by; None for a plain string. Some files write line ends as such, others escape them."""
    pattern = field(split, "pattern", dict)
    if "Regex" not in pattern:
        return None
    return field(pattern, "Regex", str).replace("\r", r"\r").replace("\n", r"\n")


# ---- Writing


def pre_tokenizer_of(pat_str: str) -> dict[str, Any]:
    """The pre-tokenizer that cuts as a pattern does."""
    if patterns.NATIVE.get(pat_str) == "gpt2":
        return byte_level(use_regex=True)
    if pat_str == WHOLE:
        return byte_level(use_regex=False)
    if pat_str in patterns.NATIVE:
        splits = [_split(expression) for expression in IN_ONIGURUMA.get(pat_str, (pat_str,))]
    elif expression := patterns.without_gaps(pat_str):
        splits = [_split(expression)]
    else:
        splits = [_split(pat_str, **MATCHES_ONLY)]
    return {"type": "Sequence", "pretokenizers": [*splits, byte_level(use_regex=False)]}


def with_digits(pre_tokenizer: dict[str, Any], digits: str | None) -> dict[str, Any]:
    """A pre-tokenizer that first cuts out digits, as `Splitting` says."""
    if digits is None:
        return pre_tokenizer
    first = {"type": "Digits", "individual_digits": digits == "each"}
    return {"type": "Sequence", "pretokenizers": [first, *steps_of(pre_tokenizer, "pretokenizers")]}


def byte_level(use_regex: bool, add_prefix_space: bool = False) -> dict[str, Any]:
    """The step, or the decoder, between text and byte-level characters."""
    return {
        "type": "ByteLevel",
        "add_prefix_space": add_prefix_space,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


def _split(expression: str, **how: Any) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": expression}, **(how or ISOLATED)}
