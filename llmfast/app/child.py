"""A command of llmfast as a child of the dashboard, which ends when the dashboard does, however that ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import IO, Any

# Python puts the current folder first on the path of a -c program. In a clone of llmfast, ./kernels there would hide
# Hugging Face's package of that name.
_PROGRAM = "import sys; sys.path[:] = [each for each in sys.path if each]; from llmfast.app.child import main; main()"


def start(arguments: Sequence[str], *, stderr: IO[Any], environment: dict[str, str] | None = None) -> subprocess.Popen:
    """Start ``llmfast ARGUMENTS``; its standard output is a pipe of text. Closing its standard input ends it."""
    return subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        env=os.environ | (environment or {}),
        start_new_session=True,  # Ctrl-C in the dashboard's terminal ends the dashboard, which ends this
    )


def end(process: subprocess.Popen, seconds: float = 10.0) -> None:
    """End a child and wait for it."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


def main() -> None:
    """What the child runs: the command of ``sys.argv``, until standard input ends."""
    from llmfast import cli

    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.exit(cli.main(sys.argv[1:]))


def _end_with_parent() -> None:
    # A read through sys.stdin would hold a lock that the interpreter wants when it ends.
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(3)
    os.kill(os.getpid(), signal.SIGTERM)  # answers that are not finished by now are cut off
