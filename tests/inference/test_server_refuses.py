"""What the server refuses: one sentence that names the field, in OpenAI's shape, and it lives on."""

import json
import socket
import time

import httpx
import openai
import pytest
from small_server import CONTEXT, running_server, slow_engine

from llmfast.inference.server.errors import ApiError, refused
from llmfast.inference.server.service import Limits

GOOD = {"model": "small", "prompt": "a", "max_tokens": 2}
CHAT = {"model": "small", "messages": [{"role": "user", "content": "a"}], "max_tokens": 2}
TOOL = {"type": "function", "function": {"name": "f"}}


@pytest.fixture(scope="module")
def running():
    with running_server(limits=Limits(max_queue=4, max_prompt=400, max_body=20_000)) as server:
        yield server


@pytest.fixture(autouse=True)
def lives_on(request):
    """After every refusal the next request is answered, and nothing is left over."""
    yield
    if "running" not in request.fixturenames:
        return
    running = request.getfixturevalue("running")
    assert running.post("/v1/completions", GOOD).status_code == 200
    found = running.wait_until_idle()
    assert (found["open_choices"], found["cache_blocks_used"], found["running_sequences"]) == (0, 0, 0)


def error_of(response):
    found = response.json()["error"]
    assert set(found) == {"message", "type", "param", "code"}
    assert "\n" not in found["message"]
    return found


BAD = {
    "empty prompt": ({"prompt": ""}, "prompt", "must not be empty"),
    "no tokens": ({"prompt": []}, "prompt", "must not be empty"),
    "an empty one of several": ({"prompt": ["a", ""]}, "prompt", "must not be empty"),
    "a number": ({"prompt": 5}, "prompt", "must be a text, a list of tokens"),
    "true among tokens": ({"prompt": [1, True]}, "prompt", "must be a text, a list of tokens"),
    "no such token": ({"prompt": [1, 10**6]}, "prompt", "the token 1000000"),
    "a negative token": ({"prompt": [-1]}, "prompt", "the token -1"),
    "a huge token": ({"prompt": [10**40]}, "prompt", "the token"),
    "longer than the context": ({"prompt": [1] * 600}, "prompt", "600 tokens"),
    "longer than the server takes": ({"prompt": [1] * 401}, "prompt", "up to 400"),
    "n = 0": ({"n": 0}, "n", "got 0"),
    "n too large": ({"n": 10**9}, "n", "got 1000000000"),
    "n more than it can queue": ({"n": 100}, "n", "100 replies"),
    "negative temperature": ({"temperature": -0.1}, "temperature", "got -0.1"),
    "a temperature as text": ({"temperature": "1"}, "temperature", "got '1'"),
    "top_p = 0": ({"top_p": 0}, "top_p", "got 0"),
    "top_p above 1": ({"top_p": 1.1}, "top_p", "got 1.1"),
    "max_tokens = 0": ({"max_tokens": 0}, "max_tokens", "got 0"),
    "max_tokens = 1.5": ({"max_tokens": 1.5}, "max_tokens", "got 1.5"),
    "min_tokens above max_tokens": ({"min_tokens": 5}, "min_tokens", "from 0 to max_tokens"),
    "an empty stop": ({"stop": [""]}, "stop", "must be a valid string"),
    "a stop that is a number": ({"stop": 5}, "stop", "got 5"),
    "penalty": ({"presence_penalty": 3}, "presence_penalty", "got 3"),
    "a bias without a token": ({"logit_bias": {"x": 1}}, "logit_bias", "'x'"),
    "a bias of no token": ({"logit_bias": {"999999": 1}}, "logit_bias", "999999"),
    "a bias too large": ({"logit_bias": {"5": 101}}, "logit_bias", "got 101"),
    "a seed too large": ({"seed": 2**64}, "seed", "less than"),
    "stop tokens": ({"stop_token_ids": [999999]}, "stop_token_ids", "999999"),
    "too many alternatives": ({"logprobs": 21}, "logprobs", "got 21"),
    "an unknown field": ({"best_of": 2}, "best_of", "not a field"),
    "usage without a stream": ({"stream_options": {"include_usage": True}}, "stream_options", "with stream"),
    "an unknown stream option": ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "not a field"),
}


@pytest.mark.parametrize(("change", "param", "message"), BAD.values(), ids=BAD)
def test_a_completion(running, change, param, message):
    response = running.post("/v1/completions", GOOD | change)
    found = error_of(response)
    assert response.status_code == 400
    assert found["type"] == "invalid_request_error"
    assert found["param"] == param
    assert message in found["message"]
    assert param.split(".")[0] in found["message"]


