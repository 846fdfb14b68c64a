"""A tokenizer of transformers with our engine inside.

transformers' fast tokenizers hand text to an object of Hugging Face's tokenizers library. `Backend` puts methods of its
own in the place of those of that object that encode and decode; everything else is left as it is, so that the tokenizer
keeps its class, its files and every option, and other libraries can continue to use the object.
"""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, SupportsIndex

from llmfast.tokenizer.arguments import available_cores
from llmfast.tokenizer.encoding import Encoding
from llmfast.tokenizer.huggingface.reading import from_json

if TYPE_CHECKING:
    import tokenizers
    import transformers

    from llmfast.tokenizer.offsets import Offsets

_WORTH_THREADS = 1 << 16  # characters in a batch


def speed_up(tokenizer: transformers.PreTrainedTokenizerFast) -> transformers.PreTrainedTokenizerFast:
    """Puts the engine into a byte-level BPE tokenizer of transformers, which is changed, and returned.

    Its results stay the same, those of ``DecodeStream`` included. Pairs of texts, texts given as words, and overflowing
    tokens are still worked out by Hugging Face's library. Tokens may be added and parts of
    ``tokenizer.backend_tokenizer`` replaced afterwards. Only a model that is replaced by another with as many tokens is
    not noticed: call `speed_up` again.

    Raises:
        ValueError: a tokenizer that `Tokenizer.load` would refuse: no byte-level BPE, or one with parts not known here.
    """
    Backend(tokenizer.backend_tokenizer).install()
    return tokenizer


def is_sped_up(tokenizer: transformers.PreTrainedTokenizerFast) -> bool:
    """Whether `speed_up` has put the engine into a tokenizer, or into the one that it is a copy of."""
    return isinstance(getattr(tokenizer.backend_tokenizer, _INSTALLED, None), Backend)


_INSTALLED = "llmfast"  # the attribute of a ``tokenizers.Tokenizer`` that names its `Backend`


class Backend:
    """The methods by which a ``tokenizers.Tokenizer`` encodes and decodes with the engine."""

    def __init__(self, theirs: tokenizers.Tokenizer):
        self.theirs = theirs
        self.lock = threading.Lock()
        self._made: tuple[Any, _Built] | None = None
        _ = self._built  # refuses what it must now, not later

    def install(self) -> None:
        """Attributes of an object come before the methods of its class."""
        for name in ("encode_batch", "decode", "decode_batch", "__reduce_ex__", *_CHANGING):
            setattr(self.theirs, name, getattr(self, name))
        setattr(self.theirs, _INSTALLED, self)

    def original(self, name: str) -> Any:
        """A method of Hugging Face's library."""
        return functools.partial(getattr(type(self.theirs), name), self.theirs)

    def encode_batch(
        self, input: Sequence[Any], is_pretokenized: bool = False, add_special_tokens: bool = True
    ) -> Sequence[EncodedText] | list[tokenizers.Encoding]:
        built = self._built
        cut = _Cut.of(self.theirs.truncation, built.frames[add_special_tokens])
        if is_pretokenized or cut is None or not all(isinstance(text, str) for text in input):
            return self.original("encode_batch")(input, is_pretokenized, add_special_tokens)
        batch = _Batch(self, built, input, add_special_tokens, cut)
        rows = built.encoding.encode_batch(
            list(input),
            num_threads=available_cores() if sum(map(len, input)) >= _WORTH_THREADS else 1,
            **batch.specials,
        )
        length = _padded_length([cut.length_of(row) for row in rows], batch.padding)
        return [EncodedText(batch, i, row, length) for i, row in enumerate(rows)]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        built = self._built
        wanted = ids
        if skip_special_tokens and not built.special_ids.isdisjoint(ids):
            wanted = [token for token in ids if token not in built.special_ids]
        try:
            return built.encoding.decode(wanted)
        except KeyError:  # Hugging Face's library leaves out ids that it does not know
            return self.original("decode")(ids, skip_special_tokens)

    def decode_batch(self, sequences: Sequence[Sequence[int]], skip_special_tokens: bool = True) -> list[str]:
        return [self.decode(ids, skip_special_tokens) for ids in sequences]

    # ---- What changes the tokenizer, for which the engine is then built again

    def add_tokens(self, tokens: list[Any]) -> int:
        return self._changed_by("add_tokens", tokens)

    def add_special_tokens(self, tokens: list[Any]) -> int:
        return self._changed_by("add_special_tokens", tokens)

    def train(self, *arguments: Any, **options: Any) -> None:
        self._changed_by("train", *arguments, **options)

    def train_from_iterator(self, *arguments: Any, **options: Any) -> None:
        self._changed_by("train_from_iterator", *arguments, **options)

    def _changed_by(self, name: str, *arguments: Any, **options: Any) -> Any:
        try:
            return self.original(name)(*arguments, **options)
        finally:
            self._made = None

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        """Of the tokenizer: a copy has an engine, too."""
        return _restored, (self.theirs.__getstate__(),)

    @property
    def _built(self) -> _Built:
        state = self._state()
        made = self._made
        if made is None or made[0] != state:
            self._made = made = state, _Built.of(self)
        return made[1]

    def _state(self) -> tuple[Any, ...]:
        """A value that changes when a part is replaced or changed in place. The model is too large to be compared."""
        theirs = self.theirs
        parts = (theirs.normalizer, theirs.pre_tokenizer, theirs.post_processor, theirs.decoder)
        return theirs.get_vocab_size(), *(part and part.__getstate__() for part in parts)


_CHANGING = ("add_tokens", "add_special_tokens", "train", "train_from_iterator")


def _restored(state: bytes) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer, models

    theirs = Tokenizer(models.BPE())
    theirs.__setstate__(state)
    Backend(theirs).install()
    return theirs


