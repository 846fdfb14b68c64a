"""Shows that a byte-level vocabulary has no unknown tokens: writes FOLDER/alphabet.json.

    python alphabet.py FOLDER TOKENIZER_FOLDER FILE ...

Each text, whatever it holds, is encoded by the vocabulary of the base, and decoded again.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from llmfast.tokenizer import Tokenizer

TEXTS = {
    "Chinese": "语言模型只看到编号。",
    "Arabic": "لا توجد كلمات مجهولة",
    "emoji": "🦙🏽‍🚀 → 🤗",
    "every byte": "".join(map(chr, range(256))),
}


def main(folder: Path, vocabulary: Path, files: Sequence[Path]) -> None:
    tokenizer = Tokenizer.load(vocabulary)
    texts = {file.name: file.read_text(encoding="utf-8") for file in files} | TEXTS
    records = []
    for name, text in texts.items():
        tokens = tokenizer.encode_ordinary(text)
        records.append(
            {
                "text": name,
                "characters": len(text),
                "tokens": len(tokens),
                "outside of the vocabulary": sum(not 0 <= token < tokenizer.n_vocab for token in tokens),
                "comes back": "exactly" if tokenizer.decode(tokens) == text else "changed",
            }
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "alphabet.json").write_text(json.dumps(records, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), [Path(each) for each in sys.argv[3:]])
