"""Runs that start from weights: which settings of theirs they may choose, and with which tokenizer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from llmfast.integrations.opening import FREE_SETTINGS, Start
from llmfast.models.config import DecoderConfig
from llmfast.tokenizer import Tokenizer

# They follow from others where they are left out.
DERIVED_SETTINGS = ("kv_heads", "head_width", "ff_width")


def started_config(wanted: DecoderConfig, start: Start) -> DecoderConfig:
    """The configuration of a model that starts from weights: theirs, with the settings of training from ``wanted``.

    Raises:
        ValueError: ``wanted`` sets something that is neither the default nor as the weights have it.
    """
    derived = dataclasses.replace(wanted, **dict.fromkeys(DERIVED_SETTINGS))
    defaults = vars(DecoderConfig()) | {name: getattr(derived, name) for name in DERIVED_SETTINGS}
    kept = {}
    for name, theirs in vars(start.config).items():
        asked = getattr(wanted, name)
        if asked in (defaults[name], theirs):
            continue
        if name not in FREE_SETTINGS:
            raise ValueError(
                f"model.{name} is {asked!r}, but the model in {start.folder} has {theirs!r}: with start, leave the "
                "settings of the model out"
            )
        kept[name] = asked
    return dataclasses.replace(start.config, **kept)


def check_same_tokenizer(
    start: Start, tokenizer: Tokenizer, *, prepared: Callable[[Tokenizer], Tokenizer] = lambda tokenizer: tokenizer
) -> None:
    """Check that data were prepared with the tokenizer of the model that a run starts from.

    Args:
        start: the model.
        tokenizer: that of the data.
        prepared: what the preparation makes of the model's tokenizer, where it adds tokens.

    Raises:
        ValueError: they were not, or the model's folder has no tokenizer that llmfast can use.
    """
    try:
        theirs = Tokenizer.load(start.folder)
    except (ValueError, OSError) as error:
        raise ValueError(f"start: {start.folder} has no tokenizer that llmfast can use: {error}") from None
    if prepared(theirs).fingerprint != tokenizer.fingerprint:
        raise ValueError(f"start: the model of {start.folder} has another tokenizer than the data were prepared with")
