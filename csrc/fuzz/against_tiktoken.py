"""Compares the ids of random strings with tiktoken's, on its four vocabularies.

    python csrc/fuzz/against_tiktoken.py [STRINGS] [SEED]

Strings are drawn from few characters of many kinds, so that pieces of all kinds stand side by side; every code point
comes up in each position of a piece. Rank files come from tiktoken's cache (TIKTOKEN_CACHE_DIR).
"""

from __future__ import annotations

import random
import sys
import unicodedata

import tiktoken

import llmfast.tokenizer

VOCABULARIES = ("gpt2", "r50k_base", "cl100k_base", "o200k_base")
CHOSEN = [
    *"aZeEsStTmMdDlLvVrRiI0129 .,!?'/-_()[]{}<>|\\\"#@$%^&*+=~`:;",
    *"\n\r\t\v\f\x00\x1c\x85\xa0\u2028\u3000",
    *"éßſİıǅʰªº½²٣Ⅷаяあア漢ー・가ा́ั€™“”–…\u200d\ufe0f🙂👩🏽",
    "'s", "'LL", "'ſ", " the", "ing", "  ", "\n\n", "\r\n", "    ", "<|endoftext|>", "<|fim_prefix|>", "1234",
]  # fmt: skip
CODE_POINTS = [chr(point) for point in range(0x110000) if not 0xD800 <= point < 0xE000]
ASSIGNED = [character for character in CODE_POINTS if unicodedata.category(character) not in ("Cn", "Co")]


def strings(count: int, draw: random.Random):
    """Every code point between others first, then strings of random characters."""
    for character in CODE_POINTS[:count]:
        around = draw.choices(CHOSEN, k=4)
        yield "".join([around[0], character, around[1], character * draw.randint(1, 3), around[2], around[3]])
    for _ in range(count - len(CODE_POINTS)):
        few = draw.choices(CHOSEN, k=draw.randint(1, 6)) + draw.choices(ASSIGNED, k=draw.randint(0, 3))
        yield "".join(draw.choices(few, k=draw.randint(1, 40)))


def main(count: int = 2_000_000, seed: int = 0) -> None:
    pairs = [(llmfast.tokenizer.get_encoding(name), tiktoken.get_encoding(name)) for name in VOCABULARIES]
    characters = 0
    for text in strings(count, random.Random(seed)):
        characters += len(text)
        for ours, theirs in pairs:
            if ours.encode_ordinary(text) != theirs.encode_ordinary(text):
                sys.exit(f"{ours.name} differs from tiktoken on {text!r}")
        ours, theirs = pairs[characters % len(pairs)]
        if ours.encode(text, allowed_special="all") != theirs.encode(text, allowed_special="all"):
            sys.exit(f"{ours.name} with special tokens differs from tiktoken on {text!r}")
    print(f"{count:,} strings of {characters:,} characters have tiktoken's ids in {len(pairs)} vocabularies")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
