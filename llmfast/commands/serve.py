"""``llmfast serve``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llmfast.inference.config import EngineConfig

if TYPE_CHECKING:
    from fastapi import FastAPI

    from llmfast.inference.server.service import Limits, Service

KEY_VARIABLE = "LLMFAST_API_KEY"


def serve(
    run: Path,
    /,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    name: str = "",
    adapters: tuple[str, ...] = (),
    api_key: str = "",
    cors: tuple[str, ...] = (),
    max_batch: int = 16,
    max_queue: int = 256,
    max_prompt: int | None = None,
    max_body: int = 4 * 2**20,
    timeout: float = 600.0,
    cache_dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = "auto",
    cache_memory: int | None = None,
    base: Path | None = None,
    device: str | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    weights: Literal["float32", "bfloat16", "int8", "int4", "nf4"] | None = None,
) -> None:
    """Serve a model over HTTP with OpenAI's API, and a page to chat with it, or a classifier at /classify.

    A first Ctrl-C (or SIGTERM) lets answers finish, a second one ends them.

    Args:
        run: A run folder (its newest checkpoint is used), a checkpoint, a Hugging Face folder, an adapter, or the run
            of a classifier.
        host: Address to listen at; 0.0.0.0 for all of this machine's, which others can reach.
        port: Port to listen at; 0 for any free one.
        name: The model's name in requests; that of the folder if left out.
        adapters: Adapters of the model as NAME=FOLDER, each a model of its own name for requests.
        api_key: Key that requests must have (Authorization: Bearer KEY); that of the environment variable
            LLMFAST_API_KEY if left out, where other users of this machine cannot read it.
        cors: Origins (https://example.org) whose pages may use the server from a browser; * for all.
        max_batch: Most replies that are generated at once.
        max_queue: Most replies that wait beside those; more are refused with the status 429.
        max_prompt: Most tokens of a prompt; as many as the model takes if left out.
        max_body: Most bytes of a request.
        timeout: Most seconds of a reply.
        cache_dtype: Of the keys and values that are held; auto is that of the model.
        cache_memory: Bytes for keys and values. If left out, enough for max_batch replies of full length, but at most
            1 GiB on a CPU and half of what is free on a GPU.
        base: Where the base of an adapter lies now, if it was moved since the training.
        device: cpu or cuda; a GPU if there is one.
        dtype: Compute in PyTorch in this. If left out, bfloat16 on a GPU and float32 on a CPU.
        weights: How the decoder for CPUs keeps the weights; or nf4, 4 bits in PyTorch. Adapters and embeddings need
            PyTorch, which --dtype asks for on a CPU.

    Raises:
        ValueError: no model there, a damaged file, an adapter of another base, a port that is taken, or a setting out
            of range.
    """
    config = EngineConfig(max_batch=max_batch, cache_dtype=cache_dtype, memory=cache_memory)
    named = dict(_name_and_folder(each) for each in adapters)
    if len(named) < len(adapters):
        raise ValueError(f"--adapters has a name twice: {' '.join(adapters)}")
    from llmfast.inference.server.run import listen
    from llmfast.inference.server.run import serve as serve_app
    from llmfast.inference.server.service import Limits
    from llmfast.models.folder import is_classifier

    key, name = api_key or os.environ.get(KEY_VARIABLE, ""), name or run.resolve().name
    of_language_models = {
        "adapters": adapters,
        "cors": cors,
        "cache_memory": cache_memory,
        "dtype": dtype,
        "weights": weights,
    }
    for_classifier = is_classifier(run)
    if for_classifier and (given := [option for option, value in of_language_models.items() if value]):
        raise ValueError(f"{given[0]} is for language models, and {run} holds a classifier: leave it out")
    limits = Limits(max_queue=max_queue, max_prompt=max_prompt, max_body=max_body, timeout=timeout)
    listening = listen(host, port)  # before the model is read, which takes longer
    try:
        url = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"
        if for_classifier:
            app, about = _classifier_app(run, name, limits, url, key=key, base=base, device=device)
        else:
            opening = {"base": base, "device": device, "dtype": dtype, "weights": weights}
            service = _service(run, name, named, config, limits, **opening)
            app, about = _app(service, url, key=key, cors=cors)
        _introduce(about, has_key=bool(key))
        serve_app(app, listening)
    finally:
        listening.close()


def _name_and_folder(text: str) -> tuple[str, Path]:
    name, equals, folder = text.partition("=")
    if not (name and equals and folder):
        raise ValueError(f"--adapters takes NAME=FOLDER, got {text!r}")
    return name, Path(folder)


def _service(
    run: Path, name: str, adapters: dict[str, Path], config: EngineConfig, limits: Limits, **opening: Any
) -> Service:
    from llmfast.inference.server.adapters import engine_with_adapters
    from llmfast.inference.server.service import Service

    engine, names = engine_with_adapters(run, adapters, config, **opening)
    return Service(engine, name, adapters=names, limits=limits)


def _app(service: Service, url: str, *, key: str, cors: tuple[str, ...]) -> tuple[FastAPI, list[tuple[str, str]]]:
    """The application of a language model, and what to say of it."""
    from llmfast.inference.server.app import make_app

    statistics, engine = service.worker.engine.statistics(), service.worker.engine
    about = [
        ("serving", f"{', '.join(service.models)}: up to {engine.limit:,} tokens, prompt and reply together"),
        ("cache", f"{statistics.blocks:,} blocks of {engine.config.block_size} tokens"),
        ("chat", url if service.can_chat else "this model has no chat template: completions only"),
        ("API", f"{url}/v1   try: curl {url}/v1/models"),
    ]
    return make_app(service, api_key=key, cors=cors), about


def _classifier_app(
    run: Path, name: str, limits: Limits, url: str, *, key: str, base: Path | None, device: str | None
) -> tuple[FastAPI, list[tuple[str, str]]]:
    """The application of a classifier, and what to say of it."""
    import torch

    from llmfast.finetuning.server import ClassifierService, make_classifier_app

    if device is not None and torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device is {device!r}, but torch finds no GPU here: choose cpu")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    service = ClassifierService.open(run, name, base=base, device=device)
    config = service.model.config
    about = [
        ("serving", f"{name}: reads up to {config.max_tokens:,} tokens of a text"),
        ("labels", ", ".join(config.labels) or "none: a number for each text"),
        ("API", f"{url}/classify"),
    ]
    return make_classifier_app(service, api_key=key, limits=limits), about


def _introduce(about: list[tuple[str, str]], *, has_key: bool) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    key = "required" if has_key else "none: whoever reaches this address can use the model"
    for label, value in [*about, ("key", key)]:
        console.print(Text(f"{label:<9}", "bold"), Text(value), sep="")
    console.print(Text("Ctrl-C ends it once answers are finished.", "dim"))
