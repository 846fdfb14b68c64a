"""The chat templates that llmfast brings, in Jinja, so that transformers renders the saved ones alike.

All begin with ``bos_token``, if the tokenizer has one, and end every turn of the assistant with a special token.
"""

from __future__ import annotations

from typing import NamedTuple


class Builtin(NamedTuple):
    """A template and the special tokens that it writes besides those of the tokenizer's configuration."""

    source: str
    special_tokens: tuple[str, ...] = ()
    end: str | None = None
    """What ends a turn; the tokenizer's eos_token if None."""


_NO_TOOLS = """\
{%- if tools %}{{- raise_exception('the template NAME has no place for tools; chatml has') }}{%- endif %}
{%- for message in messages %}
{%- if message.tool_calls or message.role == 'tool' %}
{{- raise_exception('the template NAME has no place for tool calls; chatml has') }}
{%- endif %}
{%- endfor %}
"""

CHATML = """\
{{- bos_token }}
{%- if tools %}
{{- '<|im_start|>system\\n' }}
{%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
{{- '# Tools\\n\\nYou may call functions. Their signatures are inside <tools></tools>:\\n<tools>' }}
{%- for tool in tools %}{{- '\\n' + tool | tojson }}{%- endfor %}
{{- '\\n</tools>\\n\\nFor each call, write the name and the arguments as JSON inside <tool_call></tool_call>:\\n' }}
{{- '<tool_call>\\n{"name": NAME, "arguments": ARGUMENTS}\\n</tool_call><|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{%- if not (tools and loop.first and message.role == 'system') %}
{{- '<|im_start|>' + message.role + '\\n' + (message.content or '') }}
{%- for call in message.tool_calls or [] %}
{{- '\\n' if message.content or not loop.first else '' }}
{{- '<tool_call>\\n' + {'name': call.function.name, 'arguments': call.function.arguments} | tojson }}
{{- '\\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""

LLAMA_3 = (
    _NO_TOOLS.replace("NAME", "llama-3")
    + """\
{{- '<|begin_of_text|>' }}
{%- for message in messages %}
{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
"""
)

ALPACA = (
    _NO_TOOLS.replace("NAME", "alpaca")
    + """\
{{- bos_token }}
{%- if messages[0].role != 'system' %}
{{- 'Below is an instruction that describes a task' }}
{%- if messages[0].input %}{{- ', paired with an input that provides further context' }}{%- endif %}
{{- '. Write a response that appropriately completes the request.\\n\\n' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'system' %}
{{- message.content + '\\n\\n' }}
{%- elif message.role == 'user' and message.input %}
{{- '### Instruction:\\n' + message.instruction + '\\n\\n### Input:\\n' + message.input + '\\n\\n' }}
{%- elif message.role == 'user' %}
{{- '### Instruction:\\n' + message.content + '\\n\\n' }}
{%- else %}
{{- '### Response:\\n' + message.content + eos_token + '\\n\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '### Response:\\n' }}{%- endif %}
"""
)

ZEPHYR = (
    _NO_TOOLS.replace("NAME", "zephyr")
    + """\
{{- bos_token }}
{%- for message in messages %}
{{- '<|' + message.role + '|>\\n' + message.content + eos_token + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>\\n' }}{%- endif %}
"""
)

PLAIN = (
    _NO_TOOLS.replace("NAME", "plain")
    + """\
{{- bos_token }}
{%- for message in messages %}
{{- message.content }}
{%- if message.role == 'system' %}{{- '\\n\\n' }}{%- endif %}
{%- if message.role == 'assistant' %}{{- eos_token }}{%- endif %}
{%- endfor %}
"""
)

BUILTIN = {
    "chatml": Builtin(CHATML, ("<|im_start|>", "<|im_end|>"), "<|im_end|>"),
    "llama-3": Builtin(
        LLAMA_3, ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), "<|eot_id|>"
    ),
    "alpaca": Builtin(ALPACA),
    "zephyr": Builtin(ZEPHYR),
    "plain": Builtin(PLAIN),
}
