"""What a person sees of a run while it trains: a live line in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

PLAIN_SECONDS = 10  # between plain lines: often enough to see it learn, rarely enough for a log file


@dataclass(frozen=True)
class Status:
    """Where a run stands."""

    step: int
    loss: float
    """Smoothed training loss."""
    gradient_norm: float
    tokens_per_second: float | None
    """None before it is known."""
    seconds_left: float | None
    memory: int
    """Peak bytes of this process on its device."""
    units: Mapping[str, float] = field(default_factory=dict)
    """The loss in other units by name, as the task has them."""
    figures: Mapping[str, float] = field(default_factory=dict)
    """What the objective reports besides its loss, smoothed."""
    utilization: float | None = None
    """Share of the device's datasheet peak, where that is known (model-FLOP utilization)."""

    def speed(self) -> dict[str, float]:
        """What is known of the speed, for trackers."""
        figures = {
            "tokens_per_second": self.tokens_per_second,
            "utilization": self.utilization,
            "memory_bytes": self.memory,
        }
        return {name: value for name, value in figures.items() if value is not None}

    def __str__(self) -> str:
        parts = [
            f"loss {self.loss:.3f}",
            *(f"{value:.3f} {unit}" for unit, value in self.units.items()),
            *(f"{name.replace('_', ' ')} {value:.3g}" for name, value in self.figures.items()),
            f"gradient {self.gradient_norm:.2f}",
        ]
        if self.tokens_per_second is not None:
            parts.append(f"{_count(self.tokens_per_second)} tokens/s")
        if self.utilization is not None:
            parts.append(f"MFU {self.utilization:.0%}")
        parts.append(size(self.memory))
        if self.seconds_left is not None:
            parts.append(f"{clock(self.seconds_left)} left")
        return "  ".join(parts)


class Display:
    """Shows a run; use as a context manager around the loop."""

    def __init__(self, steps: int, *, console: Console | None = None):
        self.steps = steps
        self.console = console or Console(highlight=False, soft_wrap=True)
        self._live = self.console.is_terminal
        self._last_line = 0.0
        if self._live:
            self._progress = Progress(
                TextColumn("step {task.completed:,}/{task.total:,}"),
                BarColumn(bar_width=20),
                _StatusColumn(),
                console=self.console,
            )
            self._task = self._progress.add_task("train", total=steps, status="")

    def __enter__(self) -> Display:
        if self._live:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._progress.stop()

    def update(self, status: Status) -> None:
        """Show the newest status."""
        if self._live:
            self._progress.update(self._task, completed=status.step, status=str(status))
        elif time.monotonic() - self._last_line > PLAIN_SECONDS or status.step == self.steps:
            self._last_line = time.monotonic()
            self.say(f"step {status.step:,}/{self.steps:,}  {status}")

    def say(self, line: str) -> None:
        """Print a line above the live one."""
        self.console.print(line, markup=False)

    def sample(self, step: int, prompt: str, continuation: str) -> None:
        """Show what the model writes at this point."""
        shown = Text(f"  {step:>6,} │ ", style="dim")
        shown.append(_one_line(prompt), style="bold")
        shown.append(_one_line(continuation), style="cyan")
        shown.truncate(max(40, self.console.width), overflow="ellipsis")
        self.console.print(shown)


class _StatusColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(task.fields["status"])


def _one_line(text: str) -> str:
    return text.replace("\n", "⏎").replace("\t", " ")


def _count(number: float) -> str:
    for limit, unit in ((1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.1f}{unit}"
    return f"{number:.0f}"


def size(bytes: float) -> str:
    """Bytes in MiB or GiB."""
    return f"{bytes / 2**30:.1f} GiB" if bytes >= 2**30 else f"{bytes / 2**20:.0f} MiB"


def clock(seconds: float) -> str:
    """h:mm:ss, or m:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
