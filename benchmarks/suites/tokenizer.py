"""Encoding and decoding beside the installed peers, on the same text, in one process, one after another in turn.

    python -m benchmarks tokenizer [--quick]

A peer takes part only where it gives tiktoken's ids on the very text that is timed. Rates are megabytes of UTF-8
a second of processor time, which threads add to: the first round, which finds caches empty, and the median of the
rounds. Rank files and texts come from LLMFAST_TEST_DATA.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sysconfig
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import numpy as np

DATA = Path(os.environ.get("LLMFAST_TEST_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")
VOCABULARIES = {"gpt2": "r50k_base", "cl100k_base": "cl100k_base", "o200k_base": "o200k_base"}  # -> rank file
RANK_FILES = "https://openaipublic.blob.core.windows.net/encodings/{}.tiktoken"
DOCUMENT = 16_384  # characters
Encode = Callable[[list[str]], np.ndarray | list[list[int]]]


def corpora(megabytes: int) -> dict[str, list[str]]:
    """Documents of English prose, Python code, and several scripts."""
    modules = sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py"))
    code = "".join(module.read_text(encoding="utf-8", errors="replace") for module in modules[:1500])
    texts = {
        "English": (DATA / "text" / "dickens.txt").read_text(encoding="utf-8"),
        "code": code,
        "multilingual": (DATA / "text" / "multilingual.txt").read_text(encoding="utf-8"),
    }
    cut = {name: text[: megabytes * 1_000_000] for name, text in texts.items()}
    return {name: [t[i : i + DOCUMENT] for i in range(0, len(t), DOCUMENT)] for name, t in cut.items()}


def encoders(name: str) -> dict[str, tuple[Encode, Encode]]:
    """By library: documents to one array of ids, and to lists; on one thread, with nothing cached yet."""
    import tiktoken

    from llmfast.tokenizer import Encoding, patterns

    theirs = tiktoken.get_encoding(name)
    ours = Encoding(
        name,
        pat_str=theirs._pat_str,
        mergeable_ranks=theirs._mergeable_ranks,
        special_tokens=theirs._special_tokens,
    )
    found = {
        "llmfast": (
            lambda documents: ours.encode_documents(documents, append_eot=False, num_threads=1)[0],
            lambda documents: [ours.encode_ordinary(document) for document in documents],
        ),
        "tiktoken": (
            lambda documents: np.concatenate(
                [theirs.encode_to_numpy(d, disallowed_special=()) for d in documents]
            ),
            lambda documents: [theirs.encode_ordinary(document) for document in documents],
        ),
    }
    import hashlib

    ranks = DATA / "tiktoken" / hashlib.sha1(RANK_FILES.format(VOCABULARIES[name]).encode()).hexdigest()
    try:
        import fastokens

        settings = {"encoding": name} if name != "gpt2" else {"pattern": patterns.GPT2_AS_PUBLISHED}
        fast = fastokens.Tokenizer.from_tiktoken(str(ranks), **settings)
        found["fastokens"] = (
            lambda documents: np.frombuffer(fast.encode_batch_flat(documents)[0], np.uint32),
            lambda documents: [fast.encode_ordinary(document).ids for document in documents],
        )
    except ImportError:
        pass
    try:
        import gigatoken

        kind = {"gpt2": "gpt2", "cl100k_base": "cl100k", "o200k_base": "o200k"}[name]
        giga = gigatoken.Tokenizer.from_tiktoken(ranks, kind)
        found["gigatoken"] = (
            lambda documents: np.asarray(giga.encode_batch(documents, parallel=False).layout.content.data),
            lambda documents: giga.encode_batch_list(documents, parallel=False),
        )
    except ImportError:
        pass
    return found


def rates(encode: dict[str, Encode], documents: list[str], rounds: int) -> dict[str, dict[str, float]]:
    """Megabytes a second of each library, which take turns."""
    size = sum(len(document.encode()) for document in documents) / 1e6
    seconds: dict[str, list[float]] = {library: [] for library in encode}
    for _ in range(rounds):
        for library, run_encode in encode.items():
            start = time.process_time()
            run_encode(documents)
            seconds[library].append(time.process_time() - start)
    return {
        library: {"first": size / taken[0], "median": size / statistics.median(taken)}
        for library, taken in seconds.items()
    }


def flat(ids: np.ndarray | list[list[int]]) -> np.ndarray:
    return ids if isinstance(ids, np.ndarray) else np.array([token for one in ids for token in one])


def run(quick: bool = False) -> dict:
    """Measures, prints a table, and returns what was measured."""
    os.environ.setdefault("TIKTOKEN_CACHE_DIR", str(DATA / "tiktoken"))
    os.environ.setdefault("RAYON_NUM_THREADS", "1")
    measured: dict = {"unit": "MB/s of processor time", "rates": {}, "not exact": []}
    for name in VOCABULARIES:
        for corpus, documents in corpora(1 if quick else 9).items():
            for form, which in (("numpy", 0), ("lists", 1)):
                libraries = {library: pair[which] for library, pair in encoders(name).items()}
                result = rates(libraries, documents, 3 if quick else 5)
                expected = flat(libraries["tiktoken"](documents))
                for library, encode in libraries.items():
                    if not np.array_equal(flat(encode(documents)), expected):
                        measured["not exact"].append(f"{library} {name} {corpus} {form}")
                        del result[library]
                key = f"{name} {corpus} {form}"
                measured["rates"][key] = result
                row = "  ".join(f"{lib} {r['first']:.0f}/{r['median']:.0f}" for lib, r in result.items())
                print(f"{key:34} {row}", flush=True)
    libraries = ("tiktoken", "fastokens", "gigatoken", "numpy")
    present = {dist.metadata["Name"].lower() for dist in metadata.distributions()}
    measured["versions"] = {name: metadata.version(name) for name in libraries if name in present}
    measured["machine"] = platform.machine()
    if measured["not exact"]:
        print("left out, other ids than tiktoken's:", ", ".join(measured["not exact"]))
    return measured


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one megabyte of each text")
    parser.add_argument("--out", type=Path, help="where to write the results as JSON")
    options = parser.parse_args()
    results = run(options.quick)
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n")
