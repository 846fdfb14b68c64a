"""The engine for a tokenizer with rules of text: what each text becomes, in one place, before the engine encodes it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import regex

from llmfast import _bpe
from llmfast.tokenizer import patterns
from llmfast.tokenizer.disallowed import check_disallowed
from llmfast.tokenizer.engine import Buffer, Engine, Ids, Specials
from llmfast.tokenizer.formats.rank_files import RankFile
from llmfast.tokenizer.huggingface import library
from llmfast.tokenizer.huggingface.added_tokens import AddedToken
from llmfast.tokenizer.huggingface.byte_text import decoded_bytes, token_bytes, token_text
from llmfast.tokenizer.huggingface.pre_tokenizers import byte_level
from llmfast.tokenizer.offsets import Offsets, character_offsets
from llmfast.tokenizer.text_rules import NFC, Search, TextRules

_NONE: frozenset[str] = frozenset()

# Numbers in Rust's sense, of Unicode 16: the regex library may know later ones.
_DIGIT = r"[[\p{N}]--[\U0001246F\U00012475-\U0001247F\U00012550-\U00012686]]"
_DIGITS = {"each": regex.compile(rf"(?V1)({_DIGIT})"), "runs": regex.compile(rf"(?V1)({_DIGIT}+)")}

# White space in the text of a token, where Ġ stands for a space.
_SPACE = "Ġ" + "".join(map(chr, (*range(9, 14), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B))))
_SPACE += "\u2028\u2029\u202f\u205f\u3000"


class Span(NamedTuple):
    """A stretch of text between added tokens, normalized, or an added token; and where it comes from."""

    start: int
    stop: int
    text: str
    token: AddedToken | None = None


class RulesEngine:
    """Has the methods of the engine, `llmfast._bpe.Core`, and applies `TextRules` to each text.

    All text goes through `_spans`, which yields the added tokens and the normalized text between them, and through
    `_pieces`, which cuts that text where the engine's pattern does not. Where nothing but the engine's own search is
    needed, text goes to the engine whole.
    """

    def __init__(
        self,
        ranks: dict[bytes, int] | RankFile,
        specials: dict[str, int],
        pat_str: str,
        rules: TextRules,
    ):
        self.rules = rules
        self._specials = specials
        self._always = rules.always_found
        added = {token.content: token.id for token in rules.added} | specials
        self._added = added
        self._numbers = _Numbers.of(rules.ids, added)
        self._inner = patterns.engine(ranks, self._numbers.inside(added), pat_str)
        self._normalize = library.normalizer_of(rules.normalizer) if rules.normalizer else None
        self._cut = None if rules.steps is None else library.pieces_of(rules.steps)
        self._piece_ids = library.piece_ids_of(rules.model) if rules.model else self._merged
        self._join = library.decoder_of(rules.decoder[0]) if rules.decoder else None
        self._needs_text = self._cut is not None or rules.normalizer not in (None, NFC)
        self._finder = _bpe.Finder(self._always) if self._always else None
        self._is_searched_here = rules.need_search or rules.model is not None
        self._decoded = dict(rules.decoded)
        self._decoded |= {
            token.id: decoded for token in rules.added
            if (decoded := decoded_bytes(self._written(token))) != self._inner_bytes(token.id)
        }  # fmt: skip
        self.n_ordinary = self._inner.n_ordinary
        self.largest_id = max([self._numbers.largest(self._inner.largest_id), *self._decoded])

    # ---- What a text becomes

    def _spans(self, text: str, wanted: frozenset[str]) -> Iterator[Span]:
        """The added tokens of `wanted` in a text, and the normalized text between them."""
        first, late = self._searches(wanted)
        for start, stop, token in first.split(text):
            if token is not None:
                yield Span(start, stop, "", token)
                continue
            normal = self._normal(text[start:stop])
            for begin, end, other in late.split(normal):
                if other is not None:
                    yield Span(start + begin, start + end, "", other)
                    continue
                for part in self._apart(normal[begin:end]):
                    end = begin + len(part)
                    prefix = " " if self.rules.prefix_space and not part.startswith(" ") else ""
                    yield Span(start + begin, start + end, prefix + part)
                    begin = end

    def _apart(self, text: str) -> list[str]:
        """The text, cut so that digits stand alone."""
        if self.rules.digits is None:
            return [text]
        return [part for part in _DIGITS[self.rules.digits].split(text) if part]

    def _parts(self, text: str, wanted: frozenset[str]) -> Iterator[str | int]:
        """Texts for the engine, and the ids of the added tokens between them."""
        for span in self._spans(text, wanted):
            if span.token is not None:
                yield span.token.id
            elif self._cut is None:
                yield span.text
            else:
                yield from self._cut(span.text, span.start == 0)

    def _written(self, token: AddedToken) -> str:
        """The text of an added token, as the text is in which it is found."""
        return self._normal(token.content) if token.normalized else token.content

    def _normal(self, text: str) -> str:
        return text if self._normalize is None else self._normalize(text)

    @functools.lru_cache(maxsize=16)  # noqa: B019 - few tokenizers have rules, and they live as long as the program
    def _searches(self, wanted: frozenset[str]) -> tuple[Search, Search]:
        """What finds the wanted tokens in the text as it is, and what finds them in normalized text."""
        tokens = {token.content: token for token in self.rules.added if token.content in wanted}
        late = {text: token for text, token in tokens.items() if token.normalized}
        first = {text: token for text, token in tokens.items() if text not in late}
        normal = {self._written(token): token for token in late.values()}
        normal.pop("", None)
        return Search(first), Search(normal)

    def _wanted(self, text: str, allowed: Specials, disallowed: Specials) -> frozenset[str]:
        """The added tokens that count; ValueError where the text holds a disallowed one."""
        every = self._specials.keys()
        named = every if allowed == "all" else every & frozenset(allowed)
        refused = every - named if disallowed == "all" else disallowed
        if refused:
            check_disallowed(text, refused)
        return self._always.union(named)

    # ---- Encoding

    def encode_ordinary(self, text: str) -> list[int]:
        return self.encode(text, _NONE, ())

    def encode(self, text: str, allowed: Specials, disallowed: Specials) -> list[int]:
        if not self._is_searched_here:
            return self._numbers.list(self._inner.encode(*self._native(text, allowed, disallowed)))
        text = patterns.joined_surrogates(text)
        ids: list[int] = []
        for part in self._parts(text, self._wanted(text, allowed, disallowed)):
            if isinstance(part, int):
                ids.append(part)
            else:
                ids.extend(self._ids_of(part))
        return ids

    def _ids_of(self, part: str) -> list[int]:
        """The ids of a part, which is a piece in byte-level characters if the text is cut here."""
        return self._piece_ids(part) if self._cut else self._numbers.list(self._inner.encode_ordinary(part))

    def _merged(self, piece: str) -> list[int]:
        return self._numbers.list(self._inner.encode_piece(token_bytes(piece)))

    def _native(self, text: str, allowed: Specials, disallowed: Specials) -> tuple[str, Specials, Specials]:
        """The arguments for the engine's own search, by which it finds the same."""
        if not isinstance(text, str):
            raise TypeError(f"text must be a str, got {type(text).__name__}")
        return (
            self._normal_between(text),
            allowed if allowed == "all" else self._always.union(allowed),
            disallowed,
        )

    def _normal_between(self, text: str) -> str:
        """The text with all between the added tokens normalized."""
        if self._normalize is None or (self.rules.normalizer == NFC and self._normal(text) == text):
            return text
        search = self._everything
        return "".join(
            text[start:stop] if token else self._normal(text[start:stop])
            for start, stop, token in search.split(patterns.joined_surrogates(text))
        )

    @functools.cached_property
    def _everything(self) -> Search:
        return Search({token.content: token for token in self.rules.added})

    def encode_to_numpy(self, text: str, allowed: Specials, disallowed: Specials) -> npt.NDArray[np.uint32]:
        if not self._is_searched_here:
            return self._numbers.array(self._inner.encode_to_numpy(*self._native(text, allowed, disallowed)))
        return np.array(self.encode(text, allowed, disallowed), dtype=np.uint32)

    def encode_batch(
        self, texts: Sequence[str], allowed: Specials, disallowed: Specials, threads: int
    ) -> list[list[int]]:
        if not self._is_searched_here:
            natives = [self._native(text, allowed, disallowed) for text in texts]
            _, allowed, disallowed = natives[0] if natives else ("", _NONE, _NONE)
            rows = self._inner.encode_batch([native[0] for native in natives], allowed, disallowed, threads)
            return [self._numbers.list(row) for row in rows]
        return [self.encode(text, allowed, disallowed) for text in texts]

    def encode_documents(
        self, documents: Iterable[str | Buffer], separator: int | None, threads: int, narrow: bool
    ) -> tuple[Ids, npt.NDArray[np.int64]]:
        dtype = np.uint16 if narrow else np.uint32
        texts: list[str | bytes] = []  # of all documents, for the engine to encode together
        between: list[tuple[int, list[int]]] = []  # behind so many texts, ids
        counts = []  # how many texts and how many ids between them there are up to the end of each document
        n_between = 0
        for document in documents:
            for part in self._document_parts(document):
                if isinstance(part, list):
                    between.append((len(texts), part))
                    n_between += len(part)
                else:
                    texts.append(part)
            if separator is not None:
                between.append((len(texts), [separator]))
                n_between += 1
            counts.append((len(texts), n_between))
        ids, ends = self._inner.encode_documents(texts, None, threads, narrow and self._numbers.narrow)
        ids = self._numbers.array(ids).astype(dtype, copy=False)
        places = [ends[behind] for behind, inserted in between for _ in inserted]
        values = [token for _, inserted in between for token in inserted]
        offsets = np.zeros(len(counts) + 1, dtype=np.int64)
        offsets[1:] = [ends[n_texts] + inserted for n_texts, inserted in counts]
        return np.insert(ids, places, np.array(values, dtype=dtype)), offsets

    def _document_parts(self, document: str | Buffer) -> Iterator[str | bytes | list[int]]:
        """Texts for the engine, and lists of ids."""
        if isinstance(document, str):
            text, errors = patterns.joined_surrogates(document), "strict"
        else:
            # A byte that is not UTF-8 is a surrogate to the rules, and itself again to the engine.
            text, errors = str(document, "utf-8", "surrogateescape"), "surrogateescape"
            if self._needs_text and not text.isascii():
                _check_is_utf8(text)
        if not self._is_searched_here:
            text = self._normal_between(text)
            if self._finder is None or self._finder.first_in(text) is None:
                yield text.encode("utf-8", errors)
                return
        for part in self._parts(text, self._always):
            if isinstance(part, int):
                yield [part]
            elif self._cut is None:
                yield part.encode("utf-8", errors)
            elif self.rules.model:
                yield self._piece_ids(part)
            else:
                yield token_bytes(part)

    def count(self, text: str) -> int:
        return len(self.encode_to_numpy(text, _NONE, ()))

    def encode_with_last(self, text: str, allowed: Specials, disallowed: Specials) -> tuple[list[int], int]:
        if not self._is_searched_here:
            ids, last = self._inner.encode_with_last(*self._native(text, allowed, disallowed))
            return self._numbers.list(ids), last
        text = patterns.joined_surrogates(text)
        ids, last = [], 0
        for part in self._parts(text, self._wanted(text, allowed, disallowed)):
            if isinstance(part, int):
                ids.append(part)
                last = 0
            elif self._cut is None:
                found, last = self._inner.encode_with_last(part, _NONE, ())
                ids.extend(self._numbers.list(found))
            else:
                found = self._piece_ids(part)
                ids.extend(found)
                last = len(found)
        return ids, last

    def encode_piece(self, piece: bytes) -> list[int]:
        return self._piece_ids(token_text(piece))

    def merge_piece(self, piece: bytes) -> list[int]:
        if self.rules.model:
            return self._piece_ids(token_text(piece))
        return self._numbers.list(self._inner.merge_piece(piece))

    # ---- Offsets

    def offsets(self, text: str, ids: list[int], allowed: Specials, disallowed: Specials) -> list[tuple[int, int]]:
        """The characters of `text` that each of its `ids` covers."""
        wanted = self._wanted(text, allowed, disallowed)
        is_changed = self._normalize is not None and (self.rules.normalizer != NFC or self._normalize(text) != text)
        found = self._aligned(text, wanted) if self._cut or is_changed else self._in_place(text, wanted)
        texts = [
            self._added_text(token, text[slice(*place)]) if is_added else self._model_text(token)
            for token, (is_added, place) in zip(ids, found, strict=True)
        ]
        places = [place for _, place in found]
        for prefix_space in self.rules.trims:
            places = [
                _trimmed(token, place, prefix_space and (i == 0 or place[0] == 0))
                for i, (token, place) in enumerate(zip(texts, places, strict=True))
            ]
        return places

    def _in_place(self, text: str, wanted: frozenset[str]) -> list[tuple[bool, tuple[int, int]]]:
        """For each id of a text that is not normalized or cut here: whether it is an added token, and its place."""
        found: list[tuple[bool, tuple[int, int]]] = []
        for span in self._spans(text, wanted):
            if span.token is not None:
                found.append((True, (span.start, span.stop)))
                continue
            places = self._places_in(span.text)
            prefix = len(span.text) - (span.stop - span.start)  # a space, in the place of the character behind it
            for start, stop in places:
                place = span.start + max(start - prefix, 0), span.start + max(stop - prefix, 1)
                found.append((False, place))
        return found

    def _aligned(self, text: str, wanted: frozenset[str]) -> list[tuple[bool, tuple[int, int]]]:
        """The same for any text."""
        sources = iter(self._aligner(wanted)(text))
        found: list[tuple[bool, tuple[int, int]]] = []
        for part in self._parts(text, wanted):
            if isinstance(part, int):
                found.append((True, next(sources)[1]))
                continue
            size = len(part) if self._cut else len(part.encode())
            places = [next(sources)[1] for _ in range(size)]
            for begin, end in self._byte_spans(part):
                found.append((False, (places[begin][0], places[end - 1][1])))
        return found

    def _places_in(self, part: str) -> Offsets:
        """The characters of a part, which is not cut here, that each of its ids covers."""
        if isinstance(self._inner, patterns.RegexCore):
            return self._inner.offsets(part, _NONE, ())
        return character_offsets(part, self._lengths(self._inner.encode_ordinary(part)))

    def _byte_spans(self, part: str) -> list[tuple[int, int]]:
        if self.rules.model:
            return self._piece_spans(part)
        if self._cut:
            lengths = self._lengths(self._inner.encode_piece(token_bytes(part)))
        elif isinstance(self._inner, patterns.RegexCore):
            ends = list(accumulate((len(character.encode()) for character in part), initial=0))
            return [(ends[start], ends[stop]) for start, stop in self._inner.offsets(part, _NONE, ())]
        else:
            lengths = self._lengths(self._inner.encode_ordinary(part))
        return list(pairwise(accumulate(lengths, initial=0)))

    def _lengths(self, inner_ids: list[int]) -> list[int]:
        """In bytes of the text, which are not always those that a token decodes to: an added token may have its id."""
        return [len(self._inner.token_bytes(token) or b"") for token in inner_ids]

    @functools.cached_property
    def _piece_spans(self) -> Callable[[str], list[tuple[int, int]]]:
        assert self.rules.model is not None
        return library.piece_spans_of(self.rules.model)

    @functools.lru_cache(maxsize=4)  # noqa: B019 - as above
    def _aligner(self, wanted: frozenset[str]) -> Callable[[str], list[tuple[bool, tuple[int, int]]]]:
        steps = self.rules.steps
        if steps is None:
            steps = byte_level(use_regex=False, add_prefix_space=self.rules.prefix_space)
        added = [token for token in self.rules.added if token.content in wanted]
        return library.character_offsets_of(added, self.rules.normalizer, steps)

    # ---- Tokens and decoding

    def find(self, token: bytes) -> int | None:
        found = self._inner.find(token)
        if found is not None:
            return self._numbers.outside(found)
        return self._found_elsewhere.get(token)

    @functools.cached_property
    def _found_elsewhere(self) -> dict[bytes, int]:
        return {token: number for number, token in self._decoded.items() if token}

    def token_bytes(self, token: int) -> bytes | None:
        if token in self._decoded:
            return self._decoded[token]
        return self._inner_bytes(token)

    def _inner_bytes(self, token: int) -> bytes | None:
        inside = self._numbers.one_inside(token)
        return None if inside is None else self._inner.token_bytes(inside)

    def decode_bytes(self, tokens: Iterable[int]) -> bytes:
        if self._numbers.is_identity and (not self._decoded or self._decoded.keys().isdisjoint(_listed(tokens))):
            return self._inner.decode_bytes(tokens)
        return b"".join(map(self._known_bytes, _listed(tokens)))

    def _known_bytes(self, token: int) -> bytes:
        found = self.token_bytes(token)
        if found is None:
            raise KeyError(f"Invalid token for decoding: {token}")
        return found

    def decode(self, tokens: Iterable[int], errors: str) -> str:
        if self._join is not None:
            return self._join([self._token_text(token) for token in _listed(tokens)])
        if self._numbers.is_identity and (not self._decoded or self._decoded.keys().isdisjoint(_listed(tokens))):
            return self._inner.decode(tokens, errors)
        return self.decode_bytes(tokens).decode("utf-8", errors)

    def _token_text(self, token: int) -> str:
        text = self._texts.get(token)
        return token_text(self._known_bytes(token)) if text is None else text

    def _added_text(self, token: int, text: str) -> str:
        """The text in which an added token was found, from that of its characters."""
        return self._normal(text) if token in self._found_late else text

    @functools.cached_property
    def _found_late(self) -> frozenset[int]:
        return frozenset(token.id for token in self.rules.added if token.normalized)

    def _model_text(self, token: int) -> str:
        """The text of a token in the vocabulary: an added token may have the same id."""
        text = self._vocabulary.get(token)
        return token_text(self._inner_bytes(token) or self._known_bytes(token)) if text is None else text

    @property
    def _vocabulary(self) -> dict[int, str]:
        return self.rules.decoder[1] if self.rules.decoder else {}

    @functools.cached_property
    def _texts(self) -> dict[int, str]:
        return self._vocabulary | {token.id: self._written(token) for token in self.rules.added}


