"""A tokenizer of transformers with our engine inside.

transformers' fast tokenizers hand text to an object of Hugging Face's tokenizers library. `Backend` stands in its
place: it encodes and decodes with the engine and passes everything else on, so that the tokenizer keeps its class, its
files and every option.
"""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from llmfast.tokenizer.arguments import available_cores
from llmfast.tokenizer.huggingface.reading import from_json
from llmfast.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    import tokenizers
    import transformers

_WORTH_THREADS = 1 << 16  # characters in a batch


def speed_up(tokenizer: transformers.PreTrainedTokenizerFast) -> transformers.PreTrainedTokenizerFast:
    """Puts the engine into a byte-level BPE tokenizer of transformers, which is changed, and returned.

    Its results stay the same. What is asked for seldom (offsets, pairs of texts, texts given as words, overflowing
    tokens) is still worked out by Hugging Face's library, which stays at ``tokenizer.backend_tokenizer.theirs``. Tokens
    may be added and parts of the backend replaced afterwards, but parts are not to be changed in place.

    Raises:
        ValueError: a tokenizer that `Tokenizer.load` would refuse: no byte-level BPE, or one with parts not known here.
    """
    if not isinstance(tokenizer.backend_tokenizer, Backend):
        tokenizer._tokenizer = Backend(tokenizer.backend_tokenizer)
    return tokenizer


class Backend:
    """A ``tokenizers.Tokenizer`` that encodes and decodes with the engine."""

    def __init__(self, theirs: tokenizers.Tokenizer):
        self.__dict__["theirs"] = theirs
        self.__dict__["lock"] = threading.Lock()
        _ = self._built  # refuses what it must now, not later

    def encode_batch(
        self, input: Sequence[Any], is_pretokenized: bool = False, add_special_tokens: bool = True
    ) -> Sequence[Encoding] | list[tokenizers.Encoding]:
        batch = _Batch(self, input, add_special_tokens, self.theirs.truncation, self.theirs.padding)
        cut = _Cut.of(batch.truncation, self._frames[add_special_tokens])
        if is_pretokenized or cut is None or not all(isinstance(text, str) for text in input):
            return self.theirs.encode_batch(input, is_pretokenized, add_special_tokens)
        ours = self._built
        rows = ours.tokenizer.encode_batch(
            input,
            allowed_special=frozenset() if self.theirs.encode_special_tokens else "all",
            disallowed_special=(),
            num_threads=available_cores() if sum(map(len, input)) >= _WORTH_THREADS else 1,
        )
        rows = [cut.applied_to(row) for row in rows]
        length = _padded_length(rows, batch.padding)
        return [Encoding(batch, i, row, cut.frame, length) for i, row in enumerate(rows)]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        ours = self._built
        if skip_special_tokens and not ours.special_ids.isdisjoint(ids):
            ids = [token for token in ids if token not in ours.special_ids]
        try:
            return ours.tokenizer.decode(ids)
        except KeyError:  # Hugging Face's library leaves out ids that it does not know
            return self.theirs.decode(ids, skip_special_tokens)

    def decode_batch(self, sequences: Sequence[Sequence[int]], skip_special_tokens: bool = True) -> list[str]:
        return [self.decode(ids, skip_special_tokens) for ids in sequences]

    # ---- Everything else is theirs; what changes them makes the engine anew

    def __getattr__(self, name: str) -> Any:
        return getattr(self.theirs, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.theirs, name, value)
        if name != "encode_special_tokens":
            self._forget()

    def add_tokens(self, tokens: list) -> int:
        added = self.theirs.add_tokens(tokens)
        self._forget()
        return added

    def add_special_tokens(self, tokens: list) -> int:
        added = self.theirs.add_special_tokens(tokens)
        self._forget()
        return added

    def __reduce__(self):
        return Backend, (self.theirs,)

    def __repr__(self) -> str:
        return f"<Backend of {self._built.tokenizer!r}>"

    def _forget(self) -> None:
        for made in ("_built", "_frames"):
            self.__dict__.pop(made, None)

    @functools.cached_property
    def _built(self) -> _Built:
        file = json.loads(self.theirs.to_str())
        tokenizer = Tokenizer.of_contents("transformers", from_json(file))
        added = file.get("added_tokens") or []
        return _Built(tokenizer, frozenset(token["id"] for token in added if token["special"]))

    @functools.cached_property
    def _frames(self) -> tuple[_Frame, _Frame]:
        """What the post-processor makes of a text, without and with special tokens around it: seen on one."""
        from tokenizers import PreTokenizedString

        def frame(add_special_tokens: bool) -> _Frame:
            if self.theirs.post_processor is None:
                return _Frame([], [], ([], 0, []))
            letter = PreTokenizedString("a")
            letter.tokenize(self.theirs.model.tokenize)
            framed = self.theirs.post_processor.process(letter.to_encoding(), None, add_special_tokens)
            mask, types = framed.special_tokens_mask, framed.type_ids
            start, stop = mask.index(0), len(mask) - mask[::-1].index(0)
            return _Frame(framed.ids[:start], framed.ids[stop:], (types[:start], types[start], types[stop:]))

        return frame(False), frame(True)


