"""Errors as OpenAI's API reports them: ``{"error": {"message", "type", "param", "code"}}``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException

_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """A request that is answered with an error.

    Args:
        status: of HTTP.
        message: one sentence for whoever sent the request.
        param: the field of the request at fault.
        code: a word for programs.
    """

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    @property
    def content(self) -> dict[str, Any]:
        """The body of the response."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        headers = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "1"}, 503: {"Retry-After": "5"}}
        return JSONResponse(self.content, self.status, headers.get(self.status))


# The engine's names of settings where those of the API differ.
_FIELDS = {
    "samples": "n",
    "stop_tokens": "stop_token_ids",
    "ignore_end": "ignore_eos",
    "constraint": "response_format",
    "adapter": "model",
}


def refused(error: ValueError, param: str | None = None) -> ApiError:
    """The error for a request that the engine refused with ``error``, whose message begins with a setting's name."""
    message = " ".join(str(error).split())
    first = re.match(r"(?:the )?(\w+)", message)
    name = first[1] if first else None
    if name in _FIELDS:
        message = message.replace(name, _FIELDS[name], 1)
    return ApiError(400, message, param or _FIELDS.get(name, name))


def not_valid(error: ValidationError) -> ApiError:
    """The error for a body that is not what a schema asks for: the first thing that is wrong, by its field."""
    first = error.errors(include_url=False)[0]
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON in UTF-8: {first['ctx']['error']}")
    # A choice of types adds their names to the place: only those parts that are in the input name a field.
    param = _place(first["loc"]) or None
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"{param} is not a field that this server knows", param, "unknown_parameter")
    if first["type"] == "missing":
        return ApiError(400, f"{param} is missing", param, "missing_required_parameter")
    message = first["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    message = message[:1].lower() + message[1:]
    if param is None and first["type"] == "value_error":  # of several fields: the message begins with their names
        return refused(ValueError(message))
    got = first["input"]
    shown = f", got {_short(got)}" if not isinstance(got, Mapping) else ""
    return ApiError(400, f"{param or 'the body'}: {message}{shown}", param)


def _place(location: tuple[int | str, ...]) -> str:
    parts = ""
    for each in location:
        if isinstance(each, int):
            parts += f"[{each}]"
        elif each.isidentifier() and each not in ("str", "int", "float", "bool"):
            parts += f".{each}" if parts else each
    return parts


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def handle_errors(app: FastAPI) -> None:
    """Give every error of an application OpenAI's shape."""

    @app.exception_handler(ApiError)
    async def api_error(_: Request, error: ApiError) -> JSONResponse:
        return error.response()

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        messages = {
            404: f"there is no {request.url.path} here",
            405: f"{request.url.path} does not take {request.method}",
        }
        return ApiError(error.status_code, messages.get(error.status_code, str(error.detail))).response()

    @app.exception_handler(Exception)
    async def server_error(_: Request, error: Exception) -> JSONResponse:
        return ApiError(500, f"the server failed on this request: {type(error).__name__}").response()
