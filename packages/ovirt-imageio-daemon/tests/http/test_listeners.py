# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from ovirt_imageio.daemon.http import listeners
from ovirt_imageio.daemon.http.message import Request, Response
from ovirt_imageio.daemon.http.router import Route, Router

GET = b"GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n"
TICKET = b"GET /ticket HTTP/1.1\r\nHost: localhost\r\n\r\n"
SLOW = b"GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n"


class App:
    def __init__(self) -> None:
        self.gate = threading.Event()
        self.busy = threading.Event()
        self.peers: list[str] = []

    async def get(self, request: Request) -> Response:
        self.peers.append(request.peer)
        return Response(200)

    async def ticket(self, request: Request) -> Response:
        request.connection.ticket_id = "1"
        return Response(200)

    async def slow(self, request: Request) -> Response:
        self.busy.set()
        await request.connection.loop.worker(self.gate.wait, 10)
        return Response(200)


@pytest.fixture
def app() -> Iterator[App]:
    app = App()
    yield app
    app.gate.set()


@pytest.fixture
def router(app: App) -> Router:
    return Router(
        [
            Route("/x", {"GET": app.get}),
            Route("/ticket", {"GET": app.ticket}),
            Route("/slow", {"GET": app.slow}),
        ]
    )


@pytest.fixture
def clients() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


def ask(sock: socket.socket, data: bytes) -> bool:
    """Send a request; tell whether it was answered with 200."""
    try:
        sock.sendall(data)
        return sock.recv(1000).startswith(b"HTTP/1.1 200 OK")
    except (BrokenPipeError, ConnectionResetError):
        return False


def test_oldest_stranger_makes_room(start: Any, router: Router, clients: Any) -> None:
    server = start(router, limit=3)
    with_ticket, first, second = (clients.enter_context(server.connect()) for _ in range(3))
    assert ask(with_ticket, TICKET)
    assert ask(second, GET)
    assert ask(first, GET)  # now second is idle longest
    third = clients.enter_context(server.connect())
    assert ask(third, GET)
    assert ask(with_ticket, GET)
    assert ask(first, GET)
    assert not ask(second, GET)


def test_busy_connections_are_not_evicted(start: Any, router: Router, app: App, clients: Any) -> None:
    server = start(router, limit=2)
    busy, ticket = (clients.enter_context(server.connect()) for _ in range(2))
    assert ask(ticket, TICKET)
    busy.sendall(SLOW)  # full, but nobody else wants in: none is evicted
    assert app.busy.wait(10)
    third = clients.enter_context(server.connect())
    third.sendall(GET)  # waits: there is nobody to evict
    app.gate.set()
    assert busy.recv(1000).startswith(b"HTTP/1.1 200")
    assert third.recv(1000).startswith(b"HTTP/1.1 200"), "the freed place was not used"
    assert ask(ticket, TICKET)


def test_flood_of_silent_connections_keeps_no_one_out(start: Any, router: Router, clients: Any) -> None:
    server = start(router, limit=10)
    for _ in range(100):
        clients.enter_context(server.connect())
    late = clients.enter_context(server.connect())
    assert ask(late, GET)
    assert server.call(lambda: len(server.connections)) <= 10


