"""Parts of a file that are left to Hugging Face's own library, because they are rare or the engine cannot express them.

The results are exact, because they are computed by that library, and as slow.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from llmfast.tokenizer.huggingface.added_tokens import AddedToken
from llmfast.tokenizer.huggingface.fields import kind_of
from llmfast.tokenizer.huggingface.pre_tokenizers import steps_of

if TYPE_CHECKING:
    import tokenizers

# The byte-level characters of a text, each of which is one token of this model.
_CHARACTERS = {"type": "WordLevel", "vocab": {"": 0}, "unk_token": ""}
_EACH_CHARACTER = {"type": "Split", "pattern": {"Regex": r"(?m:.)"}, "behavior": "Isolated", "invert": False}


def tokenizer_of(**parts: Any) -> tokenizers.Tokenizer:
    """A tokenizer of Hugging Face's library with some parts of a file; ValueError where it refuses them."""
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise ValueError(
            "it has parts that Hugging Face's tokenizers library must apply, which is not installed: "
            "pip install tokenizers"
        ) from None
    usual = dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder"))
    file = {"version": "1.0", "added_tokens": [], "model": _CHARACTERS, **usual, **parts}
    try:
        return Tokenizer.from_str(json.dumps(file))
    except Exception as error:  # their library raises nothing more special
        raise ValueError(f"Hugging Face's library refuses it: {error}") from None
    except BaseException as error:  # as an error in Rust is: Python's own come through
        if type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"Hugging Face's library fails on it: {error}") from None


def pieces_of(steps: dict[str, Any]) -> Callable[[str, bool], list[str]]:
    """A function that cuts a stretch of text into pieces, in byte-level characters, as a pre-tokenizer does.

    Its second argument says whether the text begins with this stretch, to which alone Metaspace may prepend a space.
    """
    pre_tokenizer = tokenizer_of(pre_tokenizer=steps or None).pre_tokenizer
    if pre_tokenizer is None:  # the normalizer has turned the text into bytes
        return lambda text, is_first: [text]
    flat = steps_of(steps, "pretokenizers")
    behind = [step | {"prepend_scheme": "never"} if step.get("prepend_scheme") == "first" else step for step in flat]
    others = pre_tokenizer
    if behind != flat:
        others = tokenizer_of(pre_tokenizer={"type": "Sequence", "pretokenizers": behind}).pre_tokenizer
        assert others is not None

    def pieces(text: str, is_first: bool) -> list[str]:
        return [piece for piece, _ in (pre_tokenizer if is_first else others).pre_tokenize_str(text)]

    return pieces


def piece_ids_of(model: dict[str, Any]) -> Callable[[str], list[int]]:
    """A function that gives the ids of a piece in byte-level characters, as a model does."""
    theirs = tokenizer_of(model=model).model
    return lambda piece: [token.id for token in theirs.tokenize(piece)]


def piece_spans_of(model: dict[str, Any]) -> Callable[[str], list[tuple[int, int]]]:
    """A function that gives which characters of a piece each of its tokens has."""
    theirs = tokenizer_of(model=model).model

    def spans(piece: str) -> list[tuple[int, int]]:
        place_of = [place for place, character in enumerate(piece) for _ in character.encode()]  # they count bytes
        offsets = [token.offsets for token in theirs.tokenize(piece)]
        return [(place_of[start], place_of[stop - 1] + 1) for start, stop in offsets]

    return spans


def decoder_of(decoder: Any) -> Callable[[list[str]], str]:
    """A function that joins the texts of tokens as a decoder does."""
    return tokenizer_of(decoder=decoder).decoder.decode if decoder else " ".join


_Form: TypeAlias = Literal["NFC", "NFD", "NFKC", "NFKD"]
_FORMS: tuple[_Form, ...] = ("NFC", "NFD", "NFKC", "NFKD")


def normalizer_of(normalizer: dict[str, Any]) -> Callable[[str], str]:
    """A function that normalizes text."""
    forms = [kind_of(step) for step in steps_of(normalizer, "normalizers")]
    if forms == ["NFC"]:  # of which Python's tables and theirs say the same
        return lambda text: unicodedata.normalize("NFC", text)
    theirs = tokenizer_of(normalizer=normalizer).normalizer.normalize_str
    known: list[_Form] = [form for form in _FORMS if form in forms]
    if len(known) < len(set(forms)):
        return theirs

    def normalized(text: str) -> str:
        return text if all(unicodedata.is_normalized(form, text) for form in known) else theirs(text)

    return normalized


def character_offsets_of(
    added: Iterable[AddedToken], normalizer: Any, pre_tokenizer: Any
) -> Callable[[str], list[tuple[bool, tuple[int, int]]]]:
    """A function that maps what a text is turned into back to its characters.

    For each added token in it, and each byte between them, in order, it returns whether it is an added token, its first
    character, and the one behind its last.
    """
    steps = [*steps_of(pre_tokenizer or None, "pretokenizers"), _EACH_CHARACTER]
    aligner = tokenizer_of(
        added_tokens=[token.to_json() for token in added],
        normalizer=normalizer,
        pre_tokenizer={"type": "Sequence", "pretokenizers": steps},
    )

    def offsets(text: str) -> list[tuple[bool, tuple[int, int]]]:
        encoding = aligner.encode(text)
        return [(number != 0, place) for number, place in zip(encoding.ids, encoding.offsets, strict=True)]

    return offsets


def check_parts(normalizer: Any, steps: Any, decoder: tuple[Any, Any] | None, model: Any) -> None:
    """ValueError for parts that Hugging Face's library refuses, or that need it where it is not installed."""
    if normalizer or steps is not None or model or (decoder and decoder[0]):
        parts = {"normalizer": normalizer, "pre_tokenizer": steps or None, "decoder": decoder and decoder[0]}
        tokenizer_of(**parts, **({"model": model} if model else {}))
