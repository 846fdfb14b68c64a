"""Writes reviews as the movie reviews are written, in lower case with spaces around punctuation: FOLDER/reviews.tsv.

python clean.py FOLDER TSV
"""

import re
import sys
from pathlib import Path


def clean(text: str) -> str:
    """
    >>> clean('Great phone, works "well"!')
    'great phone , works " well " !'
    """
    return " ".join(re.sub(r'([.,!?;:()"])', r" \1 ", text.lower()).split())


def main(folder: Path, reviews: Path) -> None:
    rows = (line.rpartition("\t") for line in reviews.read_text(encoding="utf-8").splitlines() if line.strip())
    folder.mkdir(parents=True, exist_ok=True)
    cleaned = "".join(f"{clean(text)}\t{label}\n" for text, _, label in rows)
    (folder / "reviews.tsv").write_text(cleaned, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