def test_lack_of_descriptors_does_not_spin(
    start: Any, router: Router, clients: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    server = start(router)
    tries, real = [], server.listener._socket
    failing = threading.Event()
    failing.set()

    class Listening:
        def accept(self) -> Any:
            if failing.is_set():
                tries.append(1)
                raise OSError(errno.EMFILE, "Too many open files")
            return real.accept()

        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

    idle = clients.enter_context(server.connect())
    assert ask(idle, GET)
    monkeypatch.setattr(listeners, "_PAUSE", 3600)
    server.call(lambda: setattr(server.listener, "_socket", Listening()))
    late = clients.enter_context(server.connect())
    assert idle.recv(1) == b"", "an idle connection should have made room"
    for _ in range(3):
        server.call(lambda: None)
    before = len(tries)
    assert 1 <= before <= 3
    monkeypatch.setattr(listeners, "_PAUSE", 0.01)
    server.call(server.connections._changed)  # ends the long pause, nothing ends the next
    while len(tries) == before:
        server.call(lambda: None)
    failing.clear()
    assert ask(late, GET)
    assert caplog.text.count("cannot accept") == 1


def test_client_that_has_the_last_descriptor_is_served(start: Any, router: Router, clients: Any) -> None:
    """accept(2) takes a descriptor before it looks whether a client waits."""
    server = start(router)
    real = server.listener._socket

    class Listening:
        left = 1

        def accept(self) -> Any:
            if not self.left:
                raise OSError(errno.EMFILE, "Too many open files")
            self.left -= 1
            return real.accept()

        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

    with server.connect() as first:
        assert ask(first, GET)
    server.call(lambda: setattr(server.listener, "_socket", Listening()))
    last = clients.enter_context(server.connect())
    assert ask(last, GET)
    assert ask(last, GET)


def test_lack_of_descriptors_for_each_client_is_told_once_in_a_period(
    start: Any, router: Router, clients: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    server = start(router)
    real, now = server.listener._socket, [1000.0]

    class Listening:
        room = False

        def accept(self) -> Any:
            self.room = not self.room
            if not self.room:
                return real.accept()
            raise OSError(errno.EMFILE, "Too many open files")

        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

    class Clock:
        """The loop, but for its time."""

        @property
        def now(self) -> float:
            return now[0]

        def __getattr__(self, name: str) -> Any:
            return getattr(server.loop, name)

    def come_and_go(count: int) -> None:
        for _ in range(count):
            assert ask(clients.enter_context(server.connect()), GET)  # the one before makes room

    come_and_go(1)
    server.call(lambda: setattr(server.listener, "_socket", Listening()))
    server.call(lambda: setattr(server.listener, "_loop", Clock()))
    come_and_go(5)
    assert caplog.text.count("cannot accept") == 1
    now[0] += listeners.PERIOD - 1
    come_and_go(5)
    assert caplog.text.count("cannot accept") == 1
    now[0] += 1
    come_and_go(5)
    assert caplog.text.count("cannot accept") == 2


def test_close_idle_of_a_ticket(start: Any, router: Router, clients: Any) -> None:
    server = start(router)
    with_ticket, without = (clients.enter_context(server.connect()) for _ in range(2))
    assert ask(with_ticket, TICKET)
    assert ask(without, GET)
    server.call(lambda: server.connections.close_idle("other"))
    assert ask(with_ticket, TICKET)
    server.call(lambda: server.connections.close_idle("1"))
    assert with_ticket.recv(1) == b""
    assert ask(without, GET)


def test_stop_accepting_and_drain(start: Any, router: Router, app: App, clients: Any) -> None:
    server = start(router)
    busy, idle = (clients.enter_context(server.connect()) for _ in range(2))
    assert ask(idle, GET)
    busy.sendall(SLOW)
    assert app.busy.wait(10)
    drained: list[bool] = []
    done = threading.Event()

    async def drain() -> None:
        drained.append(await server.connections.drained(0.01))
        app.gate.set()
        drained.append(await server.connections.drained(10))
        done.set()

    def stop() -> None:
        server.listener.stop()
        router.stopping = True
        server.connections.close_idle()
        server.loop.spawn(drain())

    server.call(stop)
    assert idle.recv(1) == b""
    answer = busy.recv(1000)
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"Connection: close" in answer
    assert done.wait(10)
    assert drained == [False, True]
    with socket.socket(server.family) as late, pytest.raises(ConnectionRefusedError):
        late.connect(server.address)


def test_connection_that_cannot_be_made_is_dropped(start: Any, router: Router, clients: Any, caplog: Any) -> None:
    server = start(router)
    make = server.listener._make_connection

    def fail(sock: socket.socket, peer: str) -> Any:
        server.listener._make_connection = make
        raise OSError("reset meanwhile")

    server.call(lambda: setattr(server.listener, "_make_connection", fail))
    assert clients.enter_context(server.connect()).recv(1) == b""
    assert ask(clients.enter_context(server.connect()), GET)
    assert "reset meanwhile" in caplog.text


def test_peer_name(start: Any, router: Router, app: App, clients: Any) -> None:
    assert ask(clients.enter_context(start(router).connect()), GET)
    tcp = clients.enter_context(start(router, tcp=True).connect())
    assert ask(tcp, GET)
    assert app.peers[0] == f"unix:pid={os.getpid()},uid={os.getuid()}"
    assert app.peers[1] == f"127.0.0.1:{tcp.getsockname()[1]}"
    with socket.socket(socket.AF_INET6) as sock:
        assert listeners.peer_name(sock, ("::1", 5, 0, 0)) == "[::1]:5"
        assert listeners.peer_name(sock, ("::ffff:10.0.0.1", 5, 0, 0)) == "10.0.0.1:5"
    assert re.fullmatch(r"[\w.:=,\[\]]+", app.peers[0])
