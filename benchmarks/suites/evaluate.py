"""Multiple choice: the log-likelihood of every answer, ours beside a plain loop and lm-evaluation-harness.

Questions have the lengths of PIQA (a short goal, two ways to reach it that begin alike) and of HellaSwag (a paragraph,
four endings). Tokens are drawn, because the speed does not depend on them. Ours computes what the answers to a question
share once. The harness's own class for models of transformers runs once with its default of one row in a batch, and
once with 16. Tokens are those of all rows as the harness reads them, so that the rates are those of answered questions.
The check compares the log-likelihoods.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from llmfast.evaluation.likelihood import Pair, log_likelihoods
from llmfast.models.config import DecoderConfig
from llmfast.models.decoder import Decoder

from ..contenders import Contender
from ..hugging_face import same_model, unfit
from ..jobs import SECONDS, Job, Program
from ..plain import PlainDecoder
from ..results import OURS, PYTORCH
from ..trl_trainers import padding_tokenizer
from .train_step import SHAPES, drawn

HARNESS = "lm-evaluation-harness"


@dataclass(frozen=True)
class Questions:
    """Median lengths in tokens, of which single ones are log-normal."""

    name: str
    count: int
    prompt: int
    answers: int
    alike: int
    """With which the answers to a question begin."""
    answer: int
    """Behind that."""


def cases(size: str) -> Iterator[Job]:
    if size == "tiny":
        yield job("toy GPT-2", Questions("PIQA", 3, 8, 2, 2, 4), batches=(1,))
        return
    if size == "cpu-quick":
        yield job("toy GPT-2", Questions("PIQA", 8, 14, 2, 4, 14), batches=(16,))
        return
    yield job("GPT-2 124M", Questions("PIQA", 32, 14, 2, 4, 14), batches=(1, 16))
    yield job("GPT-2 124M", Questions("HellaSwag", 12, 60, 4, 0, 25), batches=(1, 16))


def job(model: str, questions: Questions, batches: Sequence[int]) -> Job:
    config = SHAPES[model]
    pairs = draw(questions, config)
    ours = functools.cache(lambda: drawn(config))

    def plain(dtype: torch.dtype = torch.float32) -> nn.Module:
        made = PlainDecoder(config)
        made.load_state_dict(ours().state_dict())
        return made.to(dtype).eval()

    def llmfast() -> Program:
        made = Decoder(config)
        made.load_state_dict(ours().state_dict())
        made.eval()
        return program(made, lambda: [each.log_prob for each in log_likelihoods(made, pairs, share=True)])

    def padded() -> Program:
        made = plain()
        return program(made, lambda: padded_log_probs(made, pairs, rows=16))

    def harness(batch: int) -> Callable[[], Program]:
        return lambda: of_harness(same_model(config, ours().state_dict()).eval(), pairs, batch)

    tokens = sum(len(pair.context) + len(pair.continuation) - 1 for pair in pairs)
    operations = sum(
        int(config.flops_per_token(len(pair.context) + len(pair.continuation)) // 3)
        * (len(pair.context) + len(pair.continuation) - 1)
        for pair in pairs
    )
    exact = functools.cache(lambda: plain(torch.float64))
    return Job(
        op=f"{model}, {questions.name}",
        shape={"questions": questions.count, "answers": questions.answers},
        dtype=torch.float32,
        pass_="log-likelihoods",
        exact=lambda: {"log_probs": torch.tensor(padded_log_probs(exact(), pairs, rows=16), dtype=torch.float64)},
        plain=lambda: padded().evidence(),
        contenders=[
            Contender(OURS, llmfast),
            Contender(PYTORCH, padded),
            *(
                Contender(f"{HARNESS}, batch {batch}", harness(batch), module="lm_eval", unfit=unfit(config))
                for batch in batches
            ),
        ],
        work=(4 * config.parameters, operations),
        tokens=tokens,
        seconds=SECONDS["cpu"],
    )


def draw(questions: Questions, config: DecoderConfig) -> list[Pair]:
    """The pairs of all answers, question after question."""
    random = np.random.default_rng(0)

    def text(median: int) -> list[int]:
        length = int(median * random.lognormal(0, 0.4)) if median else 0
        return random.integers(config.vocab_size, size=min(length, config.context // 3)).tolist()

    pairs = []
    for _ in range(questions.count):
        prompt, alike = [1, *text(questions.prompt)], text(questions.alike)
        pairs += [Pair(prompt, [*alike, *text(questions.answer), 1]) for _ in range(questions.answers)]
    return pairs


def program(model: nn.Module, log_probs: Callable[[], list[float]]) -> Program:
    def evidence() -> dict[str, Tensor]:
        return {"log_probs": torch.tensor(log_probs(), dtype=torch.float64)}

    return Program(evidence, log_probs, lambda: sum(parameter.nbytes for parameter in model.parameters()))


@torch.no_grad()
def padded_log_probs(model: nn.Module, pairs: Sequence[Pair], rows: int) -> list[float]:
    """The loop that most evaluation scripts have: the longest first, padded, logits of all places."""
    found = [0.0] * len(pairs)
    order = sorted(range(len(pairs)), key=lambda number: -len([*pairs[number].context, *pairs[number].continuation]))
    for first in range(0, len(order), rows):
        numbers = order[first : first + rows]
        texts = [torch.tensor([*pairs[number].context, *pairs[number].continuation]) for number in numbers]
        batch = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
        log_probs = model(batch[:, :-1]).log_softmax(-1)
        for row, (number, text) in enumerate(zip(numbers, texts, strict=True)):
            places = torch.arange(len(pairs[number].context) - 1, len(text) - 1)
            found[number] = log_probs[row, places, text[places + 1]].sum().item()
    return found


def of_harness(model: nn.Module, pairs: Sequence[Pair], batch: int) -> Program:
    """The harness's class, which is given tokens as after its own encoding."""
    from lm_eval.models.huggingface import HFLM

    wrapped: Any = HFLM(pretrained=model, tokenizer=padding_tokenizer(), batch_size=batch, device="cpu")
    requests = [(("", ""), list(pair.context), list(pair.continuation)) for pair in pairs]

    def log_probs() -> list[float]:
        return [value for value, _ in wrapped._loglikelihood_tokens(requests, disable_tqdm=True)]

    return program(model, log_probs)
