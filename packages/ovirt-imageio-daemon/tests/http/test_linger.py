# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""The fate of clients that send on when they were answered, and of a crowd of them."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator

import pytest

from imageio_testing.serving import PATIENCE, Runner
from ovirt_imageio.daemon.http import linger
from ovirt_imageio.daemon.http.connection import Connection
from ovirt_imageio.daemon.http.registry import Connections

ANSWER = b"HTTP/1.1 403 Forbidden\r\n\r\n"
REST = b"x" * 1000

Clients = Callable[..., tuple[list[Connection], list[socket.socket]]]


@pytest.fixture(autouse=True)
def crowd(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """One is a crowd already; the next is looked at when the test is long over."""
    monkeypatch.setattr(linger, "FEW", 0)
    monkeypatch.setattr(linger, "AT_ONCE", 1)
    monkeypatch.setattr(linger, "PERIOD", 3600.0)
    return monkeypatch


@pytest.fixture
def clients(run: Runner) -> Iterator[Clients]:
    """Connections that are answered, and their clients, who still send."""
    registry = Connections(run.loop, 100)
    with contextlib.ExitStack() as stack:

        def make(count: int, *, tcp: bool = False) -> tuple[list[Connection], list[socket.socket]]:
            listening = stack.enter_context(socket.create_server(("127.0.0.1", 0))) if tcp else None
            ours, theirs = [], []
            for _ in range(count):
                if listening is None:
                    server, client = socket.socketpair()
                else:
                    client = socket.create_connection(listening.getsockname())
                    server = listening.accept()[0]
                client.settimeout(PATIENCE)
                theirs.append(stack.enter_context(client))
                ours.append(Connection(run.loop, server))
                stack.callback(ours[-1].close)
                registry.add(ours[-1])
                registry.busy(ours[-1])
                server.sendall(ANSWER)
                client.sendall(REST)
            return ours, theirs

        yield make


async def until(run: Runner, condition: Callable[[], bool]) -> None:
    while not condition():
        await run.loop.sleep(0)


def left(connection: Connection) -> int:
    """Return how many bytes of a client nobody has thrown away."""
    try:
        return len(connection.socket.recv(1 << 20, socket.MSG_PEEK))
    except BlockingIOError:
        return 0


def test_of_a_crowd_one_is_served_at_a_time(run: Runner, clients: Clients) -> None:
    ours, _ = clients(3)

    async def scenario() -> list[int]:
        for connection in ours:
            run.loop.spawn(connection.linger())
        await until(run, lambda: not left(ours[0]))
        for _ in range(20):
            await run.loop.turn()
        return [left(connection) for connection in ours]

    assert run(scenario()) == [0, 1000, 1000]


def test_whole_crowd_has_its_turn(run: Runner, clients: Clients, crowd: pytest.MonkeyPatch) -> None:
    crowd.setattr(linger, "PERIOD", 0.0)

    async def scenario(ours: list[Connection], theirs: list[socket.socket]) -> list[bytes]:
        tasks = [run.loop.spawn(connection.linger()) for connection in ours]
        await until(run, lambda: not any(map(left, ours)))
        for client in theirs:
            client.sendall(REST)  # those who go on are looked at again
        await until(run, lambda: not any(map(left, ours)))
        answers = [client.recv(1000) for client in theirs]
        for client in theirs:
            client.close()
        await until(run, lambda: all(task.done for task in tasks))
        return answers

    for _ in range(2):
        ours, theirs = clients(5)
        assert run(scenario(ours, theirs)) == [ANSWER] * 5
        assert not ours[0].lingering.is_crowd


def test_few_are_served_as_they_send(run: Runner, clients: Clients, crowd: pytest.MonkeyPatch) -> None:
    crowd.setattr(linger, "FEW", 3)
    ours, _ = clients(3)

    async def scenario() -> None:
        for connection in ours:
            run.loop.spawn(connection.linger())
        await until(run, lambda: not any(map(left, ours)))

    run(scenario())


def test_nobody_listens_to_a_crowd(run: Runner, clients: Clients) -> None:
    """However much they send, the loop sleeps."""
    ours, theirs = clients(3)

    async def scenario() -> tuple[int, list[int]]:
        for connection in ours:
            run.loop.spawn(connection.linger())
        await until(run, lambda: not left(ours[0]))
        turns = 0

        def count() -> None:
            nonlocal turns
            turns += 1
            run.loop.before_wait(count)

        count()
        for client in theirs:
            client.sendall(REST)
        await run.loop.sleep(0.05)
        return turns, [left(connection) for connection in ours]

    turns, unread = run(scenario())
    assert turns < 5
    assert unread == [1000, 2000, 2000]


def test_one_of_a_crowd_makes_room_at_once(run: Runner, clients: Clients) -> None:
    ours, _ = clients(3)
    registry = ours[0].registry
    assert registry is not None

    async def scenario() -> list[bool]:
        tasks = [run.loop.spawn(connection.linger()) for connection in ours]
        await until(run, lambda: not left(ours[0]) and registry.idle_count == 3)
        while registry.evict():
            await run.loop.turn()
        await until(run, lambda: all(task.done for task in tasks))
        return [task.done for task in tasks]

    assert run(scenario()) == [True] * 3


@pytest.mark.parametrize("few", [0, 100])
def test_silent_client_is_left(run: Runner, clients: Clients, crowd: pytest.MonkeyPatch, few: int) -> None:
    crowd.setattr(linger, "FEW", few)
    crowd.setattr(linger, "PERIOD", 0.0)
    crowd.setattr(linger, "SILENCE", 0.0)
    ours, theirs = clients(2)
    theirs[0].sendall(REST)

    async def scenario() -> None:
        for connection in ours:
            await connection.linger()

    run(scenario())
    assert [client.recv(1000) for client in theirs] == [ANSWER] * 2


def test_who_never_has_a_turn_is_left(run: Runner, clients: Clients, crowd: pytest.MonkeyPatch) -> None:
    crowd.setattr(linger, "TIME", 0.01)
    ours, theirs = clients(4)

    async def scenario() -> None:
        tasks = [run.loop.spawn(connection.linger()) for connection in ours]
        await until(run, lambda: all(task.done for task in tasks))

    run(scenario())
    for connection in ours:
        connection.close()
    # Unread bytes do not cost it the answer: on a Unix socket the error comes after it.
    assert [client.recv(1000) for client in theirs] == [ANSWER] * 4


def test_bytes_are_bounded(run: Runner, clients: Clients, crowd: pytest.MonkeyPatch) -> None:
    crowd.setattr(linger, "BYTES", 1000)
    ours, _ = clients(1)
    run(ours[0].linger())


@pytest.mark.parametrize("few", [0, 100])
def test_rest_that_tcp_holds_is_dropped(run: Runner, clients: Clients, crowd: pytest.MonkeyPatch, few: int) -> None:
    crowd.setattr(linger, "FEW", few)
    crowd.setattr(linger, "PERIOD", 0.0)
    dropped = bytearray(256 * 1024)
    crowd.setattr(linger, "_dropped", dropped)
    ours, theirs = clients(1, tcp=True)

    async def scenario() -> None:
        task = run.loop.spawn(ours[0].linger())
        theirs[0].setblocking(False)
        for _ in range(100):
            with contextlib.suppress(BlockingIOError):
                theirs[0].send(b"x" * (1 << 16))
            await run.loop.turn()
        theirs[0].shutdown(socket.SHUT_WR)
        await until(run, lambda: task.done)

    run(scenario())
    assert not any(dropped), "it was copied"
    ours[0].close()
    assert theirs[0].recv(1000) == ANSWER
    assert theirs[0].recv(1000) == b"", "the connection was reset"


@pytest.mark.parametrize("few", [0, 100])
def test_crowd_whose_uploads_were_cancelled(run: Runner, clients: Clients, crowd: pytest.MonkeyPatch, few: int) -> None:
    """TCP tells us nothing of who is not listened to, and still it ends."""
    crowd.setattr(linger, "FEW", few)
    crowd.setattr(linger, "PERIOD", 0.0)
    ours, theirs = clients(2, tcp=True)

    async def scenario() -> None:
        for connection in ours:
            connection.interrupt()
        tasks = [run.loop.spawn(connection.linger()) for connection in ours]
        await until(run, lambda: not any(map(left, ours)))
        for client in theirs:
            client.shutdown(socket.SHUT_WR)
        await until(run, lambda: all(task.done for task in tasks))

    run(scenario())
    for connection in ours:
        connection.close()
    assert [client.recv(1000) for client in theirs] == [ANSWER] * 2
