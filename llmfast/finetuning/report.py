"""What a finished classifier is worth: tables, plots and ``evaluation.json`` in its run folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from llmfast.evaluation.calibration import fit_temperature
from llmfast.files import atomic_write
from llmfast.finetuning.classification import Classification
from llmfast.finetuning.outputs import Outputs, outputs_of
from llmfast.finetuning.predict import calibration_file
from llmfast.finetuning.problems import Classes, Problem, SingleLabel
from llmfast.training.checkpoints.checkpoint import checkpoint_folder
from llmfast.training.session import Session
from llmfast.visualization.classification import (
    MOST_COLUMNS,
    confusion_table,
    label_table,
    plot_confusion,
    plot_reliability,
)

EVALUATION_FILE = "evaluation.json"
CONFUSION_PLOT, RELIABILITY_PLOT = "confusion.png", "reliability.png"


def evaluate_classifier(session: Session, console: Console) -> None:
    """Evaluate a trained run on the validation and test splits: print the figures, and write them and the plots.

    With ``calibrate``, a temperature is fitted to the validation split first, and kept beside the newest checkpoint.
    All processes call it.
    """
    task, trainer, folder = session.task, session.trainer, session.run.folder
    assert isinstance(task, Classification)
    splits = {name: split for name, split in task.prepared.splits.items() if name != "train"}
    found = {name: outputs_of(split, trainer) for name, split in splits.items()}
    if not trainer.world.is_main:
        return
    temperature = None
    if task.config.calibrate:
        temperature = calibrate(task.problem, found["validation"], console)
        record = json.dumps({"temperature": temperature}) + "\n"
        atomic_write(calibration_file(checkpoint_folder(folder, trainer.steps_done)), record)
    write_report(folder, task.problem, task.classifier.labels, found, temperature=temperature, console=console)


def write_report(
    folder: Path,
    problem: Problem,
    names: Sequence[str],
    found: dict[str, Outputs],
    *,
    temperature: float | None,
    console: Console,
) -> None:
    """Print the figures of each split, and details of the last one; write all of them and the plots in ``folder``.

    Args:
        folder: the run.
        problem: what was asked.
        names: the labels.
        found: outputs by the name of their split.
        temperature: what logits are divided by, if one was fitted.
        console: where to print.
    """
    splits = {}
    for split, outputs in found.items():
        figures = outputs.figures(problem)
        splits[split] = {"texts": len(outputs.targets), **figures, **_details(outputs, problem, names)}
        if temperature is not None:
            cooled = outputs.cooled(temperature).figures(problem)
            splits[split]["calibrated"] = {name: cooled[name] for name in ("loss", "calibration_error")}
        shown = ", ".join(f"{name.replace('_', ' ')} {figure:.4g}" for name, figure in figures.items())
        console.print(f"{split:<11} {shown}")
    record = _finite({"labels": list(names), "temperature": temperature, "splits": splits})
    atomic_write(folder / EVALUATION_FILE, json.dumps(record, indent=2) + "\n")
    split, last = list(found.items())[-1]
    if isinstance(problem, Classes):
        console.print(f"\n{split} split, by label")
        console.print(label_table(names, problem.counts(last.logits, last.targets)))
        plot_reliability(
            problem.reliability(last.logits, last.targets),
            folder / RELIABILITY_PLOT,
            after=temperature and problem.reliability(last.cooled(temperature).logits, last.targets),
            temperature=temperature,
        )
    if isinstance(problem, SingleLabel):
        confusion = problem.confusion(last.logits, last.targets)
        plot_confusion(names, confusion, folder / CONFUSION_PLOT)
        console.print()
        console.print(confusion_table(names, confusion) if len(names) <= MOST_COLUMNS else _worst(names, confusion))


def calibrate(problem: Classes, validation: Outputs, console: Console) -> float:
    """The temperature that fits the validation split best; says what it changes there."""
    temperature = fit_temperature(validation.logits, validation.targets)
    before, after = (
        problem.reliability(each.logits, each.targets).error for each in (validation, validation.cooled(temperature))
    )
    console.print(f"temperature {temperature:.3f}, for a calibration error in validation of {before:.3f} → {after:.3f}")
    return temperature


def _worst(names: Sequence[str], confusion: np.ndarray) -> str:
    """The most frequent confusions of many labels."""
    wrong = confusion - np.diag(np.diag(confusion))
    order = np.argsort(-wrong, axis=None, kind="stable")[:MOST_COLUMNS]
    places = [divmod(int(place), len(names)) for place in order]
    pairs = [f"{names[t]} as {names[p]} ({wrong[t, p]:,})" for t, p in places if wrong[t, p]]
    return f"most often confused: {', '.join(pairs) or 'none'}"


def _details(outputs: Outputs, problem: Problem, names: Sequence[str]) -> dict[str, Any]:
    details: dict[str, Any] = {}
    if isinstance(problem, Classes):
        counts = problem.counts(outputs.logits, outputs.targets)
        columns = zip(names, counts.precision, counts.recall, counts.f1, counts.support, strict=True)
        details["by_label"] = {
            name: {"precision": float(p), "recall": float(r), "f1": float(f1), "texts": int(support)}
            for name, p, r, f1, support in columns
        }
    if isinstance(problem, SingleLabel):
        details["confusion"] = problem.confusion(outputs.logits, outputs.targets).tolist()
    return details


def _finite(value: Any) -> Any:
    """JSON has no NaN: a figure that there is not, such as the correlation with a constant, is null."""
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
