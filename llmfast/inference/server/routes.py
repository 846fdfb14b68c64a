"""The routes of the server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from importlib import resources
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import ValidationError

from llmfast.inference.config import Sampling
from llmfast.inference.prompts import beginning, prompt_tokens
from llmfast.inference.server.choices import Choice, Echo
from llmfast.inference.server.embeddings import as_json, embed
from llmfast.inference.server.errors import ApiError, not_valid, refused
from llmfast.inference.server.prompts import (
    chat_prompt,
    chat_sampling,
    completion_prompts,
    completion_sampling,
    used_tools,
)
from llmfast.inference.server.schemas import (
    Body,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    Generation,
    TokenizeRequest,
)
from llmfast.inference.server.service import Service, for_engine
from llmfast.inference.server.shapes import ChatShape, CompletionShape, Shape
from llmfast.inference.server.streaming import EventStream, cancelled_with_its_client, chunks, collected

B = TypeVar("B", bound=Body)


def body_of(schema: type[B]) -> Callable[[Request], Awaitable[B]]:
    """A dependency that reads the body of a request as ``schema``."""

    async def read(request: Request) -> B:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # a form of another site could send anything else
            raise ApiError(415, f"the Content-Type must be application/json, got {kind or 'none'}")
        try:
            return schema.model_validate_json(await request.body())
        except ValidationError as error:
            raise not_valid(error) from None

    return read


def routes(service: Service) -> APIRouter:
    """All routes of a server."""
    router = APIRouter()
    started = int(time.time())
    page = resources.files("llmfast.inference.server").joinpath("page.html").read_text("utf-8")

    # --- about the server ---------------------------------------------------------------------------------------------

    @router.get("/", response_class=HTMLResponse)
    async def index() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff"})

    @router.get("/health")
    async def health() -> JSONResponse:
        failed = service.worker.failed
        return JSONResponse({"status": "failed" if failed else "ok"}, 503 if failed else 200)

    @router.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @router.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(service, name, started) for name in service.models]}

    @router.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        service.adapter(name)
        return _model(service, name, started)

    # --- generation ---------------------------------------------------------------------------------------------------

    @router.post("/v1/completions")
    async def completions(
        body: Annotated[CompletionRequest, Depends(body_of(CompletionRequest))], request: Request
    ) -> Response:
        service.adapter(body.model)
        sampling = completion_sampling(body, service.defaults)
        prompts = await _off_the_loop(completion_prompts, body, service.tokenizer)
        choices = _completion_choices(body, prompts, service)
        shape = CompletionShape(
            service.tokenizer, body.model, logprobs=body.logprobs is not None, top=body.logprobs or 0
        )
        return await _generate(service, request, body, "prompt", prompts, sampling, choices, shape)

    @router.post("/v1/chat/completions")
    async def chat_completions(
        body: Annotated[ChatRequest, Depends(body_of(ChatRequest))], request: Request
    ) -> Response:
        service.adapter(body.model)
        encoder, tools = service.encoder, used_tools(body)
        sampling = chat_sampling(body, service.defaults, encoder.end_token)
        prompt = await _off_the_loop(chat_prompt, body.messages, tools, encoder)
        choices = [Choice(index, service.tokenizer, reads_tools=bool(tools)) for index in range(body.n)]
        shape = ChatShape(service.tokenizer, body.model, logprobs=body.logprobs, top=body.top_logprobs or 0)
        return await _generate(service, request, body, "messages", [prompt], sampling, choices, shape)

    # --- texts as numbers ---------------------------------------------------------------------------------------------

    @router.post("/v1/embeddings")
    async def embeddings(body: Annotated[EmbeddingRequest, Depends(body_of(EmbeddingRequest))]) -> dict[str, Any]:
        adapter = service.adapter(body.model)
        found, total = [], 0
        for index, text in enumerate(body.input):
            tokens = prompt_tokens(service.tokenizer, text) if isinstance(text, str) else text
            service.check_length(len(tokens), "input")
            try:
                vector = await service.worker.call(lambda engine, ids=tokens: embed(engine, ids, body.pooling, adapter))
            except ValueError as error:
                raise refused(error) from None
            total += len(tokens)
            found.append({"object": "embedding", "index": index, "embedding": as_json(vector, body.encoding_format)})
        used = {"prompt_tokens": total, "total_tokens": total}
        return {"object": "list", "data": found, "model": body.model, "usage": used}

    @router.post("/tokenize")
    async def tokenize(body: Annotated[TokenizeRequest, Depends(body_of(TokenizeRequest))]) -> dict[str, Any]:
        service.adapter(body.model or service.name)
        if body.messages is not None:
            tokens = await _off_the_loop(chat_prompt, body.messages, [], service.encoder)
        elif body.add_special_tokens:
            tokens = await _off_the_loop(prompt_tokens, service.tokenizer, body.prompt)
        else:
            tokens = await _off_the_loop(service.tokenizer.encode_ordinary, body.prompt)
        return {"count": len(tokens), "max_model_len": service.worker.engine.limit, "tokens": tokens}

    @router.post("/detokenize")
    async def detokenize(body: Annotated[DetokenizeRequest, Depends(body_of(DetokenizeRequest))]) -> dict[str, Any]:
        service.adapter(body.model or service.name)
        try:
            return {"prompt": service.tokenizer.decode(body.tokens)}
        except (KeyError, OverflowError) as error:
            raise ApiError(400, f"tokens has {error}, which the tokenizer does not have", "tokens") from None

    return router


# The page is one file, which takes nothing from elsewhere.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def _model(service: Service, name: str, created: int) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "llmfast",
        "parent": None if name == service.name else service.name,
        "max_model_len": service.worker.engine.limit,
        "can_chat": service.can_chat,
    }


async def _off_the_loop(function: Callable[..., Any], *arguments: Any) -> Any:
    """Long texts take their time, in which the event loop serves others."""
    return await asyncio.to_thread(function, *arguments)


def _completion_choices(body: CompletionRequest, prompts: list[list[int]], service: Service) -> list[Choice]:
    echoes: list[Echo | None] = [None] * len(prompts)
    if body.echo:
        added = len(beginning(service.tokenizer))
        echoes = [
            Echo(tokens, sent, added) if isinstance(sent, str) else Echo(tokens, None, 0)
            for sent, tokens in zip(body.prompt, prompts, strict=True)
        ]
    each = [echo for echo in echoes for _ in range(body.n)]
    return [Choice(index, service.tokenizer, echo=echo) for index, echo in enumerate(each)]


async def _generate(
    service: Service,
    request: Request,
    body: Generation,
    field: str,
    prompts: list[list[int]],
    sampling: Sampling,
    choices: list[Choice],
    shape: Shape,
) -> Response:
    """Run the prompts, and answer as the body asks for it."""
    for prompt in prompts:
        service.check_length(len(prompt), field)
    adapter = for_engine(service.adapter(body.model))
    job = service.worker.submit(prompts, sampling, samples=body.n, adapter=adapter, timeout=service.limits.timeout)
    try:
        if body.stream:
            await job.accepted
            usage = body.stream_options is not None and body.stream_options.include_usage
            return EventStream(job, chunks(job, choices, shape, with_usage=usage))
        async with cancelled_with_its_client(job, request.receive):
            await job.accepted
            return JSONResponse(await collected(job, choices, shape))
    except ApiError as error:
        error.param = field if error.param == "prompt" else error.param
        raise
