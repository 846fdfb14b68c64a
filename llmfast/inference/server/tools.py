"""Calls of tools in what a model writes: JSON between ``<tool_call>`` and ``</tool_call>``, as in chatml."""

from __future__ import annotations

import json
import secrets
from typing import Any

BEGIN, END = "<tool_call>", "</tool_call>"


def reads_tool_calls(template: str) -> bool:
    """Whether a chat template asks for calls in this form."""
    return BEGIN in template and '"arguments"' in template.replace("'", '"')


class ToolCallReader:
    """Takes calls out of a text as it comes.

    The texts that ``push`` and ``finish`` return, joined, are the text without its calls. What may become a call is
    held back; what turns out not to be one is returned as it is.

    >>> reader = ToolCallReader()
    >>> reader.push('Let me look. <tool'), reader.push('_call>{"name": "time", "arguments": {}}</tool_call>')
    ('Let me look. ', '')
    >>> reader.calls[0]["function"]
    {'name': 'time', 'arguments': '{}'}
    """

    def __init__(self) -> None:
        self._held = ""
        self.calls: list[dict[str, Any]] = []
        """The calls so far, as OpenAI's API has them."""

    def push(self, text: str) -> str:
        """The text that is certain to be no call."""
        self._held += text
        released = ""
        while (start := self._held.find(BEGIN)) >= 0:
            released, self._held = released + self._held[:start], self._held[start:]
            if (end := self._held.find(END)) < 0:
                return released
            whole, self._held = self._held[: end + len(END)], self._held[end + len(END) :]
            call = _call(whole[len(BEGIN) : end])
            if call is None:
                released += whole
            else:
                self.calls.append(call)
        keep = next(
            (n for n in range(min(len(BEGIN) - 1, len(self._held)), 0, -1) if BEGIN.startswith(self._held[-n:])), 0
        )
        cut = len(self._held) - keep
        released, self._held = released + self._held[:cut], self._held[cut:]
        return released

    def finish(self) -> str:
        """The rest: what was held back, and did not become a call."""
        rest, self._held = self._held, ""
        return rest


def _call(text: str) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except ValueError:
        return None
    if not isinstance(found, dict) or not isinstance(found.get("name"), str):
        return None
    arguments = found.get("arguments", {})
    if not isinstance(arguments, dict):
        return None
    function = {"name": found["name"], "arguments": json.dumps(arguments, ensure_ascii=False)}
    return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}
