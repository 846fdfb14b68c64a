"""The splitting patterns: which regular expressions the engine knows, and the `regex` library for the others."""

from __future__ import annotations

import functools
from collections.abc import Set

from llmfast import _bpe

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"

GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
GPT2_AS_PUBLISHED = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)
LLAMA3 = (
    CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
O200K = "|".join(
    [
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+" + CONTRACTIONS + "?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*" + CONTRACTIONS + "?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)

# Regular expression -> the engine's name for it.
NATIVE = {
    GPT2: "gpt2",
    GPT2_AS_PUBLISHED: "gpt2",
    GPT2_AS_PUBLISHED.replace(r" ?\p{L}+", r" ?[\p{L}]+").replace(r" ?\p{N}+", r" ?[\p{N}]+"): "gpt2",
    CL100K: "cl100k",
    LLAMA3: "llama3",
    QWEN2: "qwen2",
    O200K: "o200k",
}


@functools.lru_cache(maxsize=64)
def compiled(pat_str: str):
    import regex

    return regex.compile(pat_str)


def engine(ranks: dict[bytes, int], specials: dict[str, int], pat_str: str) -> _bpe.Core | RegexCore:
    """The engine for a pattern."""
    if pat_str in NATIVE:
        return _bpe.Core(ranks, specials, NATIVE[pat_str])
    return RegexCore(ranks, specials, pat_str)


def last_certain_boundary(pat_str: str, text: str) -> int:
    """The last place > 0 where `text`, of which more may follow, can be cut without changing its pieces, or 0."""
    if pat_str not in NATIVE:
        return 0
    for at in range(len(text) - 1, 0, -1):
        before = text[at - 1]
        if text[at] in " \n" and before.isascii() and before.isalpha():
            return at
    return 0


class RegexCore:
    """The engine's face for a pattern that it does not know: the `regex` library splits, the engine merges."""

    def __init__(self, ranks: dict[bytes, int], specials: dict[str, int], pat_str: str):
        self._core = _bpe.Core(ranks, specials, "none")
        self._pattern = compiled(pat_str)
        self._specials = sorted(specials.items(), key=lambda item: -len(item[0]))
        self.find = self._core.find
        self.find_special = self._core.find_special
        self.token_bytes = self._core.token_bytes
        self.decode = self._core.decode
        self.encode_piece = self._core.encode_piece

    def _pieces(self, text: str) -> list[list[int]]:
        pieces = (match.group().encode("utf-8") for match in self._pattern.finditer(text))
        return [self.encode_piece(piece) for piece in pieces if piece]

    def encode_ordinary(self, text: str) -> list[int]:
        return [token for piece in self._pieces(text) for token in piece]

    def encode(self, text: str, allowed: Set[str]) -> tuple[list[int], int]:
        specials = {token: number for token, number in self._specials if token in allowed}
        ids: list[int] = []
        last = 0
        while True:
            found = self.find_special(text, allowed) if specials else None
            before, after = (text, "") if found is None else text.split(found, 1)
            pieces = self._pieces(before)
            ids.extend(token for piece in pieces for token in piece)
            if found is None:
                return ids, len(pieces[-1]) if pieces else last
            ids.append(specials[found])
            last = 0
            text = after

    def encode_to_numpy(self, text: str, allowed: Set[str]):
        import numpy as np

        return np.array(self.encode(text, allowed)[0], dtype=np.uint32)

    def encode_documents(self, documents, separator: int | None, threads: int, narrow: bool):
        import numpy as np

        ends = [] if separator is None else [separator]
        parts = [
            self.encode_ordinary(one.decode("utf-8", "replace") if isinstance(one, bytes) else one) + ends
            for one in documents
        ]
        offsets = np.zeros(len(parts) + 1, dtype=np.int64)
        np.cumsum([len(part) for part in parts], out=offsets[1:])
        ids = np.fromiter(
            (token for part in parts for token in part), dtype=np.uint16 if narrow else np.uint32
        )
        return ids, offsets
