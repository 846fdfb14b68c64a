"""Conversations, and the forms of records that they are read from."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

FormName = Literal["alpaca", "dolly", "sharegpt", "messages", "prompt", "question"]
Message = dict[str, Any]
"""A dictionary with ``role`` and ``content``, as in the OpenAI and transformers libraries; see ``ROLES``."""

ROLES = ("system", "user", "assistant", "tool")
# What other libraries and data sets call the roles.
_ROLE_OF = {role: role for role in ROLES} | {
    "developer": "system",
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function": "tool",
    "observation": "tool",
    "tool_response": "tool",
    "function_call": "assistant",
}


@dataclass(frozen=True)
class Conversation:
    """Messages in order, with the tools that the assistant may call."""

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()
    """Function schemas, as in the OpenAI library."""

    @property
    def answers(self) -> list[int]:
        """The places of the assistant's messages."""
        return [place for place, message in enumerate(self.messages) if message["role"] == "assistant"]


def is_empty(message: Message) -> bool:
    """Whether a message says nothing and calls no tool."""
    return not message["content"].strip() and not message.get("tool_calls")


@dataclass(frozen=True)
class Form:
    """One form of records."""

    columns: str
    """What it looks like, for people."""
    fits: Callable[[Mapping[str, Any]], bool]
    """Whether a record has its columns."""
    convert: Callable[[Mapping[str, Any], str], Conversation]
    """The conversation of a record; the second argument says where it is, for errors."""


def recognize(record: Mapping[str, Any], where: str) -> FormName:
    """The form of a record, by its columns.

    Raises:
        ValueError: the columns of no form, or of more than one.

    >>> recognize({"instruction": "Add 1 and 2.", "input": "", "output": "3"}, "a.json")
    'alpaca'
    """
    found = [name for name, form in FORMS.items() if form.fits(record)]
    if len(found) == 1:
        return found[0]
    columns = ", ".join(map(str, record)) or "no columns"
    if found:
        raise ValueError(f"{where} has the columns of {' and of '.join(found)} ({columns}): choose with data.form")
    known = "; ".join(f"{name}: {form.columns}" for name, form in FORMS.items())
    raise ValueError(f"{where} has the columns {columns}, which are of no known form ({known})")


def conversation(record: Mapping[str, Any], form: FormName, where: str) -> Conversation:
    """The conversation that a record holds.

    Raises:
        ValueError: it is not of that form; the message begins with ``where``.

    >>> conversation({"instruction": "Hi", "output": "Hello"}, "alpaca", "a.json").messages[1]
    {'role': 'assistant', 'content': 'Hello'}
    """
    if not FORMS[form].fits(record):
        columns = ", ".join(map(str, record)) or "no columns"
        raise ValueError(f"{where} has the columns {columns}, but the form {form} has {FORMS[form].columns}")
    found = FORMS[form].convert(record, where)
    if not found.messages:
        raise ValueError(f"{where} has no messages")
    return found


# --- records with an instruction and an answer -----------------------------------------------------------------------


def _text(record: Mapping[str, Any], name: str, where: str) -> str:
    """A field of text; one that is missing or null is empty."""
    value = record.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{where}: {name} is {_kind(value)}, not text")
    return value


def _instruction(question: str, context: str, answer: str) -> Callable[[Mapping[str, Any], str], Conversation]:
    def convert(record: Mapping[str, Any], where: str) -> Conversation:
        instruction, extra = _text(record, question, where), _text(record, context, where)
        asked = {"role": "user", "content": f"{instruction}\n\n{extra}" if extra.strip() else instruction}
        if extra.strip():
            # For templates that render the two apart, as Alpaca's does.
            asked |= {"instruction": instruction, "input": extra}
        system = _text(record, "system", where)
        return Conversation(
            (
                *([{"role": "system", "content": system}] if system.strip() else []),
                asked,
                {"role": "assistant", "content": _text(record, answer, where)},
            )
        )

    return convert


