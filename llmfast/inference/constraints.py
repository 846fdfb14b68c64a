"""Replies of a given form: a JSON schema or a regular expression, by ``llguidance``."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmfast.inference.config import Constraint
from llmfast.tokenizer import Tokenizer


class _Vocabulary:
    """A tokenizer as llguidance takes it. The end of a text is a token of its own behind the vocabulary, since a model
    may have several end tokens, or none."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer):
        self._encode = tokenizer.encode_ordinary
        self.eos_token_id = tokenizer.n_vocab
        self.tokens = [*(_bytes_of(tokenizer, token) for token in range(tokenizer.n_vocab)), b"<|end|>"]
        specials = (tokenizer.encode_single_token(text) for text in tokenizer.special_tokens_set)
        self.special_token_ids = [*specials, self.eos_token_id]

    def __call__(self, text: str | bytes) -> list[int]:
        return self._encode(text.decode("utf-8", errors="replace") if isinstance(text, bytes) else text)


def _bytes_of(tokenizer: Tokenizer, token: int) -> bytes:
    try:
        return tokenizer.decode_single_token_bytes(token)
    except KeyError:  # an id without a token
        return b""


class ConstraintMatcher:
    """Which tokens may come next, so that a text becomes what a constraint asks for (see ``controls.Matcher``)."""

    def __init__(self, matcher: Any, vocab_size: int, known: int, ends: Collection[int]):
        # The model may have more tokens than the tokenizer knows.
        self._matcher, self._vocab_size, self._known = matcher, vocab_size, known
        self._ends = sorted(ends)

    def allowed(self) -> Tensor:
        """(V,) bool; the end tokens where the text is complete."""
        bits = np.unpackbits(np.frombuffer(self._matcher.compute_bitmask(), np.uint8), bitorder="little")
        allowed = torch.zeros(self._vocab_size, dtype=torch.bool)
        known = min(self._vocab_size, self._known)
        allowed[:known] = torch.from_numpy(bits[:known].astype(bool))
        allowed[self._ends] = self._matcher.is_accepting()
        return allowed

    def advance(self, token: int) -> None:
        """The next token is known."""
        if token not in self._ends:
            self._matcher.consume_token(token)

    @property
    def is_complete(self) -> bool:
        """Whether nothing may follow."""
        return self._matcher.is_stopped()

    def copy(self) -> ConstraintMatcher:
        """The same state, which advances by itself."""
        return ConstraintMatcher(self._matcher.deep_copy(), self._vocab_size, self._known, self._ends)


class Constraints:
    """Makes matchers for the vocabulary of a model.

    Raises:
        ModuleNotFoundError: llguidance is not installed (``pip install 'llmfast[constraints]'``).
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int):
        import llguidance

        self._library, self._vocab_size, self._known = llguidance, vocab_size, tokenizer.n_vocab
        self._tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(_Vocabulary(tokenizer)))

    def matcher(self, constraint: Constraint, ends: Collection[int] = ()) -> ConstraintMatcher:
        """A matcher at the start of a text.

        Raises:
            ValueError: a schema or an expression that cannot be used; says why.
        """
        make = self._library.LLMatcher
        try:
            if constraint.regex is not None:
                grammar = make.grammar_from_regex(constraint.regex)
            else:
                grammar = make.grammar_from_json_schema(constraint.json_schema)
        except ValueError as error:
            raise ValueError(f"constraint cannot be used: {error}") from None
        matcher = make(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise ValueError(f"constraint cannot be used: {' '.join(matcher.get_error().split())}")
        return ConstraintMatcher(matcher, self._vocab_size, self._known, ends)
