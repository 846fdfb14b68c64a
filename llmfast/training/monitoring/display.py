"""What a person sees of a run while it trains: a live line in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

GAP = "  "
WIDE = 120  # columns, from which the bar is long
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
        return self.within(None)

    def within(self, width: int | None) -> str:
        """The status in at most ``width`` characters, without what matters least."""
        parts = self._parts()
        while width is not None and len(parts) > 1 and len(GAP.join(text for text, _ in parts)) > width:
            parts.remove(max(parts, key=lambda part: part[1]))
        return GAP.join(text for text, _ in parts)

    def _parts(self) -> list[tuple[str, int]]:
        """What is shown, in order, with the order in which it is left out where there is no room: the largest first."""
        parts = [(f"loss {self.loss:.3f}", 0)]
        parts += [(f"{value:.3f} {unit}", 3) for unit, value in self.units.items()]
        parts += [(f"{name.replace('_', ' ')} {value:.3g}", 4) for name, value in self.figures.items()]
        parts.append((f"gradient {self.gradient_norm:.2f}", 5))
        if self.tokens_per_second is not None:
            parts.append((f"{_count(self.tokens_per_second)} tokens/s", 2))
        if self.utilization is not None:
            parts.append((f"MFU {self.utilization:.0%}", 4))
        parts.append((size(self.memory), 6))
        if self.seconds_left is not None:
            parts.append((f"{clock(self.seconds_left)} left", 1))
        return parts


class Display:
    """Shows a run; use as a context manager around the loop."""

    def __init__(self, steps: int, *, done: int = 0, preparing: str = "", console: Console | None = None):
        """``preparing`` is what the first step waits for, shown until it is done."""
        self.steps, self.preparing = steps, preparing
        self.console = console or Console(highlight=False, soft_wrap=True)
        self._live = self.console.is_terminal
        self._last_line = 0.0
        if self._live:
            self._progress = Progress(
                TextColumn("step {task.completed:,}/{task.total:,}"),
                BarColumn(bar_width=20 if self.console.width >= WIDE else 8),
                _StatusColumn(),
                console=self.console,
            )
            self._task = self._progress.add_task("train", total=steps, completed=done, status=preparing)

    def __enter__(self) -> Display:
        if self._live:
            self._progress.start()
        elif self.preparing:
            self.say(self.preparing)
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            # Of a run that was stopped, the line would stand above what is said about that, no longer true.
            self._progress.live.transient = not self._progress.finished
            self._progress.stop()

    def update(self, status: Status) -> None:
        """Show the newest status."""
        if self._live:
            self._progress.update(self._task, completed=status.step, status=status.within(self._room()))
        elif time.monotonic() - self._last_line > PLAIN_SECONDS or status.step == self.steps:
            self._last_line = time.monotonic()
            self.say(f"step {status.step:,}/{self.steps:,}  {status}")

    def _room(self) -> int:
        """Columns for the status, beside the steps and the bar."""
        _, bar, _ = self._progress.columns
        return self.console.width - len(f"step {self.steps:,}/{self.steps:,}") - bar.bar_width - 2

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
