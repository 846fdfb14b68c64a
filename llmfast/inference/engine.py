"""The engine: requests in, tokens and text out, many at a time. The one place that generates."""

from __future__ import annotations

import contextlib
import itertools
import secrets
from collections.abc import Collection, Iterator
from collections.abc import Sequence as Tokens
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from llmfast.inference.blocks import BlockManager
from llmfast.inference.config import EngineConfig, Sampling
from llmfast.inference.constraints import ConstraintMatcher, Constraints
from llmfast.inference.controls import Controls
from llmfast.inference.prompts import end_tokens, prompt_tokens
from llmfast.inference.runner import Chunk, Runner
from llmfast.inference.sampler import choose
from llmfast.inference.scheduler import Scheduler, Work
from llmfast.inference.scoring import score_prompt
from llmfast.inference.sequence import Completion, Request, Sequence, Update
from llmfast.inference.speculation import guess_for, make_guesser
from llmfast.inference.text import ReplyText
from llmfast.inference.torch_runner import TorchRunner
from llmfast.kernels import batch_invariant
from llmfast.tokenizer import Tokenizer

Prompt = str | Tokens[int]

PLAIN = ""
"""As the adapter of a request: the model without adapters."""


@dataclass(frozen=True)
class Statistics:
    """What an engine has and did."""

    blocks: int
    blocks_used: int
    """Blocks that unfinished sequences hold."""
    running: int
    waiting: int
    steps: int
    prompt_tokens: int
    generated_tokens: int
    prefix_hits: int
    """Tokens of prompts that need not be read because the cache held them."""
    preemptions: int
    guessed_tokens: int
    accepted_tokens: int
    """Guesses of speculation that were right."""


