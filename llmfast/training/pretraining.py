"""Pretraining: the task of predicting the next token of prepared text."""

from __future__ import annotations

import dataclasses
import functools
import math
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from llmfast.data.batch import IGNORED, Batch
from llmfast.data.loader import Loader
from llmfast.data.prepare import END_OF_TEXT, Prepared, describe, open_prepared, prepare
from llmfast.data.shards import Share
from llmfast.data.windows import PackedWindows, StreamWindows, Windows
from llmfast.evaluation.perplexity import bytes_of_tokens, evaluate
from llmfast.inference.config import EngineConfig, Sampling
from llmfast.inference.engine import Engine
from llmfast.inference.prompts import begins_documents_with_end_of_text
from llmfast.integrations.opening import Start, open_start
from llmfast.models.decoder import Decoder
from llmfast.models.folder import write_config
from llmfast.tokenizer import Tokenizer
from llmfast.training.config import RunConfig
from llmfast.training.decoder_task import DecoderTask
from llmfast.training.objective import Loss, Objective, balancing_parts
from llmfast.training.start import check_same_tokenizer, started_config
from llmfast.training.task import Policy, Report

PART_TOKENS = 2**15  # of the validation split, for evaluations during training
PROMPT_TOKENS = 6
SAMPLING = Sampling(temperature=0.7, top_p=0.95, seed=0, max_tokens=40, truncate_prompt=True)


class NextToken(Objective):
    """The cross entropy of each next token, a mean over the targets of a batch."""

    model: Decoder

    def weight(self, batch: Batch) -> Tensor:
        return (batch.targets != IGNORED).sum()

    def forward(self, batch: Batch) -> Loss:
        is_real = batch.columns.get("is_real")
        mean_loss = functools.partial(self.model.losses_of, targets=batch.targets, reduction="mean")
        loss, balancing = self.model(batch.tokens, cu_seqlens=batch.cu_seqlens, is_real=is_real, of_states=mean_loss)
        return Loss(loss, added=balancing_parts(balancing))


class Pretraining(DecoderTask):
    """The task on prepared token shards (see ``llmfast.training.task.Task``).

    Raises:
        ValueError: too little data for one row, or weights to start from that do not go with the data.
    """

    config_class: ClassVar = RunConfig
    command: ClassVar = "train"

    def __init__(self, config: RunConfig, prepared: Prepared, start: Start | None = None):
        self.config, self.prepared, self.start = config, prepared, start
        self.tokenizer: Tokenizer = prepared.tokenizer
        self.context = config.model.context

    @classmethod
    def prepare(cls, config: RunConfig, folder: Path, *, report: Report) -> None:
        cls.use_tokenizer_of_start(config)
        if not config.data.prepared:
            prepare(config.data, folder, report=report)

    @classmethod
    def open(cls, config: RunConfig, folder: Path, *, begins: bool, verify: bool, report: Report) -> Pretraining:
        cls.use_tokenizer_of_start(config)
        elsewhere = config.data.prepared
        prepared = open_prepared(Path(elsewhere) if elsewhere else folder, verify=verify)
        if elsewhere and begins:
            describe(prepared, report)
            config.data.prepared = str(Path(elsewhere).absolute())  # so that the run can be resumed from another folder
        start = None
        if config.start is None:
            config.model = dataclasses.replace(config.model, vocab_size=prepared.tokenizer.n_vocab)
        elif begins:
            start = open_start(config.start)
            check_same_tokenizer(start, prepared.tokenizer)
            config.model = started_config(config.model, start)
        return cls(config, prepared, start)

    @functools.cached_property
    def windows(self) -> Windows:
        """The rows of training."""
        windows = PackedWindows if self.config.data.packing == "best_fit" else StreamWindows
        return windows(self.prepared.train, self.context)

    @functools.cached_property
    def token_bytes(self) -> np.ndarray:
        """Bytes of text of each token."""
        return bytes_of_tokens(self.tokenizer)

    def flops_per_token(self) -> float:
        return self.config.model.flops_per_token()

    def objective(self) -> Objective:
        if self.start is not None:
            model = self.start.decoder(self.config.model)
        else:
            generator = torch.Generator().manual_seed(self.config.training.seed)
            model = Decoder(self.config.model, generator=generator)
        return NextToken(model)

    def source(self, share: Share, policy: Policy) -> Loader:
        return Loader(
            self.windows,
            seed=self.config.training.seed,
            share=share,
            document_masks=self.config.data.document_masks,
        )

    def evaluate(self, policy: Policy, *, part: bool = False, stride: int | None = None) -> dict[str, float]:
        """Loss in nats per token and bits per byte of the validation split; see ``perplexity.evaluate``."""
        with policy.inference() as model:
            found = evaluate(
                model,
                self.prepared.validation,
                stride=stride,
                max_tokens=PART_TOKENS if part else None,
                token_bytes=self.token_bytes if part else None,
                autocast=policy.autocast(),
                team=policy.team,
            )
        return {"loss": found.loss, "bits_per_byte": found.bits_per_byte}

    def sample(self, policy: Policy) -> tuple[str, str]:
        """The prompt and the model's continuation."""
        tokenizer, prompt = self.tokenizer, self.prompt()
        # The end-of-text token comes before every document of the training.
        tokens = [tokenizer.eot_token, *tokenizer.encode_ordinary(prompt)]
        with policy.inference() as model:
            engine = Engine(model, tokenizer, EngineConfig(max_batch=1), ends=[tokenizer.eot_token])
            ((reply,),) = engine.generate([tokens], SAMPLING)
        return prompt, reply.text

    def save_assets(self, folder: Path) -> None:
        write_config(folder, self.model_config)
        # A model that is trained from the start begins its documents as the training does, whatever tokenizer it has.
        own = self.config.start is None
        (begins_documents_with_end_of_text(self.tokenizer) if own else self.tokenizer).save(folder)

    def prompt(self) -> str:
        """What samples continue: ``def`` for Python's library, else how a held-out document begins."""
        data = self.config.data
        if not data.sources and not data.prepared:
            return "def "
        held_out = self.prepared.validation
        tokens = held_out.read(1, min(PROMPT_TOKENS, len(held_out) - 1)).tolist()
        return self.tokenizer.decode(tokens).split(END_OF_TEXT)[0]

    def units(self, loss: float) -> dict[str, float]:
        shards = self.prepared.train
        return {"bits/byte": loss * len(shards) / shards.text_bytes / math.log(2)}
