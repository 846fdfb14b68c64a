"""The step loop: steps, with evaluation, samples, checkpoints and the log at their intervals, for every task."""

from __future__ import annotations

import contextlib
import errno
import inspect
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from llmfast.models.tensors import write_tensors
from llmfast.training.checkpoints.checkpoint import checkpoint_folder
from llmfast.training.checkpoints.saver import Saver
from llmfast.training.distribution.failures import Heartbeat
from llmfast.training.monitoring.display import Display
from llmfast.training.monitoring.evaluations import named_evaluation
from llmfast.training.monitoring.guard import BadStepError
from llmfast.training.monitoring.pace import Pace
from llmfast.training.monitoring.profiling import StepProfiler
from llmfast.training.monitoring.tracking import Labels, Tracker, open_trackers
from llmfast.training.session import Session
from llmfast.training.signals import requests_by_signal
from llmfast.training.summary import SummaryWriter
from llmfast.training.trainer import StepResult

__all__ = ["fit", "save"]

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
BAD_STEPS = 10  # skipped in a row, after which a run stops: its weights do not recover by themselves


def fit(session: Session, *, console: Console | None = None, profile: bool = False) -> None:
    """Train until ``training.steps`` are done, saving at intervals and at the end.

    SIGINT, SIGTERM and SIGHUP end the current step, save a checkpoint and raise KeyboardInterrupt; SIGUSR1 saves one,
    and the run continues. ``profile`` writes a trace of a few steps to RUN/profile.json, or of each of several
    processes to RUN/profile-RANK.json.

    Raises:
        KeyboardInterrupt: stopped by a signal; the run can be resumed.
        BadStepError: a bad step, as ``training.on_bad_step`` decides.
        ValueError: a tracker or an evaluation that cannot be used.
        OSError: the last checkpoint cannot be written.
    """
    _Fit(session, console, profile).run()


