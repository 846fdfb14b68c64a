"""Writes the tasks of this study: digits to be sorted, sums whose steps are judged, and answers that are judged alone.

python make_tasks.py FOLDER PAIRS DIGITS CHAINS
"""

import json
import random
import sys
from pathlib import Path


def sorting(draw: random.Random) -> dict[str, str]:
    """Six digits, and the same in their order."""
    digits = "".join(draw.choices("0123456789", k=6))
    found = "".join(sorted(digits))
    return {"prompt": digits, "completion": found, "answer": found}


def chain(draw: random.Random) -> dict[str, object]:
    """A sum of digits, added one after the other; from the first wrong step on, if there is one, all are wrong."""
    digits = [draw.randint(1, 9) for _ in range(draw.randint(3, 5))]
    wrong_at = draw.choice([None, *range(1, len(digits))])
    total, steps, labels = digits[0], [], []
    for place, digit in enumerate(digits[1:], 1):
        found = total + digit + (draw.choice([-2, -1, 1, 2]) if place == wrong_at else 0)
        steps.append(f"{total}+{digit}={found}")
        labels.append(wrong_at is None or place < wrong_at)
        total = found
    return {"prompt": f"{'+'.join(map(str, digits))}=", "completions": steps, "labels": labels}


def alone(pairs: list[dict[str, str]]) -> list[dict[str, object]]:
    """One answer of each pair with its prompt, the chosen and the rejected one in turn."""
    return [
        {"instruction": pair["instruction"], "input": pair["input"]}
        | {"completion": pair["rejected" if place % 2 else "chosen"], "label": place % 2 == 0}
        for place, pair in enumerate(pairs)
    ]


def write(file: Path, records: list) -> None:
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def main(folder: Path, pairs: Path, digits: int, chains: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(0)
    write(folder / "digits.jsonl", [sorting(draw) for _ in range(digits)])
    write(folder / "steps.jsonl", [chain(draw) for _ in range(chains)])
    write(folder / "judged.jsonl", alone(json.loads(pairs.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
