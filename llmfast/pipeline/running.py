"""Running the stages of a pipeline: each in a process of its own, shown and kept in a log, interrupted as one."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TextIO

from llmfast.pipeline.state import Record, State, Task, remove, write_state
from llmfast.training.signals import requests_by_signal

SCRIPT = "python"


def run_task(task: Task, state: State, out: Path, *, words: list[str], resumes: bool, output: TextIO) -> None:
    """Run one stage to its end, and write down that it is done.

    Args:
        task: the stage, and whether it was interrupted.
        state: what is done; changed.
        out: the folder of the pipeline.
        words: the command.
        resumes: whether the command resumes in a folder that it left unfinished.
        output: where what it prints is shown.

    Raises:
        ValueError: the command failed; names the stage and its log.
        KeyboardInterrupt: stopped by a signal, after the command has ended.
    """
    step, name = task.step, task.step.name
    is_resumed = task.is_interrupted and resumes
    record = state.stages[name] if is_resumed else Record(task.depends_on)
    if not is_resumed:
        remove(step.folder)
    state.stages[name] = record
    write_state(out, state)
    began, computed = time.perf_counter(), _processor_seconds()
    code, was_stopped = run_command(process_words(words, step.processes), step.log, output=output, appends=is_resumed)
    record.seconds = round(record.seconds + time.perf_counter() - began, 1)
    record.processor_seconds = round(record.processor_seconds + _processor_seconds() - computed, 1)
    record.is_done = code == 0
    record.has_folder = step.folder.exists()
    write_state(out, state)
    if was_stopped:
        raise KeyboardInterrupt(f"stopped in stage {name}; the same command resumes there")
    if code:
        raise ValueError(f"stage {name} failed with exit code {code}; its output is in {step.log}")


def _processor_seconds() -> float:
    """What the processes computed that this one started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def process_words(words: list[str], processes: int) -> list[str]:
    """The words of the process that runs a command: this Python, under torchrun if there are to be several."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    program = words[1:] if words[0] == SCRIPT else ["-m", "llmfast.cli", *words]
    return [sys.executable, *(launcher if processes > 1 else []), *program]


def run_command(words: list[str], log: Path, *, output: TextIO, appends: bool) -> tuple[int, bool]:
    """Run a process, showing what it prints and keeping it in a log; returns its exit code and whether it was stopped.

    A signal that asks to stop is passed on, once: the process has its own way to end. A second one kills it.
    """
    process = subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        encoding="utf-8",
        errors="replace",
        # Of its own, so that Ctrl-C reaches it from here alone: twice at once would end it in the middle of a step.
        start_new_session=True,
    )
    with open(log, "a" if appends else "w", encoding="utf-8") as file, requests_by_signal(process.terminate) as asked:
        try:
            for line in process.stdout or ():
                file.write(line)
                file.flush()
                output.write(line)
                output.flush()
            return process.wait(), asked.stop
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
