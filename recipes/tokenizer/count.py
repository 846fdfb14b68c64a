"""Counts the tokens of passages under a trained tokenizer and published ones, and shows how they cut what is hard.

    python recipes/tokenizer/count.py TOKENIZER TEXT COUNTS.json PASSAGE...

TEXT is what the tokenizer was learned from: it must come back exactly from its tokens.
"""

import json
import sys
from pathlib import Path

from llmfast.tokenizer import Tokenizer
from llmfast.tokenizer.opening import open_tokenizer

PUBLISHED = ("gpt2", "cl100k_base", "o200k_base")
HARD = {
    "spelling": "lollipop",
    "one name": ".DefaultCellStyle",
    "capitals": "Egg egg EGG",
    "digits": "1275 + 6773 = 8048",
    "a date": "2026-11-29",
    "indentation": "def f(x):\n    if x:\n        return 1",
}


def pieces(tokenizer: Tokenizer, text: str) -> str:
    """The text with a mark between its tokens; blanks and line ends are made visible."""
    tokens = [tokenizer.decode_single_token_bytes(token) for token in tokenizer.encode_ordinary(text)]
    shown = [token.decode("utf-8", "backslashreplace") for token in tokens]
    return "·".join(shown).replace(" ", "␣").replace("\n", "⏎")


def main() -> None:
    folder, text, out, *passages = map(Path, sys.argv[1:])
    ours = Tokenizer.load(folder)
    tokenizers = {"ours": ours, **{name: open_tokenizer(name) for name in PUBLISHED}}
    learned_from = text.read_text(encoding="utf-8")
    tokens = ours.encode_ordinary(learned_from)
    texts = {passage.stem: passage.read_text(encoding="utf-8") for passage in passages}
    found = {
        "vocabulary": {name: tokenizer.n_vocab for name, tokenizer in tokenizers.items()},
        "round_trip": {
            "characters": len(learned_from),
            "bytes": len(learned_from.encode()),
            "tokens": len(tokens),
            "exact": ours.decode_bytes(tokens) == learned_from.encode(),
        },
        "passages": [
            {"passage": name, "characters": len(passage)}
            | {kind: tokenizer.count(passage) for kind, tokenizer in tokenizers.items()}
            for name, passage in texts.items()
        ],
        "pieces": [
            {"what": what, "count": tokenizers["ours"].count(hard)}
            | {kind: pieces(tokenizer, hard) for kind, tokenizer in tokenizers.items()}
            for what, hard in HARD.items()
        ],
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
