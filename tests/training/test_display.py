"""What a person sees of a run while it trains."""

import io
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

import pytest
from rich.console import Console
from small_run import new_run, small_config, write_corpus

from llmfast import config as config_files
from llmfast.training.loop import fit
from llmfast.training.monitoring.display import Status

FULL = Status(
    step=12_345,
    loss=3.14159,
    gradient_norm=0.71,
    tokens_per_second=123_456.0,
    seconds_left=7322.0,
    memory=3 * 2**30,
    units={"bits/byte": 1.234},
    figures={"balancing_loss": 0.02},
    utilization=0.42,
)


def test_what_matters_least_is_left_out_where_there_is_no_room():
    assert str(FULL) == (
        "loss 3.142  1.234 bits/byte  balancing loss 0.02  gradient 0.71  "
        "123.5k tokens/s  MFU 42%  3.0 GiB  2:02:02 left"
    )
    assert FULL.within(48) == "loss 3.142  123.5k tokens/s  2:02:02 left"
    for width in range(10, 130):
        assert len(FULL.within(width)) <= width
        assert FULL.within(width).startswith("loss 3.142")


@pytest.mark.parametrize("width", [80, 120, 200])
def test_the_live_line_is_one_line(tmp_path, width):
    """Trap: a line that is longer than the terminal is wrapped, and each update then leaves a part behind."""
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=width, highlight=False)
    fit(new_run(tmp_path, steps=4, evaluate_every=0, sample_every=0), console=console)
    lines = [line for line in re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.getvalue())) if line]
    assert any("step 4/4" in line and "loss" in line and "left" in line for line in lines)
    assert max(map(len, lines)) <= width


def terminal_output(process, descriptor, until, act=lambda: None):
    """What the process shows until a pattern has come; ``act`` is called then, and the rest is added."""
    shown, acted, deadline = "", False, time.monotonic() + 120
    while time.monotonic() < deadline:
        if select.select([descriptor], [], [], 0.1)[0]:
            try:
                data = os.read(descriptor, 2**16)
            except OSError:  # the other side is closed
                return shown
            shown += data.decode(errors="replace")
        if not acted and re.search(until, shown):
            acted = True
            act()
        if process.poll() is not None and not select.select([descriptor], [], [], 0)[0]:
            return shown
    raise AssertionError(f"no end after 120 s: {shown[-2000:]}")


def test_ctrl_c_leaves_no_stale_line(tmp_path):
    """The line of a run that was stopped is taken away, so that what is said of it stands alone."""
    config = small_config(write_corpus(tmp_path / "corpus"), steps=100_000, evaluate_every=0, sample_every=0)
    config_files.save(config, tmp_path / "config.yaml")
    ours, theirs = pty.openpty()
    command = ["train", "--config", str(tmp_path / "config.yaml"), "--out", str(tmp_path / "run")]
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "80", "LINES": "24", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "llmfast.cli", *command], stdout=theirs, stderr=theirs, stdin=theirs, env=environment
    )
    os.close(theirs)
    shown = terminal_output(process, ours, r"tokens/s", lambda: process.send_signal(signal.SIGINT))
    os.close(ours)
    assert process.wait() == 130
    after = shown.rpartition("tokens/s")[2]
    assert "\x1b[2K" in after  # erase the line
    assert "stopped at step" in after
