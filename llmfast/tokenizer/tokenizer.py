"""An `Encoding` that can be trained, saved and loaded."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llmfast.files import atomic_write
from llmfast.tokenizer import arguments, huggingface, patterns, rank_files, training
from llmfast.tokenizer.encoding import Encoding
from llmfast.tokenizer.training import Progress, Source, TieBreak

if TYPE_CHECKING:
    import tiktoken
    import transformers

PATTERNS = {
    "gpt2": patterns.GPT2,
    "cl100k": patterns.CL100K,
    "llama3": patterns.LLAMA3,
    "qwen2": patterns.QWEN2,
    "o200k": patterns.O200K,
    "deepseek": patterns.DEEPSEEK,
    "none": training.WHOLE,
}

# How tokenizer families call the token between documents, ours first.
_END_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "<｜end▁of▁sentence｜>", "</s>")


class Tokenizer(Encoding):
    """Byte-level BPE with a vocabulary of your own: train it, save it, load it, encode as any `Encoding`.

    >>> tokenizer = Tokenizer.train(["low low low lower lower newest newest"], vocab_size=259)
    >>> tokenizer.encode("lower")
    [257, 101, 114]
    >>> tokenizer.n_vocab, tokenizer.eot_token
    (259, 258)
    """

    @classmethod
    def train(
        cls,
        source: Source,
        vocab_size: int,
        *,
        pattern: str = "cl100k",
        special_tokens: Sequence[str] = ("<|endoftext|>",),
        min_frequency: int = 2,
        tie_break: TieBreak = "bytes",
        allow_smaller: bool = False,
        num_threads: int | None = None,
        progress: bool | Progress | None = None,
    ) -> Tokenizer:
        """Learns a vocabulary: again and again, the most frequent pair of adjacent tokens becomes a token.

        The result depends on nothing but the text and the arguments; on threads least of all.

        Args:
            source: documents (an iterable of str or bytes, such as ``(row["text"] for row in dataset)``, or of lists
                of them, such as ``(batch["text"] for batch in dataset.iter(1000))``), or the path of a UTF-8 file, or
                a list of ``pathlib.Path``. Text is streamed: memory grows with the number of distinct words, not with
                the length of the text.
            vocab_size: how many tokens to end with: 256 bytes, the merges, and the special tokens.
            pattern: what cuts text into words, inside which merges happen: a name (``gpt2``, ``cl100k``,
                ``llama3``, ``qwen2``, ``o200k``, ``deepseek``; ``none`` to cut nowhere) or a regular expression for
                the `regex` library, which is slower and reads each file whole. What lies between its matches is a
                word, too.
            special_tokens: their ids follow those of the merges. In the text they end a document and are not
                learned from.
            min_frequency: stop before a pair that is rarer. 2 by default: a pair that occurs once says
                nothing about other text, and letting it go saves much memory.
            tie_break: which of equally frequent pairs is merged first: ``bytes``, the lexicographically
                greatest (left bytes, right bytes); ``smallest_ids``, the smallest (left id, right id);
                ``huggingface``, the same with bytes numbered as GPT-2 does, which gives the merges of Hugging
                Face's ``BpeTrainer`` with the byte-level alphabet.
            allow_smaller: end with fewer tokens than `vocab_size` where no pair is left that occurs `min_frequency`
                times, as Hugging Face's trainer does; otherwise that is an error. ``tokenizer.n_vocab`` is the size
                reached.
            num_threads: all cores if None.
            progress: True draws a bar; a function is called with ("reading", bytes done, bytes of the files
                or None) and ("merging", merges done, merges in all).

        Raises:
            ValueError: a vocabulary smaller than 256 and the special tokens, or, without `allow_smaller`, larger than
                the text can give (the message says how many merges were possible); no text; special tokens that
                repeat, are empty, or are tokens in their own right.
            FileNotFoundError: a path that does not exist.
        """
        specials = _checked_specials(special_tokens)
        arguments.check_id(vocab_size, "vocab_size")
        n_ordinary = vocab_size - len(specials)
        if n_ordinary < 256:
            raise ValueError(
                f"vocab_size must be at least {256 + len(specials)}, for 256 bytes and {len(specials)} "
                f"special tokens; got {vocab_size}"
            )
        pat_str = _pattern(pattern)
        ranks = training.learn_ranks(
            source,
            n_ordinary,
            pat_str=pat_str,
            separators=specials,
            min_frequency=min_frequency,
            tie_break=tie_break,
            allow_smaller=allow_smaller,
            num_threads=num_threads,
            progress=progress,
        )
        for special in specials:
            if special.encode() in ranks:
                raise ValueError(f"special token {special!r} is a token of ordinary text, too; rename it")
        ids = {special: len(ranks) + i for i, special in enumerate(specials)}
        return cls("trained", pat_str=pat_str, mergeable_ranks=ranks, special_tokens=ids)

    def save(self, folder: str | os.PathLike) -> None:
        """Writes ``tokenizer.json`` and ``tokenizer_config.json`` into `folder`, which is made if need be.

        Both are Hugging Face's formats: ``tokenizers.Tokenizer.from_file`` and transformers'
        ``AutoTokenizer`` read them and give equal ids. Each file is replaced at once; a killed process leaves
        the old one whole. A pattern of your own is written as it stands, though Hugging Face's expressions
        are not quite Python's. What a file that was loaded said beside the tokenizer itself (post-processor,
        chat template) is not written; ``speed_up(AutoTokenizer.from_pretrained(...))`` keeps it.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        if (end := self._end_of_text) is not None:
            config |= {"eos_token": end}
        atomic_write(folder / "tokenizer_config.json", json.dumps(config, indent=2).encode())
        atomic_write(folder / "tokenizer.json", self._to_json().encode())

    def save_vocab_and_merges(self, folder: str | os.PathLike) -> None:
        """Writes ``vocab.json`` and ``merges.txt``, as GPT-2 was published, into `folder`, made if need be.

        They say neither the pattern nor which tokens are special: `load` takes GPT-2's pattern, and for special what
        stands in angle brackets and no merge makes, unless it is told otherwise.

        Raises:
            ValueError: a token that no merge makes, as o200k_base has some.
        """
        vocabulary, merges = huggingface.to_vocab_and_merges(self._contents)
        atomic_write(Path(folder) / "vocab.json", vocabulary)
        atomic_write(Path(folder) / "merges.txt", merges)

    def save_ranks(self, path: str | os.PathLike) -> None:
        """Writes a tiktoken rank file, which has neither pattern nor special tokens."""
        atomic_write(Path(path), rank_files.format_ranks(self._mergeable_ranks))

    @classmethod
    def load(
        cls,
        path: str | os.PathLike,
        *,
        pattern: str | None = None,
        special_tokens: dict[str, int] | None = None,
    ) -> Tokenizer:
        """Reads a tokenizer from a folder or a file, whichever format it is in.

        Args:
            path: ``tokenizer.json`` of a byte-level BPE (GPT-2, Llama 3, Qwen, ...), with the rules by which its
                added tokens are found (they all count as special tokens here); ``vocab.json`` with
                ``merges.txt`` beside it, a tiktoken rank file, or a folder that holds one of them. What
                Hugging Face adds around a text (post-processors) is not applied.
            pattern, special_tokens: instead of what the file says. A rank file says neither; both are known
                for those that OpenAI published.

        Raises:
            FileNotFoundError: nothing there.
            ValueError: a damaged file, or a kind of tokenizer that this is not; names the file and the fault.
        """
        path = _tokenizer_file(Path(path))
        if path.name in ("vocab.json", "merges.txt"):
            contents = huggingface.read_vocab_and_merges(path.parent)
        elif path.suffix == ".json":
            contents = huggingface.read_tokenizer_json(path)
        else:
            contents = _read_rank_file(path, pattern, special_tokens)
        if pattern is not None:
            contents = contents._replace(pat_str=_pattern(pattern))
        if special_tokens is not None:
            flags = {text: flags for text, flags in contents.flags.items() if text in special_tokens}
            contents = contents._replace(special_tokens=special_tokens, flags=flags)
        try:
            return cls.of_contents(
                path.stem if path.suffix != ".json" else path.resolve().parent.name, contents
            )
        except ValueError as error:
            raise ValueError(f"{path} cannot be loaded: {error}") from None

    @classmethod
    def of_contents(cls, name: str, contents: huggingface.Contents) -> Tokenizer:
        """The tokenizer that a file describes."""
        from llmfast.tokenizer.text_rules import TextRulesTokenizer, are_needed

        tokenizer = (TextRulesTokenizer if are_needed(contents) else cls)(
            name,
            pat_str=contents.pat_str,
            mergeable_ranks=contents.mergeable_ranks,
            special_tokens=contents.special_tokens,
        )
        tokenizer._normalization, tokenizer._flags = contents.normalization, contents.flags
        return tokenizer

    @classmethod
    def of(cls, encoding: Encoding) -> Tokenizer:
        """An encoding, such as a published one, as a tokenizer; the engine is shared."""
        if isinstance(encoding, cls):
            return encoding
        tokenizer = cls.__new__(cls)
        tokenizer.__dict__.update(encoding.__dict__)
        return tokenizer

    def to_transformers(self, **options) -> transformers.PreTrainedTokenizerFast:
        """The same tokenizer for transformers, with our engine inside: see `llmfast.tokenizer.speed_up`.

        Special tokens in text are always encoded as such. `options` go to ``PreTrainedTokenizerFast``: ``pad_token``,
        ``chat_template``, ``model_max_length``, ``padding_side``, ...
        """
        from tokenizers import Tokenizer as HuggingFaceTokenizer
        from transformers import PreTrainedTokenizerFast

        from llmfast.tokenizer.transformers_backend import speed_up

        usual = {"eos_token": self._end_of_text, "clean_up_tokenization_spaces": False}
        theirs = HuggingFaceTokenizer.from_str(self._to_json())
        return speed_up(PreTrainedTokenizerFast(tokenizer_object=theirs, **usual | options))

    def to_tiktoken(self) -> tiktoken.Encoding:
        """The same tokenizer as an object of tiktoken; ValueError for rules of text that tiktoken has not."""
        import tiktoken

        from llmfast.tokenizer.text_rules import are_needed

        if are_needed(self._contents):
            raise ValueError(
                f"{self!r} normalizes text or finds special tokens by rules of their own, which tiktoken cannot"
            )
        return tiktoken.Encoding(
            self.name,
            pat_str=self._pat_str,
            mergeable_ranks=self._mergeable_ranks,
            special_tokens=self._special_tokens,
        )

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal, of all that decides ids: pattern, normalization, tokens, specials."""
        digest = hashlib.sha256()
        specials = {text.encode(): number for text, number in self._special_tokens.items()}
        for ids in (self._mergeable_ranks, specials):
            digest.update(b"%d;" % len(ids))
            for token, number in sorted(ids.items(), key=lambda item: item[1]):
                digest.update(b"%d:%d:" % (number, len(token)) + token)
        for text in (self._pat_str, self._normalization or "", *self._rules_of_specials()):
            digest.update(b"%d:" % len(text.encode()) + text.encode())
        return digest.hexdigest()

    def _rules_of_specials(self) -> list[str]:
        """How special tokens are found, where that decides ids."""
        return []

    @property
    def eot_token(self) -> int:
        """The id of the special token between documents; KeyError if there is none."""
        if self._end_of_text is None:
            raise KeyError(f"{self!r} has none of {', '.join(_END_OF_TEXT)}")
        return self._special_tokens[self._end_of_text]

    @property
    def _end_of_text(self) -> str | None:
        return next((text for text in _END_OF_TEXT if text in self._special_tokens), None)

    # What Hugging Face's files may say beside the vocabulary; see `huggingface.Contents`.
    _normalization: str | None = None
    _flags: huggingface.Flags = {}  # noqa: RUF012 - never changed

    @property
    def _contents(self) -> huggingface.Contents:
        return huggingface.Contents(
            self._pat_str, self._mergeable_ranks, self._special_tokens, self._normalization, self._flags
        )

    def _to_json(self) -> str:
        return json.dumps(huggingface.to_json(self._contents), ensure_ascii=False, indent=1)

    def __getstate__(self) -> object:
        state = super().__getstate__()
        return state if isinstance(state, str) else (state, self._normalization, self._flags)

    def __setstate__(self, value: object) -> None:
        state, normalization, flags = value if isinstance(value, tuple) else (value, None, {})
        super().__setstate__(state)
        self._normalization, self._flags = normalization, flags


def _checked_specials(special_tokens: Sequence[str]) -> list[str]:
    if not isinstance(special_tokens, Iterable):
        raise TypeError(f"special_tokens must be a sequence of str, got {arguments.kind(special_tokens)}")
    if isinstance(special_tokens, str):
        raise ValueError(f"special_tokens is one str, {special_tokens!r}; put it in a list")
    specials = list(special_tokens)
    for special in specials:
        if not isinstance(special, str) or not special:
            raise ValueError(f"special tokens must be non-empty strings, got {special!r}")
    if len(set(specials)) < len(specials):
        raise ValueError(f"special_tokens has duplicates: {specials}")
    return specials


def _pattern(pattern: str) -> str:
    arguments.check_text(pattern, "pattern")
    if pattern in PATTERNS:
        return PATTERNS[pattern]
    if pattern.replace("_", "").replace("-", "").isalnum():
        raise ValueError(f"no pattern is named {pattern!r}; there are {', '.join(PATTERNS)}")
    patterns.compiled(pattern)
    return pattern if pattern in patterns.NATIVE else patterns.with_gaps(pattern)


def _tokenizer_file(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise FileNotFoundError(f"no tokenizer at {str(path)!r}")
    rank_files_there = sorted(path.glob("*.tiktoken"))
    for candidate in (path / "tokenizer.json", path / "vocab.json", *rank_files_there):
        if candidate.is_file():
            return candidate
    if (path / "tokenizer.model").is_file():
        raise ValueError(
            f"{path / 'tokenizer.model'} is a sentencepiece model, which is no byte-level BPE: llmfast does not read it"
        )
    raise FileNotFoundError(f"folder {str(path)!r} has no tokenizer.json, vocab.json or .tiktoken file")


def _read_rank_file(
    path: Path, pattern: str | None, special_tokens: dict[str, int] | None
) -> huggingface.Contents:
    ranks = rank_files.read_ranks(path)
    if pattern is None and path.stem not in rank_files.PUBLISHED:
        raise ValueError(
            f"{path} does not say how text is split: load it with Tokenizer.load(path, pattern=...), "
            "and special_tokens= if it has any"
        )
    known_pattern, known_specials = rank_files.PUBLISHED.get(path.stem, (pattern, {}))
    specials = known_specials if special_tokens is None else special_tokens
    return huggingface.Contents(_pattern(pattern or known_pattern), ranks, specials)
