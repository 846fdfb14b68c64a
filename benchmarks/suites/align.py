"""Steps of alignment: preference training and policy optimization, ours and trl's.

All have the same weights. A step of DPO takes pairs of answers, whose lengths are drawn as those of short instructions
are; the reference is the model itself, whose log-probabilities are computed once. trl's is that of ``DPOTrainer``, also
with its defaults, which compute the reference and the activations again in each step. A step of GRPO samples answers to
prompts, rewards them and trains on them: ours is that of ``llmfast grpo``, trl's that of ``GRPOTrainer``. The checks
compare the loss, the gradient of the embedding table, and the table after a step; for GRPO on answers that are given,
since sampled ones differ.
"""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmfast.alignment.config import GroupPolicyConfig
from llmfast.alignment.log_probabilities import answer_log_probabilities
from llmfast.alignment.losses.preference import PairOptions
from llmfast.alignment.policy.log_probabilities import token_log_probabilities
from llmfast.alignment.policy.source import sampling_of
from llmfast.alignment.policy.task import GroupPolicy
from llmfast.alignment.preference import PreferenceObjective
from llmfast.config import from_dict
from llmfast.data.batch import IGNORED, Batch
from llmfast.models.config import DecoderConfig
from llmfast.models.decoder import Decoder
from llmfast.models.folder import save_model
from llmfast.tokenizer import Tokenizer
from llmfast.training.session import new_session
from llmfast.training.trainer import Trainer

from ..contenders import Contender
from ..hugging_face import same_model
from ..jobs import SECONDS, Job, Program
from ..plain import PlainDecoder
from ..results import OURS, PYTORCH
from ..trl_trainers import TRL, arguments, collated, padding_tokenizer, stepping
from .train_step import BETAS, CLIP, LEARNING_RATE, decoder, drawn, held, optimizers, updating

BETA = 0.1
MODELS = {
    "toy": DecoderConfig(vocab_size=257, width=32, layers=2, heads=2, context=64),
    "small": DecoderConfig(vocab_size=2048, width=128, layers=4, heads=4, context=256),
}
Pair = tuple[list[int], list[int], list[int]]
"""Tokens of a prompt, of the chosen answer and of the rejected one."""


@dataclass(frozen=True)
class Preferences:
    """A model by name, the number of pairs per step, and the longest prompt with an answer."""

    model: str
    pairs: int
    longest: int
    dtype: torch.dtype


@dataclass(frozen=True)
class Rollouts:
    """A model by name, prompts per step, answers to each, and the tokens of both."""

    model: str
    prompts: int
    samples: int
    prompt: int
    new: int


def cases(size: str) -> Iterator[Job]:
    if size == "tiny":
        yield preference_job(Preferences("toy", 4, 32, torch.float32))
        yield policy_job(Rollouts("toy", 2, 4, 8, 4))
        return
    # In float32 alone: few CPUs multiply bfloat16, and trl samples in another precision than it trains in there.
    yield preference_job(Preferences("small", 16, 128, torch.float32))
    yield policy_job(Rollouts("small", 8, 8, 32, 32))


def built(config: DecoderConfig, weights: Callable[[], Decoder], dtype: torch.dtype = torch.float32) -> PlainDecoder:
    """Plain PyTorch with the same weights."""
    model = PlainDecoder(config)
    model.load_state_dict(weights().state_dict())
    return model.to(dtype)


def token_log_probabilities_of(model: nn.Module, tokens: Tensor, targets: Tensor) -> Tensor:
    """Log-probabilities of targets by logits, 0 where there is none."""
    log_p = model(tokens).float() if next(model.parameters()).dtype != torch.float64 else model(tokens)
    found = log_p.log_softmax(-1).gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    return torch.where(targets != IGNORED, found, 0)


# --- preferences ------------------------------------------------------------------------------------------------------


