"""Reads ``tokenizer.json``: what its parts mean to the engine, or a ValueError that says what is the matter."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from llmfast.tokenizer.huggingface import library
from llmfast.tokenizer.huggingface.added_tokens import AddedToken, read_added_tokens
from llmfast.tokenizer.huggingface.byte_text import bytes_of_texts, decoded_bytes, token_text
from llmfast.tokenizer.huggingface.contents import AROUND, Contents
from llmfast.tokenizer.huggingface.fields import field, kind_of, optional, parsed, shown, token_id
from llmfast.tokenizer.huggingface.merges import Ranked, ranks_of
from llmfast.tokenizer.huggingface.post_processors import tokens_around
from llmfast.tokenizer.huggingface.pre_tokenizers import leaves_bytes, read_pre_tokenizer, steps_of
from llmfast.tokenizer.text_rules import NFC, TextRules

Read = TypeVar("Read")


def read_tokenizer_json(path: Path) -> Contents:
    """Reads a ``tokenizer.json`` of byte-level BPE; ValueError, naming the file, for anything else."""

    def read() -> Contents:
        source = path.read_bytes()
        return from_json(parsed(source))._replace(source=source)

    return reading(path, read)


def reading(path: Path, read: Callable[[], Read]) -> Read:
    """What `read` gives; its errors name the file."""
    try:
        return read()
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged: it is not JSON: {error}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is damaged: it is not UTF-8: {error}") from None
    except RecursionError:
        raise ValueError(f"{path} is damaged: its lists and objects are nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{path} cannot be loaded: {error}") from None


def from_json(file: Any) -> Contents:
    """The tokenizer that the content of a ``tokenizer.json`` describes."""
    model = field(file, "model", dict)
    _check_is_bpe(model)
    vocabulary = {
        text: token_id(number, f"the id of token {text!r}") for text, number in field(model, "vocab", dict).items()
    }
    normalizer = _normalizer(file.get("normalizer"))
    to_bytes = sum(kind_of(step) == "ByteLevel" for step in steps_of(normalizer, "normalizers"))
    _check_is_byte_level(model, file.get("pre_tokenizer"), to_bytes)
    splitting = read_pre_tokenizer(file.get("pre_tokenizer"), to_bytes)
    if normalizer not in (None, NFC) and any(
        step.get("prepend_scheme") == "first" for step in steps_of(file.get("pre_tokenizer"), "pretokenizers")
    ):  # a text that a normalizer has taken the beginning of has none
        raise ValueError("its Metaspace step has prepend_scheme 'first', which is not supported behind a normalizer")
    added = read_added_tokens(file.get("added_tokens"), vocabulary)
    merges = _merges(model, vocabulary)
    bytes_of = bytes_of_texts(vocabulary)
    tokens = _mergeable(vocabulary, bytes_of, merges, added)
    _check_distinct(tokens)
    largest = max((*vocabulary.values(), *(token.id for token in added)), default=0)
    ranked = None
    if not tokens:
        raise ValueError("its vocabulary has no token")
    if _merges_natively(model, tokens) and not leaves_bytes(normalizer, file.get("pre_tokenizer")):
        pairs = [(bytes_of[left], bytes_of[right]) for left, right in merges if left in bytes_of and right in bytes_of]
        ranked = ranks_of(tokens, pairs, whole_pieces=optional(model, "ignore_merges", bool, False), largest=largest)
    rules = TextRules(
        added=added,
        normalizer=normalizer,
        prefix_space=splitting.prefix_space,
        digits=splitting.digits,
        steps=splitting.steps,
        decoder=_decoder(file.get("decoder"), vocabulary),
        trims=_trims(file.get("post_processor")),
    )
    if ranked is None:
        # The engine has the tokens, and only Hugging Face's library merges them.
        by_id = sorted(tokens, key=tokens.__getitem__)
        ranked = Ranked({token: rank for rank, token in enumerate(by_id)}, tuple(map(tokens.__getitem__, by_id)))
        rules = rules.replace(model=model, steps=file.get("pre_tokenizer") or {}, prefix_space=False, digits=None)
    decoded = {
        number: decoded_bytes(text) for text, number in vocabulary.items() if bytes_of.get(text) not in ranked.ranks
    }
    text_of = {number: text for text, number in vocabulary.items()}
    for token in added:
        decoded.pop(token.id, None)
        if text_of.get(token.id, token.content) != token.content:  # the next id may be one that the vocabulary has
            decoded[token.id] = decoded_bytes(token.content)
    rules = rules.replace(ids=ranked.ids, decoded=decoded)
    library.check_parts(None if rules.normalizer == NFC else normalizer, rules.steps, rules.decoder, rules.model)
    specials = {token.content: token.id for token in added if token.special}
    tokens_around(file.get("post_processor"))  # which checks it
    around = {name: file[name] for name in AROUND if file.get(name) is not None}
    return Contents(splitting.pat_str, ranked.ranks, specials, rules if rules.are_needed else None, around=around)


# ---- The model


def _check_is_bpe(model: dict[str, Any]) -> None:
    kind = optional(model, "type", str, None)
    if kind is None:  # files of early versions do not say
        kind = "BPE"
        if isinstance(model.get("vocab"), list):
            kind = "Unigram"
        elif "max_input_chars_per_word" in model:
            kind = "WordPiece"
        elif isinstance(model.get("vocab"), dict) and "merges" not in model:
            kind = "WordLevel" if "unk_token" in model else "BPE"
    if kind != "BPE":
        raise ValueError(f"its model is {kind!r}, not byte-level 'BPE'")
    dropout = model.get("dropout")
    if dropout is not None and dropout != 0:
        raise ValueError(f"its model has dropout={shown(dropout)}, by which ids would be random")


def _check_is_byte_level(model: dict[str, Any], pre_tokenizer: Any, to_bytes: int) -> None:
    if to_bytes or any(kind_of(step) == "ByteLevel" for step in steps_of(pre_tokenizer, "pretokenizers")):
        return
    if model.get("byte_fallback"):
        raise ValueError(
            "its model is a BPE over characters with byte_fallback, as converted from sentencepiece, "
            "which is not byte-level BPE"
        )
    if model.get("end_of_word_suffix"):
        raise ValueError(
            f"its model is a BPE over characters with end_of_word_suffix={shown(model['end_of_word_suffix'])}, "
            "which is not byte-level BPE"
        )


def _merges(model: dict[str, Any], vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    prefix = optional(model, "continuing_subword_prefix", str, None) or ""
    merges = []
    for i, merge in enumerate(field(model, "merges", list)):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or [type(part) for part in pair] != [str, str]:
            raise ValueError(f"merge {i} is {shown(merge)}, not two tokens")
        left, right = pair
        made = left + right[len(prefix) :]
        if left not in vocabulary or right not in vocabulary or made not in vocabulary:
            missing = next(token for token in (left, right, made) if token not in vocabulary)
            raise ValueError(f"merge {i} is {shown(merge)}, but the vocabulary has no {missing!r}")
        merges.append((left, right))
    return merges


def _mergeable(
    vocabulary: dict[str, int],
    bytes_of: dict[str, bytes],
    merges: list[tuple[str, str]],
    added: tuple[AddedToken, ...],
) -> dict[bytes, int]:
    """The tokens that text can become; an added token is one only if it is a byte, or a merge makes it."""
    apart = {token.content for token in added if len(token.content) > 1}
    if apart:
        apart -= {left + right for left, right in merges}
    return {token: vocabulary[text] for text, token in bytes_of.items() if text and text not in apart}


def _check_distinct(tokens: dict[bytes, int]) -> None:
    token_of = {number: token for token, number in tokens.items()}
    for token, number in tokens.items():
        if token_of[number] != token:
            raise ValueError(
                f"tokens {token_text(token)!r} and {token_text(token_of[number])!r} both have the id {number}"
            )


# Bytes that the UTF-8 of no text has.
_NEVER_IN_TEXT = {0xC0, 0xC1, *range(0xF5, 0x100)}


def _merges_natively(model: dict[str, Any], tokens: dict[bytes, int]) -> bool:
    """Whether merging begins with the bytes of a piece and knows each of them."""
    missing = {byte for byte in range(256) if bytes([byte]) not in tokens} - _NEVER_IN_TEXT
    return not (missing or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"))


# ---- Normalizer, decoder, post-processor


def _normalizer(normalizer: Any) -> dict[str, Any] | None:
    steps = steps_of(normalizer, "normalizers")
    if not steps:
        return None
    return NFC if steps == [NFC] else normalizer


def _decoder(decoder: Any, vocabulary: dict[str, int]) -> tuple[Any, dict[int, str]] | None:
    """None for the byte-level decoder; else the decoder, and the tokens' texts that it is given."""
    kinds = [kind_of(step) for step in steps_of(decoder, "decoders")]
    if kinds == ["ByteLevel"]:
        return None
    return decoder, {number: text for text, number in vocabulary.items()}


def _trims(post_processor: Any) -> tuple[bool, ...]:
    """For each step that trims offsets: whether it takes one space at the start for a prefix."""
    return tuple(
        bool(step.get("add_prefix_space", True))
        for step in steps_of(post_processor, "processors")
        if kind_of(step) in ("ByteLevel", "RobertaProcessing") and step.get("trim_offsets", True)
    )
