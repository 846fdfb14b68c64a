"""The one thread that an engine runs in, and the replies that it hands to asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from llmfast.inference.config import Sampling
from llmfast.inference.engine import Engine
from llmfast.inference.sequence import FinishReason, Request, Update
from llmfast.inference.server.errors import ApiError, refused

T = TypeVar("T")


@dataclass
class Piece:
    """What is new of one choice since its reader looked last."""

    choice: int
    request: Request
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top_logprobs: list[dict[int, float]] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None

    def add(self, update: Update) -> None:
        self.text += update.text
        self.tokens += update.tokens
        self.logprobs += update.logprobs
        self.top_logprobs += update.top_logprobs or []
        self.finish_reason, self.stop_reason = update.finish_reason, update.stop_reason


class Job:
    """The choices that one HTTP request asks for: several prompts, and samples of each.

    Iterating gives what is new, as lists of pieces. What a reader has not taken yet is joined, so that a slow one holds
    up nobody and never more than its replies.
    """

    def __init__(self, worker: EngineThread, choices: int):
        self._worker = worker
        self._news = asyncio.Event()
        self._pending: dict[int, Piece] = {}
        self._unfinished = set(range(choices))
        self.choices = choices
        self.requests: list[Request] = []
        """Of the engine, which alone touches them."""
        self.accepted = asyncio.get_running_loop().create_future()
        """Done when the engine has taken the prompts; raises ``ApiError`` if it refused them."""
        self.error: ApiError | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.started = time.perf_counter()
        self.first_token: float | None = None

    @property
    def finished(self) -> bool:
        return not self._unfinished or self.error is not None

    async def __aiter__(self) -> AsyncIterator[list[Piece]]:
        """What is new, until all choices are finished.

        Raises:
            ApiError: the job failed, or took too long.
        """
        while True:
            pieces, self._pending = list(self._pending.values()), {}
            if pieces:
                yield pieces
            elif self.error is not None:
                raise self.error
            elif not self._unfinished:
                return
            else:
                self._news.clear()
                await self._news.wait()

    def add(self, choice: int, update: Update) -> None:
        """Called in the event loop's thread."""
        if self.first_token is None and update.tokens:
            self.first_token = time.perf_counter()
        self._pending.setdefault(choice, Piece(choice, update.request)).add(update)
        if update.finish_reason is not None:
            self._unfinished.discard(choice)
        self._news.set()

    def fail(self, error: ApiError) -> None:
        """End it with an error, unless it is finished."""
        if not self.finished:
            self.error = error
            self._news.set()
        if not self.accepted.done():
            self.accepted.set_exception(error)
            self.accepted.exception()  # nobody may be waiting for it any more
        self.cancel()

    def cancel(self) -> None:
        """Tell the engine to stop at its next step; does nothing once that is done."""
        self._worker.cancel(self)


