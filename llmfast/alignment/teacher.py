"""The teacher of a distillation: a frozen model with the same vocabulary, known by its hidden states and its head."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from llmfast.integrations.opening import open_model, open_start
from llmfast.models.adapters.layers import head_weight
from llmfast.models.folder import CONFIG_FILE
from llmfast.tokenizer import Tokenizer


class Teacher(nn.Module):
    """A frozen model: logits are the product of what ``forward`` gives and ``head`` (V, E)."""

    def __init__(self, model: nn.Module, vocab_size: int):
        super().__init__()
        self.model = model.requires_grad_(False).eval()
        self.vocab_size = vocab_size

    def train(self, mode: bool = True) -> Teacher:
        """A teacher is never in training mode: it has no dropout."""
        return super().train(False)

    @property
    def head(self) -> Tensor:
        """The output head, without the rows that only fill it up."""
        weight = self._head()
        assert weight is not None
        return weight[: self.vocab_size]

    def _head(self) -> Tensor | None:
        return head_weight(self.model.head)

    @torch.no_grad()
    def forward(self, tokens: Tensor, cu_seqlens: Tensor | None, is_real: Tensor | None) -> Tensor:
        """Last hidden states (B, S, E), by the scale of the logits."""
        return self.model.scaled(self.model.hidden(tokens, cu_seqlens=cu_seqlens, is_real=is_real).states)


class TransformersTeacher(Teacher):
    """A model that transformers runs."""

    def _head(self) -> Tensor:
        return self.model.get_output_embeddings().weight

    @torch.no_grad()
    def forward(self, tokens: Tensor, cu_seqlens: Tensor | None, is_real: Tensor | None) -> Tensor:
        assert cu_seqlens is None, "checked when the teacher was opened"
        return self.model.base_model(input_ids=tokens).last_hidden_state


def teacher_folder(path: str | Path) -> Path:
    """Where a teacher's configuration and tokenizer are: of a run, its newest checkpoint.

    Raises:
        ValueError: no model there.
    """
    path = Path(path)
    if (path / CONFIG_FILE).exists():
        return path  # also a model that only transformers knows
    try:
        return open_start(path).folder
    except ValueError as error:
        raise ValueError(str(error).replace("start:", "teacher:", 1)) from None


def open_teacher(path: str | Path, tokenizer: Tokenizer, *, packed: bool) -> Teacher:
    """The teacher in a folder.

    Args:
        path: a run, a checkpoint or a Hugging Face folder.
        tokenizer: of the student.
        packed: whether rows hold several examples, which only models of llmfast keep apart.

    Raises:
        ValueError: no model there, one with another tokenizer, or one whose logits are not those of a head alone.
    """
    folder = teacher_folder(path)
    try:
        open_start(folder)
    except ValueError:
        teacher = _from_transformers(folder, tokenizer.n_vocab, packed=packed)
        theirs = Tokenizer.load(folder)
    else:
        model, theirs = open_model(path)
        teacher = Teacher(model, tokenizer.n_vocab)
    if theirs.fingerprint != tokenizer.fingerprint:
        raise ValueError(
            f"teacher: the model of {path} has another tokenizer than the student ({theirs.n_vocab:,} and "
            f"{tokenizer.n_vocab:,} tokens): distributions over different vocabularies cannot be compared. If only the "
            "special tokens of the chat template are missing, finetune the teacher with the same data.template first"
        )
    return teacher


def _from_transformers(path: Path, vocab_size: int, *, packed: bool) -> TransformersTeacher:
    from transformers import AutoModelForCausalLM

    if packed:
        raise ValueError(
            f"teacher: the model of {path} runs in transformers, which does not keep examples of a row apart: set "
            "data.packing to none"
        )
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    teacher = TransformersTeacher(model, vocab_size)
    probe = torch.arange(4)[None]
    with torch.no_grad():
        wanted, found = model(probe).logits[..., :vocab_size], teacher(probe, None, None) @ teacher.head.T
    if not torch.allclose(wanted, found, rtol=1e-3, atol=1e-3):
        raise ValueError(
            f"teacher: the logits of {path} are more than a product of hidden states and output head (a bias, a cap or "
            "a scale), which llmfast cannot distill from"
        )
    return teacher
