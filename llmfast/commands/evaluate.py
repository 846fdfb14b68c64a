"""``llmfast eval``."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from llmfast.models.decoder import Decoder
    from llmfast.tokenizer import Tokenizer


def evaluate(
    run: Path,
    /,
    *,
    tasks: str = "",
    data: tuple[Path, ...] = (),
    examples: Path | None = None,
    limit: int | None = None,
    few_shot: int = 0,
    seed: int = 0,
    truncate: bool = False,
    stride: int | None = None,
    base: Path | None = None,
    device: str | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    out: Path | None = None,
) -> dict[str, Any]:
    """Measure a model on questions, or perplexity and bits per byte of text; returns what it writes as JSON.

    For example:

        llmfast eval runs/quickstart --tasks piqa,hellaswag --limit 500

        llmfast eval runs/quickstart --tasks text --data book.txt

    Args:
        run: A run folder (its newest checkpoint is used), a checkpoint, a Hugging Face folder or an adapter.
        tasks: Names with commas between: hellaswag, hellaswag_plain, piqa, arc_easy, arc_challenge, copa, winogrande,
            mmlu, lambada, boolq; or text.
        data: Local rows for the task, in place of the Hugging Face hub's; for text, files or folders of token shards.
        examples: Local rows to draw the examples of --few_shot from; with --data, its other rows if left out.
        limit: Only so many questions of each task, the first.
        few_shot: Solved examples before each question.
        seed: Draws the examples.
        truncate: Cut the start off prompts that are longer than the model's context.
        stride: For text, tokens between the starts of windows; the model's context if left out.
        base: Where the base of an adapter lies now, if it was moved since the training.
        device: cpu or cuda; a GPU if there is one.
        dtype: If left out, bfloat16 on a GPU and as the weights are on a CPU.
        out: Where to write the results; a file in the folder evaluations of the run if left out.

    Raises:
        ValueError: an unknown task, missing or damaged data or model, or a prompt longer than the context.
    """
    from llmfast.evaluation.tasks import TEXT, task_named

    names = [name.strip() for name in tasks.split(",") if name.strip()]
    if not names:
        raise ValueError("tasks is empty: name one, as in --tasks piqa")
    for name in names:  # refused before the model is read
        if name != TEXT:
            task_named(name)
    if data and len(names) > 1:
        raise ValueError(f"data holds the rows of one task, but tasks are {', '.join(names)}: call once for each")
    if TEXT in names and not data:
        raise ValueError("task text needs what to read: --data FILE ..., or a folder of token shards")
    if names != [TEXT] and len(data) > 1:
        raise ValueError(f"task {names[0]} reads one file, got {len(data)} in data")
    given = {"limit": limit, "few_shot": few_shot, "examples": examples, "truncate": truncate or None}
    if TEXT in names and (unused := [name for name, value in given.items() if value]):
        raise ValueError(f"{unused[0]} is for questions and not for the task text: leave it out")
    if stride is not None and TEXT not in names:
        raise ValueError("stride is for the task text: leave it out")

    model, tokenizer = _open(run, base, device, dtype)
    common = _what_decided(run, model, tokenizer)
    results: dict[str, Any] = {}
    settings: dict[str, Any] = {"limit": limit, "few_shot": few_shot, "seed": seed, "truncate": truncate}
    for name in names:
        if name == TEXT:
            results[name] = _text(model, tokenizer, data, stride)
            settings = {"stride": stride or model.config.context}
        else:
            results[name] = _questions(model, tokenizer, name, data, examples, settings)
    content = common | {"tasks": names, "data": [str(path) for path in data], "settings": settings, "results": results}
    content["examples"] = None if examples is None else str(examples)
    _write(content, out or _place(run, content))
    _show(results)
    return content


def _open(run: Path, base: Path | None, device: str | None, dtype: str | None) -> tuple[Decoder, Tokenizer]:
    import torch

    from llmfast.integrations.opening import open_model

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device is {device!r}, but torch finds no GPU here: choose cpu")
    model, tokenizer = open_model(run, base=base)
    wanted = dtype or ("bfloat16" if device.startswith("cuda") else None)
    return model.to(device, wanted and getattr(torch, wanted)).eval(), tokenizer


def _what_decided(run: Path, model: Decoder, tokenizer: Tokenizer) -> dict[str, Any]:
    import torch

    from llmfast import __version__
    from llmfast.files import file_sha256
    from llmfast.integrations.peft.files import is_adapter_folder
    from llmfast.models.folder import CONFIG_FILE, model_folder

    folder = run if is_adapter_folder(run) or (run / CONFIG_FILE).exists() else model_folder(run)
    weight = next(model.parameters())
    return {
        "run": str(run),
        "checkpoint": str(folder),
        "weights_sha256": {file.name: file_sha256(file) for file in sorted(folder.glob("*.safetensors"))},
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "context": model.config.context,
        "device": weight.device.type,
        "dtype": str(weight.dtype).removeprefix("torch."),
        "llmfast": __version__,
        "torch": torch.__version__,
    }


def _questions(
    model: Decoder,
    tokenizer: Tokenizer,
    name: str,
    data: tuple[Path, ...],
    examples: Path | None,
    settings: dict[str, Any],
) -> dict[str, Any]:
    from llmfast.evaluation.tasks import task_named
    from llmfast.evaluation.tasks.choosing import ask, measure
    from llmfast.inference.prompts import beginning

    task = task_named(name)
    file = data[0] if data else None
    drawn = None
    if settings["few_shot"] and (examples is not None or (file is None and task.examples is not None)):
        drawn = task.rows(examples, examples=True)
    chosen = {key: settings[key] for key in ("limit", "few_shot", "seed")}
    asked = ask(task, task.rows(file), examples=drawn, **chosen)
    figures = measure(model, tokenizer, task, asked, truncate=settings["truncate"])
    source = {"file": str(file)} if file else {"dataset": task.dataset, "config": task.config, "split": task.split}
    return {
        "form": "cloze" if task.is_cloze else "multiple choice",
        "beginning_of_text": tokenizer.decode(beginning(tokenizer)),
        "source": source,
        "questions": len(asked),
        "figures": {key: asdict(figure) for key, figure in figures.items()},
    }


def _text(model: Decoder, tokenizer: Tokenizer, data: tuple[Path, ...], stride: int | None) -> dict[str, Any]:
    from llmfast.evaluation.likelihood import beginning_of_text
    from llmfast.evaluation.text import documents, text_figures

    folders = [path for path in data if path.is_dir()]
    if folders and len(data) > 1:
        raise ValueError(f"data: {folders[0]} is a folder of shards, which is measured by itself")
    if folders:
        return _shards(model, tokenizer, folders[0], stride)
    figures = text_figures(model, tokenizer, documents(data), stride=stride)
    start = tokenizer.decode([beginning_of_text(tokenizer)])
    return {"form": "text", "beginning_of_text": start, "figures": {k: {"value": v} for k, v in figures.items()}}


def _shards(model: Decoder, tokenizer: Tokenizer, folder: Path, stride: int | None) -> dict[str, Any]:
    from llmfast.data.shards import TokenShards
    from llmfast.evaluation.perplexity import evaluate as evaluate_shards

    shards = TokenShards(folder)
    if shards.fingerprint != tokenizer.fingerprint:
        raise ValueError(f"data: the shards in {folder} are of another tokenizer than the model's")
    found = evaluate_shards(model, shards, stride=stride)
    figures = asdict(found) | {"perplexity": math.exp(min(found.loss, 700.0))}
    figures = {key: {"value": value} for key, value in figures.items()}
    return {"form": "shards", "beginning_of_text": "the first token is not predicted", "figures": figures}


def _place(run: Path, content: dict[str, Any]) -> Path:
    """The file of these settings: evaluating again with the same replaces it."""
    from llmfast.files import json_sha256

    digest = json_sha256({key: value for key, value in content.items() if key != "results"})
    return run / "evaluations" / f"{'+'.join(content['tasks'])}-{digest[:12]}.json"


def _write(content: dict[str, Any], file: Path) -> None:
    from llmfast.files import atomic_write

    file.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(file, json.dumps(content, ensure_ascii=False, indent=2) + "\n")
    print(f"saved in {file}")


def _show(results: dict[str, Any]) -> None:
    for name, result in results.items():
        for key, figure in result["figures"].items():
            stderr = figure.get("stderr")
            value = f"{figure['value']:,}" if isinstance(figure["value"], int) else f"{figure['value']:.4f}"
            print(f"{name:<16}{key:<17}{value}" + ("" if stderr is None else f" ± {stderr:.4f}"))
