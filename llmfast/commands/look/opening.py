"""What the commands of ``llmfast look`` have in common: a model opened, a prompt as tokens, results written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor, nn

    from llmfast.tokenizer import Tokenizer


class Opened(NamedTuple):
    """A model to look into."""

    model: nn.Module
    tokenizer: Tokenizer
    name: str
    """Of its folder, for titles."""

    @property
    def vocabulary(self) -> int:
        """The ids that are tokens: of the model's table, those that the tokenizer knows."""
        return min(self.tokenizer.n_vocab, self.model.config.vocab_size)

    def text(self, token: int) -> str:
        """A token as a person can read it."""
        from llmfast.visualization.maps import visible_text

        if token >= self.tokenizer.n_vocab:
            return f"[{token}]"
        return visible_text(self.tokenizer.decode_single_token_bytes(token))

    def texts(self, tokens: Sequence[int] | Tensor) -> list[str]:
        return [self.text(int(token)) for token in tokens]


def open_looked_at(run: Path, base: Path | None, device: str | None) -> Opened:
    """The model of a folder, in evaluation: as a decoder of llmfast, or, for a Hugging Face folder of a family that has
    none, as transformers runs it.

    Raises:
        ValueError: nothing to load there, a damaged file, a base that is missing or another one, or no such device.
    """
    import torch

    from llmfast.integrations.huggingface.families import DECODERS
    from llmfast.integrations.opening import open_model
    from llmfast.models.folder import CONFIG_FILE, read_json
    from llmfast.tokenizer import Tokenizer

    if device is not None and torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device is {device!r}, but torch finds no GPU here: choose cpu")
    config = read_json(run / CONFIG_FILE) if (run / CONFIG_FILE).exists() else {}
    model: nn.Module
    if "model_type" in config and config["model_type"] not in DECODERS:
        from transformers import AutoModelForCausalLM

        model, tokenizer = AutoModelForCausalLM.from_pretrained(run, local_files_only=True), Tokenizer.load(run)
    else:
        model, tokenizer = open_model(run, base=base)
    model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return Opened(model.eval(), tokenizer, run.resolve().name)


def tokens_of_prompt(opened: Opened, prompt: str) -> list[int]:
    """The tokens of a prompt, with those that begin a document before them.

    Raises:
        ValueError: there is no prompt.
    """
    from llmfast.inference.prompts import prompt_tokens

    if not prompt:
        raise ValueError("there is nothing to read: give a text with --prompt")
    return prompt_tokens(opened.tokenizer, prompt)


def chosen_token(opened: Opened, text: str) -> int | None:
    """The token that is the text, None for no text.

    Raises:
        ValueError: the text is not one token.
    """
    if not text:
        return None
    tokens = opened.tokenizer.encode_ordinary(text)
    if len(tokens) != 1:
        parts = ", ".join(repr(each) for each in opened.texts(tokens))
        raise ValueError(f"token must be one token, but {text!r} is {len(tokens)}: {parts}")
    return tokens[0]


def write_json(path: Path, **content: Any) -> None:
    """Write what a command found, in the order in which it is given."""
    from llmfast.files import atomic_write

    atomic_write(path, json.dumps(content, ensure_ascii=False, indent=2) + "\n")
