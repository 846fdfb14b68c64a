"""The model ``llmfast`` of EleutherAI's lm-evaluation-harness: its tasks on models of llmfast.

Versions of lm_eval that look for the entry points ``lm_eval.models`` (those after 0.4.13) find it by themselves:
``lm_eval run --model llmfast --model_args pretrained=RUN --tasks ...``. For earlier ones,
``python -m llmfast.evaluation.lm_eval run ...`` is the same command with this model registered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lm_eval.models  # noqa: F401 (the harness registers its own models only as long as there are no others)
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from llmfast.data.chat.opening import named_tokens, saved_chat
from llmfast.evaluation.likelihood import Pair, log_likelihoods
from llmfast.evaluation.tasks.writing import engine_of
from llmfast.inference.config import Sampling
from llmfast.inference.engine import Engine
from llmfast.inference.opening import open_on_device
from llmfast.inference.prompts import beginning, own_beginning

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

MOST_TOKENS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
SAMPLING = ("top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "seed")
Encoded = tuple[tuple[str, str], list[int], list[int]]
"""A context with its continuation, and the tokens of each."""


@register_model("llmfast")
class HarnessModel(TemplateLM):
    """A model of llmfast as the harness sees one. Its figures are those of the harness's ``hf`` on the exported model.

    Args:
        pretrained: a run folder (its newest checkpoint is used), a checkpoint, a Hugging Face folder or an adapter.
        base: where the base of an adapter lies now, if it was moved since the training.
        device: ``cpu`` or ``cuda``; a GPU if there is one, if left out.
        dtype: ``float32``, ``bfloat16`` or ``float16``; if left out, bfloat16 on a GPU and as the weights are on a CPU.
        add_bos_token: what stands before a text. If left out, the special tokens that its ``tokenizer.json`` puts
            there, as in transformers; true: the tokens that begin a text in llmfast's training and generation, which
            is how ``llmfast eval`` asks; false: nothing.
        prefix_token_id: what a text without a context is predicted from; the tokenizer's token for the beginning of a
            text, or else the one for its end, if left out.
        max_length: longest text; the model's context if left out.
        max_gen_toks: most tokens of a reply to a task that does not say.
        batch_size, max_batch_size: of the harness's command; without effect, since batches are made by their tokens.

    Raises:
        ValueError: no model there, a damaged file, no such device, or a ``max_length`` beyond the model's context.
    """

    def __init__(
        self,
        pretrained: str,
        *,
        base: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
    ):
        super().__init__()
        self.pretrained = Path(pretrained)
        self.model, self._tokenizer = open_on_device(self.pretrained, base=base, device=device, dtype=dtype)
        context = self.model.config.context
        if max_length is not None and not 1 < max_length <= context:
            raise ValueError(f"max_length must be from 2 to the model's context {context}, got {max_length}")
        self._dtype = dtype
        self.max_length = max_length or context
        self.max_gen_toks = max_gen_toks
        self._prefix_token_id = prefix_token_id
        starts = {None: own_beginning(self._tokenizer) or [], True: beginning(self._tokenizer), False: []}
        self._beginning = starts[add_bos_token]

    # --- tokens -------------------------------------------------------------------------------------------------------

    @cached_property
    def _named(self) -> dict[str, int]:
        return {name: self._tokenizer.encode_single_token(text) for name, text in named_tokens(self._tokenizer).items()}

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        named = self._named.get("eos_token")
        return self._tokenizer.eot_token if named is None else named

    @property
    def prefix_token_id(self) -> int:
        """What a text without a context is predicted from."""
        if self._prefix_token_id is not None:
            return self._prefix_token_id
        return self._named.get("bos_token", self.eot_token_id)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """The tokens of a text, in which special tokens are recognized as in transformers. None for
        ``add_special_tokens``: with its beginning, unless the text has it already."""
        tokens = self._tokenizer.encode(string, allowed_special="all")
        if add_special_tokens is None:
            add_special_tokens = tokens[:1] != [self.prefix_token_id]
        return [*self._beginning, *tokens] if add_special_tokens else tokens

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer in the harness's caches."""
        return self._tokenizer.fingerprint

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The source of the template beside the tokenizer; None where no template is wanted.

        Raises:
            ValueError: there is none, or one is named: a model of llmfast has one template.
        """
        if chat_template is False or chat_template is None:
            return None
        if isinstance(chat_template, str):
            raise ValueError(f"chat_template {chat_template!r} is named, but a model of llmfast has only its own")
        return self._chat.template.source

    @cached_property
    def _chat(self) -> Any:
        return saved_chat(self._tokenizer)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The text of a conversation up to the next answer or, without ``add_generation_prompt``, of one whose last
        message is to be continued."""
        if add_generation_prompt:
            return self._chat.template.render(chat_history, generation_prompt=True)
        *before, last = chat_history
        return self._chat.template.render(before, generation_prompt=True) + last["content"]

    # --- what the harness asks for ------------------------------------------------------------------------------------

    def _loglikelihood_tokens(self, requests: Sequence[Encoded], **kwargs: Any) -> list[tuple[float, bool]]:
        pairs = []
        for _, context, continuation in requests:
            room = max(1, self.max_length + 1 - len(continuation))
            pairs.append(Pair(context[-room:], continuation))
        found = log_likelihoods(self.model, pairs, share=True)
        for ((context, continuation), _, _), each in zip(requests, found, strict=True):
            if context is not None:  # not of a window of a text
                self.cache_hook.add_partial("loglikelihood", (context, continuation), tuple(each))
        return [(each.log_prob, each.is_greedy) for each in found]

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log-probability of each text, every token predicted once, in windows of ``max_length``."""
        totals = []
        for (text,) in (request.args for request in requests):
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            pairs = [Pair(*make_disjoint_window(window)) for window in windows]
            totals.append(sum(each.log_prob for each in log_likelihoods(self.model, pairs)))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), totals[-1])
        return totals

    @cached_property
    def _engine(self) -> Engine:
        return engine_of(self.pretrained, self.model, self._tokenizer, dtype=self._dtype)

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """What the model writes after each context, up to a stop text or the end of a text.

        Raises:
            ValueError: settings that llmfast does not have, or more tokens than the context holds.
        """
        asked = [request.args for request in requests]
        settings = [self._sampling(gen_kwargs) for _, gen_kwargs in asked]
        prompts = []
        for (context, _), each in zip(asked, settings, strict=True):
            room = self.max_length - (each.max_tokens or 0)
            if room < 1:
                raise ValueError(
                    f"{each.max_tokens} tokens to generate leave no room for a prompt in {self.max_length} tokens: "
                    "lower max_gen_toks"
                )
            prompts.append(self.tok_encode(context)[-room:])
        replies = [only.text for (only,) in self._engine.generate(prompts, settings)]
        for arguments, reply in zip(asked, replies, strict=True):
            self.cache_hook.add_partial("generate_until", arguments, reply)
        return replies

    def _sampling(self, given: Mapping[str, Any]) -> Sampling:
        """The settings of a task, as the harness names them."""
        given = dict(given)
        lengths = [given.pop(name, None) for name in MOST_TOKENS]
        most = next((int(length) for length in lengths if length is not None), self.max_gen_toks)
        stop = given.pop("until", None) or []
        temperature = float(given.pop("temperature", 0.0))
        if not given.pop("do_sample", temperature > 0):
            temperature = 0.0
        if unknown := sorted(given.keys() - SAMPLING):
            raise ValueError(
                f"generation_kwargs has {unknown[0]}; llmfast knows {', '.join((*MOST_TOKENS, *SAMPLING))}"
            )
        return Sampling(
            temperature=temperature,
            max_tokens=most,
            stop=[text for text in ([stop] if isinstance(stop, str) else stop) if text],
            **{name: value for name, value in given.items() if value is not None},
        )
