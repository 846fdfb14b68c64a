"""From bytes to text, and what is done about text that is not UTF-8."""

from __future__ import annotations

from typing import Literal

InvalidUTF8 = Literal["skip", "replace", "stop"]


class TextDecoder:
    """Decodes documents, and counts those that are not UTF-8.

    Args:
        on_invalid: what becomes of such a document. ``skip`` leaves it out, ``replace`` puts U+FFFD in the place of the
            wrong bytes, ``stop`` raises a ValueError that says where the first one is.
    """

    def __init__(self, on_invalid: InvalidUTF8 = "skip"):
        self.on_invalid: InvalidUTF8 = on_invalid
        self.skipped: list[str] = []
        self.replaced: list[str] = []

    def decode(self, data: bytes, name: str, *, start: int = 0) -> str | None:
        """The text of a document; None if it is left out.

        Args:
            data: its bytes.
            name: the document, for messages.
            start: where it begins in its file, in bytes.

        Raises:
            ValueError: it is not UTF-8, and ``on_invalid`` is ``stop``.
        """
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            if self.on_invalid == "stop":
                raise ValueError(
                    f"{name} is not UTF-8 text: {error.reason} at byte {start + error.start:,}; "
                    "data.invalid_utf8 may also be skip or replace"
                ) from None
            if self.on_invalid == "skip":
                self.skipped.append(name)
                return None
            self.replaced.append(name)
            return data.decode("utf-8", "replace")


def sentence(skipped: list[str], replaced: list[str]) -> str:
    """What was done about documents that are not UTF-8; empty if there were none.

    >>> sentence(["a.bin", "b.bin"], [])
    '2 documents that are not UTF-8 text were skipped, the first is a.bin'
    """
    found = ((skipped, "were skipped"), (replaced, "were repaired with U+FFFD"))
    return "; ".join(
        f"{len(names):,} documents that are not UTF-8 text {done}, the first is {names[0]}"
        for names, done in found
        if names
    )
