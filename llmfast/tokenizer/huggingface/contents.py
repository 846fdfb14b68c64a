"""The contents of a tokenizer's files, in the form that a `Tokenizer` is built from."""

from __future__ import annotations

from typing import Any, NamedTuple

from llmfast.tokenizer.text_rules import TextRules


class Contents(NamedTuple):
    """`rules` is None where byte-level BPE and special tokens are all there is.

    `source` is the content of the ``tokenizer.json`` that this was read from, if there was one.
    """

    pat_str: str
    mergeable_ranks: dict[bytes, int]
    special_tokens: dict[str, int]
    rules: TextRules | None = None
    source: bytes | None = None

    def parts(self) -> dict[str, Any]:
        """The arguments of an `Encoding`, by their names."""
        return {name: getattr(self, name) for name in ("pat_str", "mergeable_ranks", "special_tokens", "rules")}
