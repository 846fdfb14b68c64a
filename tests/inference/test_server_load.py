"""Many clients at once, slow ones, those that leave, and nonsense: nobody waits for them, and nothing leaks.

``LLMFAST_SERVER_SOAK`` is how many seconds the last test lasts; it is short if that is not set. 600 is the full form.
"""

import asyncio
import contextlib
import json
import os
import random
import time
from pathlib import Path

import httpx
import pytest
from small_server import running_server, slow_engine

from llmfast.inference.config import EngineConfig
from llmfast.inference.server.service import Limits

SOAK = float(os.environ.get("LLMFAST_SERVER_SOAK", 0))
FULL = SOAK >= 60
CLIENTS, LEAVERS = (100, 500) if FULL else (16, 60)
IDLE = ("open_choices", "running_sequences", "waiting_sequences", "cache_blocks_used")


def body(number, **settings):
    return {"model": "small", "prompt": f"number {number} red", "max_tokens": 24, "seed": number} | settings


def head(content):
    return (
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\nConnection: close\r\n\r\n"
    ).encode()


async def connect(running):
    host, port = running.url.removeprefix("http://").split(":")
    return await asyncio.open_connection(host, int(port), limit=2**12)


def text_of(stream):
    found = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: {")]
    return "".join(each["choices"][0]["text"] for each in found)


async def slow_reader(running, number):
    """Reads a few bytes at a time; returns the text of its stream."""
    content = json.dumps(body(number, stream=True)).encode()
    reader, writer = await connect(running)
    writer.write(head(content) + content)
    read = b""
    while part := await reader.read(1500):
        read += part
        await asyncio.sleep(0.01)
    writer.close()
    _, _, chunked = read.partition(b"\r\n\r\n")
    assert read.startswith(b"HTTP/1.1 200")
    # Chunks of the transfer may end anywhere; a line of a size is no line of data.
    return text_of(b"".join(_chunks(chunked)).decode())


def _chunks(data):
    while data:
        size, _, data = data.partition(b"\r\n")
        yield data[: int(size, 16)]
        data = data[int(size, 16) + 2 :]


async def leaver(running, draw):
    """Sends a request, or half of one, reads a little or nothing, and leaves without a word."""
    choices = draw.choice([1, 3])
    content = json.dumps(body(draw.randrange(1000), stream=draw.random() < 0.7, n=choices, max_tokens=300)).encode()
    reader, writer = await connect(running)
    whole = head(content) + content
    writer.write(whole if draw.random() < 0.8 else whole[: draw.randrange(len(whole))])
    await writer.drain()
    if draw.random() < 0.5:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(reader.read(draw.randrange(1, 2000)), draw.random() * 0.2)
    writer.transport.abort()


async def nonsense(running, draw):
    """Sends what is no request of the API; returns the status."""
    kind = draw.randrange(4)
    async with httpx.AsyncClient(base_url=running.url, timeout=60) as client:
        if kind == 0:
            content = draw.randbytes(200)
        elif kind == 1:
            content = json.dumps(body(0, prompt=[1] * 5000)).encode()
        elif kind == 2:
            content = json.dumps(body(0, prompt="a" * 30_000)).encode()
        else:
            content = json.dumps(body(0, temperature=-1)).encode()
        response = await client.post("/v1/completions", content=content, headers={"Content-Type": "application/json"})
        return response.status_code


def check_nothing_is_left(running):
    found = running.wait_until_idle()
    assert {name: found[name] for name in IDLE} == dict.fromkeys(IDLE, 0)
    assert found["cache_blocks_free"] == found["cache_blocks"]


def check_the_next_is_answered_at_once(running):
    started = time.monotonic()
    assert running.post("/v1/completions", body(0, max_tokens=1)).status_code == 200
    return time.monotonic() - started


@pytest.fixture(scope="module")
def running():
    config = EngineConfig(
        cache_blocks=200, batch_invariant=True
    )  # fewer than all at once need, so that some are preempted
    with running_server(config=config, limits=Limits(max_queue=1000, max_body=20_000)) as server:
        yield server


def test_many_clients_at_once_get_their_own_replies(running):
    """Each as if it were alone, slow readers among them, and none is lost."""
    alone = [running.post("/v1/completions", body(number)).json()["choices"][0]["text"] for number in range(CLIENTS)]

    async def quick(client, number):
        response = await client.post("/v1/completions", json=body(number))
        return response.json()["choices"][0]["text"]

    async def all_at_once():
        limits = httpx.Limits(max_connections=CLIENTS)
        async with httpx.AsyncClient(base_url=running.url, timeout=120, limits=limits) as client:
            jobs = [slow_reader(running, n) if n % 3 == 0 else quick(client, n) for n in range(CLIENTS)]
            return await asyncio.gather(*jobs)

    assert asyncio.run(all_at_once()) == alone
    check_nothing_is_left(running)


def test_a_client_that_never_reads_holds_up_nobody():
    with running_server(slow_engine(0.001), limits=Limits(timeout=60)) as running:

        async def scene():
            # With log-probabilities, so that its stream does not fit into the buffers of the sockets.
            content = json.dumps(body(1, stream=True, max_tokens=490, n=12, logprobs=20, ignore_eos=True)).encode()
            _, writer = await connect(running)
            writer.write(head(content) + content)
            await writer.drain()
            async with httpx.AsyncClient(base_url=running.url, timeout=60) as client:
                for number in range(5):
                    response = await client.post("/v1/completions", json=body(number, max_tokens=5))
                    assert response.status_code == 200
            writer.transport.abort()

        asyncio.run(scene())
        check_nothing_is_left(running)


def test_a_client_that_leaves_is_cancelled_at_the_next_step():
    """A count of steps, not of seconds: the engine generates far fewer tokens than were asked for."""
    long = body(1, max_tokens=400, ignore_eos=True)
    with running_server(slow_engine(0.02)) as running:
        with running.http.stream("POST", "/v1/completions", json=long | {"stream": True}) as response:
            next(response.iter_lines())
        check_nothing_is_left(running)
        with pytest.raises(httpx.ReadTimeout):
            running.post("/v1/completions", long, timeout=0.5)
        check_nothing_is_left(running)
        assert running.metrics()["generated_tokens_total"] < 400


def test_clients_that_leave_and_nonsense_leave_nothing_behind(running):
    draw = random.Random(0)

    async def scene():
        gate = asyncio.Semaphore(CLIENTS)

        async def one(number):
            async with gate:
                if number % 6 == 0:
                    assert await nonsense(running, draw) in (400, 413)
                else:
                    await leaver(running, draw)

        await asyncio.gather(*(one(number) for number in range(LEAVERS)))

    asyncio.run(scene())
    check_nothing_is_left(running)
    assert check_the_next_is_answered_at_once(running) < 1 + 5 * (not FULL)  # a busy machine of CI may be slow


def test_a_step_that_fails_fails_its_requests_and_no_others(running):
    """As when the memory of a GPU is full."""
    with running_server() as broken:
        runner = broken.service.worker.engine.runner
        forward, calls = runner.forward, iter(range(10**6))

        def fails_once(chunks):
            if next(calls) == 5:
                raise RuntimeError("out of memory")
            return forward(chunks)

        runner.forward = fails_once
        response = broken.post("/v1/completions", body(1))
        assert response.status_code == 500
        assert response.json()["error"]["type"] == "server_error"
        assert "out of memory" in response.json()["error"]["message"]
        assert broken.post("/v1/completions", body(1)).status_code == 200
        check_nothing_is_left(broken)


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.timeout(SOAK + 300)
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the memory of the process from /proc")
def test_memory_stays_flat(running):
    """Trap: a request that somebody still refers to keeps its prompt, and a server that runs for weeks grows."""
    draw = random.Random(1)

    async def round_(clients):
        async with httpx.AsyncClient(base_url=running.url, timeout=120) as client:
            for _ in range(clients):
                response = await client.post("/v1/completions", json=body(draw.randrange(10**6), max_tokens=10))
                assert response.status_code == 200
        await asyncio.gather(*(leaver(running, draw) for _ in range(clients)))
        await asyncio.gather(*(slow_reader(running, draw.randrange(10**6)) for _ in range(clients)))

    async def rounds(seconds, clients):
        end, sizes = time.monotonic() + seconds, []
        while not sizes or time.monotonic() < end:
            await round_(clients)
            sizes.append(resident_bytes())
        return sizes

    asyncio.run(rounds(SOAK / 4, 10))  # until caches are full
    sizes = asyncio.run(rounds(SOAK or 5, 10))
    shown = ", ".join(f"{size / 2**20:.1f}" for size in sizes[:: max(1, len(sizes) // 12)])
    print(f"\n{len(sizes)} rounds; resident MiB: {shown}")
    check_nothing_is_left(running)
    assert not running.service.worker._owners, "requests that are finished are forgotten"
    assert sizes[-1] - sizes[0] < 20 * 2**20
