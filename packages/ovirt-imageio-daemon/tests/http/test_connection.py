# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Both halves of a connection: the loop's, a worker's, and how one is woken."""

from __future__ import annotations

import contextlib
import math
import socket
import ssl
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from ovirt_imageio.common.errors import OperationCancelled, PeerGone
from ovirt_imageio.daemon.errors import ClientTimeout, DeadlineExpired
from ovirt_imageio.daemon.http import peers
from ovirt_imageio.daemon.http.connection import Connection, Timeouts
from ovirt_imageio.daemon.http.message import Request, RequestBody, Response, StreamedBody
from ovirt_imageio.daemon.http.router import Route, Router
from ovirt_imageio.daemon.http.tls import TlsConnection

Run = Any  # conftest.Runner
SOON = 0.02


@pytest.fixture
def connection(run: Run) -> Iterator[Connection]:
    ours, theirs = socket.socketpair()
    theirs.settimeout(10)
    connection = Connection(run.loop, ours, timeouts=Timeouts(inactivity=SOON))
    connection.peer_socket = theirs  # type: ignore[attr-defined]
    yield connection
    connection.close()
    theirs.close()


def client_of(connection: Connection) -> socket.socket:
    sock: socket.socket = connection.peer_socket  # type: ignore[attr-defined]
    return sock


def test_fill_appends(run: Run, connection: Connection) -> None:
    async def main() -> None:
        client_of(connection).send(b"ab")
        assert await connection.fill()
        client_of(connection).send(b"cd")
        assert await connection.fill()
        client_of(connection).close()
        assert not await connection.fill()

    run(main())
    assert connection.buffer == b"abcd"


def test_client_without_inactivity_timeout_is_waited_for(run: Run, connection: Connection) -> None:
    connection.inactivity_timeout = math.inf

    async def main() -> None:
        filling = run.loop.spawn(connection.fill())
        await run.loop.sleep(2 * SOON)
        assert not filling.done
        client_of(connection).send(b"ab")
        while not filling.done:
            await run.loop.sleep(0)

    run(main())
    assert connection.buffer == b"ab"


def test_ticket_with_more_patience_than_usual_has_it_within_bodies(connection: Connection) -> None:
    connection.timeouts = Timeouts(body=5, inactivity=60)
    found = []
    for patience in (1, 60, 61, math.inf):
        connection.inactivity_timeout = patience
        found.append(connection.body_timeout)
    assert found == [5, 5, 61, 5]
    connection.timeouts = Timeouts(body=100, inactivity=60)
    connection.inactivity_timeout = 61
    assert connection.body_timeout == 100


