"""A profiler trace of a few training steps."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

FIRST, STEPS = 3, 3  # after compilation and the allocator's first rounds; few, since traces are large


class StepProfiler:
    """Traces steps 3 to 5 of a process into a file for chrome://tracing or ui.perfetto.dev.

    Ranges named data, forward, backward and step (the update of the weights) show what each part of a step costs.
    """

    def __init__(self, file: Path):
        self.file = file
        file.unlink(missing_ok=True)
        self._seen = 0
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
        self._profile = profile(activities=activities, record_shapes=True)

    def before_step(self) -> None:
        self._seen += 1
        if self._seen == FIRST:
            self._profile.start()

    def after_step(self) -> str | None:
        """A message for the user once the trace is written."""
        return self.finish() if self._seen == FIRST + STEPS - 1 else None

    def finish(self) -> str | None:
        """Write the trace of what was seen so far, if any; returns a message for the user."""
        if self._seen < FIRST or self.file.exists():
            return None
        self._profile.stop()
        self._profile.export_chrome_trace(str(self.file))
        return f"profile of {self._seen - FIRST + 1} steps in {self.file}; open it in https://ui.perfetto.dev"
