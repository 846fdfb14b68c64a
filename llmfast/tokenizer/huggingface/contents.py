"""The contents of a tokenizer's files, in the form that a `Tokenizer` is built from."""

from __future__ import annotations

from typing import Any, NamedTuple

from llmfast.tokenizer.text_rules import TextRules

# Parts of a ``tokenizer.json`` that are kept as they are: what is done to the ids of a whole text.
AROUND = ("truncation", "padding", "post_processor")


class Contents(NamedTuple):
    """`rules` is None where byte-level BPE and special tokens are all there is.

    `source` is the content of the ``tokenizer.json`` that this was read from, if there was one; `around` has those of
    its parts that are about whole texts (`AROUND`), which are written again even where other parts change.
    """

    pat_str: str
    mergeable_ranks: dict[bytes, int]
    special_tokens: dict[str, int]
    rules: TextRules | None = None
    source: bytes | None = None
    around: dict[str, Any] = {}  # noqa: RUF012 - never changed

    def parts(self) -> dict[str, Any]:
        """The arguments of an `Encoding`, by their names."""
        return {name: getattr(self, name) for name in ("pat_str", "mergeable_ranks", "special_tokens", "rules")}