class _Built(NamedTuple):
    """The engine for what the tokenizer was when it was built."""

    encoding: Encoding
    special_ids: frozenset[int]
    frames: tuple[_Frame, _Frame]

    @classmethod
    def of(cls, backend: Backend) -> _Built:
        theirs = backend.theirs
        file = json.loads(theirs.to_str())
        special_ids = frozenset(token["id"] for token in file.get("added_tokens") or [] if token["special"])
        encoding = Encoding("transformers", **from_json(file).parts())
        return cls(encoding, special_ids, (_Frame.of(theirs, False), _Frame.of(theirs, True)))


class _Frame(NamedTuple):
    """What the post-processor puts around the tokens of a text."""

    before: list[int]
    after: list[int]
    type_ids: tuple[list[int], int, list[int]]  # before, inside, after

    @classmethod
    def of(cls, theirs: tokenizers.Tokenizer, add_special_tokens: bool) -> _Frame:
        """Found by encoding a text of one letter."""
        from tokenizers import PreTokenizedString

        if theirs.post_processor is None:
            return cls([], [], ([], 0, []))
        letter = PreTokenizedString("a")
        letter.tokenize(theirs.model.tokenize)
        framed = theirs.post_processor.process(letter.to_encoding(), None, add_special_tokens)
        mask, types = framed.special_tokens_mask, framed.type_ids
        start, stop = mask.index(0), len(mask) - mask[::-1].index(0)
        return cls(framed.ids[:start], framed.ids[stop:], (types[:start], types[start], types[stop:]))

    def around(self, row: list[Any], before: list[Any], after: list[Any]) -> list[Any]:
        return [*before, *row, *after] if before or after else row


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

    def applied_to(self, row: list[Any]) -> list[Any]:
        if self.room is None or len(row) <= self.room:
            return row
        return row[-self.room :] if self.left else row[: self.room]

    def cuts(self, row: Sequence[Any]) -> bool:
        return self.room is not None and len(row) > self.room

    def length_of(self, row: Sequence[Any]) -> int:
        """With the frame around it."""
        inside = len(row) if self.room is None else min(len(row), self.room)
        return inside + len(self.frame.before) + len(self.frame.after)


def _padded_length(lengths: Iterable[int], padding: dict[str, Any] | None) -> int:
    if padding is None:
        return 0
    length = padding["length"]
    if length is None:
        length = max(lengths, default=0)
    multiple = padding["pad_to_multiple_of"]
    return -(-length // multiple) * multiple if multiple else length


class _Batch:
    """The arguments of a call, which attributes of its results are computed from later."""

    def __init__(self, backend: Backend, built: _Built, texts: Sequence[str], add_special_tokens: bool, cut: _Cut):
        theirs = backend.theirs
        self.backend, self.built, self.texts = backend, built, texts
        self.add_special_tokens, self.cut = add_special_tokens, cut
        self.truncation, self.padding = theirs.truncation, theirs.padding
        allowed = frozenset() if theirs.encode_special_tokens else "all"
        self.specials = {"allowed_special": allowed, "disallowed_special": ()}

    @functools.cached_property
    def theirs(self) -> list[tokenizers.Encoding]:
        """The same by Hugging Face's library."""
        theirs = self.backend.theirs
        with self.backend.lock:
            now = theirs.truncation, theirs.padding
            self._set(self.truncation, self.padding)
            try:
                encode_batch = self.backend.original("encode_batch")
                return encode_batch(self.texts, add_special_tokens=self.add_special_tokens)
            finally:
                self._set(*now)

    def _set(self, truncation: dict[str, Any] | None, padding: dict[str, Any] | None) -> None:
        theirs = self.backend.theirs
        if theirs.truncation != truncation:
            theirs.enable_truncation(**truncation) if truncation else theirs.no_truncation()
        if theirs.padding != padding:
            theirs.enable_padding(**padding) if padding else theirs.no_padding()


class EncodedText:
    """The attributes of ``tokenizers.Encoding``; rarely used ones are computed by Hugging Face's library."""

    def __init__(self, batch: _Batch, index: int, row: list[int], length: int):
        self._batch, self._index, self._frame = batch, index, batch.cut.frame
        self._is_cut = batch.cut.cuts(row)
        self._row = self._frame.around(batch.cut.applied_to(row), self._frame.before, self._frame.after)
        self._missing = max(0, length - len(self._row))

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
        return self._padded([*before, *[inside] * self._inside, *after], "pad_type_id")

    @property
    def special_tokens_mask(self) -> list[int]:
        before, after, _ = self._frame
        return self._padded([1] * len(before) + [0] * self._inside + [1] * len(after), 1)

    @functools.cached_property
    def offsets(self) -> Offsets:
        """The characters of the text that each token covers; (0, 0) for what was put around it."""
        batch = self._batch
        if self._is_cut and batch.cut.left:  # the first token that is left may keep a space that others lose
            return self._theirs.offsets
        _, covered = batch.built.encoding.encode_with_offsets(batch.texts[self._index], **batch.specials)
        nowhere = (0, 0)
        before, after = [nowhere] * len(self._frame.before), [nowhere] * len(self._frame.after)
        return self._padded(self._frame.around(batch.cut.applied_to(covered), before, after), nowhere)

    @property
    def n_sequences(self) -> int:
        return 1

    @property
    def _inside(self) -> int:
        return len(self._row) - len(self._frame.before) - len(self._frame.after)

    def _padded(self, row: list[Any], pad: Any) -> list[Any]:
        """`pad` is a value, or the name of one in the padding's settings."""
        if not self._missing:
            return row
        padding = self._batch.padding or {}
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