def preference_job(case: Preferences) -> Job:
    config = MODELS[case.model]
    ours = functools.cache(lambda: drawn(config))
    pairs = drawn_pairs(case, config.vocab_size)
    batch = pair_batch(pairs)

    def llmfast() -> Program:
        objective = PreferenceObjective(decoder(ours)(), {"sigmoid": 1.0}, PairOptions(beta=BETA))
        with torch.no_grad():
            reference = answer_log_probabilities(objective.model, batch).sums
        whole = Batch(**batch.columns, reference=reference)
        return updating(objective.model, optimizers(OURS, objective.model), lambda: objective(whole).mean, case.dtype)

    def plain(dtype: torch.dtype = torch.float32) -> Program:
        model = built(config, ours, dtype)
        rows, targets = batch.tokens.flatten(0, 1), batch.targets.flatten(0, 1)

        def sums() -> Tensor:
            return token_log_probabilities_of(model, rows, targets).sum(-1).view(-1, 2)

        with torch.no_grad():
            reference = sums()

        def loss() -> Tensor:
            ratios = sums() - reference
            return -F.logsigmoid(BETA * (ratios[:, 0] - ratios[:, 1])).mean()

        return updating(model, optimizers(PYTORCH, model), loss, case.dtype if dtype == torch.float32 else dtype)

    def theirs(defaults: bool) -> Callable[[], Program]:
        return lambda: trl_preferences(config, ours().state_dict(), pairs, case.dtype, defaults)

    count = int(batch.is_real.sum())
    return Job(
        op=f"{case.model}, DPO",
        shape={"pairs": case.pairs, "S": case.longest},
        dtype=case.dtype,
        pass_="training step",
        exact=lambda: plain(torch.float64).evidence(),
        plain=lambda: plain().evidence(),
        contenders=[
            Contender(OURS, llmfast),
            Contender(PYTORCH, plain),
            Contender(TRL, theirs(False), module="trl"),
            Contender(f"{TRL}, defaults", theirs(True), module="trl"),
        ],
        work=(4 * config.parameters * (2 + 2 + 6), int(count * config.flops_per_token(case.longest))),
        tokens=count,
        samples=case.pairs,
        seconds=SECONDS["cpu"],
    )


def drawn_pairs(case: Preferences, vocab_size: int) -> list[Pair]:
    """Prompts and answers of log-normal lengths, at most ``longest`` together."""
    draw = np.random.default_rng(0)

    def some(most: int) -> list[int]:
        length = int(np.clip(draw.lognormal(np.log(most / 3), 0.6), 2, most))
        return draw.integers(1, vocab_size, length).tolist()

    half = case.longest // 2
    return [(some(half), some(half), some(half)) for _ in range(case.pairs)]


