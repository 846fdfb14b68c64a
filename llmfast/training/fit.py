"""The training loop: steps, with evaluation, samples, checkpoints and the log at their intervals."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from llmfast.data.prepare import END_OF_TEXT, Prepared
from llmfast.inference.generate import encode_prompt, generate_tokens, stream_text
from llmfast.inference.sampling import Sampling
from llmfast.training.checkpoint import checkpoints, save_checkpoint
from llmfast.training.display import Display, Status
from llmfast.training.session import Session
from llmfast.training.trainer import Trainer

SMOOTHING = 0.95
PART_TOKENS = 2**15  # of the validation split, for the evaluations on the way
PROMPT_TOKENS, SAMPLE_TOKENS = 6, 40


def fit(session: Session, *, console: Console | None = None) -> None:
    """Train until ``config.training.steps`` are done, saving on the way and at the end.

    SIGINT and SIGTERM end the current step, save a checkpoint and raise KeyboardInterrupt.

    Raises:
        KeyboardInterrupt: stopped by a signal; the run can be resumed.
        ValueError: the loss is no longer a finite number.
    """
    run, prepared, trainer = session.run, session.prepared, session.trainer
    training = trainer.config.training
    run.rewind_log(trainer.steps_done)
    pace = _Pace(trainer)
    with _stop_requests() as stop, Display(training.steps, console=console) as display:
        while trainer.steps_done < training.steps and not stop:
            result = trainer.step()
            step, loss = trainer.steps_done, result.loss.item()
            if not math.isfinite(loss):
                raise ValueError(
                    f"the loss is {loss} at step {step}: a lower training.learning_rate may help; "
                    "the last checkpoint is untouched"
                )
            run.log(
                step=step,
                loss=loss,
                gradient_norm=result.gradient_norm.item(),
                learning_rate_factor=result.learning_rate_factor,
            )
            display.update(pace.status(loss, prepared))
            if _due(training.evaluate_every, step):
                part = trainer.evaluate(prepared.validation, max_tokens=PART_TOKENS)
                run.log(step=step, validation_loss=part.loss, validation_bits_per_byte=part.bits_per_byte)
            if _due(training.sample_every, step):
                display.sample(step, *_sample(session))
            if _due(training.checkpoint_every, step) and step < training.steps:
                save(session)
            pace.resume_clock()
    # Nothing more to do when a finished run is resumed; a second save would only rewrite the same bytes.
    if not any(path.name == f"step-{trainer.steps_done:06d}" for path in checkpoints(run.folder)):
        save(session)
    if stop:
        raise KeyboardInterrupt


def save(session: Session) -> Path:
    """Write a checkpoint of where the session's trainer is; returns its folder."""
    trainer = session.trainer
    return save_checkpoint(
        session.run.folder,
        step=trainer.steps_done,
        position=trainer.batches.position,
        model=trainer.model,
        optimizer=trainer.optimizer_tensors(),
        tokenizer=session.prepared.tokenizer,
    )


def _due(interval: int, step: int) -> bool:
    return interval > 0 and step % interval == 0


def sample_prompt(session: Session) -> str:
    """What the model is asked to continue: ``def`` for Python's library, else how a held-out document begins."""
    if not session.trainer.config.data.sources:
        return "def "
    held_out = session.prepared.validation
    tokens = held_out.read(1, min(PROMPT_TOKENS, len(held_out) - 1)).tolist()
    return session.prepared.tokenizer.decode(tokens).split(END_OF_TEXT)[0]


def _sample(session: Session) -> tuple[str, str]:
    """The prompt and the model's continuation."""
    tokenizer, prompt = session.prepared.tokenizer, sample_prompt(session)
    tokens = generate_tokens(
        session.trainer.model,
        encode_prompt(tokenizer, prompt),
        SAMPLE_TOKENS,
        sampling=Sampling(temperature=0.7, top_p=0.95),
        stop=tokenizer.eot_token,
    )
    text = stream_text(tokenizer, (token for token in tokens if token != tokenizer.eot_token))
    return prompt, "".join(text)


class _Pace:
    """Smooths the loss and measures the speed of training itself, without evaluations, samples and saving."""

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self.loss: float | None = None
        self.seconds = 0.0
        self.steps = 0
        self.started = time.perf_counter()

    def resume_clock(self) -> None:
        """What happened since the last status was not training."""
        self.started = time.perf_counter()

    def status(self, loss: float, prepared: Prepared) -> Status:
        trainer = self.trainer
        now = time.perf_counter()
        # The first step of a process compiles: it says nothing of the speed to expect.
        if self.loss is not None:
            self.seconds, self.steps = self.seconds + now - self.started, self.steps + 1
        self.loss = loss if self.loss is None else SMOOTHING * self.loss + (1 - SMOOTHING) * loss
        per_step = self.seconds / self.steps if self.steps else now - self.started
        speed = trainer.tokens_per_step / per_step
        return Status(
            step=trainer.steps_done,
            loss=self.loss,
            bits_per_byte=self.loss / math.log(2) * len(prepared.train) / prepared.train.text_bytes,
            tokens_per_second=speed,
            seconds_left=(trainer.config.training.steps - trainer.steps_done) * per_step,
            utilisation=trainer.utilisation(speed),
        )


@contextlib.contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """A list that SIGINT or SIGTERM fills, so that a step is never torn; a second signal acts at once."""
    received: list[int] = []
    previous = {}

    def remember(number: int, frame: object) -> None:
        received.append(number)
        for each, handler in previous.items():
            signal.signal(each, handler)

    try:
        for each in (signal.SIGINT, signal.SIGTERM):
            previous[each] = signal.signal(each, remember)
    except ValueError:  # not the main thread: signals are the caller's business
        pass
    try:
        yield received
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)
