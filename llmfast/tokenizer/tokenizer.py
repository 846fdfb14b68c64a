"""An `Encoding` that can be trained, saved and loaded."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmfast.files import atomic_write
from llmfast.tokenizer import arguments, patterns, training
from llmfast.tokenizer.additions import ids_of_added
from llmfast.tokenizer.characters import character_ranks
from llmfast.tokenizer.encoding import Encoding
from llmfast.tokenizer.formats import rank_files, tokenizer_files
from llmfast.tokenizer.formats.hub import folder_of
from llmfast.tokenizer.huggingface import vocab_and_merges, writing
from llmfast.tokenizer.huggingface.contents import Contents
from llmfast.tokenizer.huggingface.pre_tokenizers import native_pattern
from llmfast.tokenizer.text_rules import NFC
from llmfast.tokenizer.training import Progress, Source, TieBreak
from llmfast.tokenizer.transformers_backend import speed_up

if TYPE_CHECKING:
    import tiktoken
    import transformers

PATTERNS = training.PATTERNS

# What tokenizer families call the token between documents, ours first.
_END_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "<｜end▁of▁sentence｜>", "</s>")


class Tokenizer(Encoding):
    """Byte-level BPE with a vocabulary of your own: train it, save it, load it, encode as any `Encoding`.

    >>> tokenizer = Tokenizer.train(["low low low lower lower newest newest"], vocab_size=259)
    >>> tokenizer.encode("lower")
    [257, 101, 114]
    >>> tokenizer.n_vocab, tokenizer.eot_token
    (259, 258)

    Its arguments are those of `Encoding`.
    """

    _source: bytes | None = None  # the tokenizer.json that this was read from
    _around: dict[str, Any] = {}  # noqa: RUF012 - never changed; its parts about whole texts
    _beside: dict[str, bytes] = {}  # noqa: RUF012 - never changed; the files beside it

    # ---- Training

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
        """Learns a vocabulary by repeatedly merging the most frequent pair of adjacent tokens into a new token.

        The result depends only on the text and the arguments, and not on the number of threads.

        Args:
            source: documents (an iterable of str or bytes, such as ``(row["text"] for row in dataset)``, or of lists
                of them, such as ``(batch["text"] for batch in dataset.iter(1000))``), or the path of a UTF-8 file, or
                a list of ``pathlib.Path``. Text is streamed: memory grows with the number of distinct words, not with
                the length of the text.
            vocab_size: how many tokens to end with: 256 bytes, the merges, and the special tokens.
            pattern: what cuts text into words, inside which merges happen: a name (``gpt2``, ``cl100k``,
                ``llama3``, ``qwen2``, ``o200k``, ``deepseek``; ``none`` to cut nowhere) or a regular expression for
                the `regex` library, which is slower and reads each file whole. The text between its matches forms
                words, too.
            special_tokens: their ids follow those of the merges. In the text they separate documents, and nothing is
                learned from them.
            min_frequency: stop at pairs that are rarer than this. The default is 2, because a pair that occurs once
                says nothing about other text, and dropping such pairs saves much memory.
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
        return cls("trained", pat_str=pat_str, mergeable_ranks=ranks, special_tokens=_special_ids(specials, ranks))

    @classmethod
    def of_characters(cls, texts: Iterable[str], *, special_tokens: Sequence[str] = ("<|endoftext|>",)) -> Tokenizer:
        """A vocabulary in which each character of `texts` is one token.

        It is a byte-pair encoding like any other: its tokens are the 256 bytes, the characters of several bytes and
        their beginnings. A character that `texts` do not have becomes several tokens, so that every text has tokens.

        Args:
            texts: documents, read once.
            special_tokens: their ids follow those of the characters.

        Raises:
            ValueError: special tokens that repeat, are empty, or are tokens in their own right.
            TypeError: one str in the place of several, or a document that is not a str.

        >>> tokenizer = Tokenizer.of_characters(["naïve"])
        >>> tokenizer.encode("naïve"), tokenizer.encode("é"), tokenizer.n_vocab
        ([110, 97, 256, 118, 101], [195, 169], 258)
        """
        specials = _checked_specials(special_tokens)
        arguments.refuse_single(texts, "texts")
        ranks = character_ranks(texts)
        return cls(
            "characters", pat_str=training.WHOLE, mergeable_ranks=ranks, special_tokens=_special_ids(specials, ranks)
        )

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes ``tokenizer.json`` and ``tokenizer_config.json`` into `folder`, which is created if it is missing.

        Both are formats of Hugging Face: ``tokenizers.Tokenizer.from_file`` and transformers' ``AutoTokenizer`` read
        them and give equal ids. Each file is replaced atomically, so a killed process leaves the old one intact. A
        tokenizer that was loaded from a ``tokenizer.json`` is written as it was, with the files that say what it is
        used for: its configuration, special tokens, chat templates and generation defaults. A pattern of your own is
        written as it stands, though Hugging Face's expressions are not quite Python's.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self._beside.items():
            atomic_write(folder / name, content)
        if "tokenizer_config.json" not in self._beside:
            config = json.dumps(self.default_config(), indent=2)
            atomic_write(folder / "tokenizer_config.json", config)
        atomic_write(folder / "tokenizer.json", self._to_json().encode())

    @property
    def files(self) -> dict[str, bytes]:
        """The files that lie beside ``tokenizer.json`` and say what the tokenizer is used for, by name."""
        return dict(self._beside)

    @property
    def post_processor(self) -> dict[str, Any] | None:
        """What the ``tokenizer.json`` that this was read from says of tokens around a text; None if it does not. It is
        kept for `save`, and not applied here."""
        return self._around.get("post_processor")

    def with_files(self, files: Mapping[str, bytes]) -> Tokenizer:
        """The same tokenizer with other files beside it, such as ``chat_template.jinja``, which `save` writes."""
        tokenizer = Tokenizer.__new__(type(self))
        tokenizer.__dict__.update(self.__dict__)
        tokenizer._beside = dict(files)
        return tokenizer

    def default_config(self) -> dict[str, Any]:
        """What ``tokenizer_config.json`` says of a tokenizer that had none."""
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        if (end := self._end_of_text) is not None:
            config |= {"eos_token": end}
        return config

    def save_vocab_and_merges(self, folder: str | os.PathLike[str]) -> None:
        """Writes ``vocab.json`` and ``merges.txt``, as GPT-2 was published, into `folder`, created if missing.

        A ``tokenizer_config.json`` beside them lists the added tokens. No file records the splitting pattern: `load`
        assumes that of GPT-2 unless `pattern` is given.

        Raises:
            ValueError: a token that no merge makes, or rules of text, for which the files have no place.
        """
        for name, content in vocab_and_merges.to_vocab_and_merges(self._contents).items():
            atomic_write(Path(folder) / name, content)

    def save_ranks(self, path: str | os.PathLike[str]) -> None:
        """Writes a tiktoken rank file, which records neither the pattern nor special tokens.

        Raises:
            ValueError: a tokenizer whose ids do not follow its merges: a rank file has one number for both.
        """
        if self.rules is not None and (self.rules.ids or self.rules.model):
            raise ValueError(f"the ids of {self!r} do not follow its merges, as those of a rank file do")
        atomic_write(Path(path), rank_files.format_ranks(self._mergeable_ranks))

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        pattern: str | None = None,
        special_tokens: dict[str, int] | None = None,
    ) -> Tokenizer:
        """Reads a tokenizer from a folder or a file, whichever format it is in.

        Args:
            path: ``tokenizer.json`` of a byte-level BPE (GPT-2, Llama 3, Qwen, ...), with all that it says of
                normalizing and splitting text and of added tokens; ``vocab.json`` with ``merges.txt``, or
                ``encoder.json`` with ``vocab.bpe``, and what the files beside them say of added tokens; Mistral's
                ``tekken.json``; a rank file of tiktoken or Meta (``tokenizer.model``); or a folder that holds one
                of them. What Hugging Face adds around a text (post-processors), truncation and padding are kept for
                `save`, and not applied. Parts that the engine does not know are left to Hugging Face's tokenizers
                library, which then must be installed.
            pattern, special_tokens: used instead of those in the file. A rank file contains neither; both are known
                for the rank files that OpenAI published.

        Raises:
            FileNotFoundError: there is no tokenizer at `path`.
            ValueError: the file is damaged or holds another kind of tokenizer; the message names file and fault.
        """
        path = tokenizer_files.find(Path(path))
        contents = tokenizer_files.read(path, None if pattern is None else _pattern(pattern))
        name = path.stem if path.suffix != ".json" else path.resolve().parent.name
        try:
            if pattern is not None and contents.pat_str != _pattern(pattern):
                contents = tokenizer_files.with_pattern(contents, _pattern(pattern))
            if special_tokens is not None:
                contents = tokenizer_files.with_specials(contents, special_tokens)
            tokenizer = cls.of_contents(name, contents)
        except ValueError as error:
            raise ValueError(f"{path} cannot be loaded: {error}") from None
        tokenizer._beside = tokenizer_files.beside(path)
        return tokenizer

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str],
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        pattern: str | None = None,
        special_tokens: dict[str, int] | None = None,
    ) -> Tokenizer:
        """`load` of a model's tokenizer on the Hugging Face hub, or of a path.

        Only the tokenizer's files are downloaded, by huggingface_hub, into its cache; cached files need no network.

        Args:
            name: the name of a model, such as ``Qwen/Qwen3-8B``, or a path, which is read as by `load`.
            revision: a branch, tag or commit.
            token: for models that are not public; the one that you are logged in with if None.
            cache_dir: the hub's cache; that of the environment if None.
            local_files_only: use the cache only, and never the network.
            pattern, special_tokens: as for `load`.

        Raises:
            OSError: a model that the cache does not have and that cannot be fetched.
            FileNotFoundError: a model that the hub does not have, or one without a tokenizer.
            ModuleNotFoundError: huggingface_hub is needed, and not installed.
            ValueError: no name; a damaged file, or a kind of tokenizer that this is not.
        """
        folder = folder_of(name, revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only)
        return cls.load(folder, pattern=pattern, special_tokens=special_tokens)

    @classmethod
    def of_contents(cls, name: str, contents: Contents) -> Tokenizer:
        """The tokenizer that a file describes."""
        tokenizer = cls(name, **contents.parts())
        tokenizer._source, tokenizer._around = contents.source, contents.around
        return tokenizer

    @classmethod
    def of(cls, encoding: Encoding) -> Tokenizer:
        """An encoding, such as a published one, as a tokenizer; the engine is shared."""
        if isinstance(encoding, cls):
            return encoding
        tokenizer = cls.__new__(cls)
        tokenizer.__dict__.update(encoding.__dict__)
        return tokenizer

    def with_added_tokens(self, tokens: Iterable[str] | Mapping[str, int], *, special: bool = True) -> Tokenizer:
        """As `Encoding.with_added_tokens`; the new tokenizer saves the added tokens, too."""
        contents = tokenizer_files.with_added(self._contents, ids_of_added(self, tokens), special)
        tokenizer = type(self).of_contents(self.name, contents)
        tokenizer._beside = self._beside
        return tokenizer

    def to_transformers(self, **options: Any) -> transformers.PreTrainedTokenizerFast:
        """The same tokenizer for transformers, with our engine inside: see `llmfast.tokenizer.speed_up`.

        Special tokens in text are always encoded as such. `options` go to ``PreTrainedTokenizerFast``: ``pad_token``,
        ``chat_template``, ``model_max_length``, ``padding_side``, ...
        """
        from tokenizers import Tokenizer as HuggingFaceTokenizer
        from transformers import PreTrainedTokenizerFast

        usual = {"eos_token": self._end_of_text, "clean_up_tokenization_spaces": False}
        theirs = HuggingFaceTokenizer.from_str(self._to_json())
        return speed_up(PreTrainedTokenizerFast(tokenizer_object=theirs, **usual | options))

    def to_tiktoken(self) -> tiktoken.Encoding:
        """The same tokenizer as an object of tiktoken; ValueError for rules of text that tiktoken has not."""
        import tiktoken

        if self.rules is not None and self.rules.change_ids:
            raise ValueError(
                f"{self!r} normalizes or splits text, or finds tokens, by rules of their own, which tiktoken cannot"
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
        normalization = "NFC" if self.rules and self.rules.normalizer == NFC else ""
        rules = self.rules.described() if self.rules else []
        for text in (self._pat_str, normalization, *rules):
            digest.update(b"%d:" % len(text.encode()) + text.encode())
        return digest.hexdigest()

    @property
    def eot_token(self) -> int:
        """The id of the special token between documents; KeyError if there is none."""
        if self._end_of_text is None:
            raise KeyError(f"{self!r} has none of {', '.join(_END_OF_TEXT)}")
        return self._special_tokens[self._end_of_text]

    @property
    def _end_of_text(self) -> str | None:
        return next((text for text in _END_OF_TEXT if text in self._special_tokens), None)

    @property
    def _contents(self) -> Contents:
        return Contents(
            self._pat_str, self._mergeable_ranks, self._special_tokens, self.rules, self._source, self._around
        )

    def _to_json(self) -> str:
        if self._source is not None:
            return self._source.decode("utf-8")
        return json.dumps(writing.to_json(self._contents), ensure_ascii=False, indent=1)

    def __getstate__(self) -> Any:
        return super().__getstate__(), self._source, self._around, self._beside

    def __setstate__(self, state: Any) -> None:
        parts, self._source, self._around, self._beside = state
        super().__setstate__(parts)


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


def _special_ids(specials: list[str], ranks: dict[bytes, int]) -> dict[str, int]:
    """The special tokens' ids, behind those of ordinary tokens."""
    for special in specials:
        if special.encode() in ranks:
            raise ValueError(f"special token {special!r} is a token of ordinary text, too; rename it")
    return {special: len(ranks) + i for i, special in enumerate(specials)}


def _pattern(pattern: str) -> str:
    arguments.check_text(pattern, "pattern")
    if pattern in PATTERNS:
        return PATTERNS[pattern]
    if pattern.replace("_", "").replace("-", "").isalnum():
        raise ValueError(f"no pattern is named {pattern!r}; there are {', '.join(PATTERNS)}")
    patterns.compiled(pattern)
    pattern = native_pattern(pattern)
    return pattern if pattern in patterns.NATIVE else patterns.with_gaps(pattern)