def test_tcp_client_that_vanished_is_noticed_by_the_kernel(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        connection = Connection(run.loop, server.accept()[0])
        assert connection.socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        connection.close()


def test_fill_times_out(run: Run, connection: Connection) -> None:
    with pytest.raises(DeadlineExpired):
        run(connection.fill())


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
@pytest.mark.parametrize("size", [10, 100_000, 5_000_000])
def test_send_of_any_size_and_kind(run: Run, connection: Connection, kind: Any, size: int) -> None:
    received = bytearray()

    def receive() -> None:
        while len(received) < size + 4:
            received.extend(client_of(connection).recv(1 << 20))

    async def main() -> None:
        reader = threading.Thread(target=receive)
        reader.start()
        await connection.send(b"head", kind(bytes([7]) * size))
        await run.loop.worker(reader.join)

    connection.inactivity_timeout = 10
    run(main())
    assert received == b"head" + bytes([7]) * size
    assert connection.head_sent


def test_send_to_a_client_that_takes_nothing(run: Run, connection: Connection) -> None:
    with pytest.raises(DeadlineExpired):
        run(connection.send(bytes(10_000_000)))


def test_send_to_a_client_that_has_gone(run: Run, connection: Connection) -> None:
    client_of(connection).close()
    with pytest.raises(PeerGone):
        run(connection.send(b"x"))


def test_worker_takes_what_was_buffered_first(run: Run, connection: Connection) -> None:
    client_of(connection).send(b"defgNEXT")
    connection.buffer = b"abc"
    body = RequestBody(connection, 7)

    def receive(peer: Any) -> list[Any]:
        view = memoryview(bytearray(100))
        parts = [peer.take(2), peer.take(100), peer.take(100)]
        while True:
            count = peer.recv_into(view)
            parts.append(bytes(view[:count]))
            if not count:
                return parts

    parts = run(connection.in_worker(receive, body=body))
    assert parts == [b"ab", b"c", b"", b"defg", b""]
    assert body.consumed
    assert client_of(connection).send(b"") == 0
    assert connection.socket.recv(10) == b"NEXT"


def test_worker_never_takes_the_next_request(run: Run, connection: Connection) -> None:
    connection.buffer = b"abcNEXT"
    body = RequestBody(connection, 3)
    assert run(connection.in_worker(lambda peer: peer.take(100), body=body)) == b"abc"
    assert connection.buffer == b"NEXT"


def test_worker_without_a_body_receives_nothing(run: Run, connection: Connection) -> None:
    connection.buffer = b"NEXT"

    def receive(peer: Any) -> tuple[bytes, int]:
        return peer.take(10), peer.recv_into(memoryview(bytearray(10)))

    assert run(connection.in_worker(receive)) == (b"", 0)
    assert connection.buffer == b"NEXT"


def test_head_goes_before_the_payload_once(run: Run, connection: Connection) -> None:
    def send(peer: Any) -> None:
        assert not connection.head_sent
        peer.begin()
        peer.begin()
        peer.send_all(b"1")
        peer.send_all(memoryview(b"2"))

    run(connection.in_worker(send, head=b"head "))
    assert client_of(connection).recv(100) == b"head 12"


def test_head_goes_even_without_payload(run: Run, connection: Connection) -> None:
    run(connection.in_worker(lambda peer: None, head=b"head"))
    assert client_of(connection).recv(100) == b"head"


def test_failure_before_the_head_leaves_the_connection_usable(run: Run, connection: Connection) -> None:
    def fail(peer: Any) -> None:
        raise OSError("storage")

    with pytest.raises(OSError, match="storage"):
        run(connection.in_worker(fail, head=b"head"))
    assert not connection.head_sent
    assert not connection.broken
    assert not connection.socket.getblocking()


def test_body_that_cannot_come_any_more_is_known(run: Run, connection: Connection) -> None:
    connection.buffer = b"abc"
    client_of(connection).send(b"defg")
    body = RequestBody(connection, 8)
    body.check()  # it may still come
    client_of(connection).shutdown(socket.SHUT_WR)
    RequestBody(connection, 7).check()  # it is all here
    assert not connection.broken
    with pytest.raises(PeerGone, match="within the body"):
        body.check()
    assert connection.broken


def test_answers_to_strangers_let_nobody_go_first(run: Run, connection: Connection) -> None:
    async def is_noted() -> bool:
        await connection.send(b"answer")
        return bool(run.loop.expects)

    assert not run(is_noted())
    connection.ticket_id = "ticket"
    assert run(is_noted())


def test_client_hangs_up_when_it_has_left_for_good(run: Run, connection: Connection) -> None:
    client = client_of(connection)
    assert not connection.hung_up()
    client.shutdown(socket.SHUT_WR)
    assert not connection.hung_up()
    client.close()
    assert connection.hung_up()


def test_woken_connection_is_not_taken_for_one_whose_client_left(run: Run, connection: Connection) -> None:
    connection.wake(read_only=True)
    RequestBody(connection, 8).check()


def test_encrypted_bytes_may_be_the_rest_of_a_body(run: Run) -> None:
    ours, theirs = socket.socketpair()
    with contextlib.closing(TlsConnection(run.loop, ours, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))) as connection:
        connection.buffer, connection.raw = b"ab", b"cde"
        connection.incoming.write(b"fg")
        theirs.close()
        RequestBody(connection, 7).check()
        with pytest.raises(PeerGone):
            RequestBody(connection, 8).check()


def test_failure_with_a_body_breaks_the_connection(run: Run, connection: Connection) -> None:
    def fail(peer: Any) -> None:
        raise OSError("storage")

    with pytest.raises(OSError, match="storage"):
        run(connection.in_worker(fail, body=RequestBody(connection, 5)))
    assert connection.broken


def test_worker_times_out_in_the_kernel(run: Run, connection: Connection) -> None:
    view = memoryview(bytearray(10))
    with pytest.raises(ClientTimeout):
        run(connection.in_worker(lambda p: p.recv_into(view), body=RequestBody(connection, 5)))
    with pytest.raises(ClientTimeout):
        run(connection.in_worker(lambda p: p.send_all(bytes(10_000_000))))


def test_worker_gives_up_on_a_client_that_sends_drop_by_drop(run: Run, connection: Connection) -> None:
    connection.timeouts = Timeouts(body=0)
    connection.inactivity_timeout = 10
    client_of(connection).send(b"drops")

    def receive(peer: Any) -> None:
        view = memoryview(bytearray(1))
        for _ in range(5):
            peer.recv_into(view)

    with pytest.raises(ClientTimeout, match="next to nothing"):
        run(connection.in_worker(receive, body=RequestBody(connection, 1000)))


