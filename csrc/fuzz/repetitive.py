"""Compares the ids of repetitive text with tiktoken's, on published, trained and random vocabularies.

    python csrc/fuzz/repetitive.py [ROUNDS] [SEED] [TEXTS]

Tables, rulers, runs and character art make long pieces whose tokens depend on bytes far away; random text does not.
Every vocabulary is checked in a forked process that an alarm ends: a loop without end is reported with its text, as is
a difference. Rank files come from tiktoken's cache (TIKTOKEN_CACHE_DIR).
"""

from __future__ import annotations

import os
import random
import signal
import sys

import tiktoken

import llmfast.tokenizer

PUBLISHED = ("gpt2", "r50k_base", "cl100k_base", "o200k_base")
WHOLE = r"[\s\S]+"  # for tiktoken: the whole text is one piece
ALARM = 60  # seconds for one vocabulary; a check takes about one


ALPHABETS = ("-+", "=/", "-=", "=", "+-|", "*#", "._", "ab", "~^", "#@ ", "─│┼", "01", "\n ", "aé中")


def alphabet(draw: random.Random) -> str:
    return "".join(draw.choices(ALPHABETS, k=2))


def repetitive(draw: random.Random, characters: str) -> str:
    """A line or a picture of few characters, repeated, with an interruption here and there."""
    motifs = []
    for _ in range(draw.randint(1, 4)):
        motif = "".join(draw.choices(characters, k=draw.randint(1, 5)))
        motifs.append(motif * draw.choice([1, 1, 2, 3]))
    kind = draw.randrange(4)
    if kind == 0:  # a ruler: runs whose lengths grow
        text = "".join(motifs[i % len(motifs)] * (1 + i // 2) for i in range(draw.randint(5, 40)))
    elif kind == 1:  # a table's rule: columns of equal or nearly equal width
        width = draw.randint(1, 12)
        text = "".join("+" + "-" * (width + draw.randint(0, 1)) for _ in range(draw.randint(3, 60)))
    elif kind == 2:  # runs, with something between them
        text = "".join(draw.choice(motifs) * int(draw.expovariate(0.03) + 1) for _ in range(draw.randint(1, 8)))
    else:  # a picture
        text = "".join(draw.choice(motifs) for _ in range(draw.randint(20, 400)))
    at = draw.randrange(len(text) + 1)
    return draw.choice(["", "/", "-+-"]) + text[:at] + draw.choice(["", "", "//", "+", "\n", "x"]) + text[at:]


def tiktokens(ranks: dict[bytes, int], expression: str) -> tiktoken.Encoding:
    return tiktoken.Encoding("from ranks", pat_str=expression, mergeable_ranks=ranks, special_tokens={})


def trained(draw: random.Random):
    """A vocabulary of our own training on repetitive text, in both libraries, and the characters of that text."""
    pattern = draw.choice(["none", "none", "gpt2", "cl100k", "o200k"])
    characters = alphabet(draw)
    texts = [repetitive(draw, characters) for _ in range(draw.randint(1, 30))]
    merges = draw.randint(1, 400)
    while True:
        try:
            ours = llmfast.tokenizer.Tokenizer.train(texts, 256 + merges, pattern=pattern, special_tokens=())
            break
        except ValueError:  # the text has fewer merges
            merges //= 2
    return ours, tiktokens(dict(ours._mergeable_ranks), ours._pat_str), characters


def shuffled(draw: random.Random):
    """Tokens that are two others side by side, with ids in any order: no training makes such a vocabulary."""
    characters = alphabet(draw)
    few = [bytes([byte]) for byte in characters.encode()]
    tokens = {bytes([byte]) for byte in range(256)}
    for _ in range(draw.randint(1, 60)):
        token = draw.choice(few) + draw.choice(few)
        if len(token) < 60 and token not in tokens:
            tokens.add(token)
            few.append(token)
    ids = draw.sample(range(len(tokens)), len(tokens))
    ranks = dict(zip(sorted(tokens), ids, strict=True))
    ours = llmfast.tokenizer.Encoding("shuffled", pat_str=WHOLE, mergeable_ranks=ranks, special_tokens={})
    return ours, tiktokens(ranks, WHOLE), characters


def published(name: str):
    return lambda draw: (llmfast.tokenizer.get_encoding(name), tiktoken.get_encoding(name), None)


KINDS = {"trained": trained, "shuffled": shuffled} | {name: published(name) for name in PUBLISHED}


def check(ours, theirs, characters: str | None, draw: random.Random, count: int) -> None:
    for _ in range(count):
        text = repetitive(draw, characters or alphabet(draw))
        print(repr(text), file=sys.stderr, flush=True)  # the last line, should the alarm go off
        ids = theirs.encode_ordinary(text)
        assert ours.encode_ordinary(text) == ids, text
        assert ours.count(text) == len(ids), text


def failure(kind: str, seed: int, texts: int, alarm: int = ALARM) -> str | None:
    """None if a vocabulary of this kind encodes all texts as tiktoken does; what is wrong otherwise."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(write, 2)
        signal.alarm(alarm)
        try:
            draw = random.Random(seed)
            check(*KINDS[kind](draw), draw, texts)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as lines:
        last = b""
        for line in lines:
            last = line
    status = os.waitpid(child, 0)[1]
    if status == 0:
        return None
    what = "does not end" if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM else "fails"
    return f"{kind} with seed {seed} {what}: {last.decode()}"


def main(rounds: int = 20, seed: int = 0, texts: int = 500) -> None:
    for number in range(seed, seed + rounds):
        for kind in KINDS:
            if what := failure(kind, number, texts):
                sys.exit(what)
    print(f"{rounds * len(KINDS) * texts:,} repetitive texts have tiktoken's ids")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
