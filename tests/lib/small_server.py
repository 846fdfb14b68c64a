"""A server of a model small enough to answer at once, on a free port, in a thread of this process."""

import contextlib
import dataclasses
import functools
import json
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import torch
from small_sft import small_tokenizer

from llmfast.data.chat.opening import open_chat
from llmfast.inference.config import EngineConfig
from llmfast.inference.engine import Engine
from llmfast.inference.runner import Chunk
from llmfast.inference.server.app import make_app
from llmfast.inference.server.run import Server, listen
from llmfast.inference.server.service import Limits, Service
from llmfast.models.config import DecoderConfig
from llmfast.models.decoder import Decoder
from llmfast.models.folder import save_model
from llmfast.tokenizer import Tokenizer

CONTEXT = 512


@functools.cache
def chat_tokenizer() -> Tokenizer:
    """The small tokenizer with chatml beside it."""
    return open_chat(small_tokenizer(), "chatml").tokenizer


def small_model(tokenizer: Tokenizer, seed: int = 0, **settings: object) -> Decoder:
    """Random weights; it writes nonsense."""
    shape = {"width": 16, "layers": 1, "heads": 2, "kv_heads": 1, "context": CONTEXT} | settings
    config = DecoderConfig(vocab_size=tokenizer.n_vocab, **shape)
    return Decoder(config, generator=torch.Generator().manual_seed(seed)).eval()


def write_chat_model(folder: Path, **settings: object) -> Path:
    """A folder with a model that has a chat template; returns it."""
    tokenizer = chat_tokenizer()
    save_model(folder, small_model(tokenizer, **settings), write_tokenizer=tokenizer.save)
    return folder


def slow_engine(seconds: float, config: EngineConfig | None = None) -> Engine:
    """The small model, each step of which takes that much longer."""
    engine = Engine(small_model(chat_tokenizer()), chat_tokenizer(), config)
    forward = engine.runner.forward

    def slowly(chunks: Sequence[Chunk]) -> torch.Tensor:
        time.sleep(seconds)
        return forward(chunks)

    engine.runner.forward = slowly
    return engine


@dataclasses.dataclass
class Running:
    """A server that runs."""

    url: str
    service: Service
    server: Server
    http: httpx.Client

    def post(self, path: str, body: object, **settings: object) -> httpx.Response:
        return self.http.post(path, json=body, **settings)

    def metrics(self) -> dict[str, float]:
        """The metrics without labels, by name."""
        lines = self.http.get("/metrics").text.splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))
        return {name.removeprefix("llmfast_"): float(value) for name, value in pairs}

    def wait_until_idle(self, seconds: float = 30) -> dict[str, float]:
        """The metrics once nothing is generated any more."""
        end = time.monotonic() + seconds
        while (found := self.metrics())["open_choices"] and time.monotonic() < end:
            time.sleep(0.02)
        return found


@contextlib.contextmanager
def running_server(
    engine: Engine | None = None,
    *,
    config: EngineConfig | None = None,
    limits: Limits | None = None,
    adapters: dict[str, str] | None = None,
    **settings: object,
) -> Iterator[Running]:
    """A server of ``engine``, or of the small model, which ends with the ``with`` block."""
    tokenizer = chat_tokenizer()
    # Replies have the same bits in any company, so that tests may compare them.
    engine = engine or Engine(small_model(tokenizer), tokenizer, config or EngineConfig(batch_invariant=True))
    service = Service(engine, "small", adapters=adapters, limits=limits)
    listening = listen("127.0.0.1", 0)
    server = Server(make_app(service, **settings))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    try:
        with httpx.Client(base_url=url, timeout=60) as http:
            http.get("/health").raise_for_status()
            yield Running(url, service, server, http)
    finally:
        server.should_exit = True
        thread.join(60)
        listening.close()
    assert not thread.is_alive(), "the server did not end"


def events(lines: Iterator[str]) -> Iterator[dict]:
    """The events of a stream up to [DONE]."""
    for line in lines:
        if line == "data: [DONE]":
            return
        if line:
            yield json.loads(line.removeprefix("data: "))
