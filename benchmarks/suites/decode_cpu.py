"""Decoding on a CPU with packed weights, beside transformers, CTranslate2 and llama.cpp.

Every library runs in a process of its own with random weights of the same shape, and they take turns. Time to the first
token is that of reading the prompts and adding one token. The time of decoding is that of adding some more tokens, less
it. Quality is the perplexity of a small trained model with each width of weights, on text that it was not trained on.

llama.cpp comes from npm's package node-llama-cpp, in the folder of modules that ``LLMFAST_NODE_MODULES`` names.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from llmfast.data.shards import TokenShards
from llmfast.inference.native import NativeRunner, available_cpus
from llmfast.inference.runner import Chunk
from llmfast.integrations.opening import open_model
from llmfast.models.decoder import Decoder

from ..compare import one_line
from ..decoding import files
from ..results import NODE_MODULES, OURS, ROOT, Result, has_bfloat16
from .train_step import SHAPES, drawn

WIDTHS = ("float32", "bfloat16", "int8", "int4")
# transformers computes in 32 or 16 bits; CTranslate2 has no 4 bits, and 16 on some CPUs only.
PEERS = {"transformers": ("float32", "bfloat16"), "ctranslate2": ("float32", "int8"), "llama.cpp": WIDTHS}
CONTENDERS = tuple((name, width) for name, widths in ({OURS: WIDTHS} | PEERS).items() for width in widths)
ROUNDS = 3
HELD_OUT_TOKENS = 16_384


@dataclass(frozen=True)
class Work:
    """``batch`` prompts of ``prompt`` tokens, each continued by one token and by ``new`` more."""

    batch: int
    prompt: int
    new: int


def cases(size: str) -> Iterator[Decoding | Quality]:
    if size == "tiny":
        few = ((OURS, "int4"), ("transformers", "float32"))
        yield Decoding("toy GPT-2", 1, (Work(2, 8, 4),), few, rounds=1)
        return
    everything = (Work(1, 32, 32), Work(16, 32, 16), Work(1, 1000, 0))
    if size == "cpu-quick":
        yield Decoding("toy GPT-2", available_cpus(), (Work(1, 8, 16),), rounds=2)
        return
    for threads in sorted({1, available_cpus()}):
        yield Decoding("GPT-2 124M", threads, everything if threads > 1 else everything[:1])
    yield Quality(seconds=40)


FOLDER = tempfile.TemporaryDirectory(prefix="decode-cpu-")  # removed at exit


@functools.cache
def file_of(name: str, width: str, model: str) -> Path:
    """What a library reads; each file is written once.

    Raises:
        ModuleNotFoundError: the library is missing.
    """
    path = Path(FOLDER.name) / f"{model}-{name}-{width}".replace(" ", "-")
    if name == OURS:
        is_written = width != "float32"  # packed by the process itself, from the same file
        return file_of(name, "float32", model) if is_written else files.write_tensors(weights_of(model), path)
    if name == "llama.cpp":
        if NODE_MODULES not in os.environ or not shutil.which("node") or importlib.util.find_spec("gguf") is None:
            raise ModuleNotFoundError(f"llama.cpp needs node, {NODE_MODULES} and the package gguf")
        return files.write_gguf(weights_of(model), path, width)
    if importlib.util.find_spec(name) is None:
        raise ModuleNotFoundError(f"{name} is not installed")
    if name == "ctranslate2":
        return files.write_ctranslate2(file_of("transformers", "float32", model), path, width)
    return files.write_hugging_face(weights_of(model), path)


@functools.cache
def weights_of(model: str) -> Decoder:
    return drawn(SHAPES[model])


@dataclass(frozen=True)
class Decoding:
    model: str
    threads: int
    works: tuple[Work, ...]
    contenders: tuple[tuple[str, str], ...] = CONTENDERS  # libraries and widths
    rounds: int = ROUNDS

    def __str__(self) -> str:
        return f"{self.model} on {self.threads} thread{'s' * (self.threads > 1)}"

    def run(self, device: str, rounds: int, ceilings: dict[str, float]) -> list[Result]:
        with ExitStack() as stack:
            workers, absent = self._start(stack)
            results = [
                Result(self.model, {"threads": self.threads}, width, "decode", name, *why)
                for (name, width), why in absent.items()
            ]
            for work in self.works:
                results += self._measure(work, workers)
        return results

    def _start(self, stack: ExitStack) -> tuple[dict[tuple[str, str], Worker], dict[tuple[str, str], tuple[str, str]]]:
        """The processes by library and width, and why the others are absent."""
        workers, absent = {}, {}
        for name, width in self.contenders:
            try:
                command = self._command(name, width)
                workers[name, width] = stack.enter_context(Worker(command, self.threads))
            except ModuleNotFoundError as error:
                absent[name, width] = "missing", str(error)
            except Unfit as error:
                absent[name, width] = "skipped", str(error)
            except Exception as error:
                absent[name, width] = "failed", one_line(error)
        return workers, absent

    def _command(self, name: str, width: str) -> list[str]:
        if (name, width) == ("transformers", "bfloat16") and not has_bfloat16():
            raise Unfit("this processor has no instructions for bfloat16")
        path = file_of(name, width, self.model)
        if name == "llama.cpp":
            script = Path(files.__file__).with_name("llama_cpp.mjs")
            vocabulary = str(SHAPES[self.model].vocab_size)
            return ["node", str(script), os.environ[NODE_MODULES], str(path), str(self.threads), vocabulary]
        return [
            sys.executable,
            "-m",
            "benchmarks.decoding.worker",
            name,
            width,
            str(self.threads),
            self.model,
            str(path),
        ]

    def _measure(self, work: Work, workers: dict[tuple[str, str], Worker]) -> Iterator[Result]:
        first: dict[tuple[str, str], list[float]] = {key: [] for key in workers}
        more: dict[tuple[str, str], list[float]] = {key: [] for key in workers}
        failed: dict[tuple[str, str], str] = {}
        for _ in range(self.rounds):
            for key, worker in workers.items():
                if key in failed or (key[0] == "llama.cpp" and work.batch > 1):  # one sequence in this program
                    continue
                try:
                    first[key].append(worker.seconds(work.batch, work.prompt, 1))
                    if work.new:
                        all_of_them = worker.seconds(work.batch, work.prompt, 1 + work.new)
                        more[key].append(all_of_them - first[key][-1])
                except RuntimeError as error:
                    failed[key] = str(error)
        for key in workers:
            prompt = {"B": work.batch, "prompt": work.prompt, "threads": self.threads}
            if key in failed:
                yield self._result(prompt, "first token", key, "failed", failed[key])
            elif first[key]:
                yield self._result(prompt, "first token", key, times=first[key], tokens=work.batch * work.prompt)
                if work.new:
                    shape = {"B": work.batch, "prompt": work.prompt, "new": work.new, "threads": self.threads}
                    yield self._result(shape, "decode", key, times=more[key], tokens=work.batch * work.new)

    def _result(
        self,
        shape: dict[str, int],
        pass_: str,
        key: tuple[str, str],
        status: str = "ok",
        note: str = "",
        times: list[float] | None = None,
        tokens: int | None = None,
    ) -> Result:
        name, width = key
        if times is None:
            return Result(self.model, shape, width, pass_, name, status, note)
        low, middle, high = np.quantile(times, [0.2, 0.5, 0.8])
        return Result(self.model, shape, width, pass_, name, status, note, "clock", middle, low, high, tokens=tokens)


class Unfit(Exception):
    """Why a library would tell nothing here."""


class Worker:
    """A process that answers jobs with seconds (``benchmarks/decoding``)."""

    def __init__(self, command: list[str], threads: int):
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115, closed by __exit__
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=environment,
            cwd=ROOT,
        )
        try:
            self._answer("ready")
            self.seconds(1, 8, 2)  # warms up
        except BaseException:
            self.__exit__()
            raise

    def seconds(self, batch: int, prompt: int, new: int) -> float:
        self.process.stdin.write(json.dumps({"batch": batch, "prompt": prompt, "new": new}) + "\n")
        self.process.stdin.flush()
        return float(self._answer())

    def _answer(self, expected: str | None = None) -> str:
        for line in self.process.stdout:
            if expected is None or line.strip() == expected:
                return line
        self.process.wait()
        self.errors.seek(0)
        last = self.errors.read().decode(errors="replace").strip().splitlines()[-1:]
        raise RuntimeError(f"ended with code {self.process.returncode}: {' '.join(last)}")

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self.errors.close()


@dataclass(frozen=True)
class Quality:
    """Trains a small model for some seconds, and reads with it the text that was held out."""

    seconds: int

    def __str__(self) -> str:
        return "perplexity by width"

    def run(self, device: str, rounds: int, ceilings: dict[str, float]) -> list[Result]:
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder) / "run"
            command = [sys.executable, "-m", "llmfast.cli", "quickstart", "--out", str(run)]
            subprocess.run([*command, "--minutes", str(self.seconds / 60)], check=True, capture_output=True, cwd=folder)
            model, _ = open_model(run)
            tokens = TokenShards(run / "data" / "validation").read(0, HELD_OUT_TOKENS).tolist()
        results = []
        for width in WIDTHS:
            start = time.perf_counter()
            loss = held_out_loss(NativeRunner(model, width), tokens)
            seconds = time.perf_counter() - start
            results.append(
                Result("quickstart, held-out text", {"tokens": len(tokens)}, width, "perplexity", OURS, "ok", "",
                       "clock", seconds, seconds, seconds, tokens=len(tokens), perplexity=float(np.exp(loss)))
            )  # fmt: skip
        return results


def held_out_loss(runner: NativeRunner, tokens: list[int]) -> float:
    """Mean loss of the next token, in windows of the model's context."""
    context = runner.context
    runner.allocate(-(-context // 16), 16, "auto")
    blocks = list(range(-(-context // 16)))
    losses = []
    for begin in range(0, len(tokens) - context, context):
        window = tokens[begin : begin + context]
        logits = runner.forward([Chunk(window, 0, blocks, context)])
        targets = torch.tensor(tokens[begin + 1 : begin + context + 1])
        losses.append(torch.nn.functional.cross_entropy(logits, targets).item())
    return statistics.fmean(losses)
