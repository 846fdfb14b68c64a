"""Buffers that change during a call, and calls for which there is no memory."""

import mmap
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest

from llmfast import Encoding, _bpe
from llmfast.tokenizer import patterns

RANKS = {bytes([byte]): byte for byte in range(256)}


@pytest.mark.skipif(not getattr(sys, "_is_gil_enabled", lambda: True)(), reason="a copy is made with the GIL")
@pytest.mark.parametrize("view", [memoryview, lambda text: memoryview(text).toreadonly(), np.asarray, bytearray])
def test_a_buffer_is_copied_before_others_can_change_it(view):
    """Also one that cannot be written through its view. What is encoded is the text of one moment."""
    states = [b"hello world " * 50_000, "中文字".encode() * 66_666 + b"  "]
    states = [state[:600_000].ljust(600_000) for state in states]
    text = bytearray(states[0])
    shown = text if view is bytearray else view(text)
    encoding = Encoding("bytes", pat_str=patterns.CL100K, mergeable_ranks=RANKS, special_tokens={})
    done = threading.Event()

    def change():
        while not done.is_set():
            for state in states:
                text[:] = state

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(10):
            ids, _ = encoding.encode_documents([shown], append_eot=False, num_threads=2)
            assert ids.astype(np.uint8).tobytes() in states
    finally:
        done.set()
        thread.join()


def test_a_file_that_changes_under_its_memory_map_does_no_harm(tmp_path):
    """A map opened for reading is not copied; another process may write to its file all the same."""
    path = tmp_path / "text"
    path.write_bytes(b" " * 100_000)
    with open(path, "r+b") as file:
        shown = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        written = mmap.mmap(file.fileno(), 0)
    done = threading.Event()

    def change():
        while not done.is_set():
            for unit in (b"hello ", "中".encode(), "😀".encode(), b"\xff", b"'s ", b"12345", b" \n", b"\xe4"):
                written[:] = (unit * 100_000)[:100_000]

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for pat_str in (patterns.GPT2, patterns.CL100K, patterns.O200K, patterns.DEEPSEEK):
            encoding = Encoding("bytes", pat_str=pat_str, mergeable_ranks=RANKS, special_tokens={})
            for _ in range(10):
                ids, offsets = encoding.encode_documents([shown], append_eot=False, num_threads=2)
                assert offsets.tolist() == [0, len(ids)]
                assert 0 < _bpe.certain_boundary(shown, patterns.NATIVE[pat_str], 1) <= 100_000
    finally:
        done.set()
        thread.join()


def test_items_of_more_than_a_byte_are_no_text():
    encoding = Encoding("bytes", pat_str=patterns.CL100K, mergeable_ranks=RANKS, special_tokens={})
    with pytest.raises(TypeError, match="items of one byte"):
        encoding.encode_documents([np.arange(10)], append_eot=False)


@pytest.mark.skipif(sys.platform != "linux", reason="limits the memory of a process")
@pytest.mark.parametrize(
    "call",
    [
        "encoding.encode(text)",
        "encoding.encode_to_numpy(text)",
        "encoding.encode_batch([text], num_threads=2)",
        "encoding.encode_documents([text, text], append_eot=False, num_threads=2)",
        "encoding.decode(ids)",
        "encoding.decode_bytes(ids)",
    ],
)
def test_without_memory_there_is_a_memory_error(call):
    program = textwrap.dedent(f"""
        import resource
        import numpy as np
        from llmfast import Encoding
        from llmfast.tokenizer import patterns

        RANKS = {{bytes([byte]): byte for byte in range(256)}}
        encoding = Encoding("bytes", pat_str=patterns.CL100K, mergeable_ranks=RANKS, special_tokens={{}})
        text, ids = "1 2 " * 10_000_000, np.full(40_000_000, 97, np.uint32)
        encoding.encode_batch(["a b"] * 10, num_threads=2)
        size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + 60_000_000, resource.RLIM_INFINITY))
        try:
            {call}
        except MemoryError:
            print("MemoryError")
        print(encoding.encode("a b"))
    """)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "MemoryError\n[97, 32, 98]\n"), done.stderr