class _Built(NamedTuple):
    """The engine for what the tokenizer was when it was made."""

    tokenizer: Tokenizer
    special_ids: frozenset[int]


class _Frame(NamedTuple):
    before: list[int]
    after: list[int]
    type_ids: tuple[list[int], int, list[int]]  # before, inside, after


class _Cut(NamedTuple):
    """Truncation to what the frame leaves room for."""

    frame: _Frame
    room: int | None
    left: bool

    @classmethod
    def of(cls, truncation: dict[str, Any] | None, frame: _Frame) -> _Cut | None:
        """None for a truncation that is not of this simple kind."""
        if truncation is None:
            return cls(frame, None, False)
        room = truncation["max_length"] - len(frame.before) - len(frame.after)
        if room <= 0 or truncation["stride"] or truncation["strategy"] == "only_second":
            return None
        return cls(frame, room, truncation["direction"] == "left")

    def applied_to(self, row: list[int]) -> list[int]:
        if self.room is not None and len(row) > self.room:
            row = row[-self.room :] if self.left else row[: self.room]
        before, after, _ = self.frame
        return [*before, *row, *after] if before or after else row


def _padded_length(rows: Iterable[Sequence[int]], padding: dict[str, Any] | None) -> int:
    if padding is None:
        return 0
    length = padding["length"]
    if length is None:
        length = max(map(len, rows), default=0)
    multiple = padding["pad_to_multiple_of"]
    return -(-length // multiple) * multiple if multiple else length


class _Batch:
    """What was asked for, for Hugging Face's library to work out what the engine has not."""

    def __init__(self, backend: Backend, texts: Sequence[str], add_special_tokens: bool, truncation, padding):
        self.backend, self.texts, self.add_special_tokens = backend, texts, add_special_tokens
        self.truncation, self.padding = truncation, padding

    @functools.cached_property
    def theirs(self) -> list[tokenizers.Encoding]:
        theirs = self.backend.theirs
        with self.backend.lock:
            now = theirs.truncation, theirs.padding
            self._set(self.truncation, self.padding)
            try:
                return theirs.encode_batch(self.texts, add_special_tokens=self.add_special_tokens)
            finally:
                self._set(*now)

    def _set(self, truncation: dict | None, padding: dict | None) -> None:
        theirs = self.backend.theirs
        if theirs.truncation != truncation:
            theirs.enable_truncation(**truncation) if truncation else theirs.no_truncation()
        if theirs.padding != padding:
            theirs.enable_padding(**padding) if padding else theirs.no_padding()


class Encoding:
    """What ``tokenizers.Encoding`` tells of a text; Hugging Face's library works out what is asked for seldom."""

    def __init__(self, batch: _Batch, index: int, row: list[int], frame: _Frame, length: int):
        self._batch, self._index, self._row, self._frame = batch, index, row, frame
        self._missing = max(0, length - len(row))

    def __len__(self) -> int:
        return len(self._row) + self._missing

    @property
    def ids(self) -> list[int]:
        return self._padded(self._row, "pad_id") if self._missing else self._row

    @property
    def attention_mask(self) -> list[int]:
        return self._padded([1] * len(self._row), 0)

    @property
    def type_ids(self) -> list[int]:
        before, inside, after = self._frame.type_ids
        return self._padded(
            [*before, *[inside] * (len(self._row) - len(before) - len(after)), *after], "pad_type_id"
        )

    @property
    def special_tokens_mask(self) -> list[int]:
        before, after, _ = self._frame
        inside = len(self._row) - len(before) - len(after)
        return self._padded([1] * len(before) + [0] * inside + [1] * len(after), 1)

    @property
    def n_sequences(self) -> int:
        return 1

    def _padded(self, row: list[int], pad: str | int) -> list[int]:
        if not self._missing:
            return row
        padding = self._batch.padding
        filled = [padding[pad] if isinstance(pad, str) else pad] * self._missing
        return filled + row if padding["direction"] == "left" else row + filled

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._theirs, name)

    @property
    def _theirs(self) -> tokenizers.Encoding:
        return self._batch.theirs[self._index]

    def __reduce__(self):
        return _itself, (self._theirs,)


def _itself(encoding: tokenizers.Encoding) -> tokenizers.Encoding:
    return encoding
