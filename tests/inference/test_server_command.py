"""``llmfast serve``: what it refuses to start with, adapters as models, and how signals end it."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest
import torch
from small_server import chat_tokenizer, running_server, small_model, write_chat_model

from llmfast.cli import main
from llmfast.finetuning import LoraConfig, add_adapter, save_adapter
from llmfast.inference.config import Sampling
from llmfast.inference.engine import Engine
from llmfast.inference.server.adapters import add_adapters


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_chat_model(tmp_path_factory.mktemp("model") / "small")


def adapter_of(model, folder, seed=1):
    """A folder with an adapter of ``model`` that changes what it writes."""
    draw = torch.Generator().manual_seed(seed)
    add_adapter(model, LoraConfig(rank=2), generator=draw)
    for name, parameter in model.named_parameters():
        if "adapters" in name:
            torch.nn.init.normal_(parameter, generator=draw)
    save_adapter(model, folder)
    return folder


def refusal(capsys, *arguments):
    """The one sentence with which the command ends."""
    assert main(["serve", *map(str, arguments)]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    (line,) = output.err.splitlines()
    return line


def test_no_model(capsys, tmp_path):
    assert str(tmp_path / "nothing") in refusal(capsys, tmp_path / "nothing", "--port", 0)


def test_a_run_half_written(capsys, tmp_path, folder):
    half = tmp_path / "half"
    shutil.copytree(folder, half)
    weights = half / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "damaged" in refusal(capsys, half, "--port", 0)
    weights.unlink()
    assert str(half) in refusal(capsys, half, "--port", 0)


def test_a_port_that_is_taken(capsys, folder):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        message = refusal(capsys, folder, "--port", port)
    assert f"port {port} of 127.0.0.1" in message
    assert "--port" in message


def test_a_host_that_is_not_ours(capsys, folder):
    assert "192.0.2.1" in refusal(capsys, folder, "--host", "192.0.2.1", "--port", 0)
    assert "no.such.host.invalid" in refusal(capsys, folder, "--host", "no.such.host.invalid")


def test_an_adapter_of_another_base(capsys, tmp_path, folder):
    adapter = adapter_of(small_model(chat_tokenizer(), seed=5), tmp_path / "adapter")
    message = refusal(capsys, folder, "--port", 0, "--adapters", f"other={adapter}")
    assert "another base" in message
    assert str(adapter) in message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--adapters", "name"], "NAME=FOLDER"),
        (["--adapters", "a=/nowhere"], "/nowhere does not exist"),
        (["--adapters", "a=x", "a=y"], "twice"),
        (["--max_queue", "-1"], "max_queue"),
        (["--timeout", "0"], "timeout"),
        (["--max_batch", "0"], "max_batch"),
    ],
)
def test_options(capsys, folder, options, message):
    assert message in refusal(capsys, folder, "--port", 0, *options)


def test_adapters_are_models(tmp_path, folder):
    """Each answers as the model with that adapter alone, in one batch with the others."""
    paths = {f"tuned-{seed}": adapter_of(small_model(chat_tokenizer()), tmp_path / str(seed), seed) for seed in (1, 2)}
    model = small_model(chat_tokenizer())
    names = add_adapters(model, paths)
    expected = {}
    for name in ("small", *paths):
        alone = small_model(chat_tokenizer())
        if name in paths:
            add_adapters(alone, {name: paths[name]})
        used = "served_0" if name in paths else None
        engine = Engine(alone, chat_tokenizer())
        ((reply,),) = engine.generate(["red"], Sampling(temperature=0, max_tokens=12), adapter=used)
        expected[name] = reply.text
    assert len(set(expected.values())) == 3
    with running_server(Engine(model, chat_tokenizer()), adapters=names) as running:
        listed = running.http.get("/v1/models").json()["data"]
        assert [(each["id"], each["parent"]) for each in listed] == [
            ("small", None), ("tuned-1", "small"), ("tuned-2", "small"),
        ]  # fmt: skip
        found = {}

        def ask(name):
            body = {"model": name, "prompt": "red", "temperature": 0, "max_tokens": 12}
            reply = httpx.post(f"{running.url}/v1/completions", json=body, timeout=60).json()
            found[name] = reply["choices"][0]["text"]

        threads = [threading.Thread(target=ask, args=(name,)) for name in expected]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == expected
        vectors = [
            running.post("/v1/embeddings", {"model": name, "input": "red"}).json()["data"][0]["embedding"]
            for name in expected
        ]
        assert vectors[0] != vectors[1] != vectors[2]


# --- signals ----------------------------------------------------------------------------------------------------------


class Process:
    """``llmfast serve`` as its own process."""

    def __init__(self, folder):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        command = [sys.executable, "-m", "llmfast.cli", "serve", str(folder), "--port", str(self.port)]
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
        self.url = f"http://127.0.0.1:{self.port}"
        for line in self.process.stdout:
            if "Ctrl-C" in line:
                break
        httpx.get(f"{self.url}/health", timeout=60).raise_for_status()

    def stream(self, **settings):
        body = {"model": "long", "prompt": "a", "stream": True, "ignore_eos": True, "max_tokens": 600} | settings
        return httpx.stream("POST", f"{self.url}/v1/completions", json=body, timeout=120)

    def end(self):
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def process(tmp_path):
    started = Process(write_chat_model(tmp_path / "long", context=4096, layers=4))
    yield started
    started.end()


def test_the_first_signal_lets_answers_finish(process):
    with process.stream() as response:
        lines = response.iter_lines()
        next(lines)
        process.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        with pytest.raises(httpx.HTTPError):  # nobody new is let in
            httpx.get(f"{process.url}/health", timeout=5)
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    assert json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
    assert process.process.wait(60) == 0
    assert "Traceback" not in process.process.stdout.read()


def test_the_second_signal_ends_answers(process):
    with process.stream(max_tokens=4000, n=8) as response:
        lines = response.iter_lines()
        next(lines)
        process.process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert process.process.poll() is None
        process.process.send_signal(signal.SIGINT)
        assert process.process.wait(60) == 130
    output = process.process.stdout.read()
    assert "before all answers were finished" in output
    assert "Traceback" not in output
