# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""A loop to run coroutines in, and a server with a toy router in a thread of its own."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from imageio_testing.pki import Pki
from imageio_testing.serving import PATIENCE, Runner
from ovirt_imageio.daemon.http.connection import DEFAULT_TIMEOUTS, Connection, Timeouts
from ovirt_imageio.daemon.http.listeners import Listener
from ovirt_imageio.daemon.http.loop import Loop
from ovirt_imageio.daemon.http.registry import Connections
from ovirt_imageio.daemon.http.router import Router
from ovirt_imageio.daemon.http.tls import TlsConnection


@pytest.fixture
def run() -> Iterator[Runner]:
    before = set(threading.enumerate())
    fds = len(os.listdir("/proc/self/fd"))
    runner = Runner(max_workers=2)
    yield runner
    runner.close()
    assert set(threading.enumerate()) <= before, "a thread is left"
    assert len(os.listdir("/proc/self/fd")) <= fds, "a descriptor is left"


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two connected sockets: of the server, not blocking, and of the client."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.settimeout(PATIENCE)
    with ours, theirs:
        yield ours, theirs


class Server:
    """A service on a real socket, its loop in a thread."""

    def __init__(
        self,
        router: Router,
        sock: socket.socket,
        *,
        context: ssl.SSLContext | None = None,
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
        limit: int = 100,
        max_workers: int = 4,
    ) -> None:
        self.loop = Loop(max_workers=max_workers, worker_nice=0)
        self.router = router
        self.address = sock.getsockname()
        self.family = sock.family
        self.connections = Connections(self.loop, limit)
        self.timeouts = timeouts  # of connections that come

        def make(client: socket.socket, peer: str) -> Connection:
            options: dict[str, Any] = {"service": "test", "peer": peer, "timeouts": self.timeouts}
            if context is not None:
                return TlsConnection(self.loop, client, context, **options)
            return Connection(self.loop, client, **options)

        self.listener = Listener(self.loop, sock, make, router, self.connections)
        self._thread = threading.Thread(target=self.loop.run)

    def start(self) -> None:
        self.listener.start()
        self._thread.start()

    def stop(self) -> None:
        done = threading.Event()
        self.loop.call_soon_threadsafe(self._break_off, done)
        assert done.wait(PATIENCE)
        self.loop.stop()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        self.loop.close()

    def _break_off(self, done: threading.Event) -> None:
        self.listener.stop()
        self.connections.abort()

        async def wait() -> None:
            await self.connections.drained(PATIENCE)
            done.set()

        self.loop.spawn(wait())

    def call(self, function: Callable[[], Any]) -> Any:
        """Call a function in the loop's thread and return what it returns."""
        result: list[Any] = []
        done = threading.Event()

        def work() -> None:
            result.append(function())
            done.set()

        self.loop.call_soon_threadsafe(work)
        assert done.wait(PATIENCE)
        return result[0]

    def connect(self) -> socket.socket:
        sock = socket.socket(self.family)
        sock.settimeout(PATIENCE)
        sock.connect(self.address)
        return sock


Start = Callable[..., Server]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start servers: ``start(router, tcp=False, **options of Server)``."""
    before = set(threading.enumerate())
    with contextlib.ExitStack() as stack:

        def begin(router: Router, *, tcp: bool = False, **options: Any) -> Server:
            if tcp:
                sock = socket.create_server(("127.0.0.1", 0))
            else:
                sock = socket.socket(socket.AF_UNIX)
                sock.bind(str(tmp_path / "sock"))
                sock.listen(128)
            server = Server(router, sock, **options)
            server.start()
            stack.callback(server.stop)
            return server

        yield begin
    assert set(threading.enumerate()) <= before, "a thread is left"


@pytest.fixture
def server_context(pki: Pki) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pki.cert_file, pki.key_file)
    return context


@pytest.fixture
def client_context(pki: Pki) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=pki.ca_file)
