"""Hugging Face's files of byte-level BPE: ``tokenizer.json``, and ``vocab.json`` with ``merges.txt``.

Their merging is told by a list of merges, ours (and tiktoken's) by the ids of tokens. Reading checks that the
two say the same thing, so that a tokenizer that loads gives equal ids, always.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from llmfast import _bpe
from llmfast.tokenizer import patterns
from llmfast.tokenizer.rank_files import check_ranks
from llmfast.tokenizer.training import GPT2_BYTE_ORDER, WHOLE

# How an added token is found in text and whether decoding may skip it, unless its file says otherwise.
FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
Flags = dict[str, dict[str, bool]]


class Contents(NamedTuple):
    """What a tokenizer's file says; `flags` holds what differs from FLAGS, by special token."""

    pat_str: str
    mergeable_ranks: dict[bytes, int]
    special_tokens: dict[str, int]
    normalization: str | None = None
    flags: Flags = {}  # noqa: RUF012 - never changed


# ---- Tokens as text: each byte is a printable character


def _byte_characters() -> list[str]:
    """The character that stands for each byte: itself where it prints, else the next one from U+0100 on."""
    characters = [""] * 256
    for i, byte in enumerate(GPT2_BYTE_ORDER):
        characters[byte] = chr(byte) if i < 188 else chr(256 + i - 188)
    return characters


class _ByteOfCharacter(dict):
    def __missing__(self, character: int) -> int:
        return 0xFFFF  # no byte: the encoding to Latin-1 refuses it


_CHARACTERS = dict(enumerate(_byte_characters()))
_BYTE_TEXTS = set(_CHARACTERS.values())
_BYTES = _ByteOfCharacter({ord(character): byte for byte, character in _CHARACTERS.items()})


def token_text(token: bytes) -> str:
    """
    >>> token_text(b" the")
    'Ġthe'
    """
    return token.decode("latin-1").translate(_CHARACTERS)


def token_bytes(text: str) -> bytes:
    """
    >>> token_bytes("Ġthe")
    b' the'
    """
    try:
        return text.translate(_BYTES).encode("latin-1")
    except UnicodeEncodeError:
        raise ValueError(f"token {text!r} is not written in byte-level characters") from None


def decodes_to_itself(text: str) -> bool:
    """Whether Hugging Face's decoder leaves an added token as it is, and does not take it for byte characters.

    >>> decodes_to_itself("<|endoftext|>"), decodes_to_itself("Ġthe")
    (True, False)
    """
    try:
        return token_bytes(text) == text.encode()
    except ValueError:
        return True


# ---- Writing


# Expressions that Oniguruma, Hugging Face's library, reads otherwise than tiktoken's does, in its dialect ($ also
# matches before a newline there, and {1,3}+ repeats), and those that Hugging Face applies one after another.
_IN_ONIGURUMA = {
    patterns.CL100K: (patterns.LLAMA3.replace(r"|\s*[\r\n]+|", r"|\s+\z|\s*[\r\n]+|"),),
    patterns.DEEPSEEK: patterns.DEEPSEEK_STEPS,
}
_FROM_ONIGURUMA = {theirs: ours for ours, theirs in _IN_ONIGURUMA.items()}


def to_json(contents: Contents) -> dict[str, Any]:
    """The content of ``tokenizer.json``."""
    parts_of = _bpe.derive_merges(contents.mergeable_ranks)
    text_of = {rank: token_text(token) for token, rank in contents.mergeable_ranks.items()}
    vocabulary = {text: rank for rank, text in text_of.items()}
    for special, number in contents.special_tokens.items():
        if vocabulary.get(special, number) != number:
            raise ValueError(f"special token {special!r} is written like token {vocabulary[special]}")
        vocabulary[special] = number
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            _added_token(text, number, contents.flags.get(text, {}))
            for text, number in _by_id(contents.special_tokens)
        ],
        "normalizer": contents.normalization and {"type": contents.normalization},
        "pre_tokenizer": _pre_tokenizer(contents.pat_str),
        "post_processor": None,
        "decoder": _byte_level(use_regex=False),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            # A token that no merge makes is still found where it is a whole piece.
            "ignore_merges": any(len(parts) != 2 for _, parts in parts_of),
            "vocab": dict(_by_id(vocabulary)),
            "merges": [
                f"{text_of[parts[0]]} {text_of[parts[1]]}" for _, parts in parts_of if len(parts) == 2
            ],
        },
    }


def _by_id(ids: dict[str, int]) -> list[tuple[str, int]]:
    return sorted(ids.items(), key=lambda item: item[1])


def _added_token(text: str, number: int, flags: dict[str, bool]) -> dict[str, Any]:
    return {"id": number, "content": text, **FLAGS, **flags}


