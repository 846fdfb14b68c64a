"""``vocab.json`` with ``merges.txt``, in which GPT-2 and its kin were published, and the files beside them.

The two files record neither how text is split nor which tokens are added ones; ``tokenizer_config.json``,
``added_tokens.json`` and ``special_tokens_map.json`` do, where they are there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llmfast import _bpe
from llmfast.tokenizer import patterns
from llmfast.tokenizer.huggingface.added_tokens import FLAGS
from llmfast.tokenizer.huggingface.contents import Contents
from llmfast.tokenizer.huggingface.fields import field, optional, parsed, shown
from llmfast.tokenizer.huggingface.pre_tokenizers import byte_level, pre_tokenizer_of
from llmfast.tokenizer.huggingface.reading import from_json, reading
from llmfast.tokenizer.huggingface.writing import to_json

# The files by their names, and by those in which OpenAI published GPT-2.
NAMES = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))

_LIKE_GPT2 = {
    "GPT2Tokenizer", "GPT2TokenizerFast", "RobertaTokenizer", "RobertaTokenizerFast", "BartTokenizer",
    "BartTokenizerFast", "CodeGenTokenizer", "CodeGenTokenizerFast", "LongformerTokenizer", "WhisperTokenizer",
    "WhisperTokenizerFast", "GPTNeoXTokenizer", "GPTNeoXTokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend",
}  # fmt: skip
_LIKE_QWEN2 = {"Qwen2Tokenizer", "Qwen2TokenizerFast"}


def read_vocab_and_merges(vocabulary: Path, merges: Path, pattern: str | None = None) -> Contents:
    """Reads the two files and those beside them.

    Raises:
        ValueError: a damaged file, or a ``tokenizer_config.json`` of a family whose way of splitting is not known here,
            unless `pattern` is given.
    """

    def read() -> Contents:
        text = merges.read_text("utf-8") if merges.is_file() else None
        if text is None:
            raise ValueError(f"there is no {merges.name} beside it")
        lines = [line for line in text.split("\n") if line and not line.startswith("#version")]
        model = {"type": "BPE", "vocab": _object(vocabulary), "merges": lines}
        file = {"version": "1.0", **_around(vocabulary.parent, model, pattern), "model": model}
        return from_json(file)._replace(source=json.dumps(file, ensure_ascii=False).encode())

    return reading(vocabulary, read)


def _around(folder: Path, model: dict[str, Any], pattern: str | None) -> dict[str, Any]:
    """The parts of a ``tokenizer.json`` that the two files lack."""
    config = _object(folder / "tokenizer_config.json")
    family = optional(config, "tokenizer_class", str, "GPT2Tokenizer")
    normalizer = None
    if pattern is not None:
        pre_tokenizer = pre_tokenizer_of(pattern)
    elif family in _LIKE_QWEN2:
        pre_tokenizer, normalizer = pre_tokenizer_of(patterns.QWEN2), {"type": "NFC"}
    elif family in _LIKE_GPT2:
        prefix = optional(config, "add_prefix_space", bool, False)
        pre_tokenizer = byte_level(use_regex=True, add_prefix_space=prefix)
    else:
        raise ValueError(
            f"tokenizer_config.json says {family!r}, and neither file how that splits text: "
            "load it with Tokenizer.load(path, pattern=...)"
        )
    return {
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(folder, config, model),
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": byte_level(use_regex=True) | {"trim_offsets": False},
        "decoder": byte_level(use_regex=True),
    }


def _added_tokens(folder: Path, config: dict[str, Any], model: dict[str, Any]) -> list[dict[str, Any]]:
    """The added tokens that the files beside the two name; without those, what stands in angle brackets."""
    vocabulary = field(model, "vocab", dict)
    specials = _named_specials(config) | _named_specials(_object(folder / "special_tokens_map.json"))
    numbers = _object(folder / "added_tokens.json")
    entries: dict[str, dict[str, Any]] = {}
    for number, token in optional(config, "added_tokens_decoder", dict, {}).items():
        text = field(token, "content", str)
        entries[text] = {"id": int(number) if number.isdecimal() else number, **token}
    for text, number in numbers.items():
        entries.setdefault(text, {"id": number, "content": text, "special": text in specials})
    for text, flags in specials.items():
        if text in vocabulary:
            entries.setdefault(text, {"id": vocabulary[text], "content": text, **flags, "special": True})
    if not entries:
        made = {merge.replace(" ", "") for merge in model["merges"]}
        entries = {
            text: {"id": number, "content": text}
            for text, number in vocabulary.items()
            if _is_bracketed(text) and text not in made
        }
    for text, entry in entries.items():  # so that they keep the ids that these files give them
        if type(vocabulary.setdefault(text, entry["id"])) is not int:
            raise ValueError(f"the id of added token {text!r} is {shown(entry['id'])}")
    by_id = sorted(entries.values(), key=lambda entry: vocabulary[entry["content"]])
    usual = dict.fromkeys(FLAGS, False) | {"special": True}
    return [
        {"id": vocabulary[entry["content"]], "content": entry["content"]}
        | {name: optional(entry, name, bool, usual[name]) for name in FLAGS}
        for entry in by_id
    ]


def _named_specials(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The special tokens that a map or config names, with their flags."""
    found: dict[str, dict[str, Any]] = {}
    for name, value in config.items():
        if not name.endswith("_token") and name != "additional_special_tokens":
            continue
        for token in value if isinstance(value, list) else [value]:
            if isinstance(token, dict):
                found[field(token, "content", str)] = {flag: token.get(flag) for flag in FLAGS}
            elif isinstance(token, str):
                found[token] = {}
    return found


def _object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is no file."""
    if not path.is_file():
        return {}
    value = reading(path, lambda: parsed(path.read_bytes()))
    if not isinstance(value, dict):
        raise ValueError(f"{path.name} holds {shown(value)}, not an object")
    return value


def _is_bracketed(text: str) -> bool:
    """Whether a token is written as special ones mostly are."""
    return len(text) > 2 and text[0] == "<" and text[-1] == ">"


def to_vocab_and_merges(contents: Contents) -> dict[str, str]:
    """The files by their names: vocabulary, merges, and the added tokens in ``tokenizer_config.json``."""
    if contents.rules is not None and contents.rules.change_ids:
        raise ValueError(
            "vocab.json and merges.txt have no place for this tokenizer's rules of text; save tokenizer.json instead"
        )
    file = to_json(contents)
    model = file["model"]
    made = {merge.replace(" ", "") for merge in model["merges"]}
    text_of = {number: text for text, number in model["vocab"].items()}
    for rank, parts in _bpe.derive_merges(contents.mergeable_ranks):
        if len(parts) != 2 and text_of[rank] not in made:
            raise ValueError(
                f"no merge makes token {rank}, which merges.txt cannot say; save tokenizer.json instead, which can"
            )
    added = {str(token["id"]): {name: token[name] for name in ("content", *FLAGS)} for token in file["added_tokens"]}
    config = {"tokenizer_class": "GPT2Tokenizer", "added_tokens_decoder": added}
    return {
        "vocab.json": json.dumps(model["vocab"], ensure_ascii=False),
        "merges.txt": "\n".join(["#version: 0.2", *model["merges"], ""]),
        "tokenizer_config.json": json.dumps(config, ensure_ascii=False, indent=2),
    }
