"""What a request asks an engine for: tokens and ``Sampling``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmfast.data.chat.conversation import conversation
from llmfast.data.chat.encoder import ChatEncoder
from llmfast.inference.config import Constraint, Sampling
from llmfast.inference.prompts import prompt_tokens
from llmfast.inference.server.errors import ApiError, refused
from llmfast.inference.server.schemas import (
    ChatRequest,
    CompletionRequest,
    Message,
    ResponseFormat,
    Tool,
)
from llmfast.inference.server.tools import reads_tool_calls
from llmfast.tokenizer import Tokenizer


def sampling_of(body: CompletionRequest | ChatRequest, defaults: dict[str, Any], **more: Any) -> Sampling:
    """The settings of a request.

    Args:
        body: as it was sent.
        defaults: for what it leaves out, by ``generation_config.json``.
        more: settings that depend on the kind of request.
    """
    given = {
        name: value
        for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
        if (value := getattr(body, name)) is not None
    }
    try:
        return Sampling(
            **defaults | given,
            presence_penalty=body.presence_penalty,
            frequency_penalty=body.frequency_penalty,
            logit_bias={int(token): bias for token, bias in body.logit_bias.items()},
            seed=None if body.seed is None else body.seed % 2**64,
            stop=body.stop,
            min_tokens=body.min_tokens,
            ignore_end=body.ignore_eos,
            truncate_prompt=body.truncate_prompt,
            **more,
        )
    except ValueError as error:
        raise refused(error) from None


def completion_sampling(body: CompletionRequest, defaults: dict[str, Any]) -> Sampling:
    """The settings of a completion."""
    return sampling_of(
        body,
        defaults,
        max_tokens=body.max_tokens,
        stop_tokens=body.stop_token_ids,
        logprobs=body.logprobs,
        prompt_logprobs=body.logprobs if body.echo else None,
    )


def chat_sampling(body: ChatRequest, defaults: dict[str, Any], end_token: int) -> Sampling:
    """The settings of a chat completion, which ``end_token`` ends."""
    return sampling_of(
        body,
        defaults,
        max_tokens=body.max_completion_tokens or body.max_tokens,
        stop_tokens=[end_token, *body.stop_token_ids],
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        constraint=_constraint(body.response_format),
    )


def _constraint(form: ResponseFormat) -> Constraint | None:
    if form.type == "text":
        return None
    schema = {"type": "object"} if form.json_schema is None else form.json_schema.schema_
    return Constraint(json_schema=schema)


def completion_prompts(body: CompletionRequest, tokenizer: Tokenizer) -> list[list[int]]:
    """The prompts of a completion as tokens; a text begins as a document does."""
    return [prompt_tokens(tokenizer, each) if isinstance(each, str) else each for each in body.prompt]


def chat_prompt(messages: Sequence[Message], tools: Sequence[Tool], encoder: ChatEncoder) -> list[int]:
    """The tokens that the next answer of a conversation continues."""
    for place, message in enumerate(messages):
        for part in message.content if isinstance(message.content, list) else ():
            if part.type != "text":
                where = f"messages[{place}].content"
                raise ApiError(400, f"{where} has a part of type {part.type!r}; this model reads only text", where)
    if tools and not reads_tool_calls(encoder.template.source):
        raise ApiError(
            400, "tools: this server cannot read calls in the form of the model's chat template; it knows chatml's "
            "<tool_call> with JSON", "tools",
        )  # fmt: skip
    record = {
        "messages": [each.model_dump(exclude_defaults=True) | {"role": each.role} for each in messages],
        "tools": [each.model_dump(exclude_none=True, exclude={"function": {"strict"}}) for each in tools],
    }
    try:
        return encoder.prompt(conversation(record, "messages", "messages"))
    except ValueError as error:
        raise refused(error, "messages") from None


def used_tools(body: ChatRequest) -> list[Tool]:
    """The tools that the model is shown."""
    if body.tool_choice == "none":
        return []
    if body.tool_choice != "auto":
        raise ApiError(400, "tool_choice must be none or auto: this server cannot force a call", "tool_choice")
    return body.tools