def test_time_spent_by_storage_is_not_the_clients(
    run: Run, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    client_of(connection).send(b"drops")
    clock = [0.0]
    monkeypatch.setattr(peers, "time", SimpleNamespace(monotonic=lambda: clock[0]))

    def receive(peer: Any) -> int:
        connection.timeouts = Timeouts(body=SOON)
        clock[0] += 2 * SOON
        return int(peer.recv_into(memoryview(bytearray(5))))

    assert run(connection.in_worker(receive, body=RequestBody(connection, 1000))) == 5


def test_splice_where_bytes_need_no_handling(run: Run, connection: Connection) -> None:
    def splice_fd(peer: Any) -> Any:
        return peer.splice_fd

    assert run(connection.in_worker(splice_fd)) == connection.fd
    assert run(connection.in_worker(splice_fd, body=RequestBody(connection, 5))) == connection.fd
    chunked = RequestBody(connection, None)
    assert run(connection.in_worker(splice_fd, body=chunked)) is None
    connection.can_splice = False
    assert run(connection.in_worker(splice_fd)) is None


def test_tcp_does_not_splice(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        with socket.create_connection(listening.getsockname()):
            connection = Connection(run.loop, listening.accept()[0])
            assert not connection.can_splice
            connection.close()


def test_close_tells_who_asked(run: Run, connection: Connection) -> None:
    closed: list[Connection] = []
    connection.on_close.append(closed.append)
    connection.close()
    connection.close()
    connection.wake()
    assert closed == [connection]


def test_a_connection_leaves_its_ticket_for_another_and_when_it_closes(run: Run, connection: Connection) -> None:
    left: list[tuple[str, Connection]] = []
    for ticket in ("one", "other"):
        connection.join(ticket, lambda who, ticket=ticket: left.append((ticket, who)))  # type: ignore[misc]
    assert connection.ticket_id == "other"
    assert left == [("one", connection)]
    connection.close()
    assert left == [("one", connection), ("other", connection)]


# Cancelling what a worker does.


class App:
    """Handlers that a test cancels while a worker waits for the client."""

    def __init__(self) -> None:
        self.waiting = threading.Event()
        self.connection: Any = None

    def routes(self) -> list[Route]:
        return [Route("/x", {"PUT": self.put, "GET": self.get})]

    async def put(self, request: Request) -> Response:
        def receive(peer: Any) -> None:
            view = memoryview(bytearray(1000))
            try:
                while peer.recv_into(view):
                    self.waiting.set()
            except PeerGone as e:
                raise OperationCancelled from e

        self.connection = request.connection
        return Response(200, body=await self.connection.in_worker(receive, body=request.body))

    async def get(self, request: Request) -> Response:
        self.connection = request.connection
        return Response(200, body=Endless(self))


class Endless(StreamedBody):
    length = 1 << 40

    def __init__(self, app: App) -> None:
        self.app = app

    async def send(self, connection: Connection, head: bytes) -> None:
        def send(peer: Any) -> None:
            peer.send_all(bytes(1000))
            self.app.waiting.set()
            try:
                while True:
                    peer.send_all(bytes(1 << 20))
            except PeerGone as e:
                raise OperationCancelled from e

        await connection.in_worker(send, head=head)


@pytest.fixture(params=["unix", "tcp", "tls"])
def served(
    request: Any, start: Any, server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> Iterator[tuple[Any, App, socket.socket]]:
    app = App()
    tcp = request.param != "unix"
    context = server_context if request.param == "tls" else None
    server = start(Router(app.routes()), tcp=tcp, context=context)
    sock = server.connect()
    if context:
        sock = client_context.wrap_socket(sock, server_hostname="localhost")
    with sock:
        yield server, app, sock


def test_cancelled_receive_is_answered(served: tuple[Any, App, socket.socket]) -> None:
    server, app, sock = served
    sock.sendall(b"PUT /x HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n" + bytes(10))
    assert app.waiting.wait(10)
    server.call(lambda: app.connection.wake(read_only=True))
    with contextlib.suppress(BrokenPipeError):
        sock.sendall(bytes(100_000))  # it has not noticed yet
    assert sock.recv(1000).startswith(b"HTTP/1.1 403 Forbidden\r\n")


def test_cancelled_send_ends_the_connection(served: tuple[Any, App, socket.socket]) -> None:
    server, app, sock = served
    sock.sendall(b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n")
    assert app.waiting.wait(10)
    server.call(lambda: app.connection.wake())
    with contextlib.suppress(ConnectionResetError, ssl.SSLError):
        while sock.recv(1 << 20):
            pass
