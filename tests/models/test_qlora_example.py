"""examples/qlora_transformers.py: adapters on a 4-bit transformers model learn real text, beside peft's."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "qlora_transformers.py"


@pytest.mark.parametrize("how", ["llmfast", "peft"])
def test_loss_falls(how):
    for module in ("transformers", *(("peft", "bitsandbytes") if how == "peft" else ())):
        pytest.importorskip(module)
    alone = ["-P"] if sys.version_info >= (3, 11) else []  # what lies beside the script is not imported
    command = [sys.executable, *alone, SCRIPT, "--steps", "20", "--length", "64", "--with", how]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["with"] == how
    assert found["last_loss"] < found["first_loss"] - 0.2
