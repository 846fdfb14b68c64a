"""Writes what the runs that sort reached: the share of right answers at first, at last, and to held-out prompts.

python sorting_table.py FOLDER METHOD-SEED=RUN...
"""

import json
import sys
from pathlib import Path
from statistics import fmean

STEPS = 10  # at either end, whose sampled answers are averaged


def row(name: str, run: Path) -> dict[str, object]:
    method, _, seed = name.partition("-")
    logged = map(json.loads, (run / "log.jsonl").read_text(encoding="utf-8").splitlines())
    rewards = [record["reward"] for record in logged if "reward" in record]
    held_out = json.loads((run / "summary.json").read_text(encoding="utf-8"))["figures"]["reward"]
    first, last = fmean(rewards[:STEPS]), fmean(rewards[-STEPS:])
    return {"method": method, "seed": int(seed), "first": first, "last": last, "held_out": held_out}


def main(folder: Path, runs: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rows = [row(name, Path(run)) for name, _, run in (each.partition("=") for each in runs)]
    (folder / "results.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
