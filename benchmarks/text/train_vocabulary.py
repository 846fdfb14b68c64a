"""Trains a vocabulary once and prints the measurement as JSON.

    python -m benchmarks.text.train_vocabulary TRAINER FILE SIZE THREADS

A program of its own, which imports nothing else that takes part: its peak of memory is that of one trainer.
"""

import json
import re
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

END = "<|endoftext|>"
GPT2 = "gpt2"  # by which expression text is split, in the words of Tokenizer.train
GPT2_EXPRESSION = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
Tokens = Iterable[bytes]


def llmfast(path: str, size: int, threads: int) -> Callable[[], Tokens]:
    from llmfast.tokenizer import Tokenizer

    trained = Tokenizer.train(path, size, pattern=GPT2, num_threads=threads)
    return trained.token_byte_values


def gigatoken(path: str, size: int, threads: int) -> Callable[[], Tokens]:
    import gigatoken

    vocabulary, _ = gigatoken.train_bpe(Path(path), size, [END])
    return vocabulary.values


def ffbpe(path: str, size: int, threads: int) -> Callable[[], Tokens]:
    import ffbpe

    with open(path, encoding="utf-8", newline="") as file:
        trained = ffbpe.train_bpe(file.read(), vocab_size=size, special_tokens=[END])
    return trained.vocab.keys


def rustbpe(path: str, size: int, threads: int) -> Callable[[], Tokens]:
    import rustbpe

    trained = rustbpe.Tokenizer()
    with open(path, encoding="utf-8", newline="") as file:
        documents = iter(lambda: file.read(1 << 20), "")
        # It knows no special tokens.
        trained.train_from_iterator(documents, size - 1, pattern=GPT2_EXPRESSION)
    return lambda: [bytes(token) for token, _ in trained.get_mergeable_ranks()]


def tokenizers(path: str, size: int, threads: int) -> Callable[[], Tokens]:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=2,
        show_progress=False,
    )
    trained.train([path], trainer)

    def tokens() -> Tokens:
        from llmfast.tokenizer.huggingface.byte_text import token_bytes

        return [token_bytes(token) for token in trained.get_vocab()]

    return tokens


PEERS = {make.__name__: make for make in (llmfast, gigatoken, ffbpe, rustbpe, tokenizers)}


def peak_bytes() -> int | None:
    """The most memory that this process held, where the system says. The kernel's ru_maxrss would begin with that of
    the program that started it."""
    status = Path("/proc/self/status")
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status.read_text(), re.MULTILINE) if status.exists() else None
    return int(found[1]) * 1024 if found else None


def main(name: str, path: str, size: int, threads: int) -> None:
    __import__("llmfast.tokenizer" if name == "llmfast" else name)
    start = time.perf_counter()
    tokens = PEERS[name](path, size, threads)
    seconds = time.perf_counter() - start
    peak = peak_bytes()
    learnt = [token.hex() for token in tokens()]
    print(json.dumps({"seconds": seconds, "peak_bytes": peak, "tokens": learnt}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
