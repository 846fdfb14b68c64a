"""The splitting patterns: the regular expressions that the engine knows, and `regex` for the others."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from llmfast import _bpe
from llmfast.tokenizer.engine import Buffer, Engine, Ids, Specials
from llmfast.tokenizer.formats.rank_files import RankFile
from llmfast.tokenizer.huggingface import expressions
from llmfast.tokenizer.offsets import Offsets, character_offsets

if TYPE_CHECKING:
    import regex

Found = TypeVar("Found")

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"

GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
GPT2_AS_PUBLISHED = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)
LLAMA3 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# The same pieces in the spelling of minbpe's GPT-4 pattern, which many programs have copied.
LLAMA3_IN_MINBPE = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
QWEN2 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
O200K = "|".join(
    [
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+" + CONTRACTIONS + "?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*" + CONTRACTIONS + "?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)

# DeepSeek V3 splits three times in sequence: numbers are cut out, then runs of kanji and kana, and each part is split
# by the third expression, which leaves pieces that it does not match. DEEPSEEK gives the same pieces at once.
DEEPSEEK_STEPS = (
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
)
_KANJI_OR_KANA = "[一-龥\u3040-ゟ゠-ヿ]"
_UNASSIGNED, _KANA_PUNCTUATION = "[\u3040\u3097\u3098]", "[゛゜゠・]"
_KANA_LETTER = f"(?:(?!{_UNASSIGNED}|{_KANA_PUNCTUATION}){_KANJI_OR_KANA})"
_OTHER_LETTER = rf"(?:(?!{_KANJI_OR_KANA})[\p{{L}}\p{{M}}])"
DEEPSEEK = "|".join(
    [
        r"\p{N}{1,3}",
        f"{_UNASSIGNED}?{_KANA_LETTER}+",
        f"{_KANA_PUNCTUATION}+",
        f"(?:{_UNASSIGNED}(?!{_KANA_LETTER}))+",
        r"[!-/:-@\[-`{-~][A-Za-z]+",
        rf"[^\r\n\p{{L}}\p{{P}}\p{{S}}]?{_OTHER_LETTER}+",
        rf" ?(?:(?!{_KANJI_OR_KANA})[\p{{P}}\p{{S}}])+[\r\n]*",
        r"\s*[\r\n]+",
        rf"\s+(?=$|[\s\p{{N}}]|{_KANJI_OR_KANA})",
        r"\s+",
        rf"(?:(?!{_KANJI_OR_KANA}|[\s\p{{L}}\p{{M}}\p{{N}}\p{{P}}\p{{S}}])[\s\S](?!{_OTHER_LETTER}))+",
    ]
)

WHOLE = r"[\s\S]+"  # no splitting at all: the text is one piece

# Regular expression -> the engine's name for it.
NATIVE = {
    WHOLE: "none",
    GPT2: "gpt2",
    GPT2_AS_PUBLISHED: "gpt2",
    GPT2_AS_PUBLISHED.replace(r" ?\p{L}+", r" ?[\p{L}]+").replace(r" ?\p{N}+", r" ?[\p{N}]+"): "gpt2",
    CL100K: "cl100k",
    LLAMA3: "llama3",
    LLAMA3_IN_MINBPE: "llama3",
    QWEN2: "qwen2",
    O200K: "o200k",
    DEEPSEEK: "deepseek",
}


@functools.lru_cache(maxsize=64)
def compiled(pat_str: str) -> regex.Pattern[str]:
    """The expression, as the `regex` library runs it; ValueError for what is none."""
    import regex

    if not pat_str:
        raise ValueError("the splitting pattern is empty: it would leave nothing of any text")
    try:
        return regex.compile(pat_str)
    except regex.error as error:
        raise ValueError(f"the splitting pattern {pat_str!r} is no regular expression: {error}") from None


def compiled_forward(pat_str: str) -> regex.Pattern[str]:
    """The same for splitting text, which goes from its start to its end."""
    import regex

    pattern = compiled(pat_str)
    if pattern.flags & regex.REVERSE:
        raise ValueError(f"the splitting pattern {pat_str!r} searches backwards: leave out the flag (?r)")
    return pattern


# A pattern that backtracks may take time that is exponential in the length of a text. Finding one piece may take this
# many seconds of CPU time, and as many again for each million characters of the text.
SECONDS_PER_PIECE = 10.0
_PIECES_AT_ONCE = 1024


def pieces(pat_str: str, text: str) -> Iterator[str]:
    """What `pat_str` matches in `text`, one match after another, by the `regex` library; empty matches are no pieces.

    Raises:
        ValueError: the pattern is not a regular expression, or takes more than `SECONDS_PER_PIECE`.

    >>> list(pieces("[a-z]+|[0-9]", "ab 12"))
    ['ab', '1', '2']
    """
    for group in groups_of_pieces(pat_str, text):
        yield from group


def groups_of_pieces(pat_str: str, text: str) -> Iterator[list[str]]:
    """The same in lists of many pieces. Time that the caller spends between lists does not count."""
    return _groups(pat_str, text, lambda match: match.group(), lambda match: match.captures(1))


def piece_spans(pat_str: str, text: str) -> Iterator[tuple[int, int]]:
    """Where each of `pieces` starts and ends.

    >>> list(piece_spans("[a-z]+|[0-9]", "ab 12"))
    [(0, 2), (3, 4), (4, 5)]
    """
    for group in _groups(pat_str, text, lambda match: match.span(), lambda match: match.spans(1)):
        yield from group


def _groups(
    pat_str: str,
    text: str,
    of_match: Callable[[regex.Match[str]], Found],
    of_many: Callable[[regex.Match[str]], list[Found]],
) -> Iterator[list[Found]]:
    """What `of_match` makes of each piece's match, or `of_many` of a match of `_many_at_once`, in lists of many.

    The `regex` library reads the clock of the process for each match that has a time limit, which takes longer than to
    find a piece. So many pieces are matched at once where that is known to give the same. Where it takes long, the
    limit is for one piece.
    """
    pattern = compiled_forward(pat_str)
    start = 0
    if many := _many_at_once(pat_str, _PIECES_AT_ONCE):
        try:
            while match := many.match(text, start, timeout=SECONDS_PER_PIECE / 10):
                start = match.end()
                yield of_many(match)
            _check_end(pat_str, start, len(text))
            return
        except TimeoutError:
            pass  # those before have been yielded
    for matches in _groups_of_matches(pattern, pat_str, text, start):
        yield list(map(of_match, matches))


@functools.lru_cache(maxsize=64)
def _many_at_once(pat_str: str, pieces_at_once: int) -> regex.Pattern[str] | None:
    """An expression whose group 1 matches one piece after another; None where it might match others than a search.

    That is so for a pattern that may match the empty text, that refers to groups, or that has flags or other constructs
    that `expressions` does not know.
    """
    import regex

    pattern = compiled_forward(pat_str)
    try:
        may_be_empty = expressions.may_be_empty(expressions.meaning(pat_str))
    except expressions.NotUnderstood:
        return None
    if may_be_empty or pattern.flags != regex.compile("").flags or _REFERENCE.search(pat_str):
        return None
    skipped = "" if without_gaps(pat_str) else "(?s:.*?)"
    return regex.compile(f"(?:{skipped}(?>({pat_str}))){{1,{pieces_at_once}}}+")


def _groups_of_matches(
    pattern: regex.Pattern[str], pat_str: str, text: str, start: int
) -> Iterator[list[regex.Match[str]]]:
    limit = SECONDS_PER_PIECE * (1 + len(text) / 1_000_000)
    stop = -1
    while stop != start:  # each search starts behind a piece of the one before
        start = max(stop, start)
        group, stop = _some_matches(pattern, text, start, limit)
        end = stop if stop > start else len(text)
        _check_end(pat_str, start + sum(len(match.group()) for match in group), end)
        yield group


def _check_end(pat_str: str, found: int, end: int) -> None:
    """ValueError if the pieces of a pattern that loses nothing of any text end before the text."""
    expression = without_gaps(pat_str)
    if expression is not None and found < end:
        raise ValueError(_lost_characters(expression))


def _some_matches(
    pattern: regex.Pattern[str], text: str, start: int, limit: float
) -> tuple[list[regex.Match[str]], int]:
    """The next matches from `start` on that are not empty, and where to search for more: at `start` if at the end."""
    matches = pattern.finditer(text, start, timeout=limit)
    while True:
        found: list[regex.Match[str]] = []
        is_late = False
        try:
            found.extend(itertools.islice(matches, _PIECES_AT_ONCE))
        except TimeoutError:
            is_late = True  # those before are in the list
        pieces = [match for match in found if match.end() > match.start()]
        if not is_late and len(found) < _PIECES_AT_ONCE:
            return pieces, start
        if pieces:
            return pieces, pieces[-1].end()
        if is_late:
            raise ValueError(
                f"the splitting pattern {pattern.pattern!r} takes more than {limit:.0f} seconds to find the piece at "
                f"character {start} of a text; write it without nested repetitions, such as (a+)+ or (?:a|aa)+, or "
                "with possessive ones, such as (?:a|aa)++"
            )


_GAPS = r"(?:{0})|(?:(?!{0})[\s\S])+"
# Back to a group by number or name: of an expression written twice, the second would refer to the first one's group.
_REFERENCE = re.compile(r"(?<!\\)(?:\\\\)*(?:\\[1-9]|\\g<|\(\?P=)")


def with_gaps(expression: str) -> str:
    """What `expression` matches, and the text between its matches, which would be lost otherwise.

    Raises:
        ValueError: an expression that refers back to a group, or that matches the empty text: where it does, neither
            a match nor the text between matches has the next character.

    >>> compiled(with_gaps("[a-z]+")).findall("ab, cd")
    ['ab', ', ', 'cd']
    """
    if _REFERENCE.search(expression):
        raise ValueError(f"the splitting pattern {expression!r} refers back to a group, which is not supported")
    if matches_empty_text(expression):
        raise ValueError(_lost_characters(expression))
    return _GAPS.format(expression)


def matches_empty_text(expression: str) -> bool:
    r"""Whether an expression matches a text of no characters.

    >>> matches_empty_text(r"\w*"), matches_empty_text(r"\w+")
    (True, False)
    """
    return compiled(expression).fullmatch("") is not None


def _lost_characters(expression: str) -> str:
    """The error for a pattern between whose matches characters are lost."""
    return (
        f"the splitting pattern {expression!r} matches the empty text, so that characters would be lost; write + "
        "in the place of *, and no alternative that is empty or only looks ahead or behind"
    )


def without_gaps(pat_str: str) -> str | None:
    """The expression that `with_gaps` made `pat_str` of, or None."""
    expression = pat_str[3 : 3 + (len(pat_str) - len(_GAPS.format(""))) // 2]
    return expression if _GAPS.format(expression) == pat_str else None


def engine(ranks: dict[bytes, int] | RankFile, specials: dict[str, int], pat_str: str) -> Engine:
    """The engine for a pattern."""
    given = ranks.for_engine if isinstance(ranks, RankFile) else ranks
    if pat_str in NATIVE:
        return _bpe.Core(given, specials, NATIVE[pat_str])
    return RegexCore(given, specials, pat_str)


def certain_boundary(pat_str: str, text: Buffer, start: int) -> int:
    """The first offset in UTF-8, at or after `start` > 0, where it can be cut between its pieces; else its length."""
    return _bpe.certain_boundary(text, NATIVE.get(pat_str, "none"), start)


# Places where every pattern of the engine starts a piece, whatever stands around them: before a space behind anything
# but white space, before a newline behind a letter, behind a newline that stands alone, and, for text without spaces,
# between kana, kanji or hangul and punctuation.
_CERTAIN = (
    r"(?r)(?<=\S)(?= )|(?<=[A-Za-z])(?=\n)|(?<=\S\n)(?=[^\s/])"
    "|(?<=[\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fa5\uac00-\ud7a3])(?=[\u3001\u3002\uff01\uff0c\uff1a\uff1b\uff1f.,:;!?])"
)


def last_certain_boundary(pat_str: str) -> Callable[[str, int, int], int | None] | None:
    """A function that finds the last place from `start` to `stop` where a text can be cut between its pieces.

    None for a pattern that is not the engine's, or that does not cut at all: it may join anything.
    """
    if NATIVE.get(pat_str, "none") == "none":
        return None
    search = compiled(_CERTAIN).search

    def boundary(text: str, start: int, stop: int) -> int | None:
        # The character at `stop` decides whether a piece starts there.
        found = search(text, start, stop + 1) if start <= stop else None
        return found.start() if found else None

    return boundary


class RegexCore:
    """An engine for patterns that the C++ engine does not know: `regex` splits the text, and the C++ engine merges."""

    def __init__(self, ranks: dict[bytes, int] | bytes, specials: dict[str, int], pat_str: str):
        self._core = _bpe.Core(ranks, specials, "none")
        compiled_forward(pat_str)  # which checks it
        self._pat_str = pat_str
        # What has nothing to do with the pattern.
        self.largest_id, self.n_ordinary = self._core.largest_id, self._core.n_ordinary
        self.encode_piece, self.merge_piece = self._core.encode_piece, self._core.merge_piece
        self.find, self.token_bytes = self._core.find, self._core.token_bytes
        self.decode, self.decode_bytes = self._core.decode, self._core.decode_bytes

    def _encode_pieces(self, text: str, ids: list[int], errors: str | None = None) -> int | None:
        """Appends the ids of the pieces of `text`; returns how many the last one has, or None if there is none."""
        last = None
        for group in groups_of_pieces(self._pat_str, text):
            if group:
                if errors:
                    group = [piece.encode("utf-8", errors) for piece in group]
                of_group, last = self._core.encode_pieces(group)
                ids += of_group
        return last

    def encode_ordinary(self, text: str) -> list[int]:
        ids: list[int] = []
        self._encode_pieces(joined_surrogates(text), ids)
        return ids

    def count(self, text: str) -> int:
        return len(self.encode_ordinary(text))

    def encode_with_last(self, text: str, allowed: Specials, disallowed: Specials) -> tuple[list[int], int]:
        ids: list[int] = []
        last = 0
        for part in self._core.cut_at_specials(text, allowed, disallowed):
            if isinstance(part, int):
                ids.append(part)
                last = 0
            else:
                of_last = self._encode_pieces(part, ids)
                last = last if of_last is None else of_last
        return ids, last

    def encode(self, text: str, allowed: Specials, disallowed: Specials) -> list[int]:
        return self.encode_with_last(text, allowed, disallowed)[0]

    def encode_to_numpy(self, text: str, allowed: Specials, disallowed: Specials) -> npt.NDArray[np.uint32]:
        return np.array(self.encode(text, allowed, disallowed), dtype=np.uint32)

    def encode_batch(
        self, texts: Sequence[str], allowed: Specials, disallowed: Specials, threads: int
    ) -> list[list[int]]:
        return [self.encode(text, allowed, disallowed) for text in texts]

    def encode_documents(
        self, documents: Iterable[str | Buffer], separator: int | None, threads: int, narrow: bool
    ) -> tuple[Ids, npt.NDArray[np.int64]]:
        ends = [] if separator is None else [separator]
        parts = [self._encode_document(one) + ends for one in documents]
        offsets = np.zeros(len(parts) + 1, dtype=np.int64)
        np.cumsum([len(part) for part in parts], out=offsets[1:])
        dtype = np.uint16 if narrow else np.uint32
        return np.fromiter((token for part in parts for token in part), dtype=dtype), offsets

    def offsets(self, text: str, allowed: Specials, disallowed: Specials) -> Offsets:
        """The characters of `text` that each of its ids covers: what the pattern does not match has no id."""
        found: Offsets = []
        at = 0
        for part in self._core.cut_at_specials(text, allowed, disallowed):
            if isinstance(part, int):
                stop = at + len(self._known_bytes(part).decode("utf-8"))
                found.append((at, stop))
                at = stop
                continue
            for start, stop in piece_spans(self._pat_str, part):
                piece = part[start:stop]
                lengths = [len(self._known_bytes(token)) for token in self.encode_piece(piece.encode("utf-8"))]
                found += [(at + start + begin, at + start + end) for begin, end in character_offsets(piece, lengths)]
            at += len(part)
        return found

    def _known_bytes(self, token: int) -> bytes:
        found = self.token_bytes(token)
        assert found is not None, "an id of the engine"
        return found

    def _encode_document(self, document: str | Buffer) -> list[int]:
        if isinstance(document, str):
            return self.encode_ordinary(document)
        # A byte that is not UTF-8 is a surrogate to the pattern, and itself again in its piece.
        ids: list[int] = []
        self._encode_pieces(str(document, "utf-8", "surrogateescape"), ids, "surrogateescape")
        return ids


def joined_surrogates(text: str) -> str:
    """`text` with surrogate pairs joined and lone surrogates replaced: a str that has UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