BAD_CHATS = {
    "no messages": ({"messages": []}, "messages"),
    "messages that are none": ({"messages": "hi"}, "messages"),
    "a role": ({"messages": [{"role": "king", "content": "a"}]}, "messages[0].role"),
    "an image": ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
    "a number as content": ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    "a call by a user": ({"messages": [{"role": "user", "tool_calls": [
        {"type": "function", "function": {"name": "", "arguments": "{}"}}]}]}, "messages"),
    "arguments that are no JSON": ({"messages": [{"role": "assistant", "tool_calls": [
        {"type": "function", "function": {"name": "", "arguments": "{"}}]}]}, "messages"),
    "too long": ({"messages": [{"role": "user", "content": "lamp " * 600}]}, "messages"),
    "a forced call": ({"tools": [TOOL], "tool_choice": "required"}, "tool_choice"),
    "a forced function": ({"tools": [TOOL], "tool_choice": {"type": "function"}}, "tool_choice"),
    "one call at most": ({"tools": [TOOL], "parallel_tool_calls": False}, "parallel_tool_calls"),
    "a tool of another kind": ({"tools": [{"type": "browser"}]}, "tools[0].type"),
    "alternatives without log-probabilities": ({"top_logprobs": 2}, "top_logprobs"),
    "two limits": ({"max_completion_tokens": 3}, "max_tokens"),
    "a format": ({"response_format": {"type": "xml"}}, "response_format.type"),
    "a schema that is missing": ({"response_format": {"type": "json_schema"}}, "response_format"),
    "audio": ({"modalities": ["audio"]}, "modalities"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "param"), BAD_CHATS.values(), ids=BAD_CHATS)
@pytest.mark.parametrize("stream", [False, True])
def test_a_chat(running, change, param, stream):
    response = running.post("/v1/chat/completions", CHAT | {"stream": stream} | change)
    assert response.status_code == 400
    assert error_of(response)["param"] == param


BODIES = {
    "nothing": b"",
    "no JSON": b"{'model'}",
    "half of it": b'{"model": "small", "prom',
    "a list": b"[]",
    "not UTF-8": b'{"model": "small", "prompt": "\xff"}',
    "half a character": b'{"model": "small", "prompt": "\\ud800"}',
    "an infinite temperature": b'{"model": "small", "prompt": "a", "temperature": 1e999}',
    "no number": b'{"model": "small", "prompt": "a", "temperature": NaN}',
    "far too deep": b"[" * 5000,
    "a name that is missing": b'{"model": "small"}',
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_a_body(running, body):
    for path in ("/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/tokenize"):
        response = running.http.post(f"{path}", content=body, headers={"Content-Type": "application/json"})
        assert response.status_code == 400
        error_of(response)


def test_invalid_utf8_is_named(running):
    body = b'{"model": "small", "prompt": "\xff"}'
    response = running.http.post("/v1/completions", content=body, headers={"Content-Type": "application/json"})
    assert "UTF-8" in error_of(response)["message"]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/tokenize"])
def test_a_model_that_is_not_here(running, path):
    body = {"model": "gpt-4", "prompt": "a", "messages": CHAT["messages"], "input": "a"}
    wanted = {"/v1/completions": "prompt", "/v1/chat/completions": "messages", "/v1/embeddings": "input"}
    body = {name: value for name, value in body.items() if name in ("model", wanted.get(path, "prompt"))}
    response = running.post(path, body)
    assert response.status_code == 404
    found = error_of(response)
    assert (found["param"], found["code"]) == ("model", "model_not_found")
    assert "'gpt-4'" in found["message"]


def test_paths_and_methods(running):
    for response, status in (
        (running.http.get("/v1/nothing"), 404),
        (running.http.get("/v1/completions"), 405),
        (running.http.delete("/v1/models"), 405),
    ):
        assert response.status_code == status
        error_of(response)


def test_only_json_is_taken(running):
    """Trap: a form on another site can send text/plain to a server on this machine without asking."""
    response = running.http.post("/v1/completions", content=json.dumps(GOOD), headers={"Content-Type": "text/plain"})
    assert response.status_code == 415
    error_of(response)


@pytest.mark.parametrize("announced", [True, False], ids=["with its length", "in parts"])
@pytest.mark.parametrize("size", [30_000, 3_000_000])
def test_a_body_that_is_too_large(running, announced, size):
    body = json.dumps(GOOD | {"prompt": "a" * size}).encode()
    content = body if announced else (body[place : place + 10_000] for place in range(0, len(body), 10_000))
    try:
        response = running.http.post("/v1/completions", content=content, headers={"Content-Type": "application/json"})
    except httpx.WriteError:
        assert size > 80_000, "a body a little too large is read, so that the client sees why"
        return
    assert response.status_code == 413
    assert "20000 bytes" in error_of(response)["message"]


def test_a_truncated_prompt(running):
    with running_server() as other:
        body = {"model": "small", "prompt": [1] * (CONTEXT + 100), "max_tokens": 10}
        assert other.post("/v1/completions", body).status_code == 400
        response = other.post("/v1/completions", body | {"truncate_prompt": True})
        assert response.status_code == 200
        assert response.json()["usage"]["prompt_tokens"] == CONTEXT - 10


def test_embeddings_of_a_text_that_is_too_long(running):
    response = running.post("/v1/embeddings", {"model": "small", "input": [[1] * 401]})
    assert response.status_code == 400
    assert error_of(response)["param"] == "input"


def test_tokens_that_do_not_exist(running):
    for tokens in ([10**6], [10**30]):
        response = running.post("/detokenize", {"tokens": tokens})
        assert response.status_code == 400
        assert error_of(response)["param"] == "tokens"


def test_a_key():
    with running_server(api_key="secret") as running:
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "secret"},
            {"Authorization": "Basic secret"},
        ):
            for path in ("/v1/models", "/metrics", "/v1/completions", "/nothing"):
                response = running.http.get(f"{path}", headers=headers)
                assert response.status_code == 401
                assert error_of(response)["code"] == "invalid_api_key"
        assert running.http.get("/health").status_code == 200
        assert running.http.get("/").status_code == 200
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="secret", max_retries=0)
        assert client.completions.create(**GOOD).choices
        with pytest.raises(openai.AuthenticationError, match="Bearer KEY"):
            openai.OpenAI(base_url=f"{running.url}/v1", api_key="wrong", max_retries=0).models.list()
    with running_server(api_key="schlüssel") as running:
        for key in ("schlüssel".encode(), "schlüssel".encode("latin-1")):
            response = running.http.get("/v1/models", headers={"Authorization": b"Bearer " + key})
            assert response.status_code == (200 if key == "schlüssel".encode() else 401)


