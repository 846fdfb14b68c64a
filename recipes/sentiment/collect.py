"""Puts the figures of finished classifiers beside those of n-grams on the same split: writes FOLDER/table.json.

    python collect.py FOLDER AMAZON_TSV NEGATIVE_TXT POSITIVE_TXT RUN ...

What is held out is the validation and the test split together.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from llmfast.config import load
from llmfast.data.examples.labeled import divided
from llmfast.data.examples.labeled_text import LabeledText, read_labeled
from llmfast.finetuning.config import ClassificationConfig

Pair = tuple[list[str], list[int]]


def of_run(folder: Path) -> dict[str, object]:
    """Accuracy and loss of a run, over all texts of the held-out splits, and what it trained."""
    splits = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))["splits"]
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    texts = [split["texts"] for split in splits.values()]
    held = {name: float(np.average([s[name] for s in splits.values()], weights=texts)) for name in ("accuracy", "loss")}
    return {
        "classifier": folder.name,
        **held,
        "texts": sum(texts),
        "trained": summary["trained_parameters"],
        "share": summary["trained_parameters"] / summary["parameters"],
    }


def of_ngrams(name: str, train: Sequence[Pair], held_out: Pair) -> dict[str, object]:
    """Logistic regression on the words and pairs of words of ``train``."""
    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10, max_iter=1000)
    )
    model.fit([text for texts, _ in train for text in texts], [label for _, labels in train for label in labels])
    probabilities = model.predict_proba(held_out[0])
    labels = np.array(held_out[1])
    return {
        "classifier": name,
        "accuracy": float((probabilities.argmax(1) == labels).mean()),
        "loss": float(-np.log(probabilities[np.arange(len(labels)), labels]).mean()),
        "texts": len(labels),
        "trained": int(model[-1].coef_.size),
        "share": 1.0,
    }


def pair(examples: Sequence[LabeledText]) -> Pair:
    return [each.text for each in examples], [int(each.target in ("1", "pos")) for each in examples]


def main(folder: Path, reviews: str, bad: str, good: str, runs: Sequence[Path]) -> None:
    config = load(ClassificationConfig, runs[0] / "config.yaml").data
    config.sources = (reviews,)
    sides = divided(list(read_labeled(config)), config)
    amazon, held_out = pair(sides["train"]), pair(sides["validation"] + sides["test"])
    config.sources = (f"neg={bad}", f"pos={good}")
    movies = pair(list(read_labeled(config)))
    records = [
        of_ngrams("n-grams of Amazon reviews", [amazon], held_out),
        of_ngrams("n-grams of both", [movies, *[amazon] * 5], held_out),
        *map(of_run, runs),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.json").write_text(json.dumps(records, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:5], [Path(each) for each in sys.argv[5:]])