class _Fit:
    """One call of ``fit``."""

    def __init__(self, session: Session, console: Console | None, profile: bool):
        self.task, self.trainer, self.folder = session.task, session.trainer, session.run
        self.training = session.trainer.training
        self.world = session.trainer.world
        quiet = console if self.world.is_main else Console(quiet=True)
        preparing = "compiling the model, which takes the first step a while" if session.trainer.compiled else ""
        done = session.trainer.steps_done
        self.display = Display(self.training.steps, done=done, preparing=preparing, console=quiet)
        self.saver = Saver(session.run.folder, session.trainer)
        self.pace = Pace(session.trainer)
        self.summary = SummaryWriter(session.run.folder, session.trainer) if self.world.is_main else None
        self.trackers: list[Tracker] = []
        name = "profile.json" if self.world.size == 1 else f"profile-{self.world.rank}.json"
        self.profiler = StepProfiler(session.run.folder / name) if profile else None
        self.evaluations = {name: named_evaluation(name) for name in self.training.evaluations}
        # The newest validation: its step and loss.
        self.validation: tuple[int, float] | None = None
        self.bad_in_a_row = 0
        self.heartbeat = Heartbeat(self.world.rank, self.world.size) if self.world.size > 1 else None

    def run(self) -> None:
        try:
            self._run()
        except RuntimeError as error:  # among others, that the other processes did not come in time
            if self.heartbeat is None or (late := self.heartbeat.behind()) is None:
                raise
            raise ValueError(f"the processes are no longer together: {late} ({str(error).splitlines()[0]})") from error

    def _run(self) -> None:
        trainer, stopped = self.trainer, False
        if self.world.is_main:
            logged = max((record["step"] for record in self.folder.records()), default=0)
            self.folder.rewind_log(trainer.steps_done)
            training = self.training
            self.trackers = open_trackers(
                training.track,
                self.folder,
                self.task.config,
                step=trainer.steps_done,
                logged=logged,
                labels=Labels(training.track_project, training.track_group, training.track_tags),
            )
        with requests_by_signal() as requests, self.display, contextlib.ExitStack() as at_end:
            for tracker in self.trackers:
                at_end.callback(tracker.close)
            while trainer.steps_done < self.training.steps and not stopped:
                self._step()
                self._at_intervals(trainer.steps_done)
                if self.heartbeat is not None:
                    self.heartbeat.beat(trainer.steps_done)
                # Before saving, so that a signal that comes meanwhile counts for the next step.
                saves, stopped = self.world.any(requests.save, requests.stop)
                if saves:
                    requests.save = False
                with self._surviving_full_disk():
                    self.saver.poll()
                    if saves:
                        self.saver.save(validation_loss=self._validation_loss())
                if failure := self.saver.poll_copying():
                    self.display.say(f"not copied, the next checkpoint tries again: {failure}")
                self.pace.resume_clock()
        if self.profiler and (message := self.profiler.finish()):
            self.display.say(message)
        self.saver.wait()
        self._summarize()
        # Nothing more to do when a finished run is resumed; a second save would only rewrite the same bytes.
        if not checkpoint_folder(self.folder.folder, trainer.steps_done).exists():
            self.saver.save(validation_loss=self._validation_loss())
            self.saver.wait()
        self.saver.finish_copying()
        self.world.barrier()
        if stopped:
            raise KeyboardInterrupt

    def _step(self) -> None:
        if self.profiler:
            self.profiler.before_step()
        result = self.trainer.step()
        if self.profiler and (message := self.profiler.after_step()):
            self.display.say(message)
        step = self.trainer.steps_done
        if result.fault:
            self._bad_step(step, result)
            return
        self.bad_in_a_row = 0
        self._log(
            step,
            loss=result.loss.item(),
            gradient_norm=result.gradient_norm.item(),
            learning_rate_factor=result.learning_rate_factor,
            **result.learning_rates,
            **result.scaling,
            **result.figures,
            **self._routing("violation"),
        )
        status = self.pace.status(result)
        self._track(step, status.speed())
        self.display.update(status)

    def _routing(self, name: Literal["violation", "load"]) -> dict[str, Any]:
        """What the routers of all processes did in the last step, by layer, for the log: numbers in nested lists."""
        found = self.trainer.objective.routing.get(name)
        return {} if found is None else {f"expert_{name}_by_layer": found.tolist()}

    def _bad_step(self, step: int, result: StepResult) -> None:
        """Save the batch, then stop or skip the step."""
        file = self.folder.folder / "bad-steps" / f"step-{step:06d}-rank-{self.world.rank}.safetensors"
        file.parent.mkdir(exist_ok=True)
        columns = dict(result.batch.columns)
        if result.batch.cu_seqlens is not None:
            columns["cu_seqlens"] = result.batch.cu_seqlens
        write_tensors(file, columns)
        self._log(step, fault=result.fault)
        self.bad_in_a_row += 1
        if self.training.on_bad_step == "stop" or self.bad_in_a_row > BAD_STEPS:
            raise BadStepError(
                f"{result.fault} at step {step}: a lower training.learning_rate may help; "
                f"the batch is in {file.parent}, the last checkpoint is untouched"
            )
        self.display.say(f"step {step:,} skipped: {result.fault}; its batch is in {file}")

    def _at_intervals(self, step: int) -> None:
        training = self.training
        if _due(training.evaluate_every, step):
            self._evaluate(step)
        if _due(training.sample_every, step) and self.trainer.placement.is_whole:
            try:
                sample = self.task.sample(self.trainer)
            # A run that diverged cannot be sampled; its policy for bad steps decides whether it ends.
            except ValueError as error:
                self.display.say(f"step {step:,}: no sample, {error}")
            else:
                if sample is not None:
                    self.display.sample(step, *sample)
        if _due(training.checkpoint_every, step) and step < training.steps:
            with self._surviving_full_disk():
                self.saver.save(validation_loss=self._validation_loss())
                self._summarize()

    def _evaluate(self, step: int) -> None:
        figures = self._validate()
        named = {f"validation_{name}": figure for name, figure in figures.items()}
        self._log(step, **named, **self._routing("load"))
        for name, function in self.evaluations.items():
            figures = self._evaluation(name, function)
            self._log(step, **figures)
            shown = "  ".join(f"{key} {value:.4g}" for key, value in figures.items())
            self.display.say(f"  {step:>6,} │ {shown}")

    def _evaluation(self, name: str, function: Any) -> dict[str, float]:
        """The figures of one of ``training.evaluations``. If it fails in a run of one process, the run is saved before
        it ends; the other ones of several may wait in the evaluation, and cannot take part in saving."""
        together = {}
        if "team" in inspect.signature(function).parameters:
            together["team"] = self.trainer.team
        try:
            with self.trainer.inference() as model:
                return {key: float(value) for key, value in function(model, self.task.tokenizer, **together).items()}
        except Exception as error:  # it is the user's own function
            saved = ""
            if self.world.size == 1:
                self.saver.save(validation_loss=self._validation_loss())
                self.saver.wait()
                saved = ", which is saved"
            raise ValueError(
                f"training.evaluations: {name} failed at step {self.trainer.steps_done:,}{saved}: "
                f"{type(error).__name__}: {error}"
            ) from error

    def _validate(self) -> dict[str, float]:
        figures = self.trainer.evaluate(part=True)
        self.validation = self.trainer.steps_done, figures["loss"]
        return figures

    def _validation_loss(self) -> float | None:
        """That of the present weights, where it decides which checkpoint is the best."""
        if not (self.training.keep_best and self.training.evaluate_every):
            return None
        if self.validation is None or self.validation[0] != self.trainer.steps_done:
            self._validate()
        return self.validation[1]

    def _summarize(self) -> None:
        if self.summary is not None:
            self.summary.write(self.pace.seconds, self.pace.tokens)

    @contextlib.contextmanager
    def _surviving_full_disk(self) -> Iterator[None]:
        """A full disk costs a checkpoint, not the run: the next one may find room."""
        try:
            yield
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            self.display.say(
                f"step {self.trainer.steps_done:,}: checkpoint not saved, {os.strerror(error.errno).lower()}; "
                "earlier ones are whole, training continues"
            )

    def _log(self, step: int, **record: Any) -> None:
        if not self.world.is_main:
            return
        self.folder.log(step=step, **record)
        self._track(step, dict(_scalars(record)))

    def _track(self, step: int, figures: dict[str, float]) -> None:
        """Give the trackers figures; those of speed are theirs alone, since the same run has the same log.jsonl."""
        for tracker in self.trackers if figures else ():
            tracker.log(step, figures)


def save(session: Session, *, validation_loss: float | None = None) -> Path:
    """Write a checkpoint of where the session's trainer is; returns its folder."""
    Saver(session.run.folder, session.trainer).save(validation_loss=validation_loss)
    return checkpoint_folder(session.run.folder, session.trainer.steps_done)


def _scalars(record: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, int | float]]:
    """The numbers of a record by name; those in lists by name/place, which trackers show together."""
    for name, value in record.items():
        if isinstance(value, int | float):
            yield f"{prefix}{name}", value
        elif isinstance(value, list):
            yield from _scalars({str(place): each for place, each in enumerate(value)}, f"{prefix}{name}/")


def _due(interval: int, step: int) -> bool:
    return interval > 0 and step % interval == 0
