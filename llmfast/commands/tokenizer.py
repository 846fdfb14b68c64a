"""``llmfast tokenizer train|encode|decode|info|compare``."""

import re
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

END_OF_TEXT = "<|endoftext|>"


def train(
    out: Path,
    *,
    data: tuple[str, ...] = (),
    vocab_size: int = 4096,
    pattern: str = "cl100k",
    special_tokens: tuple[str, ...] = (END_OF_TEXT,),
    min_frequency: int = 2,
    tie_break: Literal["bytes", "huggingface", "smallest_ids"] = "bytes",
    allow_smaller: bool = False,
) -> None:
    """Learn a byte-level BPE vocabulary from text and write it to a folder.

    Args:
        out: Folder to write the tokenizer to; a tokenizer that is there is replaced.
        data: Files, folders, globs or hf:NAME[:SPLIT[:COLUMN]]; Python's own standard library if left out.
        vocab_size: Size of the vocabulary, special tokens included; at least 256 and those.
        pattern: What cuts text into words, inside which merges happen: gpt2, cl100k, llama3, qwen2, o200k, deepseek,
            none or a regular expression.
        special_tokens: Texts that are one token each and never merged.
        min_frequency: Learn no token from a pair that is rarer than this.
        tie_break: Which of equally frequent pairs goes first: that of the greatest bytes, that which Hugging Face's
            trainer takes, or that of the smallest ids.
        allow_smaller: Write a smaller vocabulary where the text has too few frequent pairs for the size, which is
            an error otherwise.

    Raises:
        ValueError: no readable text, or a vocabulary size that the text cannot give.
        OSError: a file that cannot be read, or a full disk.
    """
    from llmfast.data.reading.corpus import Corpus
    from llmfast.tokenizer import Tokenizer

    corpus = Corpus(data)
    texts = (document.text for document in corpus)
    tokenizer = Tokenizer.train(
        texts,
        vocab_size,
        pattern=pattern,
        special_tokens=special_tokens,
        min_frequency=min_frequency,
        tie_break=tie_break,
        allow_smaller=allow_smaller,
        progress=sys.stderr.isatty(),
    )
    tokenizer.save(out)
    print(f"{out}: {tokenizer.n_vocab:,} tokens, from {corpus.describe()}")
    if passed_over := corpus.passed_over():
        print(passed_over, file=sys.stderr)


def encode(
    tokenizer: str,
    *,
    files: tyro.conf.Positional[tuple[Path, ...]] = (),
    text: str | None = None,
    special: bool = False,
    out: Path | None = None,
) -> None:
    """Turn text into token ids: printed, a line for each file, or written to token shards.

    Shards are made on all cores. If the command is interrupted, the same command goes on where it ended.

    Args:
        tokenizer: A tokenizer or run folder, a tokenizer file, or a published encoding such as gpt2 or o200k_base.
        files: Files to encode, each a document; standard input if there are none.
        text: Text to encode instead.
        special: Encode special tokens that the text spells out as such, and not as ordinary text.
        out: Folder to write token shards to, and an index of them; each document ends with the end-of-text token.

    Raises:
        ValueError: two sources of text, text that is not UTF-8, no such tokenizer, or a folder of other shards.
        OSError: a file that cannot be read, or a full disk.
    """
    from llmfast.tokenizer.opening import open_tokenizer

    opened = open_tokenizer(tokenizer)
    if text is not None and files:
        raise ValueError("give text or files, not both")
    if out is not None:
        if not files:
            raise ValueError("shards are made from files: name some")
        if special:
            raise ValueError("special tokens that files spell out are ordinary text in shards; leave out --special")
        _encode_to_shards(opened, files, out)
        return
    texts = [text] if text is not None else [_decoded(_read(file), file) for file in files or [None]]
    for text in texts:
        print(*(opened.encode(text, allowed_special="all") if special else opened.encode_ordinary(text)))


def _encode_to_shards(tokenizer, files: tuple[Path, ...], out: Path) -> None:
    from rich.console import Console
    from rich.progress import Progress

    from llmfast.data.file_shards import encode_files

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bars:
        bar = bars.add_task("encoding")
        shards = encode_files(
            files, out, tokenizer, progress=lambda done, total: bars.update(bar, completed=done, total=total)
        )
    tokens, documents, size = (
        sum(getattr(shard, of) for shard in shards) for of in ("tokens", "documents", "text_bytes")
    )
    print(f"{out}: {tokens:,} tokens, {documents:,} documents, {size / tokens:.2f} bytes a token")


