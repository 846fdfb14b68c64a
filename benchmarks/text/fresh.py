"""Streams of text in which nothing occurs twice, for libraries that remember what they have seen.

What a library keeps of words makes it faster, as it should, where new text has words of old text; to encode the same
text again measures something that nobody does. English is the books of ``LLMFAST_TEST_DATA``, then the docstrings of
the Python packages that are installed, then the documentation of the system's programs, paragraph by paragraph; code is
these packages and Python's own library; text in many languages is that of ``LLMFAST_TEST_DATA``, then the translated
messages of the system's programs. A machine that has less of a kind than is asked for gives what it has: how much that
was stands in the file of results.
"""

from __future__ import annotations

import functools
import gzip
import random
import re
import struct
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from .texts import DATA, DOCUMENT, Text, made_up, sources

CATALOGS = Path("/usr/share/locale")
DOCSTRING = re.compile(r'"""(.*?)"""', re.DOTALL)
SHORTEST = 40  # characters of a paragraph or message: shorter ones say the same in many places
MAGIC = 0x950412DE  # of a gettext catalog


def streams(megabytes: float) -> dict[str, Text]:
    """At most so much of each kind."""
    return {kind: stream(kind, megabytes) for kind in SOURCES}


@functools.cache
def stream(kind: str, megabytes: float) -> Text:
    """At most so much of one kind."""
    origins, parts = [], []
    left = int(megabytes * 1e6)
    for origin, read in SOURCES[kind]:
        taken = list(unrepeated(read(), left))
        size = sum(len(part.encode()) for part in taken)
        if size:
            origins.append(f"{size / 1e6:.3g} MB of {origin}")
            parts += taken
            left -= size
        if left <= 0:
            break
    if not parts:  # a machine without any text of the kind
        origins, parts = ["words of random letters"], [made_up(int(megabytes * 1e6 / 3))]
    return stream_of(", ".join(origins), "".join(parts))


def stream_of(origin: str, text: str) -> Text:
    """The documents of a text, mixed so that every part of the stream has some of every source."""
    mixed = [text[start : start + DOCUMENT] for start in range(0, len(text), DOCUMENT)]
    random.Random(0).shuffle(mixed)
    return Text(origin, mixed)


def unrepeated(parts: Iterable[str], size: int) -> Iterator[str]:
    """The first `size` bytes of the parts, each of them once."""
    seen = set()
    for part in parts:
        if size <= 0:
            return
        if part and hash(part) not in seen:
            seen.add(hash(part))
            encoded = part.encode(errors="replace")[:size]
            size -= len(encoded)
            yield encoded.decode(errors="ignore")


def files(*names: str) -> Callable[[], Iterator[str]]:
    """What those of the files that are there hold."""

    def read() -> Iterator[str]:
        for path in (DATA / "text" / name for name in names):
            if path.is_file():
                yield path.read_text(encoding="utf-8")

    return read


def modules() -> Iterator[str]:
    """The sources of Python's own library, then those of the packages that are installed."""
    yield from sources()
    for root in (Path(entry) for entry in sys.path if entry.endswith("-packages")):
        for module in sorted(root.rglob("*.py")):
            yield module.read_text(encoding="utf-8", errors="replace")


def docstrings() -> Iterator[str]:
    for source in modules():
        for found in DOCSTRING.finditer(source):
            yield from paragraphs(found[1])


def documentation() -> Iterator[str]:
    """The manual pages in English and the text files that the system's packages bring, without long logs of tests."""
    for folder in (*sorted(Path("/usr/share/man").glob("man*")), Path("/usr/share/doc")):
        for path in sorted(folder.rglob("*")):
            texts = path.suffix in (".gz", ".txt", ".md", ".rst", "") and path.is_file()
            if texts and path.stat().st_size < 200_000:
                data = path.read_bytes()
                try:
                    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
                except (
                    OSError,
                    EOFError,
                    zlib.error,
                    UnicodeDecodeError,
                ):  # an archive, a picture, another alphabet
                    continue
                yield from paragraphs(text)


def paragraphs(text: str) -> Iterator[str]:
    for paragraph in text.split("\n\n"):
        if len(paragraph) >= SHORTEST:
            yield f"{paragraph.strip()}\n\n"


def messages() -> Iterator[str]:
    """The translated messages of every catalog, by language."""
    for catalog in sorted(CATALOGS.rglob("*.mo")):
        yield from translations(catalog.read_bytes())


def translations(catalog: bytes) -> Iterator[str]:
    """The messages of a gettext catalog; none of what is no catalog."""
    for order in "<>":
        if len(catalog) >= 28 and struct.unpack_from(f"{order}I", catalog)[0] == MAGIC:
            count, _, table = struct.unpack_from(f"{order}3I", catalog, 8)
            for i in range(1, count):  # the first is the head of the catalog
                length, start = struct.unpack_from(f"{order}2I", catalog, table + 8 * i)
                text = catalog[start : start + length].decode(errors="ignore").replace("\0", "\n")
                if len(text) >= SHORTEST:
                    yield f"{text.rstrip()}\n"


Source = tuple[str, Callable[[], Iterator[str]]]
SOURCES: dict[str, list[Source]] = {
    "English": [
        ("novels of Charles Dickens and plays of Shakespeare", files("dickens.txt", "tinyshakespeare.txt")),
        ("docstrings of Python and of the installed packages", docstrings),
        ("documentation of the system's programs", documentation),
    ],
    "code": [("modules of Python and of the installed packages", modules)],
    "multilingual": [
        (
            "technical prose in Japanese, Korean, Chinese, Arabic and Russian",
            files("multilingual.txt", "manual_zh.txt"),
        ),
        ("translated messages of the system's programs, in all languages", messages),
    ],
}
