"""Writes the tasks of this study: digits to be sorted, sorted digits that are judged one by one, and answers that are
judged alone.

python make_tasks.py FOLDER PAIRS DIGITS JUDGED
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


def judged_lines(draw: random.Random) -> dict[str, object]:
    """Six digits in their order, one per line; from the first that is less than the one before it, all are wrong."""
    digits = "".join(draw.choices("0123456789", k=6))
    steps = sorted(digits)
    places = [place for place in range(1, 6) if steps[place - 1] > "0"]
    wrong_at = draw.choice([6, *places])
    if wrong_at < 6:
        steps[wrong_at] = str(draw.randrange(int(steps[wrong_at - 1])))
    return {"prompt": digits, "completions": steps, "labels": [place < wrong_at for place in range(6)]}


def alone(pairs: list[dict[str, str]]) -> list[dict[str, object]]:
    """One answer of each pair with its prompt, the chosen and the rejected one in turn."""
    return [
        {"instruction": pair["instruction"], "input": pair["input"]}
        | {"completion": pair["rejected" if place % 2 else "chosen"], "label": place % 2 == 0}
        for place, pair in enumerate(pairs)
    ]


def write(file: Path, records: list) -> None:
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def main(folder: Path, pairs: Path, digits: int, judged: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(0)
    write(folder / "digits.jsonl", [sorting(draw) for _ in range(digits)])
    write(folder / "steps.jsonl", [judged_lines(draw) for _ in range(judged)])
    write(folder / "judged.jsonl", alone(json.loads(pairs.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
