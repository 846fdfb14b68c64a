"""Added tokens: texts that are found before anything else and are one token each."""

from __future__ import annotations

from typing import Any, NamedTuple

from llmfast.tokenizer.huggingface.fields import field, optional, shown, token_id


class AddedToken(NamedTuple):
    """An added token and how it is found in text.

    One that is not `special` is ordinary text to the caller and always found. With `single_word` it counts only where
    no letter, digit or underscore stands beside it; with `lstrip` it takes the white space before it, with `rstrip`
    that behind it; with `normalized` it is found in normalized text.
    """

    content: str
    id: int
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False
    special: bool = True

    def to_json(self) -> dict[str, Any]:
        flags = {name: getattr(self, name) for name in FLAGS}
        return {"id": self.id, "content": self.content, **flags}


FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def read_added_tokens(entries: Any, vocabulary: dict[str, int]) -> tuple[AddedToken, ...]:
    """The added tokens of a file with the ids that Hugging Face's library gives them.

    It takes the id of the vocabulary where that has the text, and else the next one, whatever the file says; it
    leaves out empty texts, and of two entries with one text or one id the later counts.
    """
    if entries is None:
        return ()
    if not isinstance(entries, list):
        raise ValueError(f"its 'added_tokens' is {shown(entries)}, not a list")
    found: dict[str, AddedToken] = {}
    next_id = len(vocabulary)
    for entry in entries:
        text = field(entry, "content", str)
        token_id(entry.get("id"), f"the id of added token {text!r}")
        flags = {name: optional(entry, name, bool, name == "special") for name in FLAGS}
        if not text:
            continue
        if text in vocabulary:
            number = vocabulary[text]
        elif text in found:
            number = found[text].id
        else:
            number = next_id
            next_id += 1
        found[text] = AddedToken(text, token_id(number, f"the id of added token {text!r}"), **flags)
    return tuple({token.id: token for token in found.values()}.values())
