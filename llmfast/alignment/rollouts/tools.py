"""Tools that a policy calls while it answers: their results enter as tokens that nobody sampled."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from llmfast.evaluation.answers.calculator import calculate

ToolName = Literal["none", "calculator"]


@dataclass(frozen=True)
class Tool:
    """A tool that is called in the text of an answer."""

    stop: str
    """Where an answer may stop for a call."""
    call: re.Pattern[str]
    """Matches the end of an answer that calls; its group is what the tool gets."""
    result: Callable[[str], str]
    """The text that follows the call."""


def _calculated(expression: str) -> str:
    """GSM8K's form: the value, and the end of the call."""
    try:
        value = calculate(expression)
    except ValueError:
        return "error>>"
    return (f"{value:.10g}" if isinstance(value, float) else str(value)) + ">>"


TOOLS: dict[str, Tool] = {
    # As in GSM8K's answers: <<48/2=24>>, of which the tool writes 24>>.
    "calculator": Tool("=", re.compile(r"<<([^<>=]*)=\Z"), _calculated),
}
