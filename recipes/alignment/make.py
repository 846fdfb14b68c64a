"""Writes the data of this study: a part of a book, and sums of two numbers, with and without a call of a calculator.

python make.py FOLDER BOOK CHARACTERS SUMS
"""

import json
import random
import sys
from pathlib import Path


def addition(draw: random.Random, calls: bool) -> dict[str, str]:
    """The sum of two numbers of three digits; GSM8K's form of a call comes before the answer."""
    a, b = draw.randint(100, 999), draw.randint(100, 999)
    call = f"<<{a}+{b}={a + b}>>" if calls else ""
    return {"prompt": f"{a}+{b}=", "completion": f"{call}{a + b}", "answer": str(a + b)}


def main(folder: Path, book: Path, characters: int, sums: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "book.txt").write_text(book.read_text(encoding="utf-8")[:characters], encoding="utf-8")
    for name, calls in (("mental", False), ("calculator", True)):
        draw = random.Random(0)
        lines = [json.dumps(addition(draw, calls)) + "\n" for _ in range(sums)]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    # Sums are written in bytes: a vocabulary that has learned nothing more.
    (folder / "letters.txt").write_text("0123456789\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
