"""Ctrl-C ends a long call at once, and Python exits while threads are inside one: each in a process of its own."""

import subprocess
import sys
import textwrap

import pytest

CALLS = """
    import os, signal, sys, threading, time
    from llmfast import Encoding, _bpe
    from llmfast.tokenizer import Tokenizer, patterns

    RANKS = {bytes([byte]): byte for byte in range(256)} | {b"th": 256, b"he": 257, b"the": 258}

    def encoding(pat_str):
        return Encoding("stopped", pat_str=pat_str, mergeable_ranks=RANKS, special_tokens={"<|endoftext|>": 259})

    native, whole, deepseek = map(encoding, (patterns.CL100K, patterns.WHOLE, patterns.DEEPSEEK))
    users = encoding(patterns.CL100K + "|x")
    words = "".join(f"word{i} thing{i * 7919} \\n" for i in range(10_000))

    # A call for `n` times as much.
    CALLS = {
        "encode": lambda n: lambda text=words * n: native.encode(text),
        "encode one piece": lambda n: lambda text="the" * 200_000 * n: native.encode(text),
        "encode without a pattern": lambda n: lambda text=words * n: whole.encode(text),
        "encode with DeepSeek's pattern": lambda n: lambda text=words * n: deepseek.encode(text),
        "encode with a user's pattern": lambda n: lambda text=words * n: users.encode(text),
        "encode special tokens": lambda n: lambda text="<|endoftext|> a" * 10_000 * n: native.encode(
            text, allowed_special="all"
        ),
        "look for special tokens": lambda n: lambda text="<|endoftex" * 1_000_000 * n: native.encode_batch(
            [text, "<|endoftext|>"], disallowed_special=()
        ),
        "encode_to_numpy": lambda n: lambda text=words * n: native.encode_to_numpy(text),
        "encode_batch": lambda n: lambda texts=[words] * n: native.encode_batch(texts, num_threads=2),
        "encode_documents": lambda n: lambda texts=[words] * n: native.encode_documents(texts, num_threads=2),
        "encode_documents of one": lambda n: lambda texts=["the" * 200_000 * n]: native.encode_documents(
            texts, num_threads=2
        ),
        "count": lambda n: lambda text=words * n: native.count(text),
        "decode": lambda n: lambda ids=[97, 256, 258] * 100_000 * n: native.decode(ids),
        "decode_bytes": lambda n: lambda ids=[97, 256, 258] * 100_000 * n: native.decode_bytes(ids),
        "split": lambda n: lambda text=words * n: _bpe.split(text, "cl100k"),
        "split one piece": lambda n: lambda text="a" * 10_000_000 * n: _bpe.split(text, "o200k"),
        "certain_boundary": lambda n: lambda text=b"a" * 20_000_000 * n: _bpe.certain_boundary(text, "gpt2", 1),
        "train": lambda n: lambda text=words * n: Tokenizer.train(
            [text[: len(words)] + str(i) for i in range(n)], vocab_size=1000, num_threads=2, allow_smaller=True
        ),
        "train without a pattern": lambda n: lambda text=words[:50_000] * n: Tokenizer.train(
            [text], vocab_size=300, num_threads=2, pattern="none", allow_smaller=True
        ),
    }
"""

NAMES = [line.split('"')[1] for line in CALLS.splitlines() if line.startswith('        "')]

INTERRUPTED = """
    def seconds(call):
        start = time.monotonic()
        call()
        return time.monotonic() - start

    def interrupted_after(call, delay):
        \"\"\"How long a call goes on after SIGINT; None where it ends before.\"\"\"
        sent = []

        def send():
            time.sleep(delay)
            sent.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGINT)

        sender = threading.Thread(target=send)
        try:
            sender.start()
            call()
            sender.join()
            return None
        except KeyboardInterrupt:
            return time.monotonic() - sent[0]

    n = 1
    while seconds(call := CALLS[sys.argv[1]](n)) < 0.8:
        n *= 2
    usual = seconds(call)
    latencies = []
    for attempt in range(5):
        try:
            latency = interrupted_after(call, usual / 5)
        except KeyboardInterrupt:  # behind the call
            continue
        latencies += [latency] if latency is not None else []
        if latencies and min(latencies) < usual / 4:
            break
    print(min(latencies, default=usual), usual)
"""

DAEMONS = """
    small = words[:100_000]
    ids = native.encode(small)

    def progress(stage, done, total):
        sum(range(1000))

    WORK = {
        "encode": lambda: native.encode(small),
        "encode_to_numpy": lambda: native.encode_to_numpy(small),
        "encode_batch": lambda: native.encode_batch([small] * 4, num_threads=2),
        "encode_documents": lambda: native.encode_documents([small] * 4, num_threads=2),
        "count": lambda: native.count(small),
        "decode": lambda: native.decode(ids),
        "disallowed": lambda: native.encode(small, disallowed_special={"<|no|>"}),
        "construct": lambda: encoding(patterns.CL100K),
        "train": lambda: Tokenizer.train([small], vocab_size=260, num_threads=2),
        "progress": lambda: Tokenizer.train([small] * 4, vocab_size=300, num_threads=2, progress=progress),
    }

    def work():
        while True:
            WORK[sys.argv[1]]()

    for _ in range(3):
        threading.Thread(target=work, daemon=True).start()
    time.sleep(0.2)
"""


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    code = textwrap.dedent(CALLS) + textwrap.dedent(program)
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=250)


@pytest.mark.skipif(sys.platform == "win32", reason="a process cannot send itself a Ctrl-C there")
@pytest.mark.parametrize("name", NAMES)
def test_ctrl_c_ends_a_call(name):
    """It took until the call was done, or seconds; now it takes 50 ms or so, here at most a part of the call."""
    done = run(INTERRUPTED, name)
    assert done.returncode == 0, done.stderr
    latency, whole = map(float, done.stdout.split())
    assert latency < 0.4 * whole, (latency, whole)


DAEMON_CALLS = [line.split('"')[1] for line in DAEMONS.splitlines() if line.startswith('        "')]


@pytest.mark.parametrize("name", DAEMON_CALLS)
def test_python_exits_while_threads_are_inside_a_call(name):
    """Python unwinds the stack of a thread that asks for the GIL then, which aborted the process."""
    for _ in range(2):
        done = run(DAEMONS, name)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
