"""Trains twice, once without a break and once stopped by SIGTERM and resumed, and compares the two:

    python interrupt.py STEP PROCESSES FOLDER train --config ...

The runs are FOLDER/whole and FOLDER/resumed, the latter stopped when its log has STEP steps. FOLDER/compared.json has
the losses of both, and whether the weights at the end are equal to the bit.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from llmfast.files import file_sha256
from llmfast.models.folder import checkpoints
from llmfast.pipeline.running import process_words
from llmfast.training.signals import requests_by_signal

SECONDS = 1200  # for one run
WEIGHTS = "model.safetensors"


def run(words: list[str], processes: int, out: Path, stop_after: int | None = None) -> None:
    """Run a command to its end, or send it SIGTERM when its log has so many steps. Ctrl-C stops it as well."""
    process = subprocess.Popen(process_words([*words, "--out", str(out), "--resume", "auto"], processes))
    until, is_sent = time.monotonic() + SECONDS, False
    with requests_by_signal(process.terminate) as asked:
        while process.poll() is None:
            if stop_after is not None and not is_sent and len(records(out, "loss")) >= stop_after:
                process.terminate()
                is_sent = True
            if time.monotonic() > until:
                process.kill()
            time.sleep(0.05)
    if asked.stop or (process.returncode and not is_sent):
        sys.exit(f"the run in {out} ended with exit code {process.returncode}")


def records(out: Path, key: str) -> list[list[Any]]:
    """Pairs of a step and a value of the log, so far as it is written."""
    file = out / "log.jsonl"
    lines = file.read_text(encoding="utf-8").split("\n")[:-1] if file.exists() else []
    return [[record["step"], record[key]] for record in map(json.loads, lines) if key in record]


def main(step: int, processes: int, folder: Path, words: list[str]) -> None:
    whole, resumed = folder / "whole", folder / "resumed"
    run(words, processes, whole)
    run(words, processes, resumed, stop_after=step)
    stopped = records(resumed, "loss")[-1][0]
    run(words, processes, resumed)
    losses = {"without a break": records(whole, "loss"), "stopped and resumed": records(resumed, "loss")}
    same = {file_sha256(checkpoints(run)[-1] / WEIGHTS) for run in (whole, resumed)}
    content = {
        "steps": len(losses["without a break"]),
        "stopped_at": stopped,
        "losses": losses,
        "equal": "equal to the bit" if len(same) == 1 else "different",
        "scale": records(whole, "loss_scale"),
        "hellaswag": records(resumed, "hellaswag_norm"),
    }
    (folder / "compared.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"stopped at step {stopped} of {content['steps']} and resumed: weights are {content['equal']}")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
