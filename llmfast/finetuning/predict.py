"""Labels for texts by a trained classifier."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch

from llmfast.config import from_dict
from llmfast.data.labeled import encode_text, pad_rows
from llmfast.integrations.opening import on_base
from llmfast.models.classifier import ClassifierConfig, SequenceClassifier, without_head
from llmfast.models.decoder import Decoder
from llmfast.models.folder import model_folder, read_model
from llmfast.tokenizer import Tokenizer

AT_ONCE = 64


class Prediction(NamedTuple):
    """What a classifier says of one text."""

    text: str
    label: str
    probability: float
    """Of the label."""
    probabilities: dict[str, float]
    """Of all labels by name."""


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


def predict(model: SequenceClassifier, tokenizer: Tokenizer, texts: Iterable[str]) -> Iterator[Prediction]:
    """The label of each text, in order, as they become known; longer texts are cut as in training.

    Raises:
        ValueError: a model that has diverged.
    """
    texts, labels = iter(texts), model.config.labels
    device = model.head.weight.device
    while group := list(islice(texts, AT_ONCE)):
        rows = [encode_text(tokenizer, text, model.config.max_tokens) for text in group]
        batch = pad_rows(rows, tokenizer.eot_token).to(device)
        with torch.no_grad():
            probabilities = model(batch.tokens, batch.lengths).logits.softmax(1)
        if not probabilities.isfinite().all():
            raise ValueError("the classifier's logits hold NaN or infinity: it has diverged")
        for text, each in zip(group, probabilities.tolist(), strict=True):
            best = max(range(len(labels)), key=each.__getitem__)
            yield Prediction(text, labels[best], each[best], dict(zip(labels, each, strict=True)))
