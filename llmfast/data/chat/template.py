"""Chat templates: Jinja that turns messages into text, in a sandbox, with the rules of transformers."""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jinja2
import jinja2.ext
import jinja2.utils
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llmfast.data.chat.conversation import Message


@dataclass(frozen=True)
class ChatTemplate:
    """A template with the names of special tokens that it may use.

    >>> source = "{% for message in messages %}{{ message.role }}: {{ message.content }}{{ eos_token }}{% endfor %}"
    >>> template = ChatTemplate("short", source, {"eos_token": "</s>"})
    >>> template.render([{"role": "user", "content": "Hi"}])
    'user: Hi</s>'

    Raises:
        ValueError: its source is not a template.
    """

    name: str
    source: str
    variables: Mapping[str, str] = field(default_factory=dict)
    """``bos_token``, ``eos_token`` and the like, by name; one that is missing renders as nothing."""

    def __post_init__(self) -> None:
        _ = self._compiled

    @functools.cached_property
    def _compiled(self) -> jinja2.Template:
        try:
            return environment().from_string(self.source)
        except jinja2.TemplateError as error:
            raise ValueError(f"the chat template {self.name} cannot be read: {error}") from None

    def render(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = (), *, generation_prompt: bool = False
    ) -> str:
        """The text of a conversation; with ``generation_prompt``, up to where the assistant's next answer begins.

        Raises:
            ValueError: the template refuses the conversation, or fails.
        """
        try:
            return self._compiled.render(
                messages=list(messages),
                tools=list(tools) or None,
                documents=None,
                add_generation_prompt=generation_prompt,
                **self.variables,
            )
        except _FAILURES as error:
            raise ValueError(f"the chat template {self.name} fails: {error}") from None


# What a template that is wrong, or a conversation that is not what it expects, may raise.
_FAILURES = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


@functools.cache
def environment() -> jinja2.Environment:
    """The environment in which transformers renders chat templates."""
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols]
    )
    made.filters["tojson"] = _to_json
    made.globals["raise_exception"] = _raise
    made.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    made.globals["dict"] = lambda *arguments, **named: dict(*arguments, **named)
    made.globals["namespace"] = _Namespace
    return made


class _Namespace(jinja2.utils.Namespace):
    """Jinja's, which refuses names that begin with an underscore: through some of them the sandbox can be left."""

    def __init__(*arguments: Any, **named: Any) -> None:
        self, *values = arguments  # a template may have a variable called self
        attributes = dict(*values, **named)
        for name in attributes:
            _check_public(name)
        jinja2.utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_public(name)
        super().__setitem__(name, value)


def _check_public(name: str) -> None:
    if name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace cannot hold {name!r}, which begins with an underscore")


class _GenerationTag(jinja2.ext.Extension):
    """``{% generation %}`` marks answers for transformers. Here prefixes of the conversation tell where they are."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's name)

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes what HTML must not hold."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)
