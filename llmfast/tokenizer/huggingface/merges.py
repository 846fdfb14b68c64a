"""From a list of merges to the ranks of tokens, which the engine merges by.

Hugging Face's library merges the pair that stands first in a list. The engine merges the pair whose bytes together are
the token of the lowest rank. Both give equal results where each token is made of the same two tokens in the same order,
which `ranks_of` makes sure of.

A token comes about in one way only, whatever the list has: merging inside a stretch of text depends on nothing outside
of it until a merge crosses its ends. So it is made of the two tokens that merging its own bytes arrives at last, and
the order of those pairs, one for each token, is the order of the tokens. Other pairs of the list never come up.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from llmfast import _bpe


class Ranked(NamedTuple):
    """Tokens by rank, for the engine; `ids` has the id of each rank, and is None where the two are the same."""

    ranks: dict[bytes, int]
    ids: tuple[int, ...] | None


def ranks_of(
    vocabulary: dict[bytes, int], merges: Sequence[tuple[bytes, bytes]], *, whole_pieces: bool, largest: int
) -> Ranked | None:
    """The ranks by which the engine merges as the list does, or None if it cannot.

    Args:
        vocabulary: the id of each token.
        merges: pairs of tokens, first the one that is merged first.
        whole_pieces: whether a piece that is a token is that token, even where merging does not arrive at it. Without
            this, tokens that merging never arrives at are not among the ranks.
        largest: the largest id of all tokens, of added ones too.
    """
    place_of = {pair: place for place, pair in enumerate(merges) if all(pair)}
    order: dict[bytes, int] = {}
    for (left, right), place in place_of.items():
        made = left + right
        order[made] = min(place, order.get(made, place))
    tokens = {token: number for token, number in vocabulary.items() if token}
    if not whole_pieces:
        tokens = {token: number for token, number in tokens.items() if len(token) == 1 or token in order}
    if not tokens:
        return None
    for _ in range(3):  # nearly always the first guess is right
        made = sorted(order.keys() & tokens.keys(), key=order.__getitem__)
        ranked = _ranked(tokens, made, largest)
        found = _places(ranked.ranks, place_of)
        if found is None:
            return None
        reached = [token for token in order if token in found]
        if sorted(reached, key=order.__getitem__) == sorted(reached, key=found.__getitem__):
            if whole_pieces or len(reached) == len(order):
                return ranked
            tokens = {token: number for token, number in tokens.items() if len(token) == 1 or token in found}
        order = found
    return None


def _ranked(tokens: dict[bytes, int], made: list[bytes], largest: int) -> Ranked:
    ids = [tokens[token] for token in made]
    # Ids far above the number of tokens would make the engine's tables large.
    is_dense = largest < 2 * len(tokens) + 4096
    if is_dense and all(one < other for one, other in pairwise(ids)):
        return Ranked(tokens, None)
    by_id = sorted(tokens.keys() - set(made), key=tokens.__getitem__)
    by_rank = [token for token in by_id if len(token) == 1]
    by_rank += [*made, *(token for token in by_id if len(token) > 1)]
    return Ranked({token: rank for rank, token in enumerate(by_rank)}, tuple(tokens[token] for token in by_rank))


def _places(ranks: dict[bytes, int], place_of: dict[tuple[bytes, bytes], int]) -> dict[bytes, int] | None:
    """The place in the list of the pair that the engine makes each token of; None if the list has no such pair.

    Tokens that the engine does not make are left out.
    """
    token_of = {rank: token for token, rank in ranks.items()}
    found: dict[bytes, int] = {}
    for rank, parts in _bpe.derive_merges(ranks):
        token = token_of[rank]
        if len(parts) == 2:
            left, right = (token_of[part] for part in parts)
            place = place_of.get((left, right))
            if place is None:
                return None
            found[token] = place
        elif len(token) > _LONGEST_CHECKED or _is_made_later(token, ranks):
            return None
    return found


_LONGEST_CHECKED = 1000  # bytes


def _is_made_later(token: bytes, ranks: dict[bytes, int]) -> bool:
    """Whether the engine makes a token of two that have higher ranks than itself."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        joined = [one + other for one, other in pairwise(parts)]
        _, i = min((ranks.get(text, len(ranks) << 32), i) for i, text in enumerate(joined))
        if joined[i] not in ranks:
            break
        parts[i : i + 2] = [joined[i]]
    return len(parts) == 2 and all(part in ranks for part in parts)
