"""The decoder, read top to bottom: embedding, blocks of attention and feed-forward, final norm, head.

By its configuration it is GPT-2, Llama, Qwen, Mixtral, Gemma, OLMo, Cohere, GPT-OSS or what lies between. Shape
letters: B batch, S query length, T key length, H query heads, K key/value heads, D head width, E model width,
F feed-forward width, V vocabulary, N tokens (B·S flattened).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from llmfast.kernels import cross_entropy, linear_cross_entropy
from llmfast.models.adapters.layers import head_weight
from llmfast.models.attention import Attention, Places, document_positions, with_chunks
from llmfast.models.cache import CachedStep
from llmfast.models.checkpointing import run_block
from llmfast.models.config import Checkpointing, DecoderConfig
from llmfast.models.experts import Balancing, MixtureOfExperts, Routed, balancing_losses
from llmfast.models.feed_forward import FeedForward, GatedFeedForward
from llmfast.models.initialize import initialize
from llmfast.models.norms import norm
from llmfast.models.rotary import rotary_rows, rotary_table, window_rotary_table
from llmfast.models.smear import Smear


def dropout(config: DecoderConfig) -> nn.Module:
    return nn.Dropout(config.dropout) if config.dropout else nn.Identity()


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)); beside it what its router did, if it has one.

    By ``config.norm_position`` the outputs of attention and feed-forward are normalized, too, or they alone. With
    ``config.parallel_residual`` the block is x + attention(norm(x)) + feed_forward(norm(x)), of one norm. What is added
    to x is multiplied by ``config.residual_scale``.
    """

    def __init__(self, config: DecoderConfig, layer: int):
        super().__init__()

        def norm_if(is_there: bool) -> nn.Module:
            return norm(config, config.width) if is_there else nn.Identity()

        self.norms_inputs, norms_outputs = config.norm_position != "after", config.norm_position != "before"
        self.is_parallel = config.parallel_residual
        self.attention_norm = norm_if(self.norms_inputs)
        self.attention = Attention(config, layer)
        self.attention_post_norm = norm_if(norms_outputs)
        self.feed_forward_norm = norm_if(self.norms_inputs and not self.is_parallel)
        self.has_experts = config.has_experts(layer)
        if self.has_experts:
            self.feed_forward = MixtureOfExperts(config)
        else:
            self.feed_forward = GatedFeedForward(config, config.ff_width) if config.gated else FeedForward(config)
        self.feed_forward_post_norm = norm_if(norms_outputs)
        self.dropout = dropout(config)
        self.residual_scale = config.residual_scale

    def forward(
        self, x: Tensor, places: Places, cache: CachedStep | None = None, is_real: Tensor | None = None
    ) -> tuple[Tensor, Routed | None]:
        normed = self.attention_norm(x)
        attended = self._scaled(self.dropout(self.attention_post_norm(self.attention(normed, places, cache))))
        if self.is_parallel:
            x = x + attended
        elif self.norms_inputs:
            # The sum and its norm in one pass over memory.
            normed, x = self.feed_forward_norm(attended, residual=x)
        else:
            normed = x = x + attended
        if self.has_experts:
            added, routed = self.feed_forward(normed, is_real)
        else:
            added, routed = self.feed_forward(normed), None
        return x + self._scaled(self.dropout(self.feed_forward_post_norm(added))), routed

    def _scaled(self, added: Tensor) -> Tensor:
        """What is added to the residual stream."""
        return added if self.residual_scale == 1 else added * self.residual_scale


class Hidden(NamedTuple):
    """The last hidden states of a decoder."""

    states: Tensor
    """(B, S, E), after the final norm."""
    balancing: Balancing | None
    """What a mixture of experts adds to the loss while training; None otherwise."""


class OfStates(NamedTuple):
    """What ``of_states`` made of the last hidden states of a decoder."""

    result: Any
    balancing: Balancing | None
    """As in ``Hidden``."""


