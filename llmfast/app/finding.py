"""What there is under a folder: runs, models, tokenizers, prepared data, results."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

DEEPEST = 6
"""Folders below the one that is searched."""
PASSED_OVER = {"node_modules", "site-packages", "__pycache__"}


@dataclass(frozen=True)
class Model:
    """A folder with a model: a run, a checkpoint, a Hugging Face folder, or an adapter."""

    path: Path
    name: str
    is_classifier: bool = False


@dataclass(frozen=True)
class Found:
    """What there is. Names are paths from the folder that was searched."""

    folder: Path
    runs: dict[str, Path] = field(default_factory=dict)
    """The run that was written to last comes first."""
    models: dict[str, Model] = field(default_factory=dict)
    tokenizers: dict[str, Path] = field(default_factory=dict)
    data: dict[str, Path] = field(default_factory=dict)
    """Tokenizer and token shards, of ``llmfast data prepare`` or of a run."""
    evaluated: dict[str, Path] = field(default_factory=dict)
    """Folders beside which ``llmfast eval`` wrote results."""
    benchmarks: dict[str, Path] = field(default_factory=dict)
    """Result files of ``llmfast bench``."""

    @property
    def language_models(self) -> dict[str, Model]:
        return {name: model for name, model in self.models.items() if not model.is_classifier}

    @property
    def classifiers(self) -> dict[str, Model]:
        return {name: model for name, model in self.models.items() if model.is_classifier}


def find(folder: Path) -> Found:
    """Look through a folder. Checkpoints inside of runs are not listed: a run stands for its newest one.

    Raises:
        ValueError: it is not a folder.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")
    found = Found(folder)
    for path, files in _folders(folder):
        name = _name(path, folder)
        if _is_run(path):
            found.runs[name] = path
        if (model := _model(path, name)) is not None:
            found.models[name] = model
        if "tokenizer.json" in files:
            found.tokenizers[name] = path
            if all(any((path / split).glob("index*.json")) for split in ("train", "validation")):
                found.data[name] = path
        results = sorted(path / file for file in files if file.endswith(".json"))
        if path.name == "evaluations" and results:
            run = path.parent
            found.evaluated[_name(run, folder)] = run
        else:
            found.benchmarks.update({str(each.relative_to(folder)): each for each in results if _is_benchmark(each)})
    newest = sorted(found.runs.items(), key=lambda run: -last_written(run[1]))
    found.runs.clear()
    found.runs.update(newest)
    return found


def _name(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder)) if path != folder else path.resolve().name


def last_written(run: Path) -> float:
    """When a run was written to last, in seconds since 1970."""
    return max(_modified(run / name) for name in ("log.jsonl", "config.yaml"))


def _modified(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0


def _folders(top: Path) -> Iterator[tuple[Path, set[str]]]:
    """The folders below ``top``, itself included, with the names of their files."""
    for where, folders, files in os.walk(top):
        path = Path(where)
        depth = len(path.relative_to(top).parts)
        folders[:] = sorted(
            each for each in folders if depth < DEEPEST and not each.startswith(".") and each not in PASSED_OVER
        )
        if "checkpoints" in folders and _is_run(path):
            folders.remove("checkpoints")
        yield path, set(files)


def _is_run(path: Path) -> bool:
    return (path / "config.yaml").exists() and ((path / "log.jsonl").exists() or (path / "checkpoints").is_dir())


def _model(path: Path, name: str) -> Model | None:
    """The model in a folder; None where there is none. What is damaged counts: opening it says so."""
    from llmfast.models.folder import checkpoints, is_classifier

    if _is_run(path):
        holds_one = bool(checkpoints(path))
    else:
        settings = ("config.json", "adapter_config.json")
        holds_one = any(path.glob("*.safetensors")) and any((path / file).exists() for file in settings)
    return Model(path, name, is_classifier(path)) if holds_one else None


def _is_benchmark(file: Path) -> bool:
    """Whether a JSON file begins as those of ``llmfast bench``, without reading all of it."""
    try:
        with open(file, encoding="utf-8") as opened:
            beginning = opened.read(200)
    except (OSError, UnicodeDecodeError):
        return False
    return '"schema"' in beginning and '"suite"' in beginning
