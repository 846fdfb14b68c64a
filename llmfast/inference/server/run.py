"""A server in this process, until a signal ends it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import signal
import socket
import threading
from collections.abc import Iterator
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; to be closed by whoever serves on it.

    Raises:
        ValueError: the port is taken, or not allowed, or the host is not an address of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ValueError(f"host {host!r} is not an address: {error.strerror}") from None
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind(address)
        found.listen(1024)
    except OSError as error:
        found.close()
        reason = {
            errno.EADDRINUSE: "another program listens there; choose another --port",
            errno.EACCES: "ports below 1024 need privileges; choose another --port",
            errno.EADDRNOTAVAIL: "this machine does not have that address; choose another --host",
        }.get(error.errno, error.strerror)
        raise ValueError(f"port {port} of {host} cannot be used: {reason}") from None
    return found


class Server(uvicorn.Server):
    """Serves an application. The first signal lets answers finish; the second one ends them.

    Args:
        app: as above.
    """

    def __init__(self, app: ASGIApp):
        super().__init__(
            uvicorn.Config(app, lifespan="on", log_level="warning", access_log=False, timeout_keep_alive=30, ws="none")
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.force_exit, self.should_exit = self.should_exit, True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        if self.force_exit and self.server_state.tasks:
            await self.lifespan.shutdown()  # ends the answers
            if tasks := set(self.server_state.tasks):
                await asyncio.wait(tasks, timeout=1)
            # What still waits for its client to read is cancelled, and uvicorn would report that as an error.
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)


def serve(app: ASGIApp, listening: socket.socket) -> None:
    """Serve an application until SIGINT or SIGTERM.

    Raises:
        KeyboardInterrupt: a second signal came before all answers were finished.
    """
    server = Server(app)
    server.run(sockets=[listening])
    if server.force_exit:
        raise KeyboardInterrupt("ended before all answers were finished")
