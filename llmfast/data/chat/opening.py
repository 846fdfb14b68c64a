"""The chat template of a tokenizer: chosen, with the special tokens that it needs, and written beside the tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llmfast.data.chat.builtin import BUILTIN
from llmfast.data.chat.encoder import ChatEncoder
from llmfast.data.chat.template import ChatTemplate
from llmfast.tokenizer import Tokenizer

CONFIG, SPECIALS, GENERATION = "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"
TEMPLATE, OLD_TEMPLATE = "chat_template.jinja", "chat_template.json"
OWN = "tokenizer"
# Of transformers' generate, and of ``llmfast generate``, where the model to start from has none.
GENERATION_DEFAULTS = {"do_sample": True, "temperature": 0.8}


def open_chat(tokenizer: Tokenizer, wanted: str = "auto") -> ChatEncoder:
    """An encoder with the template ``wanted`` and a tokenizer that has its special tokens, and its files beside it.

    Args:
        tokenizer: of the model.
        wanted: ``chatml``, ``llama-3``, ``alpaca``, ``zephyr``, ``plain``; ``tokenizer``, its own; ``auto``, its own if
            it has one, else chatml; or a file with a Jinja template.

    Raises:
        ValueError: no such template, or one that cannot be trained with.
    """
    own = own_template(tokenizer)
    if wanted == "auto":
        wanted = OWN if own is not None else "chatml"
    if wanted == OWN:
        if own is None:
            raise ValueError(f"data.template is {OWN}, but the tokenizer has no chat template of its own")
        return _written(saved_chat(tokenizer))
    variables = named_tokens(tokenizer) | _usual_variables(tokenizer)
    if wanted in BUILTIN:
        source, needed, end = BUILTIN[wanted]
        missing = [token for token in needed if token not in tokenizer.special_tokens_set]
        if missing:
            tokenizer = tokenizer.with_added_tokens(missing)
        variables |= {"eos_token": end} if end else {}
    elif Path(wanted).is_file():
        source = Path(wanted).read_text(encoding="utf-8-sig")
    else:
        raise ValueError(f"data.template is {wanted!r}, which is neither a file nor one of {OWN}, {', '.join(BUILTIN)}")
    return _written(ChatEncoder(tokenizer, ChatTemplate(wanted, source, variables)))


def saved_chat(tokenizer: Tokenizer) -> ChatEncoder:
    """An encoder with the template that lies beside a tokenizer.

    Raises:
        ValueError: there is none, or one that cannot be trained with.
    """
    source = own_template(tokenizer)
    if source is None:
        raise ValueError("the tokenizer has no chat template")
    return ChatEncoder(tokenizer, ChatTemplate("of the tokenizer", source, named_tokens(tokenizer)))


def own_template(tokenizer: Tokenizer) -> str | None:
    """The chat template beside a tokenizer, in any of the places where transformers keeps it."""
    if TEMPLATE in tokenizer.files:
        return tokenizer.files[TEMPLATE].decode("utf-8")
    found = _json(tokenizer, CONFIG).get("chat_template") or _json(tokenizer, OLD_TEMPLATE).get("chat_template")
    if isinstance(found, list):  # several by name
        found = {each["name"]: each["template"] for each in found}.get("default")
    return found


def named_tokens(tokenizer: Tokenizer) -> dict[str, str]:
    """What templates call ``bos_token``, ``eos_token`` and the like, by the files beside a tokenizer."""
    said = _json(tokenizer, SPECIALS) | _json(tokenizer, CONFIG)
    named = {name: said.get(name) for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
    texts = {name: each.get("content") if isinstance(each, dict) else each for name, each in named.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def _usual_variables(tokenizer: Tokenizer) -> dict[str, str]:
    """Those that the files do not mention: in llmfast, documents begin after the end-of-text token and end with it."""
    said = _json(tokenizer, SPECIALS) | _json(tokenizer, CONFIG)
    end = tokenizer.decode([tokenizer.eot_token])
    return {name: end for name in ("bos_token", "eos_token") if name not in said}


def generation_settings(tokenizer: Tokenizer) -> dict[str, Any]:
    """What ``generation_config.json`` beside a tokenizer says; empty if there is none."""
    return _json(tokenizer, GENERATION)


def end_tokens(tokenizer: Tokenizer) -> frozenset[int]:
    """The tokens that end what a model writes: the end-of-text token, and those of ``generation_config.json``."""
    said = generation_settings(tokenizer).get("eos_token_id")
    return frozenset({tokenizer.eot_token, *(said if isinstance(said, list) else [] if said is None else [said])})


def _written(encoder: ChatEncoder) -> ChatEncoder:
    """The same with files beside its tokenizer that say how to chat, for whoever loads what is saved of it."""
    tokenizer, variables = encoder.tokenizer, encoder.template.variables
    named = {name: variables[name] for name in ("bos_token", "eos_token") if name in variables}
    config = _json(tokenizer, CONFIG) or tokenizer.default_config()
    config.pop("chat_template", None)
    ids = {f"{name}_id": tokenizer.encode_single_token(text) for name, text in named.items() if name == "bos_token"}
    generation = {**GENERATION_DEFAULTS, **ids, **generation_settings(tokenizer)}
    generation["eos_token_id"] = sorted(end_tokens(tokenizer) | encoder.end_tokens)
    files = {name: content for name, content in tokenizer.files.items() if "chat_template" not in name}
    if SPECIALS in files:
        files[SPECIALS] = _bytes(_json(tokenizer, SPECIALS) | named)
    files |= {
        CONFIG: _bytes(config | named),
        GENERATION: _bytes(generation),
        TEMPLATE: encoder.template.source.encode("utf-8"),
    }
    return ChatEncoder(tokenizer.with_files(files), encoder.template)


def _json(tokenizer: Tokenizer, name: str) -> dict[str, Any]:
    try:
        return json.loads(tokenizer.files.get(name, b"{}"))
    except ValueError as error:
        raise ValueError(f"the tokenizer's {name} is damaged: {error}") from None


def _bytes(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode("utf-8")
