"""What is refused before a request is read: a missing key, a body that is too large or comes too slowly."""

from __future__ import annotations

import asyncio
import hmac

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llmfast.inference.server.errors import ApiError

OPEN_PATHS = ("/", "/health")
"""Served without a key."""


class Limits:
    """Checks the key and reads the body, and then lets the application answer.

    Args:
        app: as above.
        api_key: that clients must send (``Authorization: Bearer KEY``); empty for none.
        max_body: most bytes of a body.
        body_timeout: most seconds until a body is there.
    """

    def __init__(self, app: ASGIApp, *, api_key: str, max_body: int, body_timeout: float):
        self._app, self._key = app, api_key.encode()
        self._max_body, self._body_timeout = max_body, body_timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._check_key(scope)
            body = await self._body(scope, receive)
        except ApiError as error:
            response = error.response()
            response.headers["Connection"] = "close"
            await response(scope, receive, send)
            return
        if body is None:  # the client left
            return
        message: Message | None = {"type": "http.request", "body": body, "more_body": False}

        async def replayed() -> Message:
            nonlocal message
            if message is None:
                return await receive()
            first, message = message, None
            return first

        await self._app(scope, replayed, send)

    def _check_key(self, scope: Scope) -> None:
        if not self._key or scope["path"] in OPEN_PATHS:
            return
        kind, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not hmac.compare_digest(given.strip().encode("latin-1"), self._key):
            raise ApiError(
                401, "the Authorization header must be 'Bearer KEY' with the server's key", code="invalid_api_key"
            )

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        announced = Headers(scope=scope).get("content-length", "0")
        too_large = announced.isdigit() and int(announced) > self._max_body
        parts: list[bytes] = []
        size = 0
        try:
            while True:
                message = await asyncio.wait_for(receive(), self._body_timeout)
                if message["type"] == "http.disconnect":
                    return None
                part = message.get("body", b"")
                size += len(part)
                too_large = too_large or size > self._max_body
                if not too_large:
                    parts.append(part)
                # A client that is still sending would not read the answer: the rest is read, up to a limit.
                if not message.get("more_body", False) or size > 4 * self._max_body:
                    break
        except (TimeoutError, asyncio.TimeoutError):
            raise ApiError(408, f"the body did not arrive within {self._body_timeout:g} seconds") from None
        if too_large:
            raise ApiError(413, f"the body is larger than the {self._max_body} bytes that this server takes")
        return b"".join(parts)
