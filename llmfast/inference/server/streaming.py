"""Replies on their way to the client: all at once or as server-sent events, cancelled when the client is gone."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterable
from typing import Any

from fastapi import Response
from starlette.types import Receive, Scope, Send

from llmfast.inference.server.choices import Choice, usage
from llmfast.inference.server.errors import ApiError
from llmfast.inference.server.shapes import Shape
from llmfast.inference.server.worker import Job


@contextlib.asynccontextmanager
async def cancelled_with_its_client(job: Job, receive: Receive) -> AsyncIterator[None]:
    """Cancels a job if its client disconnects in the ``with`` block, or the block ends before the job does."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        job.cancel()

    watching = asyncio.create_task(watch())
    try:
        yield
    finally:
        watching.cancel()
        job.cancel()


async def collected(job: Job, choices: list[Choice], shape: Shape) -> dict[str, Any]:
    """The response with all replies.

    Raises:
        ApiError: the job failed.
    """
    async for pieces in job:
        for piece in pieces:
            choices[piece.choice].take(piece)
    return shape.whole(choices, usage(job.requests, choices))


async def chunks(job: Job, choices: list[Choice], shape: Shape, *, with_usage: bool) -> AsyncIterator[dict[str, Any]]:
    """The chunks of a stream; with ``with_usage`` each has the field, as OpenAI's API sends it.

    Raises:
        ApiError: the job failed.
    """
    extra = {"usage": None} if with_usage else {}
    for choice in choices:
        for chunk in shape.first(choice):
            yield chunk | extra
    async for pieces in job:
        for piece in pieces:
            choice = choices[piece.choice]
            delta = choice.take(piece)
            if not delta.is_empty:
                yield shape.chunk(choice, delta) | extra
    if with_usage:
        yield shape.last(usage(job.requests, choices))


class EventStream(Response):
    """Sends chunks as server-sent events. A client that reads slowly holds up its own stream only."""

    media_type = "text/event-stream"

    def __init__(self, job: Job, chunks: AsyncIterator[dict[str, Any]]):
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._job, self._chunks = job, chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with cancelled_with_its_client(self._job, receive):
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            try:
                async for chunk in self._chunks:
                    await _send(send, [chunk])
                await _send(send, [], "data: [DONE]\n\n")
            except ApiError as error:  # too late for a status
                await _send(send, [error.content])
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _send(send: Send, events: Iterable[dict[str, Any]], end: str = "") -> None:
    text = "".join(f"data: {json.dumps(event, ensure_ascii=False)}\n\n" for event in events) + end
    await send({"type": "http.response.body", "body": text.encode(), "more_body": True})