class EngineThread:
    """Runs an engine in a thread of its own: submits, steps and cancels.

    All public methods are for the event loop's thread.

    Args:
        engine: nobody else may use it.
        max_queue: most choices that wait beside those that run; more are refused.
    """

    def __init__(self, engine: Engine, *, max_queue: int):
        self.engine, self.max_choices = engine, engine.config.max_batch + max_queue
        self.failed: str | None = None
        """Why the thread ended, if it ended by itself."""
        self.on_closed: Callable[[Job], None] = lambda job: None
        """Called when the engine holds nothing of a job any more."""
        self._mail: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        # Of the event loop: the jobs that the engine may hold something of, and what waits for ``call``.
        self._jobs: set[Job] = set()
        self._calls: set[asyncio.Future[Any]] = set()
        self._owners: dict[Request, tuple[Job, int]] = {}  # of the thread: the job, and the number of its first choice
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="llmfast engine", daemon=True)

    def start(self) -> None:
        """Start, in the event loop that updates are to be handed to."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def stop(self) -> None:
        """Cancel what is unfinished, and end the thread."""
        for job in list(self._jobs):
            job.fail(ApiError(503, "the server is shutting down"))
        self._mail.put(self._stop)
        await asyncio.to_thread(self._thread.join)

    @property
    def open_choices(self) -> int:
        """Choices that are not finished, or whose cancellation the engine has not confirmed."""
        return sum(job.choices for job in self._jobs)

    def submit(
        self, prompts: Sequence[list[int]], sampling: Sampling, *, samples: int, adapter: str | None, timeout: float
    ) -> Job:
        """Queue ``samples`` replies to each prompt; choice ``i * samples + j`` is sample j of prompt i.

        Raises:
            ApiError: too many wait, or the engine has failed.
        """
        self._check_alive()
        choices = len(prompts) * samples
        if choices > self.max_choices:
            raise ApiError(
                400, f"n: {choices} replies are asked for; this server takes {self.max_choices} at once", "n"
            )
        if self.open_choices + choices > self.max_choices:
            raise ApiError(
                429,
                f"the server is busy: {self.open_choices} replies are unfinished or waiting; try again",
                code="busy",
            )
        job = Job(self, choices)
        self._jobs.add(job)
        late = ApiError(504, f"the reply took longer than {timeout:g} seconds", code="timeout")
        job.timer = self._loop.call_later(timeout, job.fail, late)
        self._mail.put(lambda: self._submit(job, prompts, sampling, samples, adapter))
        return job

    def cancel(self, job: Job) -> None:
        if job in self._jobs:
            self._mail.put(lambda: self._cancel(job))

    async def call(self, function: Callable[[Engine], T]) -> T:
        """What ``function(engine)`` returns, called between two steps."""
        self._check_alive()
        future: asyncio.Future[T] = self._loop.create_future()
        self._calls.add(future)
        future.add_done_callback(self._calls.discard)

        def run() -> None:
            try:
                result = function(self.engine)
            except Exception as error:
                self._in_loop(_set_exception, future, error)
            else:
                self._in_loop(_set_result, future, result)

        self._mail.put(run)
        return await future

    def _check_alive(self) -> None:
        if self.failed:
            raise ApiError(503, f"the engine has failed: {self.failed}")

    # --- in the event loop --------------------------------------------------------------------------------------------

    def _hand_over(self, news: list[tuple[Job, int, Update]]) -> None:
        for job, choice, update in news:
            job.add(choice, update)

    def _closed(self, job: Job) -> None:
        if job.timer is not None:
            job.timer.cancel()
        if job in self._jobs:
            self._jobs.remove(job)
            self.on_closed(job)

    def _fail(self, job: Job, error: ApiError) -> None:
        job.fail(error)
        self._closed(job)

    def _die(self, reason: str) -> None:
        self.failed = reason
        error = ApiError(500, f"the engine has failed: {reason}")
        for job in list(self._jobs):
            self._fail(job, error)
        for future in list(self._calls):
            _set_exception(future, error)

    # --- in the thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._read_mail()
                if self.engine.has_work:
                    self._step()
        except BaseException as error:  # a fault of ours: the jobs must not wait for ever
            self._in_loop(self._die, f"{type(error).__name__}: {error}")
            raise

    def _read_mail(self) -> None:
        """Do what was asked for; waits for it if there is nothing else to do."""
        if not self.engine.has_work:
            self._mail.get()()
        with contextlib.suppress(queue.Empty):
            while not self._stopping:
                self._mail.get_nowait()()

    def _stop(self) -> None:
        self._stopping = True

    def _submit(self, job: Job, prompts: Any, sampling: Sampling, samples: int, adapter: str | None) -> None:
        try:
            for place, prompt in enumerate(prompts):
                request = self.engine.submit(prompt, sampling, samples=samples, adapter=adapter)
                job.requests.append(request)
                self._owners[request] = job, place * samples
        except Exception as error:
            self._cancel(job)
            self._in_loop(self._fail, job, _reason(error))
        else:
            self._in_loop(_set_result, job.accepted, None)

    def _cancel(self, job: Job) -> None:
        for request in job.requests:
            self.engine.cancel(request)

    def _step(self) -> None:
        try:
            updates = self.engine.step()
        except Exception as error:  # of the model or the machine: these requests fail, the next may not
            self._fail_all(error)
            return
        news, closed = [], []
        for update in updates:
            job, first = self._owners[update.request]
            news.append((job, first + update.sample, update))
            if update.finish_reason is not None and update.request.finished:
                closed.append(job)
        self._in_loop(self._hand_over, news)
        for job in dict.fromkeys(closed):
            if all(request.finished for request in job.requests):
                self._forget(job)
                self._in_loop(self._closed, job)

    def _fail_all(self, error: Exception) -> None:
        for job in {job for job, _ in self._owners.values()}:
            self._cancel(job)
            self._forget(job)
            self._in_loop(self._fail, job, _reason(error, status=500))
        self._late()

    def _late(self) -> None:
        """Drop the updates of requests that were cancelled since the last step."""
        while self.engine.has_work:
            self.engine.step()

    def _forget(self, job: Job) -> None:
        for request in job.requests:
            self._owners.pop(request, None)

    def _in_loop(self, function: Callable[..., None], *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens
            self._loop.call_soon_threadsafe(function, *arguments)


def _reason(error: Exception, status: int = 400) -> ApiError:
    if isinstance(error, ValueError) and status == 400:
        return refused(error)
    if isinstance(error, ModuleNotFoundError):
        return ApiError(501, f"this needs {error.name}, which is not installed where the server runs", code="missing")
    return ApiError(500, f"the engine failed on this request: {type(error).__name__}: {error}")


def _set_result(future: asyncio.Future[Any], result: Any) -> None:
    if not future.done():
        future.set_result(result)


def _set_exception(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
