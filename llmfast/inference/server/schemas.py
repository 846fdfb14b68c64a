"""The bodies of requests, in the names of OpenAI's API; those that it does not have are marked, and are vLLM's."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

Finite = Annotated[float, Field(allow_inf_nan=False)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
Stop = Annotated[str, Field(min_length=1)]
Token = Annotated[int, Field(ge=0)]
MAX_CHOICES = 128


def _prompts(value: Any) -> list[str | list[int]]:
    """A text or tokens, or several of them, as a list."""
    several = value if isinstance(value, list) and value and not _is_token(value[0]) else [value]
    for each in several:
        if each in ("", []):
            raise ValueError("must not be empty")
        if not (isinstance(each, str) or (isinstance(each, list) and all(map(_is_token, each)))):
            raise ValueError("must be a text, a list of tokens, or a list of either")
    return several


def _is_token(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


Prompts = Annotated[Any, AfterValidator(_prompts)]


class Body(BaseModel):
    """A JSON object with these fields and no others. A field that is null counts as left out."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _without_null(cls, data: Any) -> Any:
        return {name: value for name, value in data.items() if value is not None} if isinstance(data, dict) else data


class StreamOptions(Body):
    include_usage: bool = False


class Generation(Body):
    """What completions and chat completions have in common."""

    model: str
    temperature: Annotated[Finite, Field(ge=0)] | None = None
    top_p: Annotated[Finite, Field(gt=0, le=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] = 1
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] = []
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    presence_penalty: Penalty = 0
    frequency_penalty: Penalty = 0
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] = {}
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = None
    """For the client's own records; changes nothing."""
    # Not in OpenAI's API:
    top_k: Annotated[int, Field(ge=1)] | None = None
    min_p: Annotated[Finite, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[Finite, Field(gt=0)] | None = None
    min_tokens: Annotated[int, Field(ge=0)] = 0
    stop_token_ids: list[Token] = []
    ignore_eos: bool = False
    truncate_prompt: bool = False
    """Read only the end of a prompt that is too long, instead of refusing it (llmfast's own)."""

    @model_validator(mode="after")
    def _consistent(self) -> Generation:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is for requests with stream")
        for token in self.logit_bias:
            if not (token.isascii() and token.isdigit()):
                raise ValueError(f"logit_bias has the key {token!r}, which is not the number of a token")
        return self


class CompletionRequest(Generation):
    prompt: Prompts
    max_tokens: Annotated[int, Field(ge=1)] = 16
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool = False


class ContentPart(Body):
    type: str
    text: str = ""


class FunctionCall(Body):
    name: str
    arguments: str | dict[str, Any] = ""


class ToolCall(Body):
    id: str | None = None
    type: Literal["function"] = "function"
    index: int | None = None
    function: FunctionCall


class Message(Body):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[ContentPart] = ""
    name: str | None = None
    tool_calls: list[ToolCall] = []
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    # What clients send back of an answer:
    refusal: str | None = None
    audio: None = None
    function_call: None = None
    annotations: list[Any] = []


class Function(Body):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] = {}
    strict: Literal[False] = False


class Tool(Body):
    type: Literal["function"]
    function: Function


class JsonSchema(Body):
    name: str = "reply"
    description: str | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")] = {}
    strict: bool | None = None


class ResponseFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _consistent(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema goes with the type json_schema, and only with it")
        return self


class ChatRequest(Generation):
    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: list[Tool] = []
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] = "auto"
    parallel_tool_calls: Literal[True] = True
    response_format: ResponseFormat = ResponseFormat(type="text")

    @model_validator(mode="after")
    def _consistent_chat(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs is for requests with logprobs")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_tokens and max_completion_tokens are the same setting: give one of them")
        return self


class EmbeddingRequest(Body):
    model: str
    input: Prompts
    encoding_format: Literal["float", "base64"] = "float"
    user: str | None = None
    pooling: Literal["mean", "last"] = "mean"
    """Which hidden states make the embedding (vLLM calls it so, too)."""


class TokenizeRequest(Body):
    """Either a text or messages."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    add_special_tokens: bool = True

    @model_validator(mode="after")
    def _consistent(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        return self


class DetokenizeRequest(Body):
    model: str | None = None
    tokens: list[Token]