def _prompt(record: Mapping[str, Any], where: str) -> Conversation:
    prompt, completion = record["prompt"], record["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        return Conversation(({"role": "user", "content": prompt}, {"role": "assistant", "content": completion}))
    messages = [*_list(prompt, f"{where}: prompt"), *_list(completion, f"{where}: completion")]
    return Conversation(_messages(messages, where, "role", "content"), _tools(record, where))


# --- records with a list of messages ---------------------------------------------------------------------------------


def _turns(record: Mapping[str, Any]) -> Any:
    return next((record[name] for name in ("messages", "conversations", "conversation") if record.get(name)), None)


def _turns_have(key: str) -> Callable[[Mapping[str, Any]], bool]:
    def fits(record: Mapping[str, Any]) -> bool:
        turns = _turns(record)
        return isinstance(turns, Sequence) and isinstance(turns[0], Mapping) and key in turns[0]

    return fits


def _openai(record: Mapping[str, Any], where: str) -> Conversation:
    return Conversation(_messages(_turns(record), where, "role", "content"), _tools(record, where))


def _sharegpt(record: Mapping[str, Any], where: str) -> Conversation:
    messages = _messages(_turns(record), where, "from", "value")
    system = _text(record, "system", where)
    if system.strip() and messages[0]["role"] != "system":
        messages = ({"role": "system", "content": system}, *messages)
    return Conversation(messages, _tools(record, where))


def _messages(turns: Any, where: str, role_key: str, content_key: str) -> tuple[Message, ...]:
    found = []
    for number, turn in enumerate(_list(turns, where), 1):
        here = f"{where}, message {number}"
        if not isinstance(turn, Mapping) or not isinstance(turn.get(role_key), str):
            raise ValueError(f"{here} has no {role_key!r}")
        found.append(_message(turn, turn[role_key], turn.get(content_key), here))
    return tuple(found)


def _message(turn: Mapping[str, Any], role: str, content: Any, where: str) -> Message:
    if role.lower() not in _ROLE_OF:
        raise ValueError(f"{where} has the role {role!r}; roles are {', '.join(_ROLE_OF)}")
    message: Message = {"role": _ROLE_OF[role.lower()], "content": _content(content, where)}
    calls = [_call(call, where) for call in turn.get("tool_calls") or ()]
    if turn.get("function_call"):  # the form that OpenAI's library had before
        calls.append(_call({"function": turn["function_call"]}, where))
    if role == "function_call":  # in ShareGPT's form the text is the call
        calls.append(_call({"function": _parsed(message["content"], f"{where}: the function call")}, where))
        message["content"] = ""
    if calls and message["role"] != "assistant":
        raise ValueError(f"{where} calls a tool, but its role is {role!r}")
    if calls:
        message["tool_calls"] = calls
    for name in ("name", "tool_call_id"):
        if turn.get(name) is not None:
            message[name] = _text(turn, name, where)
    reasoning = next((turn[name] for name in ("reasoning_content", "thinking", "reasoning") if turn.get(name)), None)
    if reasoning is not None:
        message["reasoning_content"] = _content(reasoning, where)
    return message


def _content(content: Any, where: str) -> str:
    """Text, or the parts of a message joined where all of them are text."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    parts = []
    for part in _list(content, where):
        if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, Mapping) else _kind(part)
            raise ValueError(f"{where} has a part that is {kind}: only text can be trained on")
        parts.append(part["text"])
    return "".join(parts)


def _call(call: Any, where: str) -> dict[str, Any]:
    """A tool call with its arguments as a table, which templates expect; the OpenAI library has them as JSON."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ValueError(f"{where} has a tool call without the name of a function")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        arguments = _parsed(arguments, f"{where}: the arguments of {function['name']}") if arguments.strip() else {}
    if not isinstance(arguments, Mapping | None):
        raise ValueError(f"{where}: the arguments of {function['name']} are {_kind(arguments)}, not a table")
    own = {"type": "function", "function": {"name": function["name"], "arguments": dict(arguments or {})}}
    return ({"id": call["id"]} if isinstance(call.get("id"), str) else {}) | own


def _tools(record: Mapping[str, Any], where: str) -> tuple[dict[str, Any], ...]:
    tools = record.get("tools") or record.get("functions")
    if isinstance(tools, str):
        tools = _parsed(tools, f"{where}: tools") if tools.strip() else None
    if tools is None:
        return ()
    found = _list(tools, f"{where}: tools")
    if not all(isinstance(tool, Mapping) for tool in found):
        raise ValueError(f"{where}: tools are not a list of tables")
    return tuple(dict(tool) for tool in found)


def _parsed(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{what} is not JSON: {error}") from None


def _list(value: Any, where: str) -> Sequence[Any]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ValueError(f"{where} is {_kind(value)}, not a list")
    return value


def _kind(value: Any) -> str:
    names = {str: "text", bool: "true or false", dict: "a table", list: "a list", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)


def _has(*columns: str) -> Callable[[Mapping[str, Any]], bool]:
    return lambda record: all(column in record for column in columns)


FORMS: dict[FormName, Form] = {
    "alpaca": Form(
        "instruction, output and perhaps input",
        _has("instruction", "output"),
        _instruction("instruction", "input", "output"),
    ),
    "dolly": Form(
        "instruction, response and perhaps context",
        _has("instruction", "response"),
        _instruction("instruction", "context", "response"),
    ),
    "sharegpt": Form("conversations with from and value", _turns_have("from"), _sharegpt),
    "messages": Form("messages with role and content, and perhaps tools", _turns_have("role"), _openai),
    "prompt": Form("prompt and completion", _has("prompt", "completion"), _prompt),
    # GSM8K's records, and those of reasoning-gym.
    "question": Form(
        "question, answer and perhaps context",
        _has("question", "answer"),
        _instruction("question", "context", "answer"),
    ),
}
assert tuple(FORMS) == get_args(FormName)
