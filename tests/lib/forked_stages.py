"""Runs the stages of a pipeline as forks of this process, which has loaded what they need.

A new Python loads PyTorch and llmfast for some seconds, which is most of what the quick size of a study takes. That
stages run in processes of their own is tested in tests/pipeline.
"""

import os
import runpy
import sys
import traceback
import warnings

from llmfast.cli import main
from llmfast.pipeline import running

IN_PROCESS = [sys.executable, "-m", "llmfast.cli"]
_run_command = running.run_command


def run_command(words, log, *, output, appends):
    """As ``llmfast.pipeline.running.run_command``, for stages that are never stopped by a signal."""
    if words[:3] == IN_PROCESS:
        return _forked(lambda: main(words[3:]), log, output, appends)
    if words[1] != "-m":
        return _forked(lambda: _run_file(words[1:]), log, output, appends)
    return _run_command(words, log, output=output, appends=appends)


def _run_file(words):
    sys.argv[:] = words
    sys.path.insert(0, os.path.dirname(words[0]))
    runpy.run_path(words[0], run_name="__main__")


def _forked(run, log, output, appends):
    import llmfast.commands.alignment
    import llmfast.commands.sft
    import llmfast.training.loop  # noqa: F401 - before the fork, so that a stage need not

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the threads of pytest-xdist only wait
        child = os.fork()
    if child == 0:
        code = 1
        try:
            file = os.open(log, os.O_WRONLY | os.O_CREAT | (os.O_APPEND if appends else os.O_TRUNC), 0o644)
            os.dup2(file, 1)
            os.dup2(file, 2)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", 1, encoding="utf-8") for number in (1, 2))
            code = run() or 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(bool(error.code))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(child, 0)
    output.write(log.read_text(encoding="utf-8"))
    return os.waitstatus_to_exitcode(status), False
