"""Labels or numbers for texts by a trained classifier."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from llmfast.config import from_dict
from llmfast.data.examples.labeled import encode_text, pad_rows
from llmfast.integrations.opening import on_base
from llmfast.models.classifier import ClassifierConfig, SequenceClassifier, without_head
from llmfast.models.decoder import Decoder
from llmfast.models.folder import model_folder, read_json, read_model
from llmfast.tokenizer import Tokenizer

AT_ONCE = 64
WINDOW = 4096  # texts that are sorted by length together
CALIBRATION_FILE = "calibration.json"


@dataclass(frozen=True)
class Prediction:
    """What a classifier says of one text."""

    text: str
    labels: tuple[str, ...] = ()
    """One, or any number of them (multi-label), or none (regression)."""
    probabilities: dict[str, float] = field(default_factory=dict)
    """Of all labels by name."""
    value: float | None = None
    """The number (regression)."""
    was_cut: bool = False
    """Whether the text is longer than what the model reads."""

    @property
    def label(self) -> str:
        """The one label."""
        (label,) = self.labels
        return label

    @property
    def probability(self) -> float:
        """Of the one label."""
        return self.probabilities[self.label]

    def described(self) -> str:
        """In words: the labels with their probabilities, or the number."""
        if self.value is not None:
            return f"{self.value:.4g}"
        return ", ".join(f"{label} ({self.probabilities[label]:.0%})" for label in self.labels) or "no label"


def load_classifier(path: Path, *, base: Path | None = None) -> tuple[SequenceClassifier, Tokenizer]:
    """The classifier and tokenizer of a checkpoint folder, or of the newest checkpoint of a run folder.

    Args:
        path: the folder.
        base: where the frozen base of a classifier lies now, if it was moved since the training.

    Raises:
        ValueError: no classifier there, a damaged file, or a base that is missing or another one.
    """
    folder = model_folder(path)
    tree, state, tensors = read_model(folder)
    if "decoder" not in tree:
        raise ValueError(f"{folder} holds a language model, not a classifier: llmfast classify trains one")
    config = from_dict(ClassifierConfig, tree)
    recorded = state.get("base")
    if recorded is None:
        if base is not None:
            raise ValueError(f"{folder} holds a whole model: it has no base to be found at {base}")
        with torch.device("meta"):
            model = SequenceClassifier(Decoder(config.decoder), config)
        decoder = {name.removeprefix("decoder."): each for name, each in tensors.items() if name.startswith("decoder.")}
        model.decoder = Decoder.from_tensors(config.decoder, decoder)
        model.head.load_state_dict({name: tensors[f"head.{name}"] for name in ("weight", "bias")}, assign=True)
    else:
        model = on_base(
            folder, config.decoder, lambda decoder: SequenceClassifier(without_head(decoder), config), base=base
        )
    return model.eval().requires_grad_(False), Tokenizer.load(folder)


def calibration_file(checkpoint: Path) -> Path:
    """Where the temperature of a checkpoint is kept, if one was fitted."""
    return checkpoint / CALIBRATION_FILE


def load_temperature(path: Path) -> float:
    """What the logits of the classifier at ``path``, as for ``load_classifier``, are to be divided by; 1 by default.

    Raises:
        ValueError: a damaged file.
    """
    file = calibration_file(model_folder(path))
    return float(read_json(file)["temperature"]) if file.exists() else 1.0


def predict(
    model: SequenceClassifier, tokenizer: Tokenizer, texts: Iterable[str], *, temperature: float = 1.0
) -> Iterator[Prediction]:
    """What the model says of each text, in order; longer texts are cut as in training.

    Texts are read ``WINDOW`` at a time and worked through in batches of like length, so that little is padded.

    Args:
        model: the classifier, in evaluation mode.
        tokenizer: that of the model.
        texts: any number of them.
        temperature: what logits are divided by, as ``load_temperature`` has it.

    Raises:
        ValueError: a model that has diverged.
    """
    texts = iter(texts)
    while window := list(islice(texts, WINDOW)):
        # One token more than is used tells which texts are cut.
        rows = [encode_text(tokenizer, text, model.config.max_tokens + 1) for text in window]
        logits = _logits(model, [row[: model.config.max_tokens] for row in rows], tokenizer.eot_token)
        if not logits.isfinite().all():
            raise ValueError("the classifier's outputs hold NaN or infinity: it has diverged")
        for text, row, each in zip(window, rows, logits / temperature, strict=True):
            yield predict_one(text, each, model.config, was_cut=len(row) > model.config.max_tokens)


@torch.no_grad()
def _logits(model: SequenceClassifier, rows: list[list[int]], padding: int) -> Tensor:
    """The outputs (N, O) for rows of tokens, in their order."""
    order = sorted(range(len(rows)), key=lambda place: len(rows[place]))
    outputs = torch.empty(len(rows), model.config.outputs)
    for first in range(0, len(order), AT_ONCE):
        places = order[first : first + AT_ONCE]
        batch = pad_rows([rows[place] for place in places], padding).to(model.head.weight.device)
        outputs[places] = model(batch.tokens, batch.lengths).logits.cpu()
    return outputs


def predict_one(text: str, outputs: Tensor, config: ClassifierConfig, *, was_cut: bool = False) -> Prediction:
    """What outputs (O,) say of a text."""
    if config.problem == "regression":
        return Prediction(text, value=float(outputs[0]), was_cut=was_cut)
    several = config.problem == "multi_label"
    numbers = outputs.sigmoid() if several else outputs.softmax(0)
    probabilities = dict(zip(config.labels, numbers.tolist(), strict=True))
    if several:
        # As in evaluations: from a probability of one half on.
        labels = tuple(name for name, logit in zip(config.labels, outputs.tolist(), strict=True) if logit > 0)
    else:
        labels = (max(probabilities, key=probabilities.__getitem__),)
    return Prediction(text, labels, probabilities, was_cut=was_cut)