def _byte_level(use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def to_vocab_and_merges(contents: Contents) -> tuple[str, str]:
    """The contents of ``vocab.json`` and ``merges.txt``."""
    file = to_json(contents)["model"]
    if file["ignore_merges"]:
        rank = next(rank for rank, parts in _bpe.derive_merges(contents.mergeable_ranks) if len(parts) != 2)
        raise ValueError(
            f"no merge makes token {rank}, which merges.txt cannot say; save tokenizer.json instead, which can"
        )
    vocabulary = json.dumps(file["vocab"], ensure_ascii=False)
    return vocabulary, "\n".join(["#version: 0.2", *file["merges"], ""])


def _pre_tokenizer(pat_str: str) -> dict[str, Any]:
    if patterns.NATIVE.get(pat_str) == "gpt2":
        return _byte_level(use_regex=True)
    if pat_str == WHOLE:
        return _byte_level(use_regex=False)
    if pat_str in patterns.NATIVE:
        splits = [_split(expression) for expression in _IN_ONIGURUMA.get(pat_str, (pat_str,))]
    elif expression := patterns.without_gaps(pat_str):
        splits = [_split(expression)]
    else:
        splits = [_split(pat_str, **_MATCHES_ONLY)]
    return {"type": "Sequence", "pretokenizers": [*splits, _byte_level(use_regex=False)]}


# What matches the expression is a piece; what stands between is one too, or is dropped, as tiktoken does.
_ISOLATED = {"behavior": "Isolated", "invert": False}
_MATCHES_ONLY = {"behavior": "Removed", "invert": True}


def _split(expression: str, **how: Any) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": expression}, **(how or _ISOLATED)}


# ---- Reading


def read_tokenizer_json(path: Path) -> Contents:
    """Reads a ``tokenizer.json`` of byte-level BPE; ValueError, naming the file, for anything else."""
    return _reading(path, lambda: from_json(json.loads(path.read_text("utf-8"))))


def read_vocab_and_merges(folder: Path) -> Contents:
    """Reads ``vocab.json`` and ``merges.txt``, in which GPT-2 and its kin were published."""

    def read() -> Contents:
        vocabulary = json.loads((folder / "vocab.json").read_text("utf-8"))
        lines = (folder / "merges.txt").read_text("utf-8").split("\n")
        merges = [line for line in lines if line and not line.startswith("#version")]
        model = {"type": "BPE", "vocab": vocabulary, "merges": merges}
        made = {merge.replace(" ", "") for merge in merges}
        specials = {
            text: number for text, number in _field(model, "vocab", dict).items() if _is_bracketed(text)
        }
        added = [_added_token(text, number, {}) for text, number in specials.items() if text not in made]
        return from_json(
            {"model": model, "added_tokens": added, "pre_tokenizer": _byte_level(use_regex=True)}
        )

    return _reading(folder / "vocab.json", read)


def _is_bracketed(text: str) -> bool:
    """Whether a token is written as special ones are: the two files do not tell which are."""
    return len(text) > 2 and text[0] == "<" and text[-1] == ">"


def _reading(path: Path, read) -> Contents:
    try:
        return read()
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged: it is not JSON: {error}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is damaged: it is not UTF-8: {error}") from None
    except ValueError as error:
        raise ValueError(f"{path} cannot be loaded: {error}") from None


def from_json(file: Any) -> Contents:
    """The tokenizer that the content of a ``tokenizer.json`` describes."""
    model = _field(file, "model", dict)
    _check_model(model)
    specials, flags = _special_tokens(file)
    vocabulary = _field(model, "vocab", dict)
    made = {"".join(_merged(i, merge)) for i, merge in enumerate(_field(model, "merges", list))} | _BYTE_TEXTS
    ranks = {
        token_bytes(text): _integer(number, f"the id of token {text!r}")
        for text, number in vocabulary.items()
        if specials.get(text) != number or text in made  # an added token may be an ordinary one, too
    }
    check_ranks(ranks)
    _check_merges(model, ranks)
    pat_str, normalization = _pattern(file.get("pre_tokenizer")), _normalization(file.get("normalizer"))
    return Contents(pat_str, ranks, specials, normalization, flags)


def _field(obj: Any, name: str, kind: type) -> Any:
    if not isinstance(obj, dict) or not isinstance(obj.get(name), kind):
        raise ValueError(f"it has no {name!r} of type {kind.__name__}")
    return obj[name]


def _integer(value: Any, what: str) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{what} is {value!r}")
    return value


def _check_model(model: dict[str, Any]) -> None:
    if model.get("type", "BPE") != "BPE":
        raise ValueError(f"its model is {model['type']!r}, not byte-level 'BPE'")
    unsupported = ("byte_fallback", "dropout", "continuing_subword_prefix", "end_of_word_suffix")
    for name in unsupported:
        if model.get(name):
            raise ValueError(f"its model has {name}={model[name]!r}, which byte-level BPE has not")


def _special_tokens(file: dict[str, Any]) -> tuple[dict[str, int], Flags]:
    """The ids of the added tokens, and how some are found otherwise than most."""
    specials, flags = {}, {}
    for token in file.get("added_tokens") or []:
        text = _field(token, "content", str)
        if not text:
            raise ValueError("an added token is empty")
        specials[text] = _integer(token.get("id"), f"the id of added token {text!r}")
        for flag, usual in FLAGS.items():
            value = token.get(flag, usual)
            if not isinstance(value, bool):
                raise ValueError(f"added token {text!r} has {flag}={value!r}, not true or false")
            if value != usual:
                flags.setdefault(text, {})[flag] = value
    return specials, flags


def _merged(i: int, merge: Any) -> list[str]:
    """The two tokens that a merge joins."""
    pair = merge.split(" ") if isinstance(merge, str) else merge
    if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
        raise ValueError(f"merge {i} is {merge!r}, not two tokens")
    return pair


def _check_merges(model: dict[str, Any], ranks: dict[bytes, int]) -> None:
    """Merging by the list must be merging by rank: same order, and each token made of the same two."""
    listed = set()
    last = -1
    for i, merge in enumerate(_field(model, "merges", list)):
        left, right = map(token_bytes, _merged(i, merge))
        for token in (left, right, left + right):
            if token not in ranks:
                raise ValueError(f"merge {i} is {merge!r}, but the vocabulary has no {token_text(token)!r}")
        rank = ranks[left + right]
        if rank < last:
            raise ValueError(
                f"merge {i}, {merge!r}, stands behind merges of higher ids; ids must follow the merges"
            )
        last = rank
        listed.add((ranks[left], ranks[right]))
    ignore_merges = model.get("ignore_merges", False)
    for rank, parts in _bpe.derive_merges(ranks):
        if len(parts) == 2 and tuple(parts) not in listed:
            raise ValueError(
                f"token {rank} joins tokens {parts[0]} and {parts[1]}, but that merge is not listed"
            )
        if len(parts) > 2 and not ignore_merges:
            raise ValueError(f"token {rank} is in the vocabulary, but no merge makes it")


def _pattern(pre_tokenizer: Any) -> str:
    steps = [pre_tokenizer]
    if isinstance(pre_tokenizer, dict) and pre_tokenizer.get("type") == "Sequence":
        steps = _field(pre_tokenizer, "pretokenizers", list)
    kinds = [step.get("type") if isinstance(step, dict) else None for step in steps]
    if kinds[-1:] != ["ByteLevel"] or set(kinds[:-1]) - {"Split"}:
        raise ValueError(f"its pre-tokenizer is {kinds}; supported are 'Split' steps, then one 'ByteLevel'")
    *splits, byte_level = steps
    if byte_level.get("add_prefix_space"):
        raise ValueError("its pre-tokenizer has add_prefix_space=true, which is not supported")
    published = byte_level.get("use_regex", True)
    if not splits:
        return patterns.GPT2 if published else WHOLE
    hows = [{name: split.get(name) for name in _ISOLATED} for split in splits]
    if published or any(how not in (_ISOLATED, _MATCHES_ONLY) for how in hows):
        raise ValueError("its pre-tokenizer splits otherwise than by expressions that match the pieces")
    expressions = tuple(_expression(split) for split in splits)
    if len(expressions) > 1 and (expressions not in _FROM_ONIGURUMA or _MATCHES_ONLY in hows):
        raise ValueError(f"its pre-tokenizer splits {len(expressions)} times, and not as DeepSeek does")
    pat_str = _FROM_ONIGURUMA.get(expressions, expressions[0])
    if pat_str in patterns.NATIVE or hows == [_MATCHES_ONLY]:
        return pat_str
    return patterns.with_gaps(pat_str)


def _expression(split: dict[str, Any]) -> str:
    """What a step splits by; some files write line ends as such, others escape them."""
    expression = _field(_field(split, "pattern", dict), "Regex", str)
    return expression.replace("\r", r"\r").replace("\n", r"\n")


def _normalization(normalizer: Any) -> str | None:
    steps = [normalizer]
    if isinstance(normalizer, dict) and normalizer.get("type") == "Sequence":
        steps = _field(normalizer, "normalizers", list)
    if steps in ([], [None]):
        return None
    if steps == [{"type": "NFC"}]:
        return "NFC"
    raise ValueError(f"its normalizer is {normalizer!r}; supported are none and NFC")
