"""Which file of a folder is the tokenizer, in which format it is, and what lies beside it."""

from __future__ import annotations

import warnings
from pathlib import Path

from llmfast.tokenizer import training
from llmfast.tokenizer.formats import rank_files, tekken
from llmfast.tokenizer.huggingface import vocab_and_merges
from llmfast.tokenizer.huggingface.added_tokens import AddedToken
from llmfast.tokenizer.huggingface.contents import Contents
from llmfast.tokenizer.huggingface.fields import parsed
from llmfast.tokenizer.huggingface.post_processors import tokens_around
from llmfast.tokenizer.huggingface.reading import from_json, reading
from llmfast.tokenizer.text_rules import TextRules

# Files that say what the tokenizer is used for. They are kept and written again as they were.
BESIDE = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
)
_TEMPLATES = "additional_chat_templates"  # a folder of them


def find(path: Path) -> Path:
    """The file of a tokenizer that is at `path`, a file or a folder; FileNotFoundError if there is none."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise FileNotFoundError(f"no tokenizer at {str(path)!r}")
    names = ("tokenizer.json", "tekken.json", *(vocabulary for vocabulary, _ in vocab_and_merges.NAMES))
    ranks = sorted(path.glob("*.tiktoken"))
    for candidate in (*(path / name for name in names), *ranks, *sorted(path.glob("*.model"))):
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(f"folder {str(path)!r} has no tokenizer.json, vocab.json, tekken.json or .tiktoken file")


def read(path: Path, pattern: str | None) -> Contents:
    """Reads the file of a tokenizer. `pattern` is for formats that do not record how text is split."""
    for vocabulary, merges in vocab_and_merges.NAMES:
        if path.name in (vocabulary, merges):
            return vocab_and_merges.read_vocab_and_merges(path.parent / vocabulary, path.parent / merges, pattern)
    if path.suffix == ".json":
        return reading(path, lambda: _from_json(path.read_bytes()))
    return _read_ranks(path, pattern)


def _from_json(source: bytes) -> Contents:
    file = parsed(source)
    if tekken.is_tekken(file):
        return tekken.from_tekken(file)
    return from_json(file)._replace(source=source)


def _read_ranks(path: Path, pattern: str | None) -> Contents:
    if _is_sentencepiece(path):
        raise ValueError(f"{path} is a sentencepiece model, which is not byte-level BPE: llmfast does not read it")
    ranks = rank_files.read_ranks(path)
    known_pattern, specials = rank_files.PUBLISHED.get(path.stem, ("", {}))
    if pattern is None and not known_pattern:
        raise ValueError(
            f"{path} does not say how text is split: load it with Tokenizer.load(path, pattern=...), "
            "and special_tokens= if it has any"
        )
    return Contents(pattern or training.PATTERNS[known_pattern], ranks, specials)


def _is_sentencepiece(path: Path) -> bool:
    """Whether a file is a protocol buffer whose first field is a list of pieces, and no lines of base64."""
    with path.open("rb") as file:
        start = file.read(64)
    return start[:1] == b"\n" and start[2:3] == b"\n"


def beside(path: Path) -> dict[str, bytes]:
    """The files beside a tokenizer's, by their names."""
    folder = path.parent
    names = [*BESIDE, *(f"{_TEMPLATES}/{one.name}" for one in sorted((folder / _TEMPLATES).glob("*.jinja")))]
    return {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}


def with_pattern(contents: Contents, pattern: str) -> Contents:
    """A tokenizer with another pattern than its file says."""
    rules = contents.rules or TextRules()
    if rules.model:
        raise ValueError("pattern= is for what the engine merges; this vocabulary needs Hugging Face's library")
    return _changed(contents._replace(pat_str=pattern), rules.replace(steps=None, prefix_space=False, digits=None))


def with_specials(contents: Contents, special_tokens: dict[str, int]) -> Contents:
    """A tokenizer with other special tokens than its file says; those that keep their text keep their flags."""
    rules = contents.rules or TextRules()
    flags = {token.content: token for token in rules.added}
    added = [token for token in rules.always if token.content not in special_tokens]
    for text, number in special_tokens.items():
        added.append(flags.get(text, AddedToken(text, number))._replace(id=number, special=True))
    around = contents.around
    ids = {token.content: token.id for token in added}
    for text, number in tokens_around(around.get("post_processor")).items():
        if (text in flags or text in contents.special_tokens) and ids.get(text) != number:
            warnings.warn(
                f"the file's post-processor adds {text!r} with the id {number}, which the special_tokens that you pass "
                "do not have: it is left out",
                stacklevel=3,
            )
            around = {name: part for name, part in around.items() if name != "post_processor"}
            break
    contents = contents._replace(special_tokens=special_tokens, around=around)
    return _changed(contents, rules.replace(added=tuple(added)))


def with_added(contents: Contents, ids: dict[str, int], special: bool) -> Contents:
    """A tokenizer with more added tokens than its file says."""
    rules = (contents.rules or TextRules()).with_added(contents.special_tokens, ids, special)
    specials = contents.special_tokens | (ids if special else {})
    return _changed(contents._replace(special_tokens=specials), rules)


def _changed(contents: Contents, rules: TextRules) -> Contents:
    return contents._replace(rules=rules if rules.are_needed else None, source=None)
