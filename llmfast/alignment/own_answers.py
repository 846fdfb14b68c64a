"""Answers that a model writes to the prompts of examples: the teacher's, once, and the student's own, at each step."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmfast.alignment.rollouts.rollout import Rollout, rollout_columns
from llmfast.data.batch import Batch
from llmfast.data.chat.prepared import PreparedChat
from llmfast.data.chat.preparing import masked_writer
from llmfast.data.examples.instructions import ExampleSplit
from llmfast.data.examples.labeled import LabeledLoader
from llmfast.data.order import random_integer
from llmfast.inference.config import EngineConfig, Sampling
from llmfast.inference.engine import Engine
from llmfast.models.decoder import Decoder
from llmfast.training.task import Policy

CHOICE, NOISE = 1, 2  # set the seeds of what is random apart
AT_ONCE = 64  # answers that the teacher writes together


def prompt_of(split: ExampleSplit, place: int) -> list[int]:
    """The tokens that the last answer of an example follows."""
    tokens, trained = split.tokens(place)
    start = len(tokens) - trained[::-1].index(True)
    while start and trained[start - 1]:
        start -= 1
    return tokens[:start]


def written_answers(
    engine: Engine,
    prompts: Sequence[list[int]],
    *,
    room: int,
    max_answer: int,
    temperature: float,
    seeds: Sequence[int],
) -> list[Rollout]:
    """An answer to each prompt.

    Args:
        engine: of the model that writes.
        prompts: as tokens.
        room: the most tokens of a prompt with its answer.
        max_answer: the most tokens of an answer.
        temperature: 0 for the likeliest token each time.
        seeds: of the noise, one for each prompt.
    """
    settings = [
        Sampling(temperature=temperature, seed=seed, max_tokens=min(max_answer, room - len(prompt)))
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    found = []
    for prompt, (completion,) in zip(prompts, engine.generate(prompts, settings), strict=True):
        rollout = Rollout(list(prompt))
        rollout.add(completion.tokens, completion.sampling_logprobs, completion.logprobs)
        found.append(rollout)
    return found


def write_teacher_answers(folder: Path, prepared: PreparedChat[ExampleSplit], teacher: Decoder, max_answer: int) -> int:
    """Replace the answers of the train split in ``folder`` by the likeliest ones of the teacher; returns how many.

    Tokens are stored as they were generated. Of a conversation with several answers the last one is replaced, and it
    alone is trained.
    """
    split, tokenizer = prepared.train, prepared.tokenizer
    engine = Engine(teacher, tokenizer, EngineConfig(max_batch=AT_ONCE), ends=prepared.chat.end_tokens)
    writer = masked_writer(folder / "answered", tokenizer)
    for first in range(0, len(split), AT_ONCE):
        prompts = [prompt_of(split, place) for place in range(first, min(first + AT_ONCE, len(split)))]
        answers = written_answers(
            engine, prompts, room=split.max_tokens + 1, max_answer=max_answer, temperature=0.0, seeds=[0] * len(prompts)
        )
        for each in answers:
            tokens = each.prompt + each.tokens
            size = len(tokenizer.decode(tokens).encode("utf-8", "surrogatepass"))
            trained = np.arange(len(tokens)) >= len(each.prompt)
            writer.add_document(np.array(tokens), size, mask=trained)
    writer.finish()
    shutil.rmtree(folder / "train")
    (folder / "answered").rename(folder / "train")
    return len(split)


class StudentAnswers:
    """A source of examples and, in a share of the steps, of answers that the student samples to their prompts.

    Generalized knowledge distillation (arXiv:2306.13649). Which steps these are, and the noise of the answers, depend
    on (seed, position) alone: a resumed run continues with the same answers, and so do several processes. It is a
    ``llmfast.data.batch.Source``.

    Args:
        examples: the examples in their order.
        prepared: the examples, and how they became tokens.
        policy: the student.
        on_policy: the share of the steps.
        max_answer: the most tokens of an answer.
    """

    def __init__(
        self,
        examples: LabeledLoader,
        prepared: PreparedChat[ExampleSplit],
        policy: Policy,
        *,
        on_policy: float,
        max_answer: int,
    ):
        self.examples, self.prepared, self.policy = examples, prepared, policy
        self.on_policy, self.max_answer = on_policy, max_answer

    @property
    def fingerprint(self) -> str:
        return self.examples.fingerprint

    @property
    def rows(self) -> int:
        """Rows of an epoch."""
        return self.examples.rows

    def state(self) -> Mapping[str, Any]:
        return self.examples.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        self.examples.restore(state)

    def next(self, batch_size: int, context: int | None = None) -> Batch:
        """This process's rows of the next batch."""
        seed, position = self.examples.seed, self.examples.position
        if random_integer((seed, CHOICE, position)) >= self.on_policy * 2**64:
            return self.examples.next(batch_size, context)
        positions, places = self.examples.places(batch_size, context)
        split = self.prepared.train
        self.engine.weights_changed()
        with self.policy.inference(), self.policy.autocast():
            answers = written_answers(
                self.engine,
                [prompt_of(split, int(place)) for place in places],
                room=split.max_tokens + 1,
                max_answer=self.max_answer,
                temperature=1.0,
                seeds=[random_integer((seed, NOISE, int(each))) >> 1 for each in positions],
            )
        columns = rollout_columns(answers, self.prepared.tokenizer.eot_token)
        # A last token is only ever predicted.
        kept = {name: columns[name][:, : split.max_tokens] for name in ("tokens", "targets", "is_real")}
        return Batch(**kept)

    @functools.cached_property
    def engine(self) -> Engine:
        """The engine of the student, kept for its cache."""
        with self.policy.inference() as model:
            return Engine(
                model, self.prepared.tokenizer, EngineConfig(max_batch=AT_ONCE), ends=self.prepared.chat.end_tokens
            )
