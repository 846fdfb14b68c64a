"""A command of llmfast as a child of the dashboard, which ends when the dashboard does, however that ends."""

from __future__ import annotations

import os
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


def end(process: subprocess.Popen) -> None:
    """End a child at once, which has nothing to save, and wait until its memory is free."""
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        assert stream is not None
        stream.close()


def main() -> None:
    """What the child runs: the command of ``sys.argv``, until standard input ends."""
    from llmfast import cli

    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.exit(cli.main(sys.argv[1:]))


def _end_with_parent() -> None:
    # A read through sys.stdin would hold a lock that the interpreter wants when it ends.
    while os.read(0, 4096):
        pass
    os._exit(0)
