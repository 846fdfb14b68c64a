"""Trains twice, once without a break and once stopped by SIGTERM and resumed, and compares the two:

    python interrupt.py STEP PROCESSES FOLDER train --config ...

The runs are FOLDER/whole and FOLDER/resumed, the latter stopped when its log has STEP steps. FOLDER/compared.json has
the losses of both, and whether the weights at the end are equal to the bit.
"""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from llmfast.files import file_sha256
from llmfast.models.folder import checkpoints
from llmfast.pipeline.running import process_words

SECONDS = 600  # for one run
WEIGHTS = "model.safetensors"


def start(words: list[str], processes: int, out: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(process_words([*words, "--out", str(out), "--resume", "auto"], processes))


def finish(words: list[str], processes: int, out: Path) -> None:
    if code := start(words, processes, out).wait(timeout=SECONDS):
        sys.exit(f"the run in {out} failed with exit code {code}")


def stop_at(step: int, words: list[str], processes: int, out: Path) -> int:
    """Start a run and send SIGTERM when it has done so many steps; returns the step at which it stopped."""
    process, until = start(words, processes, out), time.monotonic() + SECONDS
    while len(records(out, "loss")) < step:
        if process.poll() is not None or time.monotonic() > until:
            process.kill()
            sys.exit(f"the run in {out} did not reach step {step}")
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=SECONDS)
    return records(out, "loss")[-1][0]


def records(out: Path, key: str) -> list[list[Any]]:
    """Pairs of a step and a value of the log, so far as it is written."""
    file = out / "log.jsonl"
    lines = file.read_text(encoding="utf-8").split("\n")[:-1] if file.exists() else []
    return [[record["step"], record[key]] for record in map(json.loads, lines) if key in record]


def main(step: int, processes: int, folder: Path, words: list[str]) -> None:
    whole, resumed = folder / "whole", folder / "resumed"
    finish(words, processes, whole)
    stopped = stop_at(step, words, processes, resumed)
    finish(words, processes, resumed)
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
