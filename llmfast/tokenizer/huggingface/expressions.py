"""Regular expressions compared by what they mean, whichever way they are spelled.

Files spell the published splitting patterns in several ways: ``[!"#`` or ``[!\\"#``, line ends as such or escaped,
classes in another order, contractions one by one or as ``'(?i:[sdmt]|ll|ve|re)``. `meaning` gives equal values for
such spellings. Expressions are read as Oniguruma does, which Hugging Face's library uses; `is_portable` tells whether
the `regex` library would match the same.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple


class NotUnderstood(ValueError):
    """The expression has a construct that `meaning` does not know."""


class Repeated(NamedTuple):
    """An atom with its quantifier: `mode` is "greedy", "lazy" or "possessive"."""

    atom: Any
    least: int
    most: int | None
    mode: str


class Group(NamedTuple):
    """`kind` is "" (only grouping), "i" (ignoring case) or a lookaround such as "=" and "<!"."""

    kind: str
    alternatives: tuple[Any, ...]


class CharacterSet(NamedTuple):
    negated: bool
    ranges: tuple[tuple[int, int], ...]  # merged, in order
    named: frozenset[str]  # such as "s", "p{L}"


class Words(NamedTuple):
    """Neighboring alternatives that are plain words, in any order: none begins another."""

    ignore_case: bool
    words: frozenset[str]


@functools.lru_cache(maxsize=64)
def meaning(expression: str) -> tuple[Any, ...]:
    """A value that is equal for expressions that differ in spelling only.

    >>> meaning("[b-da]|(?:x)") == meaning("[abcd]|x"), meaning("a+") == meaning("a*")
    (True, False)

    Raises:
        NotUnderstood: for a construct that is not known here.
    """
    return _parsed(expression)[0]


@functools.lru_cache(maxsize=64)
def is_portable(expression: str) -> bool:
    """Whether Oniguruma and the `regex` library find equal matches of the expression in every text.

    >>> is_portable("[a-z]+|\\\\s"), is_portable("a$"), is_portable("[0-9]{1,3}+")
    (True, False, False)
    """
    try:
        return _parsed(expression)[1]
    except NotUnderstood:
        return False


def _parsed(expression: str) -> tuple[tuple[Any, ...], bool]:
    parser = _Parser(expression)
    alternatives = parser.alternatives()
    if parser.at < len(expression):
        raise NotUnderstood(f"unbalanced ')' in {expression!r}")
    return alternatives, parser.portable


_ESCAPED = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "v": "\v", "a": "\a", "e": "\x1b"}
_NAMED = {"s", "S", "d", "D"}
_ONIGURUMA_ONLY = {"w", "W", "z", "Z", "A", "b", "B", "h", "H"}  # the regex library reads these otherwise
_PROPERTIES = {
    "L", "Lu", "Ll", "Lt", "Lm", "Lo", "M", "Mn", "Mc", "Me", "N", "Nd", "Nl", "No", "P", "Pc", "Pd", "Ps", "Pe", "Pi",
    "Pf", "Po", "S", "Sm", "Sc", "Sk", "So", "Z", "Zs", "Zl", "Zp", "Han", "Hiragana", "Katakana", "Hangul", "Latin",
    "Cyrillic", "Greek", "Arabic", "Hebrew", "Thai", "Devanagari",
}  # fmt: skip
_LONG_NAMES = {"Letter": "L", "Number": "N", "Punctuation": "P", "Symbol": "S", "Mark": "M", "Separator": "Z"}


class _Parser:
    def __init__(self, expression: str):
        self.text, self.at = expression, 0
        self.portable = True

    def next_is(self, text: str) -> bool:
        return self.text.startswith(text, self.at)

    def take(self, text: str) -> bool:
        if self.next_is(text):
            self.at += len(text)
            return True
        return False

    def one(self) -> str:
        if self.at >= len(self.text):
            raise NotUnderstood(f"{self.text!r} ends too early")
        self.at += 1
        return self.text[self.at - 1]

    def alternatives(self, ignore_case: bool = False) -> tuple[Any, ...]:
        found = [self.sequence(ignore_case)]
        while self.take("|"):
            found.append(self.sequence(ignore_case))
        return _with_words(found, ignore_case)

    def sequence(self, ignore_case: bool) -> tuple[Any, ...]:
        items: list[Repeated] = []
        while self.at < len(self.text) and not self.next_is("|") and not self.next_is(")"):
            items.append(self.repeated(self.atom(ignore_case)))
        flat: list[Repeated] = []
        for item in items:
            inner = item.atom
            if isinstance(inner, Group) and inner.kind == "" and len(inner.alternatives) == 1:
                sequence = inner.alternatives[0]
                once = (item.least, item.most) == (1, 1)
                if isinstance(sequence, tuple) and not isinstance(sequence, Words):
                    if once:
                        flat.extend(sequence)
                        continue
                    if len(sequence) == 1 and (sequence[0].least, sequence[0].most) == (1, 1):
                        flat.append(item._replace(atom=sequence[0].atom))
                        continue
            flat.append(item)
        return tuple(flat)

    def repeated(self, atom: Any) -> Repeated:
        least, most, counted = 1, 1, False
        if self.take("*"):
            least, most = 0, None
        elif self.take("+"):
            least, most = 1, None
        elif self.take("?"):
            least, most = 0, 1
        elif self.next_is("{"):
            least, most = self.counts()
            counted = True
        else:
            return Repeated(atom, 1, 1, "greedy")
        mode = "greedy"
        if self.take("?"):
            if counted:
                raise NotUnderstood("a lazy quantifier behind {...}")
            mode = "lazy"
        elif self.take("+"):
            if counted:  # Oniguruma repeats what is counted; the regex library gives nothing back
                self.portable = False
                inner = Group("", ((Repeated(atom, least, most, mode),),))
                return Repeated(inner, 1, None, mode)
            mode = "possessive"
        if self.at < len(self.text) and self.text[self.at] in "*+?{":
            raise NotUnderstood("a quantifier behind a quantifier")
        return Repeated(atom, least, most, mode)

    def counts(self) -> tuple[int, int | None]:
        close = self.text.find("}", self.at)
        least, comma, most = self.text[self.at + 1 : max(close, self.at + 1)].partition(",")
        if not least.isdecimal() or (most and not most.isdecimal()):
            raise NotUnderstood("a '{' that is no count")
        self.at = close + 1
        return int(least), (int(most) if most else None) if comma else int(least)

    def atom(self, ignore_case: bool) -> Any:
        if self.next_is("("):
            return self.group(ignore_case)
        character = self.one()
        if character == "[":
            return self.character_set()
        if character == "\\":
            found = self.escape()
            return found if isinstance(found, str) else CharacterSet(False, (), frozenset([found[0]]))
        if character in "^$":  # of lines in Oniguruma, of the text in the regex library
            self.portable = False
            return CharacterSet(False, (), frozenset([character]))
        if character == ".":
            return CharacterSet(False, (), frozenset(["."]))
        if character in "*+?{}":
            raise NotUnderstood(f"{character!r} in {self.text!r}")
        return character

    def group(self, ignore_case: bool) -> Group:
        self.one()
        kind = ""
        if self.take("?"):
            kind = next((k for k in (":", "i:", "=", "!", "<=", "<!") if self.take(k)), "?").rstrip(":")
            if kind == "?":
                raise NotUnderstood(f"a group that begins with '(?{self.text[self.at : self.at + 1]}'")
        ignore_case = ignore_case or kind == "i"
        inner = self.alternatives(ignore_case)
        if ignore_case and not all(isinstance(one, Words) and _folds_simply(one.words) for one in inner):
            self.portable = False
        if not self.take(")"):
            raise NotUnderstood(f"unbalanced '(' in {self.text!r}")
        return Group(kind, inner)

    def escape(self) -> str | tuple[str]:
        """A character, or the name of a set of them in a tuple."""
        character = self.one()
        if character in _ESCAPED:
            return _ESCAPED[character]
        if character in _NAMED:
            return (character,)
        if character in _ONIGURUMA_ONLY:
            self.portable = False
            return (character,)
        if character in "pP":
            if not self.take("{"):
                raise NotUnderstood("a property without braces")
            close = self.text.find("}", self.at)
            name = self.text[self.at : max(close, self.at)]
            self.at = close + 1
            name = _LONG_NAMES.get(name, name)
            if name not in _PROPERTIES:
                raise NotUnderstood(f"the property {name!r}")
            return (f"{character}{{{name}}}",)
        digits = {"x": 2, "u": 4}.get(character)
        if digits:
            code = self.text[self.at : self.at + digits]
            self.at += digits
            try:
                return chr(int(code, 16))
            except ValueError:
                raise NotUnderstood(f"the escape \\{character}{code}") from None
        if character.isalnum():
            raise NotUnderstood(f"the escape \\{character}")
        return character

    def character_set(self) -> Any:
        negated = self.take("^")
        ranges: list[tuple[int, int]] = []
        named: set[str] = set()
        first = True
        while first or not self.next_is("]"):
            first = False
            if (
                self.next_is("[")
                or self.next_is("&&")
                or self.next_is("--")
                or self.next_is("||")
                or self.next_is("~~")
            ):
                raise NotUnderstood("a set inside a set")
            item = self.one()
            start = self.escape() if item == "\\" else item
            if isinstance(start, tuple):
                named.update(start)
                continue
            stop = start
            if self.next_is("-") and not self.next_is("-]"):
                self.one()
                item = self.one()
                stop = self.escape() if item == "\\" else item
                if isinstance(stop, tuple) or item == "[" or ord(stop) < ord(start):
                    raise NotUnderstood("a range that ends in a set")
            ranges.append((ord(start), ord(stop)))
        self.one()
        merged = _merged(ranges)
        if not negated and not named and len(merged) == 1 and merged[0][0] == merged[0][1]:
            return chr(merged[0][0])
        if not ranges and len(named) == 1:
            (name,) = named
            return CharacterSet(False, (), frozenset([_inverse(name)]) if negated else frozenset(named))
        return CharacterSet(negated, merged, frozenset(named))


def _inverse(name: str) -> str:
    """The name of the other characters: [^\\s] is \\S."""
    return name[0].swapcase() + name[1:]


def _merged(ranges: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    merged: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        if merged and start <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
        else:
            merged.append((start, stop))
    return tuple(merged)


# ---- Words


def _folds_simply(words: frozenset[str]) -> bool:
    """Whether no letters of the words are one letter in another case, as "ss" and "fi" are to Oniguruma."""
    return all(word.isascii() and not any(two in word for two in ("ss", "ff", "fi", "fl", "st")) for word in words)


def _with_words(alternatives: list[tuple[Any, ...]], ignore_case: bool) -> tuple[Any, ...]:
    """The alternatives, of which those that stand together and are plain words become one set of words."""
    result: list[Any] = []
    for alternative in alternatives:
        found = _words(alternative, ignore_case)
        before = result[-1] if result else None
        if found is None:
            result.append(alternative)
        elif (
            isinstance(before, Words)
            and before.ignore_case == found.ignore_case
            and _can_join(before.words, found.words)
        ):
            result[-1] = Words(found.ignore_case, before.words | found.words)
        else:
            result.append(found)
    return tuple(result)


_MOST_WORDS = 32


def _can_join(some: frozenset[str], others: frozenset[str]) -> bool:
    """Whether the words are few and none of them begins another, so that their order does not matter."""
    return len(some) + len(others) <= _MOST_WORDS and not any(
        one.startswith(other) or other.startswith(one) for one in some for other in others
    )


def _words(sequence: tuple[Any, ...], ignore_case: bool) -> Words | None:
    """The few words that a sequence matches; None if it matches others."""
    texts, ignored, cased = {""}, ignore_case, False
    for item in sequence:
        atom, inner = item.atom, ignore_case
        if (item.least, item.most) != (1, 1):
            return None
        if isinstance(atom, str):
            options = {atom}
        elif isinstance(atom, CharacterSet) and not atom.negated and not atom.named:
            if sum(stop - start + 1 for start, stop in atom.ranges) > 8:
                return None
            options = {chr(code) for start, stop in atom.ranges for code in range(start, stop + 1)}
        elif isinstance(atom, Group) and atom.kind in ("", "i") and [type(one) for one in atom.alternatives] == [Words]:
            inner, options = atom.alternatives[0]
        else:
            return None
        if any(option.lower() != option.upper() for option in options):
            if cased and inner != ignored:
                return None
            ignored, cased = inner, True
        texts = {text + option for text in texts for option in options}
        if len(texts) > _MOST_WORDS:  # looked at in each step: they multiply
            return None
    if cased and ignored:
        texts = {text.lower() for text in texts}
    return Words(cased and ignored, frozenset(texts))


def may_be_empty(alternatives: tuple[Any, ...]) -> bool:
    """Whether an expression of this meaning may match between two characters."""
    return any("" in one.words if isinstance(one, Words) else all(map(_is_empty, one)) for one in alternatives)


def _is_empty(item: Repeated) -> bool:
    atom = item.atom
    if item.least == 0:
        return True
    if isinstance(atom, Group):
        return atom.kind not in ("", "i") or may_be_empty(atom.alternatives)
    return isinstance(atom, CharacterSet) and not atom.negated and not atom.named.isdisjoint("^$zZAbB")