def pair_batch(pairs: Sequence[Pair]) -> Batch:
    """As ``llmfast.data.examples.preferences.PairSplit.batch`` lays pairs out."""
    rows = [(prompt, answer) for prompt, *answers in pairs for answer in answers]
    width = -(-max(len(prompt) + len(answer) - 1 for prompt, answer in rows) // 16) * 16
    tokens, targets = torch.zeros(len(rows), width, dtype=torch.long), torch.full((len(rows), width), IGNORED)
    is_real = torch.zeros(len(rows), width, dtype=torch.bool)
    for row, (prompt, answer) in enumerate(rows):
        ids = torch.tensor(prompt + answer)
        tokens[row, : len(ids) - 1], is_real[row, : len(ids) - 1] = ids[:-1], True
        targets[row, len(prompt) - 1 : len(ids) - 1] = ids[len(prompt) :]
    columns = {"tokens": tokens, "targets": targets, "is_real": is_real}
    return Batch(**{name: column.unflatten(0, (-1, 2)) for name, column in columns.items()})


def trl_preferences(
    config: DecoderConfig, weights: dict[str, Tensor], pairs: Sequence[Pair], dtype: torch.dtype, defaults: bool
) -> Program:
    """A step of trl's trainer on a batch that its own collator makes."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    class Prepared(DPOTrainer):
        """Takes data that are tokens already."""

        def _prepare_dataset(self, dataset: Any, *arguments: object, **options: object) -> Any:
            return dataset

    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    trainer = Prepared(
        same_model(config, weights),
        ref_model=same_model(config, weights) if defaults else None,
        args=DPOConfig(
            **arguments(dtype, rows=len(pairs), checkpointing=defaults),
            beta=BETA,
            max_length=None,
            precompute_ref_log_probs=not defaults,
        ),
        train_dataset=Dataset.from_list([dict(zip(names, pair, strict=True)) for pair in pairs]),
        processing_class=padding_tokenizer(),
    )
    return stepping(trainer, collated(trainer))


# --- policies ---------------------------------------------------------------------------------------------------------


def even_share(prompt: str, tokens: Sequence[int], text: str, answer: Any) -> float:
    """The reward: the share of tokens with an even id, so that answers to a prompt are worth different amounts."""
    return sum(token % 2 == 0 for token in tokens) / max(len(tokens), 1)


@functools.cache
def trained_tokenizer(size: int) -> Tokenizer:
    """A vocabulary of exactly this size, learned from the standard library."""
    if size == 257:
        return Tokenizer.train(["0"], size, allow_smaller=True)
    sources = sorted(Path(json.__file__).parents[1].glob("*.py"))[:80]
    return Tokenizer.train([each.read_text(encoding="utf-8") for each in sources], size)


def prompt_texts(case: Rollouts, tokenizer: Tokenizer) -> list[str]:
    """Prompts of about as many tokens as asked for."""
    text = Path(json.__file__).with_name("decoder.py").read_text(encoding="utf-8")
    ids = tokenizer.encode_ordinary(text)
    length = case.prompt - 1
    return [tokenizer.decode(ids[first : first + length]) for first in range(0, 16 * case.prompts * 4, 16)]


def policy_job(case: Rollouts) -> Job:
    config = MODELS[case.model]
    ours = functools.cache(lambda: drawn(config))
    rows = case.prompts * case.samples
    generator = torch.Generator().manual_seed(0)
    whole = torch.randint(1, config.vocab_size, (rows, case.prompt + case.new), generator=generator)
    advantages = torch.randn(rows, generator=generator)
    tokens, targets = whole[:, :-1], whole[:, 1:].clone()
    targets[:, : case.prompt - 1] = IGNORED

    def plain(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        model = built(config, ours, dtype)

        def loss() -> Tensor:
            log_p = token_log_probabilities_of(model, tokens, targets)
            ratios = (log_p - log_p.detach()).exp()
            return -(advantages[:, None] * ratios * (targets != IGNORED)).sum(1).mean() / case.new

        return updating(model, optimizers(PYTORCH, model), loss, dtype).evidence()

    count = rows * (case.prompt + case.new)
    training = count * config.flops_per_token(case.prompt + case.new)
    return Job(
        op=f"{case.model}, GRPO",
        shape={name: getattr(case, name) for name in ("prompts", "samples", "prompt", "new")},
        dtype=torch.float32,
        pass_="sampling and training step",
        exact=lambda: plain(torch.float64),
        plain=plain,
        contenders=[
            Contender(OURS, lambda: our_policy(case, ours(), tokens, targets, advantages)),
            Contender(TRL, lambda: trl_policy(case, ours(), whole, advantages, False), module="trl"),
            Contender(f"{TRL}, defaults", lambda: trl_policy(case, ours(), whole, advantages, True), module="trl"),
        ],
        # Sampling is a forward pass more.
        work=(4 * config.parameters * (2 + 2 + 6 + case.new), int(training * 4 / 3)),
        tokens=count,
        samples=rows,
        seconds=2 * SECONDS["cpu"],
    )


def our_policy(case: Rollouts, start: Decoder, tokens: Tensor, targets: Tensor, advantages: Tensor) -> Program:
    trainer = our_trainer(case, start)
    objective, sampling = trainer.objective, sampling_of(trainer.task.config)
    counted, ones = targets != IGNORED, torch.ones(len(tokens))
    with torch.no_grad():
        old = trainer.model(
            tokens, of_states=lambda states: token_log_probabilities(trainer.model, states, targets, sampling)
        ).result
    given = Batch(
        tokens=tokens,
        targets=targets,
        is_real=torch.ones_like(tokens, dtype=torch.bool),
        old=old,
        counted=counted,
        advantages=advantages[:, None] * counted,
        fresh=ones,
        reward=ones,
        length=ones * case.new,
        is_truncated=ones,
        is_equal=ones,
    )
    checked = updating(trainer.model, trainer.optimizers, lambda: objective(given).mean, torch.float32)
    return Program(checked.evidence, trainer.step, lambda: held(trainer.model, trainer.optimizers))


def our_trainer(case: Rollouts, start: Decoder) -> Trainer:
    """The trainer of a run of ``llmfast grpo``."""
    tokenizer = trained_tokenizer(start.config.vocab_size)
    folder = Path(tempfile.mkdtemp(prefix="llmfast-align-"))
    save_model(folder / "start", start, write_tokenizer=tokenizer.save)
    records = [{"prompt": text, "answer": ""} for text in prompt_texts(case, tokenizer)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records), encoding="utf-8")
    rows = case.prompts * case.samples
    config = {
        "start": str(folder / "start"),
        "data": {"sources": [str(folder / "prompts.jsonl")], "template": "plain", "validation_fraction": 0.2},
        "rewards": {f"{__name__}:{even_share.__name__}": 1.0},
        "rollouts": {"samples": case.samples, "max_tokens": case.new, "max_batch": rows},
        "training": {
            "batch_size": rows, "optimizer": "adamw", "learning_rate": LEARNING_RATE, "beta1": BETAS[0],
            "beta2": BETAS[1], "clip_norm": CLIP, "schedule": "constant", "warmup": 0.0, "compile": False,
            "precision": "float32",
        },
    }  # fmt: skip
    config = from_dict(GroupPolicyConfig, config)
    return new_session(folder / "run", config, task=GroupPolicy, report=lambda line: None).trainer


def trl_policy(case: Rollouts, start: Decoder, whole: Tensor, advantages: Tensor, checkpointing: bool) -> Program:
    """A step of trl's trainer with transformers' ``generate``, its default without vLLM."""
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast
    from trl import GRPOConfig, GRPOTrainer

    tokenizer = trained_tokenizer(start.config.vocab_size)
    folder = Path(tempfile.mkdtemp(prefix="llmfast-align-"))
    tokenizer.save(folder)
    end = tokenizer.decode([tokenizer.eot_token])
    their_tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), eos_token=end, pad_token=end
    )
    prompts = [{"prompt": end + text} for text in prompt_texts(case, tokenizer)[: case.prompts]]
    rows = [each for each in prompts for _ in range(case.samples)]

    def reward(prompts: list[str], completions: list[str], completion_ids: list[list[int]], **_: object) -> list[float]:
        parts = zip(prompts, completion_ids, completions, strict=True)
        return [even_share(prompt, ids, text, None) for prompt, ids, text in parts]

    trainer = GRPOTrainer(
        same_model(start.config, start.state_dict()),
        reward,
        GRPOConfig(
            **arguments(torch.float32, rows=len(rows), checkpointing=checkpointing),
            num_generations=case.samples,
            max_completion_length=case.new,
            loss_type="grpo",
            temperature=1.0,
        ),
        train_dataset=Dataset.from_list(prompts),
        processing_class=their_tokenizer,
    )
    ones = torch.ones_like(whole)
    given = {
        "prompt_ids": whole[:, : case.prompt],
        "prompt_mask": ones[:, : case.prompt],
        "completion_ids": whole[:, case.prompt :],
        "completion_mask": ones[:, case.prompt :],
        "advantages": advantages,
    }

    def checked(model: nn.Module) -> Tensor:
        with torch.enable_grad():
            loss = trainer.compute_loss(model, given)
        loss.backward()
        return loss.detach()

    return stepping(trainer, lambda: rows, checked)