class Engine:
    """Generates for any number of requests at once.

    ``generate`` and ``stream`` run it until their replies are there. A server calls ``submit`` and ``step`` itself, all
    from one thread.

    Args:
        model: a ``Decoder``; its weights may change between requests (call ``weights_changed`` then).
        tokenizer: for prompts and stop texts as text, and the text of replies.
        config: see ``EngineConfig``.
        runner: computes logits in place of ``TorchRunner(model)``.
        ends: tokens that end a reply; by the tokenizer and the files beside it if left out (``prompts.end_tokens``).
        draft: a smaller model with the same vocabulary, which guesses ahead (``EngineConfig.speculation``).

    Raises:
        ValueError: a draft model with another vocabulary, or ``batch_invariant`` with a runner that is not PyTorch's.

    >>> import torch
    >>> from llmfast.models.config import DecoderConfig
    >>> from llmfast.models.decoder import Decoder
    >>> engine = Engine(Decoder(DecoderConfig(vocab_size=100, width=32, layers=2)))
    >>> ((reply,),) = engine.generate([[1, 2, 3]], Sampling(temperature=0, max_tokens=5))
    >>> len(reply.tokens), reply.finish_reason
    (5, 'length')
    """

    def __init__(
        self,
        model: Any = None,
        tokenizer: Tokenizer | None = None,
        config: EngineConfig | None = None,
        *,
        runner: Runner | None = None,
        ends: Collection[int] | None = None,
        draft: Any = None,
    ):
        if (model is None) == (runner is None):
            raise ValueError("Engine takes either a model or a runner")
        self.config = config = config or EngineConfig()
        self.tokenizer = tokenizer
        self.runner = runner or TorchRunner(model, cuda_graphs=config.cuda_graphs and not config.batch_invariant)
        self._model = getattr(self.runner, "model", None)
        if config.batch_invariant and self._model is None:
            raise ValueError(
                f"batch_invariant needs a model in PyTorch, and {type(self.runner).__name__} has none: its rows do not "
                "depend on the batch, but have not the bits of training"
            )
        self.ends = frozenset(end_tokens(tokenizer) if ends is None and tokenizer is not None else ends or ())
        size = config.block_size
        blocks = config.cache_blocks or self.runner.default_blocks(
            size, config.cache_dtype, config.max_batch, config.memory
        )
        self.runner.allocate(blocks, size, config.cache_dtype)
        self.blocks = BlockManager(blocks, config.prefix_sharing)
        self.limit = min(self.runner.context, blocks * size)
        """Most tokens of a sequence, prompt included: the model's context, or what fits into the cache."""
        self.scheduler = Scheduler(
            self.blocks,
            block_size=size,
            max_batch=config.max_batch,
            prefill_chunk=config.prefill_chunk,
            shares_prefixes=self.runner.shares_prefixes,
            window=self.runner.window,
        )
        self._guesser = make_guesser(draft, self.runner.vocab_size, config)
        self._guessed = self._accepted = 0
        self._constraints: Constraints | None = None
        self._numbers = itertools.count()
        self._late: list[Update] = []  # of requests that were cancelled between steps
        self._steps = self._read = self._generated = 0

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        base: str | Path | None = None,
        device: str | None = None,
        dtype: str | None = None,
        weights: str | None = None,
        config: EngineConfig | None = None,
    ) -> Engine:
        """An engine on the model of a folder: a run (its newest checkpoint), a checkpoint, a Hugging Face folder, or an
        adapter; or of a GGUF file.

        Args:
            path: the folder or file.
            base: where the base of an adapter lies now, if it was moved.
            device: ``cpu`` or ``cuda``; a GPU if there is one, if left out.
            dtype: ``float32``, ``bfloat16`` or ``float16``: compute in PyTorch in that dtype. If left out, bfloat16 on
                a GPU and float32 on a CPU.
            weights: ``float32``, ``bfloat16``, ``int8`` or ``int4``: how the decoder for CPUs in C++ keeps the weights
                (``NativeRunner``); or ``nf4``: 4 bits in PyTorch, on a GPU or a CPU. If left out, a CPU takes that
                decoder with float32, unless dtype, model or ``config`` need PyTorch.
            config: see ``EngineConfig``.

        Raises:
            ValueError: no model there, a damaged file, a base that is missing or another one, or no such device.
        """
        from llmfast.inference.opening import open_for_inference

        config = config or EngineConfig()
        options = {"base": base, "device": device, "dtype": dtype, "weights": weights}
        opened = open_for_inference(path, config=config, **options)
        return cls(None, opened.tokenizer, config, runner=opened.runner, ends=opened.ends)

    # --- all at once --------------------------------------------------------------------------------------------------

    def generate(
        self,
        prompts: Tokens[Prompt],
        sampling: Sampling | Tokens[Sampling] | None = None,
        *,
        samples: int = 1,
        adapter: str | None = None,
    ) -> list[list[Completion]]:
        """The replies to each prompt.

        Args:
            prompts: texts, or lists of tokens.
            sampling: for all prompts, or for each.
            samples: how many replies to each.
            adapter: see ``submit``.

        Raises:
            ValueError: as ``submit``; nothing is generated then.
        """
        if isinstance(prompts, str):
            raise ValueError("prompts must be a list: put the text into one")
        each = sampling if isinstance(sampling, Tokens) else [sampling] * len(prompts)
        if len(each) != len(prompts):
            raise ValueError(
                f"sampling must be one, or one for each prompt: got {len(each)} for {len(prompts)} prompts"
            )
        requests: list[Request] = []
        try:
            for prompt, settings in zip(prompts, each, strict=True):
                requests.append(self.submit(prompt, settings, samples=samples, adapter=adapter))
            while not all(request.finished for request in requests):
                self.step()
        finally:
            self._abandon(requests)
        return [request.completions for request in requests]

    def stream(
        self, prompt: Prompt, sampling: Sampling | None = None, *, samples: int = 1, adapter: str | None = None
    ) -> Iterator[Update]:
        """The updates of one request, step by step. Closing the iterator cancels the request.

        Raises:
            ValueError: as ``submit``.
        """
        request = self.submit(prompt, sampling, samples=samples, adapter=adapter)
        return self._updates_of(request)

    def _updates_of(self, request: Request) -> Iterator[Update]:
        try:
            while not request.finished:
                yield from [update for update in self.step() if update.request is request]
        finally:
            self._abandon([request])

    # --- step by step -------------------------------------------------------------------------------------------------

    def submit(
        self, prompt: Prompt, sampling: Sampling | None = None, *, samples: int = 1, adapter: str | None = None
    ) -> Request:
        """Queue a request.

        Args:
            prompt: a text, which becomes tokens as ``prompts.prompt_tokens`` says, or tokens as they are.
            sampling: see ``Sampling``.
            samples: how many replies, from one reading of the prompt.
            adapter: the name of an adapter of the model; ``PLAIN`` for none; the one that is active if left out.

        Raises:
            ValueError: an empty prompt, one that is too long, tokens or an adapter that the model does not have, or
                settings that need a tokenizer, if there is none.
        """
        sampling = sampling or Sampling()
        if samples < 1:
            raise ValueError(f"samples must be at least 1, got {samples}")
        adapter = self.runner.default_adapter if adapter is None else adapter or None
        self.runner.check_adapter(adapter)
        tokens = self._prompt(prompt, sampling)
        if sampling.stop and self.tokenizer is None:
            raise ValueError("stop needs a tokenizer, and the engine has none")
        for name, ids in (("stop_tokens", sampling.stop_tokens), ("logit_bias", sampling.logit_bias)):
            self._check_tokens(name, ids)
        ends = frozenset(sampling.stop_tokens) | (frozenset() if sampling.ignore_end else self.ends)
        seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
        request = Request(next(self._numbers), tokens, sampling, seed, adapter, ends, self.limit)
        matcher = self.matcher(sampling, ends)
        for sample in range(samples):
            controls = Controls(sampling, tokens, ends, matcher and matcher.copy())
            reply = ReplyText(self.tokenizer, sampling.stop)
            request.sequences.append(Sequence(request, sample, controls, reply, list(tokens)))
        self.scheduler.submit(request)
        return request

    def step(self) -> list[Update]:
        """Read some tokens of the requests at hand, and draw the next token of each sequence that has read all of its
        own; returns what is new. Does nothing without requests.

        Raises:
            ValueError: the model's logits are not numbers.
        """
        updates, self._late = self._late, []
        if self._guesser is not None:
            guess_for(self.scheduler.running, self._guesser, config=self.config)
        works, copies = self.scheduler.plan()
        if works:
            self._steps += 1
            self._guessed += sum(len(work.sequence.guesses) for work in works)
            with self._mode():
                if copies:
                    self.runner.copy_blocks(copies)
                logits = self.runner.forward([_chunk(work) for work in works])
                updates += self._draw(works, logits)
        return updates

    def cancel(self, request: Request) -> None:
        """Finish what is not finished of a request, with the finish reason ``cancelled``."""
        for sequence in request.sequences:
            if sequence.finish_reason is None:
                sequence.finish_reason = "cancelled"
                text = sequence.reply.finish()
                self._finish(sequence)
                self._late.append(self._update(sequence, len(sequence.drawn), text))

    def _abandon(self, requests: list[Request]) -> None:
        """Cancel what is unfinished, and report nothing more of it."""
        for request in requests:
            self.cancel(request)
        self._late = [update for update in self._late if update.request not in requests]

    @property
    def has_work(self) -> bool:
        """Whether ``step`` has something to do or to report."""
        return bool(self.scheduler.running or self.scheduler.waiting or self._late)

    def weights_changed(self) -> None:
        """Forget what the cache holds of finished sequences, since the model has other weights now.

        Raises:
            ValueError: requests are unfinished.
        """
        if self.scheduler.running or self.scheduler.waiting:
            raise ValueError("weights_changed while requests are unfinished: cancel them first")
        self.blocks.forget_all()

    def statistics(self) -> Statistics:
        """What the engine has and did."""
        scheduler = self.scheduler
        return Statistics(
            blocks=self.blocks.blocks,
            blocks_used=self.blocks.used,
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            steps=self._steps,
            prompt_tokens=self._read,
            generated_tokens=self._generated,
            prefix_hits=scheduler.prefix_hits,
            preemptions=scheduler.preemptions,
            guessed_tokens=self._guessed,
            accepted_tokens=self._accepted,
        )

    # --- inside -------------------------------------------------------------------------------------------------------

    def _prompt(self, prompt: Prompt, sampling: Sampling) -> list[int]:
        if isinstance(prompt, str):
            if self.tokenizer is None:
                raise ValueError("prompt is a text, and the engine has no tokenizer: give tokens")
            prompt = prompt_tokens(self.tokenizer, prompt)
        tokens = [int(token) for token in prompt]
        self._check_tokens("prompt", tokens)
        room = self.limit - 1
        if sampling.truncate_prompt and len(tokens) > room:
            reply = self.limit // 2 if sampling.max_tokens is None else sampling.max_tokens
            tokens = tokens[-max(1, self.limit - reply) :]
        if not 0 < len(tokens) <= room:
            what = "the model's context" if self.limit == self.runner.context else "the cache (cache_blocks)"
            raise ValueError(
                f"the prompt has {len(tokens)} tokens; the model takes 1 to {room}: {what} holds {self.limit} tokens, "
                "prompt and reply together"
            )
        return tokens

    def _check_tokens(self, name: str, tokens: Collection[int]) -> None:
        for token in tokens:
            if not 0 <= token < self.runner.vocab_size:
                raise ValueError(
                    f"{name} has the token {token}; the model has tokens from 0 to {self.runner.vocab_size - 1}"
                )

    def matcher(self, sampling: Sampling, ends: Collection[int] = ()) -> ConstraintMatcher | None:
        """Of the constraint of ``sampling``, at the start of a reply (see ``sampling_log_probs``).

        Raises:
            ValueError: a constraint that cannot be used.
        """
        if sampling.constraint is None:
            return None
        if self.tokenizer is None:
            raise ValueError("constraint needs a tokenizer, and the engine has none")
        if self._constraints is None:
            self._constraints = Constraints(self.tokenizer, self.runner.vocab_size)
        return self._constraints.matcher(sampling.constraint, ends)

    def _finish(self, sequence: Sequence) -> None:
        self.scheduler.finish(sequence)
        if self._guesser is not None:
            self._guesser.forget(sequence)

    def _mode(self) -> contextlib.AbstractContextManager[Any]:
        if not self.config.batch_invariant:
            return contextlib.nullcontext()
        return batch_invariant(*([] if self._model is None else [self._model]))

    def _draw(self, works: list[Work], logits: Tensor) -> list[Update]:
        """Note what was read, and draw the next tokens."""
        waiting: list[tuple[Sequence, list[int]]] = []  # sequences, and the rows of logits that they draw from
        row = 0
        for work in works:
            sequence, rows = work.sequence, range(row, row + work.outputs)
            row += work.outputs
            before, known = sequence.computed, len(sequence.tokens)
            self._read += max(0, min(before + work.count, len(sequence.request.prompt)) - before)
            sequence.computed = min(before + work.count, known)
            if work.outputs == work.count:
                score_prompt(sequence.request, before, logits[rows.start : rows.stop])
            if sequence.computed < known:
                self.scheduler.advance(sequence)
                continue
            drawing = [*rows][-1 - len(sequence.guesses) :]
            waiting.append((sequence, drawing))
            if not sequence.drawn and sequence.sample == 0:
                waiting += [(other, drawing) for other in self.scheduler.fork(sequence)]
        return self._draw_rows(waiting, logits)

    def _draw_rows(self, waiting: list[tuple[Sequence, list[int]]], logits: Tensor) -> list[Update]:
        first = {id(sequence): len(sequence.drawn) for sequence, _ in waiting}
        texts = {id(sequence): "" for sequence, _ in waiting}
        going, place = waiting, 0
        while going:
            rows = [drawing[place] for _, drawing in going]
            chosen = logits if rows == list(range(len(logits))) else logits[rows]
            following = []
            drawn_tokens = choose(chosen, [sequence.next_row() for sequence, _ in going])
            for (sequence, drawing), drawn in zip(going, drawn_tokens, strict=True):
                texts[id(sequence)] += sequence.add(drawn)
                self._generated += 1
                if sequence.guesses[place : place + 1] == [drawn.token]:
                    self._accepted += 1
                    if sequence.finish_reason is None:
                        sequence.computed += 1  # the guess was read, and is right
                        following.append((sequence, drawing))
            going, place = following, place + 1
        updates = []
        for sequence, _ in waiting:
            sequence.guesses = []
            self.scheduler.advance(sequence)
            if sequence.finish_reason is not None:
                self._finish(sequence)
            updates.append(self._update(sequence, first[id(sequence)], texts[id(sequence)]))
        return updates

    def _update(self, sequence: Sequence, first: int, text: str) -> Update:
        new = sequence.drawn[first:]
        wants = sequence.request.sampling.logprobs is not None
        return Update(
            request=sequence.request,
            sample=sequence.sample,
            tokens=[each.token for each in new],
            text=text,
            logprobs=[each.logprob for each in new],
            sampling_logprobs=[each.sampling_logprob for each in new],
            top_logprobs=[each.alternatives or {} for each in new] if wants else None,
            finish_reason=sequence.finish_reason,
            stop_reason=sequence.stop_reason,
        )


def _chunk(work: Work) -> Chunk:
    sequence, past = work.sequence, work.sequence.computed
    tokens = [*sequence.tokens[past : past + work.count], *sequence.guesses]
    return Chunk(
        tokens=tokens[: work.count],
        past=past,
        blocks=sequence.blocks,
        outputs=work.outputs,
        previous=sequence.tokens[past - 1] if past else None,
        prompt=len(sequence.request.prompt),
        adapter=sequence.request.adapter,
    )


__all__ = ["PLAIN", "Completion", "Engine", "Prompt", "Request", "Statistics", "Update"]
