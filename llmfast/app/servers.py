"""The processes that hold models: one for each model that is loaded, which all sessions of the dashboard share."""

from __future__ import annotations

import re
import secrets
import subprocess
import tempfile
import threading
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from llmfast.app import child

KEY_VARIABLE = "LLMFAST_API_KEY"


@dataclass(frozen=True)
class Server:
    """A process that serves one model."""

    name: str
    """Of the model in requests."""
    url: str
    """Where it listens, without a path."""
    key: str
    process: subprocess.Popen

    @property
    def memory(self) -> int | None:
        """Bytes of memory in use; None where the system does not tell."""
        try:
            found = subprocess.run(
                ["ps", "-o", "rss=", "-p", str(self.process.pid)], capture_output=True, text=True, check=True
            )
            return int(found.stdout) * 1024
        except (OSError, subprocess.CalledProcessError, ValueError):
            return None


class Servers:
    """Starts a server for each model that is asked for, and ends those that are no longer wanted.

    All methods may be called from any thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._servers: dict[Path, Future[Server]] = {}

    def get(self, model: Path) -> Server:
        """The server of a model, started if there is none; returns when it answers.

        Raises:
            ValueError: the model cannot be loaded; says why in the words of ``llmfast serve``.
        """
        model = model.resolve()
        with self._lock:
            found = self._servers.get(model)
            if found is not None and found.done() and not _runs(found):
                found = None
            is_first = found is None
            if found is None:
                found = self._servers[model] = Future()
        if is_first:
            try:
                found.set_result(_start(model))
            except BaseException as error:
                found.set_exception(error)
        return found.result()

    def loaded(self) -> dict[Path, Server]:
        """The servers that answer, by the folders of their models."""
        with self._lock:
            found = dict(self._servers)
        return {model: server.result() for model, server in found.items() if server.done() and _runs(server)}

    def unload(self, model: Path) -> None:
        """End the server of a model, which gives all of its memory back."""
        with self._lock:
            found = self._servers.pop(model.resolve(), None)
        if found is not None and found.exception() is None:  # waits for one that is just being loaded
            child.end(found.result().process)

    def close(self) -> None:
        """End all servers."""
        with self._lock:
            models = list(self._servers)
        for model in models:
            self.unload(model)


def _runs(server: Future[Server]) -> bool:
    return server.exception() is None and server.result().process.poll() is None


def _start(model: Path) -> Server:
    key = secrets.token_urlsafe()
    with tempfile.TemporaryFile("w+", encoding="utf-8") as errors:
        arguments = ["serve", str(model), "--name", model.name, "--port", "0"]
        process = child.start(arguments, stderr=errors, environment={KEY_VARIABLE: key})
        assert process.stdout is not None
        for line in process.stdout:
            if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                return Server(model.name, found[0], key, process)
        child.end(process)
        errors.seek(0)
        lines = errors.read().strip().splitlines()
    reason = lines[-1].removeprefix("llmfast: ") if lines else f"its server ended with exit code {process.returncode}"
    raise ValueError(f"{model.name} cannot be loaded: {reason}")
