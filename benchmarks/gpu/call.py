"""One call: the stages in order, within the seconds it has, beginning where the call before it ended.

What is done is kept in build/gpu_call with a fingerprint of the sources; with other sources all begins from the start.
The folder given gets three files: the log, the short table, and an archive of all results, renewed after every stage.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from ..results import ROOT, write_json
from .place import fingerprint, place
from .recorder import PASSED, remember_earlier
from .stages import AGAIN_LAST, STAGES, Stage

RESERVE = 12  # seconds for the table and the archive
GRACE = 6  # seconds in which an interrupted stage may write what it has
WORK = ROOT / "build" / "gpu_call"


@dataclass
class Call:
    limit: float
    out: Path
    rehearsal: bool
    work: Path = WORK  # kept from call to call
    started: float = field(default_factory=time.monotonic)
    seconds: dict[str, float] = field(default_factory=dict)  # of each stage of this call
    failures: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        self.log = open(self.out / "gpu_call.log", "w", encoding="utf-8")  # noqa: SIM115 (as long as the call)
        self.kept: dict[str, object] = {}  # what the state holds for
        self.state: dict[str, str] = {}  # stage -> "done", or "begun" where it was cut short

    @property
    def results(self) -> Path:
        return self.work / "results"

    @property
    def state_file(self) -> Path:
        return self.work / "state.json"

    @property
    def passed_tests(self) -> Path:
        return self.work / "passed_tests"

    def environment(self) -> dict[str, str]:
        path = os.pathsep.join(filter(None, (str(self.work / "site"), os.environ.get("PYTHONPATH"))))
        ours = {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "TRITON_CACHE_DIR": str(self.work / "triton")}
        ours[PASSED] = str(self.passed_tests)
        return {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | ours

    @property
    def left(self) -> float:
        return self.limit - RESERVE - (time.monotonic() - self.started)

    def say(self, line: str) -> None:
        print(line, flush=True)
        print(line, file=self.log, flush=True)

    def run(self, wheels: Path | None) -> int:
        self.prepare(wheels)
        for stage in self.to_do():
            if self.left < stage.least:
                self.say(f"== {stage}: not begun, {self.left:.0f} s are left and it takes {stage.least:.0f}")
                continue
            self.run_stage(stage)
            self.archive()
        self.table()
        self.say("seconds: " + ", ".join(f"{name} {seconds:.0f}" for name, seconds in self.seconds.items()))
        for failure in self.failures:
            self.say(f"FAILED {failure}")
        undone = [str(stage) for stage in STAGES if self.state.get(stage.name) != "done"]
        self.say(f"left for the next call: {', '.join(undone) or 'nothing'}")
        self.say(f"{time.monotonic() - self.started:.0f} s of {self.limit:.0f}; all of it is in {self.out}")
        self.log.close()
        return int(bool(self.failures))

    def prepare(self, wheels: Path | None) -> None:
        start = time.monotonic()
        now = {"sources": fingerprint(), "rehearsal": self.rehearsal}
        before = json.loads(self.state_file.read_text()) if self.state_file.is_file() else {}
        if {name: before.get(name) for name in now} == now:
            self.state = before["stages"]
            self.say(
                f"== resuming: {', '.join(f'{name} {state}' for name, state in self.state.items()) or 'nothing done'}"
            )
        else:
            shutil.rmtree(self.work, ignore_errors=True)
        self.kept = now
        unpacked = place(self.work / "site", wheels)
        self.results.mkdir(parents=True, exist_ok=True)
        self.say(f"== llmfast from the sources, with {', '.join(unpacked) or 'no wheels'}")
        self.seconds["prepare"] = time.monotonic() - start

    def to_do(self) -> list[Stage]:
        """What is not done, in order; what fills all the time it gets comes last when it is resumed."""
        undone = [stage for stage in STAGES if self.state.get(stage.name) != "done"]
        return sorted(undone, key=lambda stage: stage.name in AGAIN_LAST and stage.name in self.state)

    def run_stage(self, stage: Stage) -> None:
        seconds = min(stage.most, self.left)
        self.say(f"== {stage}, at most {seconds:.0f} s of {self.left:.0f}")
        self.remember(stage, "begun")
        remember_earlier(self.passed_tests)
        start = time.monotonic()
        code = self.run_command(stage.command(self.results, seconds - GRACE, self.rehearsal), seconds)
        self.seconds[stage.name] = time.monotonic() - start
        if code is None:
            self.say(f"== {stage}: stopped after {self.seconds[stage.name]:.0f} s")
            return
        self.remember(stage, "done")
        if code:
            self.failures.append(f"{stage}: exit code {code}")

    def run_command(self, command: list[str], seconds: float) -> int | None:
        """The exit code; None where it ran out of time and was stopped, with all of its processes."""
        process = subprocess.Popen(
            command, cwd=ROOT, env=self.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace", start_new_session=True,
        )  # fmt: skip
        copying = threading.Thread(target=lambda: [self.say(line.rstrip("\n")) for line in process.stdout], daemon=True)
        copying.start()
        try:
            code = process.wait(max(seconds - GRACE, 1))
        except subprocess.TimeoutExpired:
            code = None
            process.send_signal(signal.SIGINT)  # not to its children, whose complaints would fill the log
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # and whatever it left running
            process.wait()
        copying.join(GRACE)
        return code

    def remember(self, stage: Stage, state: str) -> None:
        self.state[stage.name] = state
        write_json(self.state_file, {**self.kept, "stages": self.state})

    def archive(self) -> None:
        unfinished = self.out / "results.tmp"
        with tarfile.open(unfinished, "w:gz") as archive:
            archive.add(self.results, "results")
        os.replace(unfinished, self.out / "results.tar.gz")

    def table(self) -> None:
        command = [sys.executable, "-m", "benchmarks", "report", str(self.results), "--short"]
        done = subprocess.run(command, cwd=ROOT, env=self.environment(), capture_output=True, text=True, check=False)
        self.say(done.stdout or done.stderr)
        (self.out / "table.md").write_text(done.stdout, encoding="utf-8")
