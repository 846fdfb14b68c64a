"""Running code that a model wrote, against tests, in a process of its own with limits."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

MIB = 2**20
SECONDS, MEMORY, FILE_SIZE = 5, 512 * MIB, MIB
_BLOCK = re.compile(r"```(?:python|py)?\n(.*?)```", re.DOTALL)


def code_of(text: str) -> str:
    """The last code block of a text, or else the whole of it."""
    blocks = _BLOCK.findall(text)
    return blocks[-1] if blocks else text


def run_limited(program: str, *, seconds: float = SECONDS) -> int | None:
    """The exit status of a Python program under limits; None if its time ran out.

    It runs in another process: without this one's environment, in a folder that is removed, with limits of time
    (5 s), memory (512 MiB) and file size, and is killed with all that it started. That stops accidents and
    loops, not an attacker: run what models write that you do not trust in a container.
    """
    with tempfile.TemporaryDirectory(prefix="llmfast-tests-") as folder:
        file = Path(folder) / "program.py"
        file.write_text(program, encoding="utf-8", errors="surrogateescape")
        process = subprocess.Popen(
            [sys.executable, "-I", "-B", str(file)],
            cwd=folder,
            env={"PATH": os.defpath, "HOME": folder, "TMPDIR": folder},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_limit,
        )
        try:
            return process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            # What it started is of its session, and ends with it.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _limit() -> None:
    """Called in the new process before the program."""
    for kind, most in (
        (resource.RLIMIT_CPU, SECONDS + 1),
        (resource.RLIMIT_AS, MEMORY),
        (resource.RLIMIT_FSIZE, FILE_SIZE),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (most, most))
