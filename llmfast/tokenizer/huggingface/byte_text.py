"""Tokens as text: in Hugging Face's files of byte-level BPE, each byte is a printable character."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress

from llmfast.tokenizer.training import GPT2_BYTE_ORDER


def _byte_characters() -> list[str]:
    """The character that stands for each byte: itself where it prints, else the next one from U+0100 on."""
    characters = [""] * 256
    for i, byte in enumerate(GPT2_BYTE_ORDER):
        characters[byte] = chr(byte) if i < 188 else chr(256 + i - 188)
    return characters


class _ByteOfCharacter(dict[int, int | str]):
    def __missing__(self, character: int) -> int:
        return 0xFFFF  # not a byte: encoding it as Latin-1 fails


_CHARACTERS = dict(enumerate(_byte_characters()))
_SEPARATOR, _SEPARATED = "\0", 0xFFFE  # neither is a byte's character, nor a byte
_BYTES = _ByteOfCharacter({0: _SEPARATED} | {ord(character): byte for byte, character in _CHARACTERS.items()})


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


def bytes_of_texts(texts: Collection[str]) -> dict[str, bytes]:
    """`token_bytes` of those texts that have them, all at once, which takes a fraction of the time.

    >>> bytes_of_texts(["Ġthe", "日本"])
    {'Ġthe': b' the'}
    """
    joined = _SEPARATOR.join(texts).translate(_BYTES).split(chr(_SEPARATED))
    if len(joined) != len(texts):  # a text has the separator, too
        joined = [text.translate(_BYTES) for text in texts]
    found = {}
    for text, translated in zip(texts, joined, strict=True):
        with suppress(UnicodeEncodeError):
            found[text] = translated.encode("latin-1")
    return found


def decoded_bytes(text: str) -> bytes:
    """The bytes that Hugging Face's byte-level decoder makes of a token: its UTF-8 if it is not byte-level text.

    >>> decoded_bytes("Ġthe"), decoded_bytes("<|im start|>")
    (b' the', b'<|im start|>')
    """
    try:
        return token_bytes(text)
    except ValueError:
        return text.encode("utf-8", "replace")


def decodes_to_itself(text: str) -> bool:
    """Whether Hugging Face's decoder leaves an added token as it is, and does not take it for byte characters.

    >>> decodes_to_itself("<|endoftext|>"), decodes_to_itself("Ġthe")
    (True, False)
    """
    return decoded_bytes(text) == text.encode("utf-8", "replace")
