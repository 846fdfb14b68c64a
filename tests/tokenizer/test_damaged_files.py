"""Damaged files load, or are refused in a ValueError that names them: no other error, no hang, no unbounded memory."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from published_files import published_like

from llmfast.tokenizer import Tokenizer, patterns
from llmfast.tokenizer.formats.rank_files import format_ranks

RANKS = {bytes([byte]): byte for byte in range(256)} | {b"he": 256}
TEKKEN = {
    "config": {"pattern": patterns.LLAMA3, "default_vocab_size": 258, "default_num_special_tokens": 1},
    "vocab": [
        {"rank": rank, "token_bytes": line.split()[0]}
        for rank, line in enumerate(format_ranks(RANKS).decode().splitlines())
    ],
    "special_tokens": [{"rank": 0, "token_str": "<s>"}],
}
VALUES = [
    None, True, 0, -1, 2**24, 2**70, 1.5, float("nan"), float("inf"), "", "a", "\ud800", [], {}, [[]], [None], {"a": 1},
    {"type": "Sequence"}, {"type": "Split", "pattern": {"Regex": "(" * 2000}, "behavior": "Isolated", "invert": False},
]  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of each format."""
    root = tmp_path_factory.mktemp("whole")
    tokenizer = Tokenizer.train(["low lower lowest new newer newest"] * 5, 265)
    tokenizer.save(root / "own")
    tokenizer.save_vocab_and_merges(root / "vocab")
    (root / "vocab" / "added_tokens.json").write_text('{"<b>": 300}')
    (root / "vocab" / "special_tokens_map.json").write_text('{"eos_token": {"content": "<|endoftext|>"}}')
    tokenizer.save_ranks(root / "ranks" / "cl100k_base.tiktoken")
    for family in ("roberta", "clip", "stripped"):
        (root / family).mkdir()
        (root / family / "tokenizer.json").write_text(published_like(family), encoding="utf-8")
    (root / "tekken").mkdir()
    (root / "tekken" / "tekken.json").write_text(json.dumps(TEKKEN))
    return root


FILES = [
    "own/tokenizer.json", "own/tokenizer_config.json", "ranks/cl100k_base.tiktoken", "tekken/tekken.json",
    "vocab/vocab.json", "vocab/merges.txt", "vocab/added_tokens.json", "vocab/special_tokens_map.json",
    "vocab/tokenizer_config.json", "roberta/tokenizer.json", "clip/tokenizer.json", "stripped/tokenizer.json",
]  # fmt: skip
JSON = [file for file in FILES if file.endswith(".json")]


def attempt(folder: Path) -> tuple[Tokenizer | None, str]:
    """The tokenizer, or the message by which the folder is refused; other errors come through."""
    try:
        return Tokenizer.load(folder), ""
    except (ValueError, FileNotFoundError) as error:
        return None, str(error)


@pytest.fixture
def damaged(folders, tmp_path):
    """A function that loads a copy of a file's folder in which the file has other bytes."""
    if hasattr(signal, "SIGALRM"):
        signal.alarm(100)

    def load(file: str, content: bytes):
        folder = tmp_path / "copy"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(folders / os.path.dirname(file), folder)
        path = folder / os.path.basename(file)
        path.write_bytes(content)
        tokenizer, message = attempt(folder)
        if tokenizer is None:
            assert path.name in message or str(folder) in message, message
            assert len(message) < 1000
        else:
            tokenizer.decode(tokenizer.encode("hello 12 é", disallowed_special=()))
            tokenizer.save(tmp_path / "saved")

    yield load
    if hasattr(signal, "SIGALRM"):
        signal.alarm(0)


def changed(content: bytes, draw: random.Random) -> bytes:
    """Some bytes changed, left out, put in or written twice."""
    for _ in range(draw.randint(1, 3)):
        start = draw.randrange(len(content) + 1)
        stop = min(len(content), start + draw.randint(1, 100))
        content = draw.choice([
            content[:start],
            content[:start] + draw.randbytes(3) + content[stop:],
            content[:stop] + content[start:],
            content[:start] + b"\0" + content[start:],
            content[:start] + b"\r" + content[start:],
            content.replace(b" ", b"  ", 2),
            content.replace(b"1", b"99999999999999999999", 1),
        ])  # fmt: skip
    return content


@pytest.mark.parametrize("file", FILES)
def test_other_bytes(file, folders, damaged):
    whole = (folders / file).read_bytes()
    text = whole.decode()
    damaged(file, whole)
    contents = [b"", b"\xff", whole * 2, b"\xef\xbb\xbf" + whole, whole.replace(b"\n", b"\r\n"), text.encode("utf-16")]
    draw = random.Random(file)
    for content in [*contents, *(changed(whole, draw) for _ in range(15))]:
        damaged(file, content)


@pytest.mark.parametrize("file", JSON)
def test_other_values(file, folders, damaged):
    """Of the wrong type, nested too deeply, huge, or no number, in the place of each part and of parts of these."""
    whole = json.loads((folders / file).read_text(encoding="utf-8"))
    draw = random.Random(file)
    places = [(name,) for name in whole]
    for name, part in whole.items():
        inner = list(part) if isinstance(part, dict) else range(len(part)) if isinstance(part, list) else []
        places += [(name, one) for one in draw.sample(list(inner), min(4, len(inner)))]
    for *above, name in draw.sample(places, min(12, len(places))):
        for value in draw.sample(VALUES, 5):
            copy = json.loads(json.dumps(whole))
            parent = copy[above[0]] if above else copy
            parent[name] = value
            damaged(file, json.dumps(copy).encode())
    text = json.dumps(whole)
    damaged(file, text.replace(":", ":" + "[" * 100_000, 1).encode())
    damaged(file, text.replace("{", '{"model": 1, "vocab": {}, ', 1).encode())
    damaged(file, b"[" * 100_000 + b"]" * 100_000)


@pytest.mark.parametrize("file", FILES)
def test_a_folder_in_the_place_of_a_file(file, folders, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(folders / os.path.dirname(file), folder)
    (folder / os.path.basename(file)).unlink()
    (folder / os.path.basename(file)).mkdir()
    tokenizer, message = attempt(folder)
    assert tokenizer is not None or str(folder) in message


def test_an_error_inside_of_hugging_faces_library(folders, damaged):
    """Trap: an error in Rust is raised as what is no Exception."""
    file = json.loads((folders / "clip" / "tokenizer.json").read_text(encoding="utf-8"))
    file["model"]["continuing_subword_prefix"] = "##"
    damaged("clip/tokenizer.json", json.dumps(file).encode())


@pytest.mark.skipif(sys.platform != "linux", reason="reads how much memory a process took at most")
def test_large_numbers_take_no_memory(folders, tmp_path):
    """Trap: tables as long as the largest id."""
    file = json.loads((folders / "own" / "tokenizer.json").read_text(encoding="utf-8"))
    last = max(file["model"]["vocab"], key=file["model"]["vocab"].__getitem__)
    file["model"]["vocab"][last] = 2**24 - 1
    (tmp_path / "tokenizer.json").write_text(json.dumps(file))
    program = textwrap.dedent("""
        import resource, sys
        from llmfast.tokenizer import Tokenizer
        Tokenizer.load(sys.argv[1])
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        kept = Tokenizer.load(sys.argv[2])
        assert kept.n_vocab == 2**24
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """)
    command = [sys.executable, "-c", program, str(folders / "own"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 60_000  # kilobytes
