"""``llmfast data ...``."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from llmfast.data.config import SourceConfig
from llmfast.data.reading.decoding import InvalidUTF8


def prepare(
    out: Path,
    *,
    config: SourceConfig | None = None,
    shard: str = "0/1",
    processes: int = 1,
) -> None:
    """Turn text into a tokenizer and token shards. If it is killed, starting it again continues where it was.

    Args:
        out: Folder to write; train from it with llmfast train --data.prepared FOLDER.
        config: What to read.
        shard: Encode only part i of n, as in 2/8 (parts count from 0): on other machines the others. Needs a tokenizer.
        processes: Read with so many processes; encoding uses all cores with one, too.

    Raises:
        ValueError: no readable text, a damaged file, or a folder prepared with other settings.
    """
    from rich.console import Console

    from llmfast.data.prepare import describe, open_prepared, prepare_resumably
    from llmfast.data.shards import Share

    console = Console(highlight=False, soft_wrap=True)
    share = Share.parse(shard)
    prepare_resumably(config or SourceConfig(), out, share=share, processes=processes, report=console.print)
    if share.count > 1:
        console.print(f"part        {share.index}/{share.count} is in {out}; it can be trained from when all are")
        return
    describe(open_prepared(out), console.print)
    console.print(f"saved in    {out}; look at it with: llmfast data report {out}")


def dedup(
    out: Path,
    *,
    sources: tuple[str, ...] = (),
    column: str | None = None,
    similarity: float = 0.8,
    ngram: int = 5,
    invalid_utf8: InvalidUTF8 = "skip",
) -> None:
    """Write documents without those that repeat an earlier one, exactly or nearly.

    Writes documents.jsonl, to be prepared as any other source, and duplicates.jsonl, which names each document that was
    left out, the one that it repeats, and how similar the two are.

    Args:
        out: New folder to write.
        sources: What to read, as llmfast data prepare does; Python's own standard library if left out.
        column: Field that holds the text in JSONL, Parquet and datasets; text, or else the first with text, if left
            out.
        similarity: Estimated Jaccard similarity of n-grams of words (MinHash) from which on a document is a duplicate;
            1 finds equal texts only.
        ngram: Words of an n-gram.
        invalid_utf8: What becomes of documents that are not UTF-8, as for llmfast data prepare.

    Raises:
        ValueError: no readable text, a folder that is not empty, or a setting out of range.
    """
    from llmfast.data.duplicates import duplicates
    from llmfast.data.reading.corpus import Corpus
    from llmfast.files import atomic_folder

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists already; choose another folder")
    corpus = Corpus(sources, column=column, invalid_utf8=invalid_utf8)
    kept = exact = near = 0
    with atomic_folder(out) as partial:
        files = (partial / "documents.jsonl", partial / "duplicates.jsonl")
        with open(files[0], "w", encoding="utf-8") as documents, open(files[1], "w", encoding="utf-8") as others:
            for found in duplicates(corpus, similarity=similarity, ngram=ngram):
                document = found.document
                if found.of is None:
                    kept += 1
                    documents.write(json.dumps({"name": document.name, "text": document.text}) + "\n")
                    continue
                exact, near = exact + found.is_equal, near + (not found.is_equal)
                line = {"name": document.name, "of": found.of, "similarity": round(found.similarity, 4)}
                others.write(json.dumps(line) + "\n")
    if corpus.skipped or corpus.repaired:
        print(f"text        {corpus.passed_over()}")
    print(f"documents   {kept + exact + near:,} read, {kept:,} kept")
    print(f"duplicates  {exact:,} equal, {near:,} similar")
    print(f"saved in    {out}; prepare it with: llmfast data prepare FOLDER --sources {out / 'documents.jsonl'}")


def report(folder: Path, *, json: bool = False) -> None:
    """Show what prepared data is made of.

    Args:
        folder: What llmfast data prepare wrote.
        json: Print JSON instead of a table.

    Raises:
        ValueError: damaged or missing shards.
    """
    from llmfast.data.prepare import open_prepared
    from llmfast.data.report import report_on

    found = report_on(open_prepared(folder))
    (_print_json if json else _print_tables)(found)


def _print_json(found) -> None:
    print(json.dumps(asdict(found), ensure_ascii=False, indent=2))


def _print_tables(found) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    table = Table("", *found.splits, box=None, pad_edge=False)
    rows = {
        "documents": lambda split: f"{split.documents:,}",
        "  duplicates": lambda split: f"{split.duplicate_documents:,}",
        "  median length": lambda split: f"{split.median_document:,} tokens",
        "  longest": lambda split: f"{split.longest_document:,} tokens",
        "tokens": lambda split: f"{split.tokens:,}",
        "bytes of text": lambda split: f"{split.text_bytes:,}",
        "tokens per byte": lambda split: f"{split.tokens_per_byte:.3f}",
        f"of {found.vocab_size:,} tokens used": lambda split: f"{split.vocabulary_coverage:.1%}",
    }
    for column in table.columns[1:]:
        column.justify = "right"
    for name, figure in rows.items():
        table.add_row(name, *map(figure, found.splits.values()))
    console.print(table)
    console.print(f"\ndocuments in both splits: {found.in_both}\n\nmost frequent tokens in training:")
    for token, share in found.splits["train"].common_tokens:
        console.print(Text(f"  {share:6.2%}  {token!r}"))
    console.print("\nwhat the model sees, and what it is to predict next:")
    for seen, target in found.samples:
        console.print(Text(f"  {seen!r} → {target!r}"))
