"""What the server did and holds, for Prometheus."""

from __future__ import annotations

import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llmfast.inference.server.worker import EngineThread, Job

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class Metrics:
    """The metrics of one server.

    Args:
        worker: whose engine is looked at when they are read.
    """

    def __init__(self, worker: EngineThread):
        self._registry = CollectorRegistry()
        self._registry.register(_EngineCollector(worker))
        make = {"registry": self._registry}
        self._requests = Counter("llmfast_requests", "Requests answered.", ["path", "status"], **make)
        self._seconds = Histogram(
            "llmfast_request_seconds", "Time of a request until its answer is sent.", ["path"], buckets=_SECONDS, **make
        )
        self._first_token = Histogram(
            "llmfast_first_token_seconds", "Time from a request to its first token.", buckets=_SECONDS, **make
        )
        worker.on_closed = self._closed

    def text(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self._registry)

    def _closed(self, job: Job) -> None:
        if job.first_token is not None:
            self._first_token.observe(job.first_token - job.started)

    def answered(self, path: str, status: int, seconds: float) -> None:
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)


class _EngineCollector(Collector):
    def __init__(self, worker: EngineThread):
        self._worker = worker

    def collect(self) -> Iterator[Metric]:
        now = self._worker.engine.statistics()
        for name, help_, value in (
            ("running_sequences", "Sequences that read or generate.", now.running),
            ("waiting_sequences", "Sequences that wait for a place or for blocks.", now.waiting),
            ("open_choices", "Replies that are not finished, waiting ones included.", self._worker.open_choices),
            ("cache_blocks", "Blocks of the cache.", now.blocks),
            ("cache_blocks_used", "Blocks that unfinished sequences hold.", now.blocks_used),
            ("cache_blocks_free", "Blocks that nobody holds.", now.blocks - now.blocks_used),
        ):
            yield GaugeMetricFamily(f"llmfast_{name}", help_, value=value)
        for name, help_, value in (
            ("prompt_tokens", "Tokens of prompts that were read.", now.prompt_tokens),
            ("generated_tokens", "Tokens that were generated.", now.generated_tokens),
            ("prefix_hit_tokens", "Tokens of prompts that the cache held already.", now.prefix_hits),
            ("preemptions", "Sequences that had to give back their blocks for a while.", now.preemptions),
            ("engine_steps", "Steps of the engine.", now.steps),
        ):
            yield CounterMetricFamily(f"llmfast_{name}", help_, value=value)


class CountRequests:
    """Counts the requests to an application by path and status.

    Args:
        app: as above.
        metrics: where.
        paths: those that are counted by name; all others are one.
    """

    def __init__(self, app: ASGIApp, *, metrics: Metrics, paths: frozenset[str]):
        self._app, self._metrics, self._paths = app, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 499  # if the client leaves before there is an answer

        async def counting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, counting)
        finally:
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._metrics.answered(path, status, time.perf_counter() - started)
