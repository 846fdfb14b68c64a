"""Runs a function in several processes connected by Gloo, as torchrun would start them, in a second or two."""

import multiprocessing
import os
import queue
import socket
import traceback

SECONDS = 120
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["torch.distributed.fsdp", "llmfast.training.loop", "jobs"])  # imported once


def run_ranks(function, size, *arguments):
    """``function(world, *arguments)`` in each of ``size`` processes; their results in the order of ranks.

    ``function`` must be importable by name, from ``jobs.py`` beside this file. A failure in any process is raised here
    with its traceback.
    """
    for _ in range(3):  # another program may take the port between our choice and our use of it
        results = _attempt(function, size, arguments)
        if not any(isinstance(each, str) and "address already in use" in each.lower() for _, each in results):
            break
    failures = [text for ok, text in results if not ok]
    # The first to fail says why; the others only that it went away.
    failures.sort(key=lambda text: "Connection" in text or "gloo" in text)
    assert not failures, failures[0]
    return [result for _, result in results]


def _attempt(function, size, arguments):
    port, answers = _free_port(), _context.Queue()
    processes = [
        _context.Process(target=_rank, args=(rank, size, port, function, arguments, answers), daemon=True)
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    found = {}
    try:
        while len(found) < size:
            rank, *found[rank] = answers.get(timeout=SECONDS)
    except queue.Empty:
        silent = sorted(set(range(size)) - set(found))
        found |= {rank: (False, f"no answer from rank {rank} in {SECONDS} s") for rank in silent}
    finally:
        for process in processes:
            process.join(5)
            process.kill()
    return [tuple(found[rank]) for rank in range(size)]


def _rank(rank, size, port, function, arguments, answers):
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(size),
        LOCAL_WORLD_SIZE=str(size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    import torch

    from llmfast.training.distribution.world import world

    torch.set_num_threads(1)
    try:
        with world("cpu") as this:
            answers.put((rank, True, function(this, *arguments)))
    except BaseException:
        answers.put((rank, False, traceback.format_exc()))


def _free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
