"""Training a byte-pair vocabulary: llmfast beside the peers that are installed, on files of yours.

    python -m benchmarks tokenizer_train corpus.txt --vocab-size 32768 --threads 1 2 --rounds 3

Every run is a process of its own, and the peers take turns, so that a slow minute of the machine hits all of them.
Time is from the file's name to the trained vocabulary; memory is the peak of the process, which has to import its
library. All split text as GPT-2 does, or by their default where they have no choice.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

END = "<|endoftext|>"
GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def train_llmfast(path: str, vocab_size: int, threads: int) -> int:
    from llmfast.tokenizer import Tokenizer

    return Tokenizer.train(path, vocab_size, pattern="gpt2", num_threads=threads).n_vocab


def train_gigatoken(path: str, vocab_size: int, threads: int) -> int:
    import gigatoken

    vocabulary, _ = gigatoken.train_bpe(Path(path), vocab_size, [END])
    return len(vocabulary)


def train_ffbpe(path: str, vocab_size: int, threads: int) -> int:
    import ffbpe

    return len(
        ffbpe.train_bpe(Path(path).read_text("utf-8"), vocab_size=vocab_size, special_tokens=[END]).vocab
    )


def train_rustbpe(path: str, vocab_size: int, threads: int) -> int:
    import rustbpe

    tokenizer = rustbpe.Tokenizer()
    with open(path, encoding="utf-8", newline="") as file:
        documents = iter(lambda: file.read(1 << 20), "")
        tokenizer.train_from_iterator(documents, vocab_size, pattern=GPT2)
    return len(tokenizer.get_mergeable_ranks())


def train_tokenizers(path: str, vocab_size: int, threads: int) -> int:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=alphabet,
        min_frequency=2,
        show_progress=False,
    )
    tokenizer.train([path], trainer)
    return tokenizer.get_vocab_size()


PEERS: dict[str, Callable[[str, int, int], int]] = {
    "llmfast": train_llmfast,
    "gigatoken": train_gigatoken,
    "ffbpe": train_ffbpe,
    "rustbpe": train_rustbpe,
    "tokenizers": train_tokenizers,
}


def run_here(peer: str, path: str, vocab_size: int, threads: int) -> None:
    """What a child process does: trains once and prints the measurement."""
    __import__(peer)
    start, cpu_start = time.perf_counter(), time.process_time()
    tokens = PEERS[peer](path, vocab_size, threads)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_mb": peak, "tokens": tokens}))


def run_apart(peer: str, path: str, vocab_size: int, threads: int) -> dict:
    """Trains in a process that may use `threads` cores."""
    cores = sorted(os.sched_getaffinity(0))[:threads]
    command = [sys.executable, __file__, path, "--vocab-size", str(vocab_size), "--threads", str(threads)]
    done = subprocess.run(
        [*command, "--child", peer],
        env={**os.environ, "RAYON_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "true"},
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{peer} failed: {done.stderr.strip().splitlines()[-1:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("texts", nargs="+", help="UTF-8 files")
    parser.add_argument("--vocab-size", type=int, default=32768)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--out", type=Path, help="write the measurements there as JSON")
    parser.add_argument("--child", choices=list(PEERS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        run_here(arguments.child, arguments.texts[0], arguments.vocab_size, arguments.threads[0])
        return

    peers = [peer for peer in arguments.peers if importlib.util.find_spec(peer)]
    results = []
    for text in arguments.texts:
        megabytes = os.path.getsize(text) / 1e6
        for threads in arguments.threads:
            runs = {peer: [] for peer in peers}
            for _ in range(arguments.rounds):
                for peer in peers:
                    runs[peer].append(run_apart(peer, text, arguments.vocab_size, threads))
            print(
                f"\n{Path(text).name}, {megabytes:.1f} MB -> {arguments.vocab_size} tokens, {threads} thread(s)"
            )
            for peer in peers:
                seconds, cpu = (
                    statistics.median(run[key] for run in runs[peer]) for key in ("seconds", "cpu_seconds")
                )
                peak = max(run["peak_mb"] for run in runs[peer])
                print(f"  {peer:<11} {seconds:7.3f} s  {cpu:7.3f} s of CPU  {peak:6.0f} MB peak", flush=True)
                row = {"text": Path(text).name, "megabytes": megabytes, "threads": threads, "peer": peer}
                results.append(
                    {**row, "seconds": seconds, "cpu_seconds": cpu, "peak_mb": peak, "runs": runs[peer]}
                )
    if arguments.out:
        machine = {
            "machine": platform.machine(),
            "system": platform.platform(),
            "python": platform.python_version(),
        }
        arguments.out.write_text(
            json.dumps({**machine, "vocab_size": arguments.vocab_size, "results": results}, indent=1)
        )


if __name__ == "__main__":
    main()