def test_other_sites_may_not_read_answers_unless_allowed(running):
    origin = {"Origin": "https://example.org", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in running.http.get("/v1/models", headers=origin).headers
    assert running.http.options("/v1/completions", headers=origin).status_code == 405
    with running_server(cors=["https://example.org"], api_key="secret") as open_to_others:
        response = open_to_others.http.options("/v1/completions", headers=origin)
        assert response.status_code == 200
        assert response.headers["access-control-allow-origin"] == "https://example.org"
        other = open_to_others.http.options("/v1/completions", headers=origin | {"Origin": "https://evil.org"})
        assert "access-control-allow-origin" not in other.headers


def test_a_body_that_does_not_come():
    """Trap: a client that sends one byte a minute keeps a connection for ever."""
    with running_server(limits=Limits(body_timeout=0.3)) as running:
        address = ("127.0.0.1", int(running.url.rpartition(":")[2]))
        with socket.create_connection(address, timeout=20) as slow:
            slow.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                b"Content-Length: 10\r\n\r\n{"
            )
            assert slow.recv(4096).startswith(b"HTTP/1.1 408")


def test_a_reply_that_takes_too_long():
    with running_server(slow_engine(0.01), limits=Limits(timeout=0.2)) as running:
        body = GOOD | {"max_tokens": 500, "ignore_eos": True}
        response = running.post("/v1/completions", body)
        assert response.status_code == 504
        assert error_of(response)["code"] == "timeout"
        stream = running.post("/v1/completions", body | {"stream": True}).text
        last = json.loads(stream.strip().splitlines()[-1].removeprefix("data: "))
        assert last["error"]["code"] == "timeout"
        assert running.wait_until_idle()["cache_blocks_used"] == 0


def test_a_queue_that_is_full():
    with running_server(slow_engine(0.01), limits=Limits(max_queue=0)) as running:
        long = GOOD | {"max_tokens": 500, "ignore_eos": True, "n": 16}
        with running.http.stream("POST", "/v1/completions", json=long | {"stream": True}) as response:
            next(response.iter_lines())
            refusal = running.post("/v1/completions", GOOD)
            assert refusal.status_code == 429
            assert refusal.headers["retry-after"] == "1"
            assert error_of(refusal)["type"] == "rate_limit_error"
        started = time.monotonic()
        assert running.wait_until_idle()["open_choices"] == 0
        assert running.post("/v1/completions", GOOD).status_code == 200
        assert time.monotonic() - started < 30


def test_the_engines_names_become_those_of_the_api():
    error = refused(ValueError("samples must be at least 1, got 0"))
    assert isinstance(error, ApiError)
    assert (error.message, error.param) == ("n must be at least 1, got 0", "n")


@pytest.mark.parametrize(
    ("setting", "value"),
    [("max_queue", -1), ("max_prompt", 0), ("max_body", 0), ("timeout", 0.0), ("body_timeout", float("inf"))],
)
def test_limits_out_of_range(setting, value):
    with pytest.raises(ValueError, match=setting):
        Limits(**{setting: value})
