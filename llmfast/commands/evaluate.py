"""``llmfast eval``."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from llmfast.data.shards import TokenShards
    from llmfast.evaluation.tasks import Task
    from llmfast.evaluation.tasks.asking import Asked
    from llmfast.inference.engine import Engine
    from llmfast.models.decoder import Decoder
    from llmfast.tokenizer import Tokenizer


def evaluate(
    run: Path,
    /,
    *,
    tasks: tuple[str, ...] = (),
    data: tuple[Path, ...] = (),
    examples: Path | None = None,
    limit: int | None = None,
    few_shot: int = 0,
    seed: int = 0,
    truncate: bool = False,
    chat: bool = False,
    samples: int = 1,
    temperature: float | None = None,
    max_tokens: int | None = None,
    contamination: Path | None = None,
    ngram: int = 13,
    stride: int | None = None,
    base: Path | None = None,
    device: str | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    out: Path | None = None,
) -> dict[str, Any]:
    """Measure a model on questions, or perplexity and bits per byte of text; returns what it writes as JSON.

    For example:

        llmfast eval runs/quickstart --tasks piqa hellaswag --limit 500

        llmfast eval runs/quickstart --tasks gsm8k --few_shot 5

        llmfast eval runs/quickstart --tasks text --data book.txt

    Args:
        run: A run folder (its newest checkpoint is used), a checkpoint, a Hugging Face folder or an adapter.
        tasks: Names, with spaces or commas between: hellaswag, hellaswag_plain, piqa, arc_easy, arc_challenge, copa,
            winogrande, mmlu, lambada, boolq; gsm8k, math, humaneval, whose answers are generated; or text.
        data: Local rows for the task, in place of the Hugging Face hub's; for text, files or folders of token shards.
        examples: Local rows to draw the examples of --few_shot from; with --data, its other rows if left out.
        limit: Only so many questions of each task, the first.
        few_shot: Solved examples before each question.
        seed: Draws the examples, and the answers that are generated.
        truncate: Cut the start off prompts that are longer than the model's context.
        chat: Ask in a conversation, by the model's chat template, with examples as its earlier turns.
        samples: Answers to generate to each question, for pass@k.
        temperature: Of generated answers; 0 for one sample and 0.8 for several if left out.
        max_tokens: Of a generated answer; what is usual for the task if left out.
        contamination: Folder of token shards of a training corpus in which to look for the questions.
        ngram: So many equal tokens in a row count as an overlap with the corpus.
        stride: For text, tokens between the starts of windows; the model's context if left out.
        base: Where the base of an adapter lies now, if it was moved since the training.
        device: cpu or cuda; a GPU if there is one.
        dtype: If left out, bfloat16 on a GPU and as the weights are on a CPU.
        out: Where to write the results; a file in the folder evaluations of the run if left out.

    Raises:
        ValueError: an unknown task, missing or damaged data or model, or a prompt longer than the context.
    """
    from llmfast.evaluation.tasks import TEXT, WritingTask, task_named
    from llmfast.evaluation.tasks.results import Corpus, likeliest, result, written
    from llmfast.evaluation.tasks.writing import Writing, engine_of
    from llmfast.inference.opening import open_on_device

    names = _names(tasks, data)
    chosen = [task_named(name) for name in names if name != TEXT]  # refused before the model is read
    _check_options(
        TEXT in names,
        any(isinstance(task, WritingTask) for task in chosen),
        questions={
            "limit": limit,
            "few_shot": few_shot or None,
            "examples": examples,
            "truncate": truncate or None,
            "chat": chat or None,
            "contamination": contamination,
        },
        generation={"samples": samples if samples != 1 else None, "temperature": temperature, "max_tokens": max_tokens},
        text={"stride": stride},
    )
    if temperature is None:
        temperature = 0.0 if samples == 1 else 0.8
    how = Writing(samples, temperature, max_tokens, seed, truncate, chat)

    model, tokenizer = open_on_device(run, base=base, device=device, dtype=dtype)
    common = _what_decided(run, model, tokenizer)
    corpus = None
    if contamination is not None:
        corpus = Corpus(_shards_of(contamination, tokenizer, "contamination"), ngram)
    asking = {"limit": limit, "few_shot": few_shot, "seed": seed}
    settings: dict[str, Any] = asking | {"truncate": truncate, "chat": chat}
    file = data[0] if data else None
    results: dict[str, Any] = {}
    engine: Engine | None = None
    for task in chosen:
        asked = _ask(task, file, examples, asking)
        if isinstance(task, WritingTask):
            engine = engine or engine_of(run, model, tokenizer, dtype=dtype)
            found = written(engine, task, asked, how)
        else:
            found = likeliest(model, tokenizer, task, asked, truncate=truncate, chat=chat)
        source = {"file": str(file)} if file else {"dataset": task.dataset, "config": task.config, "split": task.split}
        results[task.name] = {"source": source} | result(asked, found, tokenizer, corpus)
    if names == [TEXT]:
        settings = {"stride": stride or model.config.context}
        results[TEXT] = _text(model, tokenizer, data, stride)
    if corpus is not None:
        settings |= {"contamination": str(contamination), "ngram": ngram}
    if engine is not None:
        settings |= {"samples": samples, "temperature": temperature, "max_tokens": max_tokens}
    content = common | {"tasks": names, "data": [str(path) for path in data], "settings": settings, "results": results}
    content["examples"] = None if examples is None else str(examples)
    _save(content, out or _place(run, content))
    _show(results)
    return content


def _names(tasks: tuple[str, ...], data: tuple[Path, ...]) -> list[str]:
    """The names of tasks; there must be data for the task text, and data are of one task."""
    from llmfast.evaluation.tasks import TEXT

    names = [name.strip() for word in tasks for name in word.split(",") if name.strip()]
    if not names:
        raise ValueError("tasks is empty: name one, as in --tasks piqa")
    if TEXT in names and not data:
        raise ValueError("task text needs what to read: --data FILE ..., or a folder of token shards")
    if data and len(names) > 1:
        raise ValueError(f"data holds the rows of one task, but tasks are {', '.join(names)}: call once for each")
    if names != [TEXT] and len(data) > 1:
        raise ValueError(f"task {names[0]} reads one file, got {len(data)} in data")
    return names


def _check_options(
    has_text: bool, generates: bool, *, questions: dict[str, Any], generation: dict[str, Any], text: dict[str, Any]
) -> None:
    """Check that what is set, and not None, is used by the tasks."""
    for is_used, options, tasks in (
        (not has_text, questions, "questions and not for the task text"),
        (generates, generation, "tasks whose answers are generated (gsm8k, math, humaneval)"),
        (has_text, text, "the task text"),
    ):
        given = [name for name, value in options.items() if value is not None]
        if given and not is_used:
            raise ValueError(f"{given[0]} is for {tasks}: leave it out")


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


def _ask(task: Task, file: Path | None, examples: Path | None, settings: dict[str, Any]) -> list[Asked]:
    from llmfast.evaluation.tasks.asking import ask

    drawn = None
    if settings["few_shot"] and (examples is not None or (file is None and task.examples is not None)):
        drawn = task.rows(examples, examples=True)
    return ask(task, task.rows(file), examples=drawn, **settings)


def _shards_of(folder: Path, tokenizer: Tokenizer, name: str) -> TokenShards:
    from llmfast.data.shards import TokenShards

    shards = TokenShards(folder)
    if shards.fingerprint != tokenizer.fingerprint:
        raise ValueError(f"{name}: the shards in {folder} are of another tokenizer than the model's")
    return shards


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
    from llmfast.evaluation.perplexity import evaluate as evaluate_shards

    shards = _shards_of(folder, tokenizer, "data")
    found = evaluate_shards(model, shards, stride=stride)
    figures = asdict(found) | {"perplexity": math.exp(min(found.loss, 700.0))}
    figures = {key: {"value": value} for key, value in figures.items()}
    return {"form": "shards", "beginning_of_text": "the first token is not predicted", "figures": figures}


def _place(run: Path, content: dict[str, Any]) -> Path:
    """The file of these settings: evaluating again with the same replaces it."""
    from llmfast.files import json_sha256

    digest = json_sha256({key: value for key, value in content.items() if key != "results"})
    return run / "evaluations" / f"{'+'.join(content['tasks'])}-{digest[:12]}.json"


def _save(content: dict[str, Any], file: Path) -> None:
    from llmfast.files import atomic_write

    file.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(file, json.dumps(content, ensure_ascii=False, indent=2) + "\n")
    print(f"saved in {file}")


def _show(results: dict[str, Any]) -> None:
    for name, result in results.items():
        _show_figures(name, result["figures"])
        if overlap := result.get("contamination"):
            print(f"{name}: {overlap['overlapping']} of {result['questions']} questions overlap with the corpus")
            _show_figures("  the others", overlap["figures_without"] or {})


def _show_figures(name: str, figures: dict[str, Any]) -> None:
    for key, figure in figures.items():
        stderr = figure.get("stderr")
        value = f"{figure['value']:,}" if isinstance(figure["value"], int) else f"{figure['value']:.4f}"
        print(f"{name:<16}{key:<17}{value}" + ("" if stderr is None else f" ± {stderr:.4f}"))