def engine(
    ranks: dict[bytes, int] | RankFile, specials: dict[str, int], pat_str: str, rules: TextRules | None
) -> Engine:
    """The engine for a pattern, and for rules of text where there are any."""
    if rules is None:
        return patterns.engine(ranks, specials, pat_str)
    return RulesEngine(ranks, specials, pat_str, rules)


def _trimmed(token: str, place: tuple[int, int], may_keep: bool) -> tuple[int, int]:
    """Without the spaces at both ends of a token; `may_keep` a single one at its start, which was not in the text."""
    start, stop = place
    leading, trailing = (len(token) - len(strip(_SPACE)) for strip in (token.lstrip, token.rstrip))
    if leading and not (may_keep and leading == 1):
        start = min(start + leading, stop)
    if trailing and stop >= trailing:
        stop = max(stop - trailing, start)
    return start, stop


def _check_is_utf8(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"a document is not UTF-8 at character {error.start}, which this tokenizer's rules of text cannot read"
        ) from None


def _listed(tokens: Iterable[int]) -> list[int]:
    return tokens.tolist() if isinstance(tokens, np.ndarray) else list(tokens)


class _Numbers:
    """Translates between a tokenizer's ids and its engine's, which are ranks. For most tokenizers they are equal."""

    def __init__(self, ids: tuple[int, ...] | None, added: dict[str, int]):
        self.is_identity = ids is None
        if ids is None:
            return
        outside = list(ids)
        self._inside = {number: rank for rank, number in enumerate(outside)}
        for number in added.values():
            if number not in self._inside:
                self._inside[number] = len(outside)
                outside.append(number)
        self._outside = np.array(outside, dtype=np.uint32)

    @classmethod
    def of(cls, ids: tuple[int, ...] | None, added: dict[str, int]) -> _Numbers:
        return cls(ids, added)

    def inside(self, added: dict[str, int]) -> dict[str, int]:
        return added if self.is_identity else {text: self._inside[number] for text, number in added.items()}

    def one_inside(self, number: int) -> int | None:
        return number if self.is_identity else self._inside.get(number)

    def outside(self, number: int) -> int:
        return number if self.is_identity else int(self._outside[number])

    def largest(self, inside: int) -> int:
        return inside if self.is_identity else int(self._outside.max())

    @property
    def narrow(self) -> bool:
        """Whether the engine's ids fit where the tokenizer's do."""
        return self.is_identity or len(self._outside) <= 65536

    def list(self, ids: list[int]) -> list[int]:
        return ids if self.is_identity else self._outside[ids].tolist() if ids else []

    def array(self, ids: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return ids if self.is_identity else self._outside[ids]
