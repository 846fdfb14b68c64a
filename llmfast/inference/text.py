"""The text of a reply as it becomes certain: whole characters, and no beginning of a stop text."""

from __future__ import annotations

from collections.abc import Sequence

from llmfast.tokenizer import Tokenizer


class ReplyText:
    """Collects the text of tokens.

    What ``push`` and ``finish`` return, joined, is ``text``. Characters that are not complete are held back, and so is
    what may be the beginning of a stop text.

    Args:
        tokenizer: decodes tokens; None for no text.
        stop: the texts to look for.
    """

    def __init__(self, tokenizer: Tokenizer | None, stop: Sequence[str] = ()):
        self._decoder = None if tokenizer is None else tokenizer.stream_decoder()
        self._stop = stop
        self._held = ""
        self.text = ""
        """What has been returned so far."""
        self.stopped_by: str | None = None
        """The stop text that was found."""

    def push(self, token: int, *, may_stop: bool = True) -> str:
        """The text that is certain once ``token`` is known. If it completes a stop text, which only counts with
        ``may_stop``, ``stopped_by`` is set, and the text ends before it."""
        if self._decoder is None:
            return ""
        try:
            text = self._decoder.push(token)
        except KeyError:  # a row that fills up the model's vocabulary, without a text
            text = ""
        return self._release(self._held + text, self._stop if may_stop else ())

    def finish(self) -> str:
        """The rest of the text at the end: what was held back."""
        if self._decoder is None or self.stopped_by is not None:
            return ""
        part = self._held + self._decoder.finish()
        self._held = ""
        self.text += part
        return part

    def _release(self, text: str, stop: Sequence[str]) -> str:
        found = [(place, each) for each in stop if (place := text.find(each)) >= 0]
        if found:
            cut, self.stopped_by = min(found)
            self._held = ""
        else:
            cut = len(text) - max((_beginning_at_end(text, each) for each in stop), default=0)
            self._held = text[cut:]
        self.text += text[:cut]
        return text[:cut]


def _beginning_at_end(text: str, stop: str) -> int:
    """How many characters at the end of ``text`` may be the beginning of ``stop``."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0)
