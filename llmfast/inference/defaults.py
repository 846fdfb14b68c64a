"""How replies are sampled where a request does not say it: by ``generation_config.json`` beside the model."""

from __future__ import annotations

from typing import Any

from llmfast.data.chat.opening import generation_settings
from llmfast.tokenizer import Tokenizer


def default_sampling(tokenizer: Tokenizer, *, temperature: float) -> dict[str, Any]:
    """Settings of ``Sampling`` by name: those that the file has, and a temperature.

    Args:
        tokenizer: beside which the file lies.
        temperature: if the file does not name one.
    """
    said = generation_settings(tokenizer)
    found = {
        name: said[name] for name in ("top_k", "top_p", "min_p", "repetition_penalty") if said.get(name) is not None
    }
    if found.get("top_k") == 0:  # transformers' word for no cut
        del found["top_k"]
    found["temperature"] = said.get("temperature", temperature) if said.get("do_sample", True) else 0.0
    return found