def decode(tokenizer: str, *, ids: tuple[int, ...] = (), file: Path | None = None) -> None:
    """Turn token ids into text; reads them from standard input if given none. No line end is added.

    Args:
        tokenizer: A tokenizer or run folder, a tokenizer file, or a published encoding such as gpt2 or o200k_base.
        ids: Token ids.
        file: File of ids, with spaces, commas or line ends between.

    Raises:
        ValueError: both ids and file are given, something is not an id, or there is no such tokenizer.
        OSError: the file cannot be read.
    """
    from llmfast.tokenizer.opening import open_tokenizer

    opened = open_tokenizer(tokenizer)
    if ids and file is not None:
        raise ValueError("give ids or file, not both")
    ids = ids or _parse_ids(_decoded(_read(file), file))
    unknown = next((each for each in ids if not 0 <= each < opened.n_vocab), None)
    if unknown is not None:
        raise ValueError(f"{unknown} is not a token id; they go from 0 to {opened.n_vocab - 1}")
    try:
        data = opened.decode_bytes(ids)
    except KeyError as error:  # a hole in the vocabulary
        raise ValueError(error.args[0]) from None
    sys.stdout.flush()
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def info(tokenizer: str) -> None:
    """Show what a tokenizer is made of: vocabulary, special tokens, longest tokens, and a fingerprint.

    Args:
        tokenizer: A tokenizer or run folder, a tokenizer file, or a published encoding such as gpt2 or o200k_base.

    Raises:
        ValueError: there is no such tokenizer, or it is damaged.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from llmfast.tokenizer.opening import open_tokenizer

    opened = open_tokenizer(tokenizer)
    ordinary = opened.token_byte_values()
    longest = sorted(ordinary, key=len, reverse=True)[:5]
    specials = {token: opened.encode_single_token(token) for token in sorted(opened.special_tokens_set)}
    table = Table.grid(padding=(0, 2))
    named = ", ".join(f"{token} = {token_id}" for token, token_id in specials.items())
    for name, value in [
        ("vocabulary", f"{opened.n_vocab:,} tokens: {len(ordinary):,} ordinary, {len(specials):,} special"),
        ("special tokens", named or "none"),
        ("longest tokens", ", ".join(map(_shown, longest))),
        ("fingerprint", opened.fingerprint),
    ]:
        table.add_row(Text(name, "bold"), Text(value))
    Console(highlight=False).print(table)


def _shown(token: bytes, width: int = 28) -> str:
    text = repr(token.decode("utf-8", "backslashreplace"))
    return text if len(text) <= width else f"{text[: width - 1]}…"


def compare(
    *,
    texts: tyro.conf.Positional[tuple[Path, ...]] = (),
    encodings: Annotated[tuple[str, ...], tyro.conf.arg(name="with")] = ("gpt2", "cl100k_base", "o200k_base"),
) -> None:
    """Count the tokens that tokenizers make of the same files: by file, by label, and by script of the lines.

    For example:

        llmfast tokenizer compare English=book.txt Chinese=manual.txt code=main.py --with my-tokenizer o200k_base

    Args:
        texts: UTF-8 files, or LABEL=FILE; files of one label, such as a language or a domain, are also added up.
        encodings: Published encodings, tokenizer folders or files, with blanks or commas between.

    Raises:
        ValueError: a file that is not UTF-8, or a damaged tokenizer.
        OSError: a file or a tokenizer that is not there.
    """
    from llmfast.tokenizer.compare import compare as compared

    print(compared(map(_labeled, texts), [name for names in encodings for name in names.split(",")]))


def _labeled(text: Path) -> Path | tuple[str, Path]:
    label, equals, path = str(text).partition("=")
    return (label, Path(path)) if equals and label and path and not text.exists() else text


def _read(file: Path | None) -> bytes:
    return sys.stdin.buffer.read() if file is None else file.read_bytes()


def _decoded(data: bytes, file: Path | None) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file or 'standard input'} is not UTF-8 text: byte {error.start} is wrong") from None


def _parse_ids(text: str) -> tuple[int, ...]:
    words = [word for word in re.split(r"[\s,\[\]]+", text) if word]
    wrong = next((word for word in words if not word.isascii() or not word.isdecimal()), None)
    if wrong is not None:
        raise ValueError(f"{wrong!r} is not a token id")
    return tuple(map(int, words))