class Decoder(nn.Module):
    """A decoder-only language model.

    ``forward(tokens)`` gives logits (B, S, V); ``forward(tokens, targets)`` gives the mean loss in nats per target
    without ever holding the logits; ``forward(tokens, cache=step)`` continues sequences (``llmfast.inference``).

    >>> model = Decoder(DecoderConfig(vocab_size=100, width=32, layers=2))
    >>> tokens = torch.randint(100, (2, 16))
    >>> model(tokens).shape
    torch.Size([2, 16, 100])
    >>> model(tokens[:, :-1], tokens[:, 1:]).backward()
    """

    cos: Tensor
    sin: Tensor
    window_cos: Tensor
    window_sin: Tensor
    expert_counts: Tensor
    batch_choices: Tensor
    head_bias: Tensor

    def __init__(self, config: DecoderConfig, *, generator: torch.Generator | None = None):
        super().__init__()
        self.config = config
        self.activation_checkpointing: Checkpointing = "none"
        self.is_part_of_batch = False
        """Whether ``batch_choices`` holds the experts' choices in a batch of which each call has a part, by whoever
        divides batches: experts are then balanced over the whole batch."""
        self.embedding = nn.Embedding(config.table_rows, config.width)
        learned = config.positions == "learned"
        self.positions = nn.Embedding(config.context, config.width) if learned else None
        self.smear = Smear(config.width) if config.smear else None
        self.dropout = dropout(config)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.norm = norm(config, config.width)
        self.head = nn.Linear(config.width, config.table_rows, bias=False)
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight
        for name, buffer in _derived_buffers(config).items():
            self.register_buffer(name, buffer, persistent=False)
        if not self.embedding.weight.is_meta:
            initialize(self, generator)

    @classmethod
    def from_tensors(cls, config: DecoderConfig, tensors: dict[str, Tensor]) -> Decoder:
        """A decoder whose parameters are ``tensors`` themselves, by name (a tied head left out): none is drawn first.

        Raises:
            ValueError: names or shapes that are not those of ``config``.
        """
        with torch.device("meta"):
            model = cls(config)
        own = {name: tensor for name, tensor in model.state_dict().items() if name != "head.weight"}
        if not config.tie_embeddings:
            own["head.weight"] = model.head.weight
        odd = sorted(own.keys() ^ tensors.keys()) or [n for n in own if own[n].shape != tensors[n].shape]
        if odd:
            raise ValueError(f"the tensors do not fit the model's configuration: {', '.join(odd[:3])}")
        model.load_state_dict(tensors, strict=False, assign=True)
        if config.tie_embeddings:
            model.head.weight = model.embedding.weight
        model.renew_buffers()
        return model

    def renew_buffers(self) -> None:
        """Compute the buffers that follow from the configuration, on the device of the embedding table."""
        for name, buffer in _derived_buffers(self.config).items():
            setattr(self, name, buffer.to(self.embedding.weight.device))

    def forward(
        self,
        tokens: Tensor,
        targets: Tensor | None = None,
        *,
        cu_seqlens: Tensor | None = None,
        cache: CachedStep | None = None,
        is_real: Tensor | None = None,
        of_states: Callable[[Tensor], Any] | None = None,
    ) -> Tensor | OfStates:
        """Logits (B, S, V) of ``tokens`` (B, S), or the mean loss over ``targets`` (B, S; −100 is ignored).

        Args:
            tokens, targets: int64. While training, the loss of a mixture of experts includes its balancing losses.
            cu_seqlens: (documents + 1,) int32, from 0 to B·S: where each document starts in the batch laid end to end,
                row after row. Tokens then see their own document only, and positions count from its start. Entries
                may repeat; no document may be longer than the context.
            cache: where the tokens, then (N, 1) of any number of sequences, stand in a cache of keys and values. They
                are added to it, and the result is the logits (outputs, V) of the tokens that it asks for. Not together
                with ``targets`` or ``cu_seqlens``.
            is_real: (B, S) bool, false for padding, which does not count when experts are balanced.
            of_states: instead of targets, what to compute from the last hidden states (B, S, E): losses of each token
                (``losses_of``), or others. It is called inside this pass, where all weights are at hand, however
                processes divide them.

        Raises:
            ValueError: the sequence, with what the cache already holds, is longer than the model's context.
        """
        states, balancing = self.hidden(tokens, cu_seqlens=cu_seqlens, cache=cache, is_real=is_real)
        if of_states is not None:
            return OfStates(of_states(states), balancing)
        if cache is not None:
            if targets is not None:
                raise ValueError("targets and cache exclude each other: a cache is for generation")
            states = states.flatten(0, 1)[cache.outputs]
        if targets is None:
            return self.logits_of(states)
        loss = self.losses_of(states, targets, reduction="mean")
        return loss if balancing is None else loss + balancing.total

    def logits_of(self, states: Tensor) -> Tensor:
        """The logits (..., V) after last hidden states (..., E)."""
        logits, cap = self.head(self.scaled(states))[..., : self.config.vocab_size], self.config.logit_softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def scaled(self, states: Tensor) -> Tensor:
        """Last hidden states times ``config.logit_scale``, of which the output head alone makes the scaled logits."""
        return states if self.config.logit_scale == 1 else states * self.config.logit_scale

    def losses_of(self, states: Tensor, targets: Tensor, *, reduction: Literal["mean", "none"] = "none") -> Tensor:
        """The cross entropy of ``targets`` (B, S) after last hidden states (B, S, E), never holding the logits."""
        weight = head_weight(self.head)
        if weight is not None:
            options = {"reduction": reduction, "softcap": self.config.logit_softcap}
            return linear_cross_entropy(self.scaled(states), weight, targets, self._head_bias(states), **options)
        return cross_entropy(self.logits_of(states), targets, reduction=reduction)

    def hidden(
        self,
        tokens: Tensor,
        *,
        cu_seqlens: Tensor | None = None,
        cache: CachedStep | None = None,
        is_real: Tensor | None = None,
    ) -> Hidden:
        """What the head reads: the last hidden states of ``tokens`` (B, S), for other heads and losses.

        Arguments and errors are those of ``forward``.
        """
        longest = tokens.shape[1] if cache is None else cache.longest
        if longest > self.config.context:
            raise ValueError(f"sequence of {longest} tokens; the model's context is {self.config.context}")
        if cu_seqlens is not None and cache is not None:
            raise ValueError("cu_seqlens and cache exclude each other: a cache says itself where tokens stand")
        x, places = self.embed(tokens, cu_seqlens) if cache is None else self._embed_cached(tokens, cache)
        routed = []
        for block in self.blocks:
            x, from_router = run_block(self.activation_checkpointing, block, x, places, cache, is_real)
            if from_router is not None:
                routed.append(from_router)
        x = self.norm(x)
        if not (routed and self.training):
            return Hidden(x, None)
        self.expert_counts += torch.stack([each.counts for each in routed])
        choices = self.batch_choices if self.is_part_of_batch else None
        return Hidden(x, balancing_losses(routed, self.config, choices))

    def embed(self, tokens: Tensor, cu_seqlens: Tensor | None = None) -> tuple[Tensor, Places]:
        """What enters the first block, (B, S, E), and what attention must know about where the tokens stand."""
        S = tokens.shape[1]
        positions = None if cu_seqlens is None else document_positions(cu_seqlens, tokens.shape)
        x = self._embeddings(tokens)
        if self.smear is not None:
            x = self.smear(x, _shifted(x, positions))
        if self.positions is not None:
            x = x + self.positions(torch.arange(S, device=x.device) if positions is None else positions)
            chunks = self._chunk_seqlens(tokens, positions, cu_seqlens)
            return self.dropout(x), Places(None, None, cu_seqlens, chunk_seqlens=chunks)
        cos, sin = self.cos, self.sin
        if self.config.rope_scaling.kind == "dynamic" and self.config.original_context < S:
            cos, sin = (table.to(cos) for table in rotary_table(self.config, S, cos.device))
        rows = slice(S) if positions is None else slice(None)
        window_rotary = (self.window_cos[rows], self.window_sin[rows]) if len(self.window_cos) else None
        chunks = self._chunk_seqlens(tokens, positions, cu_seqlens)
        return self.dropout(x), Places((cos[rows], sin[rows]), positions, cu_seqlens, window_rotary, chunks)

    def _chunk_seqlens(self, tokens: Tensor, positions: Tensor | None, cu_seqlens: Tensor | None) -> Tensor | None:
        """``cu_seqlens`` for layers that attend by chunks; None where each row is one."""
        chunk = self.config.attention_chunk
        if chunk is None or (cu_seqlens is None and tokens.shape[1] <= chunk):
            return cu_seqlens
        if cu_seqlens is None:
            B, S = tokens.shape
            positions = torch.arange(S, device=tokens.device).expand(B, S)
            cu_seqlens = torch.arange(0, B * S + 1, S, device=tokens.device, dtype=torch.int32)
        return with_chunks(cu_seqlens, positions, chunk)

    def _embed_cached(self, tokens: Tensor, step: CachedStep) -> tuple[Tensor, Places]:
        """As ``embed``, of tokens (N, 1) of any sequences."""
        x = self._embeddings(tokens)
        if self.smear is not None:
            before = self._embeddings(step.previous.clamp(min=0)) * (step.previous >= 0).unsqueeze(-1)
            x = self.smear(x, before)
        if self.positions is not None:
            return self.dropout(x + self.positions(step.positions)), Places(None)
        if step.reach is None:
            window_rotary = (self.window_cos, self.window_sin) if len(self.window_cos) else None
            return self.dropout(x), Places((self.cos, self.sin), step.positions, window_rotary=window_rotary)
        cos, sin = rotary_rows(self.config, step.positions[:, 0], step.reach)
        rows = torch.arange(len(cos), device=x.device).unsqueeze(1)
        return self.dropout(x), Places((cos.to(self.cos), sin.to(self.sin)), rows)

    def _embeddings(self, tokens: Tensor) -> Tensor:
        x, factor = self.embedding(tokens), self.config.embedding_factor
        return x if factor == 1 else x * factor

    def _head_bias(self, x: Tensor) -> Tensor | None:
        """0 for tokens and far below every logit for the rows that fill up the table; None if there are none."""
        return self.head_bias.to(x.dtype) if len(self.head_bias) else None

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Without dropout and balancing losses for a while; afterwards as before."""
        training = self.training
        if training:
            self.eval()
        try:
            yield
        finally:
            if training:
                self.train()

    def router_statistics(self) -> dict[str, Tensor]:
        """How evenly experts were used since ``balance_experts`` was last called, by layer; empty without experts.

        ``load`` (layers, X): share of the choices; ``max_violation`` (layers,): the busiest expert's load over the
        mean load, less 1 (Wang et al. 2024); ``unused`` (layers,): how many experts got no token.
        """
        if not len(self.expert_counts):
            return {}
        load = self.expert_counts / self.expert_counts.sum(-1, keepdim=True).clamp(min=1)
        return {
            "load": load,
            "max_violation": load.amax(-1) * load.shape[-1] - 1,
            "unused": (self.expert_counts == 0).sum(-1),
        }

    @torch.no_grad()
    def balance_experts(self) -> None:
        """To be called after each optimizer step: moves the routers' biases against the imbalance of the step, by
        ``experts.bias_rate`` (Wang et al. 2024, algorithm 1), and starts counting from zero. Where there are several
        processes, ``expert_counts`` must be their sum."""
        counts = self.expert_counts
        if not len(counts):
            return
        routers = [block.feed_forward.router for block in self.blocks if block.has_experts]
        for router, count in zip(routers, counts.double(), strict=True):
            router.bias += self.config.experts.bias_rate * (count.mean() - count).sign().to(router.bias.dtype)
        counts.zero_()


def _derived_buffers(config: DecoderConfig) -> dict[str, Tensor]:
    """Buffers that follow from the configuration, or live for one step, and are in no checkpoint."""
    first = config.original_context if config.rope_scaling.kind == "dynamic" else config.context
    cos, sin = rotary_table(config, first) if config.positions == "rope" else (torch.empty(0), torch.empty(0))
    window_cos, window_sin = window_rotary_table(config)
    head_bias = torch.zeros(config.table_rows if config.table_rows > config.vocab_size else 0)
    # exp of it is 0 in every dtype, and nothing computed with it is NaN.
    head_bias[config.vocab_size :] = -1e4
    with_experts = sum(map(config.has_experts, range(config.layers)))
    counts = torch.zeros(with_experts, config.experts.count, dtype=torch.int64)
    of_batch = torch.zeros_like(counts)
    tables = {"cos": cos, "sin": sin, "window_cos": window_cos, "window_sin": window_sin, "head_bias": head_bias}
    return tables | {"expert_counts": counts, "batch_choices": of_batch}


def _shifted(x: Tensor, positions: Tensor | None) -> Tensor:
    """The embedding before each of x (B, S, E), 0 for the first token of a row or, by ``positions``, of a document."""
    before = torch.cat((x.new_zeros(x.shape[0], 1, x.shape[2]), x[:, :-1]), dim=1)
    return before if positions is None else before * (positions > 0).unsqueeze(-1)
